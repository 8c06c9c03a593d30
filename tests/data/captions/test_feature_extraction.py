"""Computing features: right numbers, whole or not there, and no photo kills the work."""

from __future__ import annotations

import fcntl
import io
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from tests.data.captions.copies import NET, SHARED, SIZE, add_photos, feature_request, files, names
from wsram_ppl.data.captions import feature_extraction
from wsram_ppl.data.captions.backbones import FeatureRequest
from wsram_ppl.data.captions.feature_extraction import extract, read_picture
from wsram_ppl.data.captions.feature_store import FeatureStore, store_folder
from wsram_ppl.data.pictures import Unreadable
from wsram_ppl.errors import InputError, RunError

timm = pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parents[3]


# ---------------------------------------------------------------- the numbers


def test_they_are_the_nets_maps(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    store = extract(feature_request(weights, layers=(3, 1)), photos, tmp_path / "cache", weights=weights)
    assert store.shapes == ((48, 4, 4), (24, 16, 16)) and store.unreadable == {}
    assert store.rows == {photo.name: row for row, photo in enumerate(photos)}
    net = timm.create_model(NET)
    net.load_state_dict(load_file(weights))
    pixels = np.stack([read_picture(photo, SIZE).pixels for photo in photos])
    with torch.no_grad():
        inputs = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
        expected = net.eval().forward_intermediates(inputs, indices=[1, 3], intermediates_only=True)
    rows = np.array([17, 3, 3, 0])
    for found, maps in zip(store.read(rows), reversed(expected), strict=True):
        assert found.dtype == torch.float16
        assert torch.allclose(found.float(), maps[rows], rtol=2e-3, atol=2e-3)
        assert maps.std() > 0.01


def test_real_weights(tmp_path: Path) -> None:
    """ImageNet's, on real photos: two photos' maps, and the classes that the whole net sees in them."""
    path = SHARED / "tf_efficientnet_lite0.safetensors"
    folder = SHARED / "flickr8k" / "Images"
    if not (path.is_file() and folder.is_dir()):
        pytest.skip(f"no pretrained weights or no photos in {SHARED}")
    chosen = [folder / "1000268201_693b08cb0e.jpg", folder / "1001773457_577c3a7d70.jpg"]
    wanted = FeatureRequest.make("tf_efficientnet_lite0", (3, 4), 224, [127.0], [128.0], path)
    store = extract(wanted, chosen, tmp_path, weights=path)
    assert store.shapes == ((112, 14, 14), (320, 7, 7))
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(load_file(path))
    with torch.no_grad():
        deepest = store.read(np.array([0, 1]))[1].float()
        classes = net.forward_head(net.bn2(net.conv_head(deepest))).softmax(-1)
    # The second photo is of two dogs, which are classes 151 to 268.
    assert classes[1, 151:269].sum() > 0.5 > classes[0, 151:269].sum()


def test_pictures_are_upright_whole_and_in_colour(tmp_path: Path) -> None:
    picture = np.zeros((30, 60, 3), np.uint8)
    picture[:, :30] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright, note = read_picture(tmp_path / "turned.jpg")
    assert upright.shape == (60, 30, 3) and upright[5, 15, 0] > 200 > 50 > upright[55, 15, 0]
    assert note == "" and read_picture(tmp_path / "turned.jpg", 20).pixels.shape == (20, 20, 3)
    for mode in ("L", "CMYK"):
        original = Image.fromarray(picture).convert(mode)
        original.save(tmp_path / f"{mode}.jpg", quality=95)
        pixels, note = read_picture(tmp_path / f"{mode}.jpg")
        assert np.abs(pixels.astype(int) - np.array(original.convert("RGB"))).max() < 12 and note == ""
        assert read_picture(tmp_path / f"{mode}.jpg", 8).pixels.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("dtype", "white", "form"),
    [
        ("<u2", 65535, "png"),
        ("<u2", 65535, "tiff"),
        (">u2", 65535, "tiff"),
        ("<i4", 65535, "tiff"),
        ("<i4", 255, "tiff"),
        ("<f4", 1, "tiff"),
        ("<f4", 255, "tiff"),
    ],
)
def test_grey_of_more_than_8_bits_is_scaled(tmp_path: Path, dtype: str, white: int, form: str) -> None:
    ramp = np.tile(np.linspace(0, white, 256), (3, 1)).astype(dtype)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{form}")
    pixels, note = read_picture(tmp_path / f"ramp.{form}")
    assert np.array_equal(pixels, np.broadcast_to(np.arange(256)[:, None], (3, 256, 3)))
    assert note == f"its pixels, from 0 to {white:,}, are scaled to 8 bits"


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 200, np.uint16)).save(tmp_path / "dark.png")
    assert read_picture(tmp_path / "dark.png").pixels.max() == 1


