"""The feature store: right numbers, whole or not there, never stale, and no photo kills the work."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.data.captions.copies import NET, SHARED, add_photos, names
from wsram_ppl.data.captions.backbones import Backbone, FeatureRequest
from wsram_ppl.data.captions.feature_store import (
    FeatureStore,
    Unreadable,
    extract,
    read_picture,
    store_folder,
)
from wsram_ppl.errors import InputError, RunError

timm = pytest.importorskip("timm")

ROOT = Path(__file__).resolve().parents[2]
SIZE = 64


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    add_photos(folder, names(20))
    return [folder / name for name in names(20)]


def request(weights: Path, /, **changes: Any) -> FeatureRequest:
    options: dict[str, Any] = {
        "backbone": NET,
        "layers": (2, 3),
        "image_size": SIZE,
        "mean": [127.0],
        "std": [128.0],
        "weights": weights,
    }
    return FeatureRequest.make(**{**options, **changes})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- the numbers


def test_they_are_the_nets_maps(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    store = extract(request(weights, layers=(3, 1)), photos, tmp_path / "cache", weights=weights)
    assert store.shapes == ((48, 4, 4), (24, 16, 16)) and store.unreadable == {}
    assert store.rows == {photo.name: row for row, photo in enumerate(photos)}
    net = timm.create_model(NET)
    net.load_state_dict(load_file(weights))
    pixels = np.stack([read_picture(photo, SIZE) for photo in photos])
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


def test_what_timm_knows_fills_in_what_is_open(weights: Path) -> None:
    made = request(weights, mean=(), std=())
    assert made.mean == pytest.approx([255 * m for m in (0.485, 0.456, 0.406)])
    assert made.std == pytest.approx([255 * s for s in (0.229, 0.224, 0.225)])
    assert request(weights).mean == (127.0,) * 3
    downloaded = FeatureRequest.make(NET, (0,), SIZE)
    assert downloaded.weights == f"timm:timm/{NET}.r160_in1k"
    assert FeatureRequest.make("vgg19", (4,), 224).weights == "timm:timm/vgg19.tv_in1k"


def test_pictures_are_upright_whole_and_in_colour(tmp_path: Path) -> None:
    picture = np.zeros((30, 60, 3), np.uint8)
    picture[:, :30] = (250, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(picture).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    upright = read_picture(tmp_path / "turned.jpg")
    assert upright.shape == (60, 30, 3) and upright[5, 15, 0] > 200 > 50 > upright[55, 15, 0]
    assert read_picture(tmp_path / "turned.jpg", 20).shape == (20, 20, 3)
    for mode in ("L", "CMYK"):
        Image.fromarray(picture).convert(mode).save(tmp_path / f"{mode}.jpg")
        assert read_picture(tmp_path / f"{mode}.jpg", 8).shape == (8, 8, 3)


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
    store = extract(request(weights), photos, tmp_path / "cache", weights=weights)
    assert sorted(store.unreadable) == [photos[place].name for place in spoiled]
    for place, (_, reason) in spoiled.items():
        assert store.unreadable[photos[place].name].startswith(reason)
        assert photos[place].name not in store.rows
    for layer in store.read(np.arange(20)):
        zero = (layer == 0).flatten(1).all(1)
        assert torch.nonzero(zero).flatten().tolist() == sorted(spoiled)
    assert store.notices() == [
        "4 photos cannot be read: left out, captions and all "
        "(the first: 1001_0001.jpg: the file is empty)"
    ]
    # The others' features are what they are without the bad ones among them.
    good = [photo for place, photo in enumerate(photos) if place not in spoiled]
    clean = extract(request(weights), good, tmp_path / "cache", weights=weights)
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
        extract(request(weights), photos, tmp_path / "cache", weights=weights)


# ---------------------------------------------------------------- interruptions

EXTRACT = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from wsram_ppl.data.captions.backbones import FeatureRequest
from wsram_ppl.data.captions.feature_store import extract
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

    wanted = request(weights)
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


def stopped(request: FeatureRequest, photos: list[Path], cache: Path, weights: Path, at: int) -> Path:
    """The folder of an extraction that ended after ``at`` photos."""

    def stop(done: int, total: int) -> None:
        if done >= at:
            raise Stop

    with pytest.raises(Stop):
        extract(request, photos, cache, weights=weights, progress=stop)
    (partial,) = cache.glob("*.partial")
    return partial


@pytest.mark.parametrize(
    "damage", ["torn line", "no journal", "junk", "no layer", "other photo", "rows"]
)
def test_whatever_is_left_the_result_is_the_same(tmp_path: Path, weights: Path, damage: str) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    add_photos(folder, names(40), size=24)
    photos = sorted(folder.iterdir())
    wanted = request(weights, image_size=32)
    partial = stopped(wanted, photos, tmp_path / "cache", weights, at=32)
    journal = partial / "journal.jsonl"
    expected = 0
    if damage == "torn line":
        os.truncate(journal, journal.stat().st_size - 5)
        expected = 16
    elif damage == "no journal":
        journal.unlink()
    elif damage == "junk":
        journal.write_bytes(b'[["x"]]\n')
    elif damage == "no layer":
        (partial / "layer-3.npy").unlink()
    elif damage == "other photo":
        swapped = photos[3].read_bytes()
        photos[3].write_bytes(swapped[:-30] + bytes(28) + swapped[-2:])
    else:  # written, but not yet in the journal
        with open(partial / "layer-2.npy", "r+b") as file:
            file.seek(-500, os.SEEK_END)
            file.write(b"\xff" * 500)
        expected = 32
    steps: list[int] = []
    resumed = extract(
        wanted, photos, tmp_path / "cache", weights=weights, progress=lambda d, t: steps.append(d)
    )
    assert steps[0] == expected
    straight = extract(wanted, photos, tmp_path / "straight", weights=weights)
    assert files(resumed.folder) == files(straight.folder)


def test_two_at_once(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    cache = tmp_path / "cache"
    stopped(request(weights), photos, cache, weights, at=16)
    (lock,) = cache.glob(".*.lock")
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(RunError, match="another process is computing these features"):
            extract(request(weights), photos, cache, weights=weights)
    assert len(extract(request(weights), photos, cache, weights=weights).rows) == 20


def test_no_space(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(
            RunError, match=r"cannot write features to .*File too large; what is done is"
        ):
            extract(request(weights), photos, tmp_path / "cache", weights=weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert len(extract(request(weights), photos, tmp_path / "cache", weights=weights).rows) == 20


def test_a_cache_that_cannot_be_made(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(RunError, match=r"cannot write features to .*Not a directory"):
        extract(request(weights), photos, tmp_path / "cache", weights=weights)


# ---------------------------------------------------------------- never stale


def test_every_setting_has_its_own_store(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    other = tmp_path / "other.safetensors"
    state = load_file(weights)
    state["conv_stem.weight"][0, 0, 0, 0] += 1e-3
    save_file(state, other)
    requests = [
        request(weights),
        request(weights, layers=(3, 2)),
        request(weights, layers=(2,)),
        request(weights, image_size=65),
        request(weights, mean=[127.5]),
        request(weights, std=[127.0, 128.0, 128.0]),
        request(weights, backbone="test_resnet"),
        request(other),
        FeatureRequest.make(NET, (2, 3), SIZE, [127.0], [128.0]),
    ]
    folders = {store_folder(tmp_path, wanted, photos) for wanted in requests}
    folders.add(store_folder(tmp_path, requests[0], photos[:-1]))
    folders.add(store_folder(tmp_path, requests[0], photos[::-1]))
    assert len(folders) == len(requests) + 2
    copied = shutil.copy(weights, tmp_path / "copy.safetensors")
    assert request(Path(copied)) == requests[0], "the content counts, not the place"


def test_a_changed_photo(
    tmp_path: Path, photos: list[Path], weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    store = extract(request(weights), photos, cache, weights=weights)
    before = files(store.folder)
    os.utime(photos[2], (1, 1))
    FeatureStore.open(store.folder, photos)  # touched is not changed
    content = photos[2].read_bytes()
    photos[2].write_bytes(content[:-30] + bytes(28) + content[-2:])
    with pytest.raises(
        InputError, match=r"1 photos have changed since their .*the first: 1002_0002.jpg"
    ):
        FeatureStore.open(store.folder, photos)
    steps: list[int] = []
    extract(request(weights), photos, cache, weights=weights, progress=lambda d, t: steps.append(d))
    assert steps == [0, 16, 20] and files(store.folder) != before
    assert "computing all again, since 1 photos have changed" in caplog.text


def test_at_once_where_all_is_there(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    store = extract(request(weights), photos, tmp_path / "cache", weights=weights)

    def never(done: int, total: int) -> None:
        raise AssertionError("computed again")

    again = extract(request(weights), photos, tmp_path / "cache", progress=never)
    assert again.folder == store.folder


@pytest.mark.parametrize("damage", ["cut", "other type", "index", "no layer", "format"])
def test_a_damaged_store(tmp_path: Path, photos: list[Path], weights: Path, damage: str) -> None:
    store = extract(request(weights), photos, tmp_path / "cache", weights=weights)
    before = files(store.folder)
    layer, index = store.folder / "layer-2.npy", store.folder / "index.json"
    if damage == "cut":
        os.truncate(layer, layer.stat().st_size - 1)
    elif damage == "other type":
        np.save(layer, np.load(layer).astype(np.float32))
    elif damage == "index":
        index.write_text(index.read_text()[:-100])
    elif damage == "format":
        index.write_text(index.read_text().replace("features 1", "features 0"))
    else:
        layer.unlink()
    with pytest.raises(InputError, match=r"the features are damaged \(.*\); delete '.*' and compute"):
        FeatureStore.open(store.folder, photos)
    extract(request(weights), photos, tmp_path / "cache", weights=weights)
    assert files(store.folder) == before


# ---------------------------------------------------------------- wrong requests


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ()}, r"layers = \[\]: should be different numbers from 0"),
        ({"layers": (1, 1)}, r"layers = \[1, 1\]: should be different"),
        ({"layers": (-1,)}, r"layers = \[-1\]: should be different"),
        ({"image_size": 0}, "image_size = 0: should be at least 1"),
        ({"mean": [1.0, 2.0]}, r"mean = \[1.0, 2.0\]: should be three numbers"),
        ({"std": [0.0]}, r"std = \[0.0, 0.0, 0.0\]: should be above 0"),
        ({"weights": Path("nowhere")}, "there is no file of weights 'nowhere'"),
        ({"weights": Path("/")}, "cannot read the weights '/': Is a directory"),
        (
            {"backbone": "test_eficientnet", "mean": ()},
            "timm has no net 'test_eficientnet'; did you mean 'test_efficientnet'?",
        ),
        ({"backbone": "vgg19.nothing", "weights": None}, "backbone 'vgg19.nothing': RuntimeError"),
        ({"backbone": "efficientnet_l2", "weights": None}, "timm offers no pretrained weights for"),
    ],
)
def test_wrong_requests(weights: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        request(weights, **changes)


def test_layers_that_the_net_lacks(weights: Path) -> None:
    with pytest.raises(InputError, match=r"does not have all of the layers \[2, 9\]: it has 0 blocks.0"):
        Backbone(request(weights, layers=(9, 2)), weights)


@pytest.mark.parametrize("damage", ["missing", "surplus", "shape", "junk", "other", "pickle"])
def test_weights_that_do_not_fit(tmp_path: Path, weights: Path, damage: str) -> None:
    """None of them may leave a layer at random without a word."""
    path = tmp_path / "net.safetensors"
    state = load_file(weights)
    message = "does not hold the weights of test_efficientnet, head included: RuntimeError"
    if damage == "missing":
        del state["blocks.2.0.bn1.weight"]
    elif damage == "surplus":
        state["blocks.9.weight"] = torch.zeros(1)
    elif damage == "shape":
        state["blocks.2.0.bn1.weight"] = torch.zeros(3)
    elif damage == "other":
        state = {"weight": torch.zeros(2)}
    save_file(state, path)
    if damage == "junk":
        path.write_bytes(b"junk")
        message = "is not a file of weights"
    elif damage == "pickle":
        path = tmp_path / "net.pth"
        torch.save(Code(tmp_path / "made by code"), path)
        message = "is not a file of weights"
    with pytest.raises(InputError, match=message) as caught:
        Backbone(request(path), path)
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)
    assert not (tmp_path / "made by code").exists()


class Code:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self._folder,)


def test_weights_in_pytorchs_own_format(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    for n, wrap in enumerate((lambda s: s, lambda s: {"state_dict": s, "epoch": 3})):
        path = tmp_path / f"net{n}.pth"
        torch.save(wrap(load_file(weights)), path)
        picture = torch.from_numpy(read_picture(photos[0], SIZE))[None]
        ours, theirs = (Backbone(request(p), p)(picture) for p in (path, weights))
        assert all(map(torch.equal, ours, theirs))


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    wanted = FeatureRequest.make(NET, (2,), SIZE)
    with pytest.raises(InputError, match="pretrained weights of test_efficientnet cannot be had") as e:
        Backbone(wanted, None)
    assert "name a file of them" in str(e.value) and "\n" not in str(e.value)


def test_without_timm(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is needed .*pip install 'wsram_ppl\[captions\]'"):
        FeatureRequest.make("vgg19", (4,), 224)
    made = request(weights)  # where all is given, reading a store takes no timm
    assert json.loads(json.dumps(made.to_data()))["backbone"] == NET


def test_what_is_no_list_of_photos(tmp_path: Path, photos: list[Path], weights: Path) -> None:
    with pytest.raises(InputError, match="there are no photos"):
        extract(request(weights), [], tmp_path, weights=weights)
    with pytest.raises(InputError, match=r"two photos have the same name"):
        extract(request(weights), [*photos, photos[0]], tmp_path, weights=weights)
    with pytest.raises(InputError, match=r"cannot look at the photo '.*gone.jpg': No such file"):
        extract(request(weights), [tmp_path / "gone.jpg"], tmp_path, weights=weights)
    with pytest.raises(RunError, match=r"features of 1000_0000\.jpg are not finite in float16: do mean"):
        extract(request(weights, std=[1e-9]), photos, tmp_path, weights=weights)
