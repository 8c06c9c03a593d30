"""Reading digits: whole files give the digits, every other file one clear line."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import importlib.util
import pickle
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsram_ppl.data.digits.files import Digits, read_archive, read_mnist, read_sample
from wsram_ppl.errors import InputError

PROJECT = Path(__file__).resolve().parents[3]
SAMPLE = PROJECT / "wsram_ppl" / "data" / "digits" / "digits.npz"
SCRIPT = PROJECT / "scripts" / "build_sample.py"
MNIST = PROJECT.parent / "shared" / "data" / "mnist"

Files = dict[str, bytes]


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.astype(np.uint8).tobytes()


def small_mnist() -> tuple[dict[str, np.ndarray], Files]:
    """Arrays and plain files of 12 training and 7 test digits."""
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 12), ("t10k", 7)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, count, np.uint8)
    return arrays, {name: idx(array) for name, array in arrays.items()}


def write(root: Path, files: Files, zipped: bool = True) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        if zipped:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (raw / name).write_bytes(content)
    return root


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


# ---------------------------------------------------------------- whole files


@pytest.mark.parametrize("zipped", [True, False])
def test_the_digits_of_the_files(tmp_path: Path, zipped: bool) -> None:
    arrays, files = small_mnist()
    write(tmp_path, files, zipped)
    before = tree(tmp_path)
    for digits, prefix in zip(read_mnist(str(tmp_path)), ("train", "t10k"), strict=True):
        assert np.array_equal(digits.images, arrays[f"{prefix}-images-idx3-ubyte"])
        assert np.array_equal(digits.labels, arrays[f"{prefix}-labels-idx1-ubyte"])
        assert str(digits.images.dtype) == "torch.uint8" and str(digits.labels.dtype) == "torch.int64"
    assert tree(tmp_path) == before, "reading wrote into the folder"


def test_the_same_digits_as_torchvision(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    write(tmp_path, small_mnist()[1], zipped=False)
    for digits, train in zip(read_mnist(tmp_path), (True, False), strict=True):
        theirs = datasets.MNIST(tmp_path, train=train, download=False)
        assert digits.images.equal(theirs.data) and digits.labels.equal(theirs.targets)


def test_a_home_folder_in_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "data", small_mnist()[1])
    assert len(read_mnist("~/data")[0].labels) == 12


KAGGLE = {name: name.replace("-idx", ".idx") for name in small_mnist()[1]}


@pytest.mark.parametrize("place", ["MNIST/raw", "raw", "."])
@pytest.mark.parametrize("kaggle", [True, False])
def test_the_root_may_be_any_folder_above_the_files(tmp_path: Path, place: str, kaggle: bool) -> None:
    arrays, files = small_mnist()
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (KAGGLE[name] if kaggle else name)).write_bytes(content)
        if kaggle:  # whose archive has folders beside the files
            (folder / name).mkdir()
            (folder / name / name).write_bytes(content)
    before = tree(tmp_path)
    for root in {folder, folder.parent, tmp_path} - {tmp_path.parent}:
        training, test = read_mnist(root)
        assert np.array_equal(training.images, arrays[IMAGES])
        assert np.array_equal(test.labels, arrays[LABELS])
    assert tree(tmp_path) == before


def test_a_file_missing_where_torchvision_would_not_put_it(tmp_path: Path) -> None:
    files = small_mnist()[1]
    del files[LABELS]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_mnist(tmp_path)
    assert str(caught.value) == (
        f"no {LABELS}.gz in {tmp_path}, where the others are; put the missing files of MNIST there"
    )
    (tmp_path / LABELS).write_bytes(b"junk")
    with pytest.raises(InputError, match=rf"; delete it and put a good copy of {LABELS} there$"):
        read_mnist(tmp_path)


@pytest.mark.parametrize("root", [".", "MNIST", "MNIST/raw"])
def test_where_nothing_is_torchvisions_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: str, root: str
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [nobody])
    with pytest.raises(InputError, match=rf"in {tmp_path}/MNIST/raw, and downloading failed"):
        read_mnist(tmp_path / root)


@pytest.fixture(scope="module")
def official() -> tuple[Digits, Digits]:
    if not MNIST.is_dir():
        pytest.skip(f"no copy of MNIST in {MNIST}")
    return read_mnist(MNIST)


def test_all_of_mnist(official: tuple[Digits, Digits]) -> None:
    training, test = official
    assert len(training.labels) == 60_000 and len(test.labels) == 10_000
    assert training.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert training.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=1e-4)


# ---------------------------------------------------------------- damaged files

IMAGES, LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


def swap(array: np.ndarray) -> Callable[[bytes], bytes]:
    return lambda content: idx(array)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (IMAGES, cut, "is truncated: 4,712 bytes where its header promises 9,424"),
        (IMAGES, lambda content: content + b"x", "is too long: 9,425 bytes"),
        (IMAGES, lambda content: b"", "is not an IDX file of bytes in 3 dimension(s)"),
        (IMAGES, lambda content: b"<!DOCTYPE html>" * 9, "starts with 0x3c21444f, not 0x00000803"),
        (LABELS, lambda content: b"\0\0\x0c\1" + content[4:], "starts with 0x00000c01, not 0x00000801"),
        (IMAGES, lambda content: content[:4] + b"\xff" * 12 + content[16:], "is truncated"),
        (IMAGES, swap(np.zeros((12, 27, 28))), "holds uint8 images of 27 x 28, not uint8 of 28 x 28"),
        (IMAGES, swap(np.zeros((0, 28, 28))), "holds no digits"),
        (LABELS, swap(np.zeros(6)), "holds 6 labels for 7 images"),
        (LABELS, swap(np.array([0, 1, 9, 10, 11, 5, 6])), "has label 10 at position 3, outside 0..9"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes], message: str, zipped: bool
) -> None:
    files = small_mnist()[1]
    files[name] = damage(files[name])
    write(tmp_path, files, zipped)
    with pytest.raises(InputError) as caught:
        read_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / (f"{name}.gz" if zipped else name)
    text = str(caught.value)
    assert text.startswith(f"{path} ") and message in text and "\n" not in text
    assert "delete it and put a good copy" in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"not gzip at all", "BadGzipFile: Not a gzipped file"),
        (cut, "EOFError"),
        (lambda content: content[:-8] + b"\0" * 8, "CRC check failed"),
        (lambda content: content + b"junk", "BadGzipFile"),
    ],
)
def test_damaged_gzip(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    write(tmp_path, small_mnist()[1])
    path = tmp_path / "MNIST" / "raw" / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        read_mnist(tmp_path)
    text = str(caught.value)
    assert text.startswith(f"{path} cannot be read (") and message in text and "\n" not in text


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_the_bytes_there_is_no_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    files = small_mnist()[1]
    root = write(tmp_path_factory.mktemp("fuzz"), files, data.draw(st.booleans(), "zipped"))
    path = data.draw(st.sampled_from(sorted((root / "MNIST" / "raw").iterdir())), "file")
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "replace"):
        content = bytearray(data.draw(st.binary(max_size=60), "content"))
    for _ in range(data.draw(st.integers(0, 3), "flips") if content else 0):
        # headers and trailers most of all
        place = data.draw(st.integers(-16, 32) | st.integers(0, len(content) - 1), "place")
        content[place % len(content)] = data.draw(st.integers(0, 255), "byte")
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)), "cut")])
    try:
        training, test = read_mnist(root)
    except InputError as error:
        assert str(path.name) in str(error) and "\n" not in str(error)
    else:
        assert training.images.shape == (12, 28, 28) and test.images.shape == (7, 28, 28)
        assert training.labels.max() <= 9 and test.labels.max() <= 9


# ---------------------------------------------------------------- missing files


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens, nor can: its port is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/"


def test_missing_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    arrays, files = small_mnist()
    source = write(tmp_path / "server", files) / "MNIST" / "raw"
    sums = [(path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in source.iterdir()]
    root = tmp_path / "new" / "place"
    with served(source) as address:
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        monkeypatch.setattr(datasets.MNIST, "resources", sums)
        training, test = read_mnist(root)
    assert np.array_equal(training.images, arrays[IMAGES])
    assert np.array_equal(test.labels, arrays[LABELS])
    # and once there they are read without the server
    assert read_mnist(root)[0].images.equal(training.images)


def test_a_download_that_fails_says_where_the_files_belong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [nobody])
    with pytest.raises(InputError) as caught:
        read_mnist(tmp_path / "a" / "b")
    text = str(caught.value)
    assert f"no {IMAGES}.gz, " in text and f"in {tmp_path}/a/b/MNIST/raw, and downloading" in text
    assert "refused" in text and text.endswith("put the files of MNIST there") and "\n" not in text
    assert not (tmp_path / "a").exists(), "a failed download left folders behind"


def test_one_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nobody: str) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    files = small_mnist()[1]
    del files[LABELS]
    write(tmp_path, files)
    before = tree(tmp_path)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [nobody])
    with pytest.raises(InputError, match=rf"^no {LABELS}\.gz in {tmp_path}/MNIST/raw, and down"):
        read_mnist(tmp_path)
    assert before.items() <= tree(tmp_path).items(), "a file that was there was changed"


def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(InputError) as caught:
        read_mnist(tmp_path)
    assert f"in {tmp_path}/MNIST/raw; put the files of MNIST there" in str(caught.value)
    assert "pip install torchvision" in str(caught.value) and "\n" not in str(caught.value)
    # whole files need none
    write(tmp_path, small_mnist()[1])
    assert len(read_mnist(tmp_path)[1].labels) == 7


@pytest.mark.parametrize("root", ["file", "nul\0byte"])
def test_a_root_that_cannot_be(tmp_path: Path, root: str) -> None:
    pytest.importorskip("torchvision.datasets")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="downloading failed") as caught:
        read_mnist(tmp_path / root)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the sample in the package


def test_the_sample() -> None:
    for digits, count in zip(read_sample(), (10_000, 2_000), strict=True):
        assert digits.images.shape == (count, 28, 28)
        assert digits.labels.bincount().tolist() == [count // 10] * 10
        assert digits.images.flatten(1).unique(dim=0).shape[0] == count, "a digit is there twice"
        # the first few stand for all of it
        assert digits.labels[: count // 10].bincount(minlength=10).min() > count // 200
    assert SAMPLE.stat().st_size < 3_000_000


def test_the_sample_names_its_source_and_licence() -> None:
    text = SAMPLE.with_name("DIGITS.md").read_text()
    for words in ("Yann LeCun", "Corinna Cortes", "CC BY-SA 3.0", "build_sample.py"):
        assert words in text
    with np.load(SAMPLE) as file:
        for name in file.files:
            assert f"`{name}`" in text


def test_the_sample_is_of_the_official_sets(official: tuple[Digits, Digits]) -> None:
    with np.load(SAMPLE) as file:
        for split, digits in zip(("training", "test"), official, strict=True):
            positions = file[f"{split}_positions"].astype(np.int64)
            assert len(np.unique(positions)) == len(positions)
            assert np.array_equal(file[f"{split}_images"], digits.images[positions])
            assert np.array_equal(file[f"{split}_labels"], digits.labels[positions])


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_sample", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no copy of MNIST in {MNIST}")
def test_the_script_builds_the_sample(tmp_path: Path) -> None:
    before = tree(MNIST)
    subprocess.run(
        [sys.executable, str(SCRIPT), str(MNIST), "--out", str(tmp_path / "a.npz")],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(PROJECT)},
    )
    script().build(str(MNIST), tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as built, np.load(SAMPLE) as shipped:
        assert built.files == shipped.files
        for name in built.files:
            assert np.array_equal(built[name], shipped[name])
    assert tree(MNIST) == before


def test_the_script_refuses_damaged_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = small_mnist()[1]
    write(tmp_path, {**files, IMAGES: cut(files[IMAGES])})
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path), "--out", str(tmp_path / "a.npz")])
    assert script().main() == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "is truncated" in error and error.count("\n") == 1
    assert not (tmp_path / "a.npz").exists()


def test_the_script_wants_enough_of_every_class(tmp_path: Path) -> None:
    write(tmp_path, small_mnist()[1])
    with pytest.raises(InputError, match=r"only \d digits of class 0, 1000 are needed"):
        script().build(str(tmp_path), tmp_path / "a.npz")


def repacked(path: Path, **changes: np.ndarray | None) -> None:
    arrays = {
        "training_images": np.zeros((5, 28, 28), np.uint8),
        "training_labels": np.zeros(5, np.uint8),
        "test_images": np.zeros((3, 28, 28), np.uint8),
        "test_labels": np.zeros(3, np.uint8),
    }
    kept = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    np.savez_compressed(path, **kept)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "KeyError"),
        ({"test_labels": np.full(3, 12, np.uint8)}, "has label 12 at position 0"),
        ({"test_labels": np.zeros(3)}, "holds float64 labels, not uint8"),
        ({"test_labels": np.zeros(2, np.uint8)}, "holds 2 labels for 3 images"),
        ({"training_images": np.zeros((5, 784), np.uint8)}, "holds uint8 images of 784, not"),
        ({"training_images": np.zeros((5, 28, 28))}, "holds float64 images of 28 x 28, not"),
        ({"training_images": np.array([{}] * 5)}, "allow_pickle=False"),
    ],
)
def test_a_sample_with_wrong_arrays(
    tmp_path: Path, changes: dict[str, np.ndarray | None], message: str
) -> None:
    path = tmp_path / "digits.npz"
    repacked(path)
    assert [len(digits.labels) for digits in read_archive(path)] == [5, 3]
    repacked(path, **changes)
    with pytest.raises(InputError) as caught:
        read_archive(path)
    text = str(caught.value)
    assert str(path) in text and message in text and "install wsram_ppl again" in text
    assert "\n" not in text


NPY = (
    b"\x93NUMPY\1\0"
    + struct.pack("<H", 54)
    + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,)}\0"
)


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (pytest.fail, ("the file was unpickled",))


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps(Bomb()), b"\x93NUMPY\1\0", NPY])
def test_a_sample_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "digits.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="install wsram_ppl again"):
        read_archive(path)
    path.unlink()
    with pytest.raises(InputError, match=r"cannot be read \(FileNotFoundError"):
        read_archive(path)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**9), byte=st.integers(1, 255), kept=st.floats(0.9, 1))
def test_a_damaged_sample_never_gives_other_digits(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int, kept: float
) -> None:
    path = tmp_path_factory.mktemp("sample") / "digits.npz"
    repacked(path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= byte
    path.write_bytes(content[: round(kept * len(content))])
    try:
        digits = read_archive(path)
    except InputError as error:
        assert "\n" not in str(error)
    else:  # the flip met a field that does not matter, such as a date
        assert [len(part.labels) for part in digits] == [5, 3]
        assert not any(part.images.any() or part.labels.any() for part in digits)