@pytest.mark.parametrize("pixel", [-3.0, 1e6, float("nan")])
def test_numbers_that_are_no_grey(tmp_path: Path, pixel: float) -> None:
    Image.fromarray(np.array([[0.0, pixel]], np.float32)).save(tmp_path / "odd.tiff")
    with pytest.raises(Unreadable, match=r"its pixels go from .* to .*, not from 0 to 1, 255 or 65535"):
        read_picture(tmp_path / "odd.tiff")


def test_a_turned_picture_of_16_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((30, 60), np.uint16)).save(tmp_path / "turned.png", exif=exif)
    assert read_picture(tmp_path / "turned.png").pixels.shape == (60, 30, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L", "I;16"])
def test_what_is_transparent_is_shown_on_white(tmp_path: Path, mode: str) -> None:
    """A black square on nothing at all, in every way that a PNG can say so."""
    shape = np.zeros((16, 16, 4), np.uint8)
    shape[4:12, 4:12, 3] = 255
    options: dict[str, Any] = {}
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(shape).convert(mode)
    else:
        nothing = {"P": 1, "RGB": (9, 9, 9), "L": 9, "I;16": 999}[mode]
        grey = np.where(shape[..., 3] == 255, 0, nothing if isinstance(nothing, int) else 9)
        image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.uint8))
        if mode == "P":
            image = image.convert("P")
            image.putpalette([0] * 768)
        elif mode == "RGB":
            image = image.convert("RGB")
        options["transparency"] = nothing
    image.save(tmp_path / "shape.png", **options)
    pixels, note = read_picture(tmp_path / "shape.png")
    assert np.array_equal(pixels, np.where(shape[..., 3:] == 255, 0, 255).repeat(3, 2))
    assert note.endswith("its transparent parts are shown on white")


#: First column and row of the parts of an interlaced file, and the steps between them.
ADAM7 = ["0088", "4088", "0448", "2044", "0224", "1022", "0112"]
#: Bits and kind of colour: 0 grey, 2 RGB, 3 palette.
FORMS = [(bits, kind) for kind in (0, 3) for bits in (1, 2, 4, 8)] + [(16, 0), (8, 2), (16, 2)]


def png(pixels: np.ndarray, depth: int, kind: int, *chunks: tuple[bytes, bytes], woven: bool) -> bytes:
    """A PNG file of any depth and kind of colour, interlaced (``woven``) or not."""
    lines = b""
    for x, y, right, down in (map(int, part) for part in (ADAM7 if woven else ["0011"])):
        part = pixels[y::down, x::right]
        for row in part.reshape(len(part), -1) if part.size else ():
            bits = np.unpackbits(row.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - depth :]
            lines += b"\0" + np.packbits(bits).tobytes()
    size = (pixels.shape[1], pixels.shape[0])
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, woven)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in every
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_transparent_colour_of_a_png_of_any_depth(
    tmp_path_factory: pytest.TempPathFactory, form: tuple[int, int], woven: bool, seed: int
) -> None:
    """Exactly that colour is white, also where others differ from it in the last of 16 bits."""
    (depth, kind), rng = form, np.random.default_rng(seed)
    most, colours = 2**depth - 1, (3,) if kind == 2 else ()
    colour = rng.integers(0, most + 1, colours)
    pixels = rng.integers(0, most + 1, (9, 11, *colours))
    near = rng.integers(0, 3, (9, 11))
    pixels[near == 1] = np.clip(colour + rng.integers(-1, 2, ((near == 1).sum(), *colours)), 0, most)
    pixels[near == 2] = colour
    clear = pixels == colour if kind != 2 else (pixels == colour).all(-1)
    if kind == 3:
        palette = rng.integers(0, 256, (most + 1, 3), np.uint8)
        alpha = bytes([255] * int(colour) + [0])
        chunks = [(b"PLTE", palette.tobytes()), (b"tRNS", alpha)]
        shown = palette[pixels].astype(float)
    else:
        chunks = [(b"tRNS", colour.astype(">u2").tobytes())]
        shown = np.broadcast_to(pixels[..., None] if kind == 0 else pixels, (9, 11, 3)) * (255 / most)
    path = tmp_path_factory.mktemp("png") / "a.png"
    path.write_bytes(png(pixels, depth, kind, *chunks, woven=woven))
    found, note = read_picture(path)
    assert (found[clear] == 255).all()
    assert np.abs(found.astype(float) - shown)[~clear].max(initial=0) <= 1
    assert note.endswith("its transparent parts are shown on white") == clear.any()


def test_a_turned_png_with_a_transparent_colour_of_16_bits(tmp_path: Path) -> None:
    pixels = np.full((2, 3, 3), 0x1234)
    pixels[0, 0] = 0x1235
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    chunks = [(b"tRNS", struct.pack(">3H", *[0x1235] * 3)), (b"eXIf", exif.tobytes()[6:])]
    (tmp_path / "a.png").write_bytes(png(pixels, 16, 2, *chunks, woven=False))
    found, _ = read_picture(tmp_path / "a.png")
    assert found.shape == (3, 2, 3)
    assert np.array_equal((found == 255).all(-1), [[False, True], [False, False], [False, False]])


def test_half_transparent_and_opaque(tmp_path: Path) -> None:
    for alpha, grey, note in ((128, 127, "its transparent parts are shown on white"), (255, 0, "")):
        Image.new("RGBA", (4, 4), (0, 0, 0, alpha)).save(tmp_path / "plain.png")
        pixels, said = read_picture(tmp_path / "plain.png")
        assert (pixels == grey).all() and said == note


def test_changed_pixels_are_told(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    """Also of photos that are no JPEG, whatever their names say."""
    Image.new("RGBA", (30, 30)).save(photos[3], "png")
    Image.fromarray(np.full((30, 30), 60000, np.uint16)).save(photos[7], "png")
    store = extract(feature_request(weights), photos, tmp_path / "cache", weights=weights)
    assert store.notices() == [
        "2 photos were changed before use (the first: 1003_0003.jpg: its transparent parts are shown "
        "on white)"
    ]
    assert store.notes[photos[7].name] == "its pixels, from 0 to 65,535, are scaled to 8 bits"
    assert len(store.rows) == 20


# ---------------------------------------------------------------- photos that cannot be read


def test_unreadable_photos_are_reported_and_skipped(
    tmp_path: Path, photos: list[Path], weights: Path
) -> None:
    spoiled = {
        1: (b"", "the file is empty"),
        4: (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the photo itself"),
        5: (b"<html>404 Not Found</html>", "not a picture"),
        18: (photos[18].read_bytes()[:-400], "OSError: image file is truncated"),
    }
    for place, (content, _) in spoiled.items():
        photos[place].write_bytes(content)
    store = extract(feature_request(weights), photos, tmp_path / "cache", weights=weights)
    assert sorted(store.unreadable) == [photos[place].name for place in spoiled]
    for place, (_, reason) in spoiled.items():
        assert store.unreadable[photos[place].name].startswith(reason)
        assert photos[place].name not in store.rows
    for layer in store.read(np.arange(20)):
        zero = (layer == 0).flatten(1).all(1)
        assert torch.nonzero(zero).flatten().tolist() == sorted(spoiled)
    assert store.notices() == [
        "4 photos cannot be read: left out, with their captions "
        "(the first: 1001_0001.jpg: the file is empty)"
    ]
    # The others' features are what they are without the bad ones among them.
    good = [photo for place, photo in enumerate(photos) if place not in spoiled]
    clean = extract(feature_request(weights), good, tmp_path / "cache", weights=weights)
    ours = store.read(np.array([store.rows[photo.name] for photo in good]))
    for a, b in zip(ours, clean.read(np.arange(len(good))), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=2e-3, rtol=2e-3)
    assert FeatureStore.open(store.folder, photos).unreadable == store.unreadable
    with pytest.raises(Unreadable, match="No such file"):
        read_picture(tmp_path / "gone.jpg")


def test_none_can_be_read(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    for photo in photos:
        photo.write_bytes(b"text")
    with pytest.raises(InputError, match=r"none of the 20 photos can be read; .*: not a picture"):
        extract(feature_request(weights), photos, tmp_path / "cache", weights=weights)


def test_what_is_no_list_of_photos(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    with pytest.raises(InputError, match="there are no photos"):
        extract(feature_request(weights), [], tmp_path, weights=weights)
    with pytest.raises(InputError, match=r"two photos have the same name"):
        extract(feature_request(weights), [*photos, photos[0]], tmp_path, weights=weights)
    with pytest.raises(InputError, match=r"cannot look at the photo '.*gone.jpg': No such file"):
        extract(feature_request(weights), [tmp_path / "gone.jpg"], tmp_path, weights=weights)
    with pytest.raises(RunError, match=r"features of 1000_0000\.jpg are not finite in float16: do mean"):
        extract(feature_request(weights, std=[1e-9]), photos, tmp_path, weights=weights)


# ---------------------------------------------------------------- interruptions

EXTRACT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from wsram_ppl.data.captions.backbones import FeatureRequest
from wsram_ppl.data.captions.feature_extraction import extract
photos, cache, weights = sorted(Path(sys.argv[1]).iterdir()), Path(sys.argv[2]), Path(sys.argv[3])
def progress(done, total):
    print(done, flush=True)
    time.sleep(60 if done == 48 else 0)  # until it is killed
extract(FeatureRequest.make("{net}", (2, 3), {size}, [127.0], [128.0], weights), photos, cache,
        weights=weights, progress=progress)
"""


def test_killed_and_resumed(tmp_path: Path, weights: Path) -> None:
    """kill -9 in the middle; the second attempt goes on there and ends with identical bytes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    add_photos(folder, names(90))
    photos = sorted(folder.iterdir())
    photos[40].write_bytes(b"not a photo")
    arguments = [str(folder), str(tmp_path / "killed"), str(weights)]
    process = subprocess.Popen(
        [sys.executable, "-c", EXTRACT.format(net=NET, size=SIZE), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= 48:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()

    wanted = feature_request(weights)
    target = store_folder(tmp_path / "killed", wanted, photos)
    partial = target.with_name(target.name + ".partial")
    assert partial.is_dir() and not target.exists()
    with pytest.raises(InputError, match="there are no features of these 90 photos"):
        FeatureStore.open(target, photos)
    steps: list[int] = []
    resumed = extract(
        wanted,
        photos,
        tmp_path / "killed",
        weights=weights,
        progress=lambda done, total: steps.append(done),
    )
    assert steps == [*list(range(48, 90, 16)), 90]
    straight = extract(wanted, photos, tmp_path / "straight", weights=weights)
    assert files(resumed.folder) == files(straight.folder)
    assert list(resumed.unreadable) == [photos[40].name]
    assert not partial.exists()


class Stop(Exception):
    pass


def stop_at(photos: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= photos:
            raise Stop

    return progress


def stopped(wanted: FeatureRequest, photos: list[Path], cache: Path, weights: Path, at: int) -> Path:
    """The folder of an extraction that ended after ``at`` photos."""
    with pytest.raises(Stop):
        extract(wanted, photos, cache, weights=weights, progress=stop_at(at))
    (partial,) = cache.glob("*.partial")
    return partial


@pytest.mark.parametrize(
    ("damage", "computed"),
    [
        ("nothing", [32]),
        ("torn chunk", [16, 32]),
        ("no chunk", [0, 32]),
        ("junk", [0, 32]),
        ("flipped bits", [16, 32]),
        ("other shape", [16, 32]),
        ("other photo", [0, 32]),
        ("half written", [32]),
        ("no layer", [32]),
        ("rows", [32]),
    ],
)
def test_whatever_is_left_the_result_is_the_same(
    tmp_path: Path, weights: Path, damage: str, computed: list[int]
) -> None:
    """``computed``: the first photos of the chunks that the second attempt has to compute."""
    folder = tmp_path / "photos"
    folder.mkdir()
    add_photos(folder, names(40), size=24)
    photos = sorted(folder.iterdir())
    wanted = feature_request(weights, image_size=32)
    partial = stopped(wanted, photos, tmp_path / "cache", weights, at=32)
    first, second = partial / "0.npz", partial / "16.npz"
    content = second.read_bytes()
    if damage == "torn chunk":
        os.truncate(second, len(content) - 5)
    elif damage == "no chunk":
        first.unlink()
    elif damage == "junk":
        first.write_bytes(b'[["x"]]\n')
    elif damage == "flipped bits":
        middle = len(content) // 2
        second.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "other shape":
        with np.load(second) as chunk:
            entries, *maps = (chunk[name] for name in chunk.files)
        np.savez(second, entries, *(layer[:, :, :1] for layer in maps))
    elif damage == "other photo":
        swapped = photos[3].read_bytes()
        photos[3].write_bytes(swapped[:-30] + bytes(28) + swapped[-2:])
    elif damage == "half written":
        (partial / "32.torn").write_bytes(content[:100])
    elif damage == "no layer":
        (partial / "store" / "layer-3.npy").unlink()
    elif damage == "rows":
        with open(partial / "store" / "layer-2.npy", "ab") as file:
            file.write(b"\xff" * 500_000)
    steps: list[int] = []
    resumed = extract(
        wanted, photos, tmp_path / "cache", weights=weights, progress=lambda d, t: steps.append(d)
    )
    assert steps == [*computed, 40]
    straight = extract(wanted, photos, tmp_path / "straight", weights=weights)
    assert files(resumed.folder) == files(straight.folder)
    assert not partial.exists()


def test_killed_at_the_very_end(
    tmp_path: Path, photos: list[Path], weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is there, and what it was made from too: the next call clears that away."""
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", never)
        with pytest.raises(Stop):
            extract(feature_request(weights), photos, cache, weights=weights)
    (partial,) = cache.glob("*.partial")
    (partial / "0.npz").stat()
    store = extract(feature_request(weights), photos, cache, progress=never)
    assert len(store.rows) == 20 and not partial.exists()


def never(*arguments: Any, **options: Any) -> None:
    raise Stop


def test_memory_does_not_grow_with_the_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of 42 MB, of which no more than a chunk or two (1 MB each) are held at once."""

    class Large:
        shapes = ((64, 16, 16), (64, 16, 16))
        modules = ("a", "b")

        def __init__(self, *arguments: Any) -> None: ...

        def __call__(self, pictures: torch.Tensor) -> list[torch.Tensor]:
            return [pictures[:, :1, :1, :1].float().expand(-1, *shape) for shape in self.shapes]

    monkeypatch.setattr(feature_extraction, "Backbone", Large)
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 0, 0)).save(content, "png")
    photos = [tmp_path / f"{n:03}.jpg" for n in range(640)]
    for photo in photos:
        photo.write_bytes(content.getvalue())
    wanted = FeatureRequest.make(NET, (0, 1), 8, [0.0], [1.0])
    tracemalloc.start()
    try:
        with pytest.raises(Stop):
            extract(wanted, photos, tmp_path / "cache", progress=stop_at(640))
        store = extract(wanted, photos, tmp_path / "cache")  # puts together what is there
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    for layer in store.read(np.array([0, 639])):
        assert (layer == 200).all()


def test_two_at_once(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    cache = tmp_path / "cache"
    stopped(feature_request(weights), photos, cache, weights, at=16)
    (lock,) = cache.glob(".*.lock")
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(RunError, match="another process is computing these features"):
            extract(feature_request(weights), photos, cache, weights=weights)
    assert len(extract(feature_request(weights), photos, cache, weights=weights).rows) == 20


@pytest.mark.parametrize(("limit", "done"), [(10_000, 0), (80_000, 2)])
def test_no_space(tmp_path: Path, photos: list[Path], weights: Path, limit: int, done: int) -> None:
    """A limit on the size of files stands for a full disk: for a chunk, or only for a layer."""
    wanted = feature_request(weights, layers=(2,))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(
            RunError, match=r"cannot write features to .*File too large; what is done is"
        ):
            extract(wanted, photos, tmp_path / "cache", weights=weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len([*tmp_path.glob("cache/*.partial/*.npz")]) == done
    assert len(extract(wanted, photos, tmp_path / "cache", weights=weights).rows) == 20


def test_a_cache_that_cannot_be_made(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(RunError, match=r"cannot write features to .*Not a directory"):
        extract(feature_request(weights), photos, tmp_path / "cache", weights=weights)
