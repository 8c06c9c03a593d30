"""Arrays of images: every shape and type that is meant, in a file and in a folder, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from wsram_ppl.config.catalogue import DATA_SOURCES
from wsram_ppl.data.images import arrays as module
from wsram_ppl.data.images.arrays import ArrayImages
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import DataSource, DrawsRows, InformsModel, KeepsRecord

FEW = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
LABELS = np.arange(40) % 4


def noise(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def file(folder: Path, images: Any, labels: Any = LABELS, **more: Any) -> Path:
    np.savez(folder / "data.npz", images=images, labels=labels, **more)
    return folder / "data.npz"


def every(source: ArrayImages, size: int = 7) -> list[tuple[bytes, int]]:
    """All images and labels of the source, in no order."""
    batches = [source.training_batch(0, len(source._train), 0)]
    for split in ("validation", "test"):
        batches += source.evaluation_batches(size, split=split)  # type: ignore[arg-type]
    return sorted(
        (image.numpy().tobytes(), int(label))
        for images, labels in batches
        for image, label in zip(images, labels, strict=True)
    )


def same(found: ArrayImages, images: Tensor, labels: Any = LABELS) -> bool:
    pairs = zip(images, labels, strict=True)
    return every(found) == sorted((image.numpy().tobytes(), int(label)) for image, label in pairs)


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64, np.bool_])
def test_every_shape_and_type(layout: str, channels: int, dtype: Any, tmp_path: Path) -> None:
    """The same images come out, [B, H, W] in grey and [B, C, H, W] in colour, float32 in [0, 1]."""
    if layout == "NHW" and channels > 1:
        return
    pixels = noise(40, channels, 6, 9)
    stored = pixels if dtype == np.uint8 else pixels > 99 if dtype == np.bool_ else pixels / 255
    stored = stored.astype(dtype)
    expected = (
        torch.from_numpy(pixels).float().mul(1 / 255)
        if dtype == np.uint8
        else torch.tensor(stored.astype(np.float32))
    )
    kept = {"NHW": stored[:, 0], "NHWC": np.moveaxis(stored, 1, 3), "NCHW": stored}[layout]
    source = ArrayImages(path=file(tmp_path, kept))
    assert source.channels == channels
    assert same(source, expected if channels > 1 else expected[:, 0])
    images, labels = source.training_batch(0, 5, 0)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64


def test_what_is_said_and_kept(tmp_path: Path) -> None:
    source = ArrayImages(path=file(tmp_path, noise(40, 6, 9, 3)))
    assert source.notices == (
        "40 images of 6 x 9 pixels, 3 channels, and of 4 classes: 0, 1, 2, 3",
        "32 pictures for training, 4 for validation, 4 for test: drawn from each class alike, with "
        "data.split_seed 0",
    )
    assert source.model_options == {
        "classes": 4,
        "class_names": ("0", "1", "2", "3"),
        "image_channels": 3,
    }
    record = source.record
    assert {**record, "training": ""} == {
        "classes": ["0", "1", "2", "3"],
        "channels": 3,
        "training": "",
        "image_size": [6, 9],
    }
    changed = noise(40, 6, 9, 3)
    changed[:] += 1
    assert ArrayImages(path=file(tmp_path, changed)).record["training"] != record["training"]
    for hook in (DataSource, DrawsRows, InformsModel, KeepsRecord):
        assert isinstance(source, hook)
    assert DATA_SOURCES.resolve("arrays") is ArrayImages


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (LABELS * 10 + 5, ["5", "15", "25", "35"]),
        (np.array(["d", "a", "c", "b"])[LABELS], ["a", "b", "c", "d"]),
        (np.array([b"d", b"a", b"c", b"b"])[LABELS], ["a", "b", "c", "d"]),
        (LABELS.astype(np.float32), ["0", "1", "2", "3"]),
        (LABELS[:, None].astype(np.uint8), ["0", "1", "2", "3"]),
        (LABELS > 1, ["0", "1"]),
        (-LABELS, ["-3", "-2", "-1", "0"]),
    ],
)
def test_labels_are_numbers_or_texts(labels: Any, names: list[str], tmp_path: Path) -> None:
    """Each that occurs is a class, in order."""
    images = np.broadcast_to((LABELS * 20 + 2).astype(np.uint8)[:, None, None], (40, 6, 6))
    source = ArrayImages(path=file(tmp_path, images, labels))
    assert source.class_names == tuple(names)
    flat = labels.reshape(-1)
    for pixels, label in zip(*source.training_batch(0, 30, 0), strict=True):
        of_image = flat[round(float(pixels[0, 0]) * 255 - 2) // 20]
        text = of_image.decode() if isinstance(of_image, bytes) else of_image
        assert names[label] == str(int(text) if not isinstance(text, str) else text)


def test_names_of_classes(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "elk", "fox", "gnu"])
    assert ArrayImages(path=file(tmp_path, noise(40, 6, 6), classes=names)).class_names == tuple(names)
    of_bytes = file(tmp_path, noise(40, 6, 6), classes=names.astype("S"))
    assert ArrayImages(path=of_bytes).class_names == tuple(names)
    for wrong in (np.array("cat"), np.array(["cat", "dog", "elk", "fox", "cat"])):
        with pytest.raises(InputError, match="its array of classes should be a list of different names"):
            ArrayImages(path=file(tmp_path, noise(40, 6, 6), classes=wrong))
    with pytest.raises(InputError, match="holds a label 3, but its array of classes has 0 to 2"):
        ArrayImages(path=file(tmp_path, noise(40, 6, 6), classes=names[:3]))


def test_black_images_may_come_first(tmp_path: Path) -> None:
    images = np.zeros((1200, 6, 6), np.uint8)
    images[1100:] = 200
    source = ArrayImages(path=file(tmp_path, images, np.arange(1200) % 2))
    assert float(source.training_batch(0, 600, 0)[0].max()) == pytest.approx(200 / 255)


def test_splits_in_a_file(tmp_path: Path) -> None:
    parts = {name: noise(n, 6, 6, seed=n) for name, n in (("train", 20), ("val", 8), ("test", 4))}
    arrays = {f"{name}_images": images for name, images in parts.items()}
    arrays |= {f"{name}_labels": LABELS[: len(images)] for name, images in parts.items()}
    np.savez_compressed(tmp_path / "data.npz", **arrays)
    source = ArrayImages(path=tmp_path / "data.npz")
    assert source.notices[-1] == (
        "20 pictures for training, 8 for validation, 4 for test: as in the data"
    )
    images = torch.from_numpy(np.concatenate([*parts.values()])).float().mul(1 / 255)
    assert same(source, images, np.concatenate([LABELS[:n] for n in (20, 8, 4)]))
    assert len(next(source.evaluation_batches(99, split="test"))[0]) == 4


@pytest.mark.parametrize("first", ["uint8", "float32", "float64", "bool"])
@pytest.mark.parametrize("second", ["uint8", "float32", "float16", "bool"])
@pytest.mark.parametrize("canvas", [0, 9])
def test_splits_of_different_dtypes(first: str, second: str, canvas: int, tmp_path: Path) -> None:
    """Each is read as what it is: the same black and white pictures."""
    white = noise(20, 6, 6) > 127

    def stored(dtype: str) -> Any:
        return (white * (255 if dtype == "uint8" else 1)).astype(dtype)

    np.savez(
        tmp_path / "data.npz",
        train_images=stored(first),
        train_labels=LABELS[:20],
        valid_images=stored(second),
        valid_labels=LABELS[:20],
    )
    source = ArrayImages(path=tmp_path / "data.npz", canvas=canvas)
    ((images, _),) = source.evaluation_batches(20)
    if canvas == 0:
        expected = torch.from_numpy(white).float()
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        order = lambda x: sorted(each.numpy().tobytes() for each in x)  # noqa: E731
        assert order(values) == order(expected)
    assert images.dtype == torch.uint8 or 0.3 < images.mean() < 0.7


def test_arrays_that_are_not_used_are_told(tmp_path: Path) -> None:
    pixels = noise(40, 6, 6)
    source = ArrayImages(path=file(tmp_path, pixels, val_images=pixels, masks=pixels))
    assert "arrays not used: masks, val_images" in source.notices


def test_a_folder_is_mapped_and_its_splits_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(40, 6, 6, 3)
    for place, rows in (
        ("", slice(40)),
        ("split/train", slice(30)),
        ("split/validation", slice(30, 40)),
    ):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / place / "images.npy", pixels[rows])
        np.save(tmp_path / place / "labels.npy", LABELS[rows])
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().mul(1 / 255).contiguous()
    source = ArrayImages(path=tmp_path)
    assert same(source, expected)
    assert isinstance(source._arrays[0], np.memmap)
    split = ArrayImages(path=tmp_path / "split")
    assert "30 pictures for training, 10 for validation, 0 for test" in split.notices[-1]
    monkeypatch.chdir(tmp_path)
    assert ArrayImages(path="~/x".replace("~/x", ".")).record == source.record


@FEW
@given(count=st.integers(3, 40), size=st.integers(1, 30), seed=st.integers(0, 99))
def test_batches_are_functions_of_their_arguments(
    count: int, size: int, seed: int, tmp_path: Path
) -> None:
    path = file(tmp_path, noise(2 * count, 4, 4), np.arange(2 * count) % 2)
    one, other = ArrayImages(path=path), ArrayImages(path=path)
    size = min(size, len(one._train))
    first = [one.training_batch(step, size, seed)[0] for step in range(4)]
    for step in (3, 1, 0, 2):
        assert other.training_batch(step, size, seed)[0].equal(first[step])
        rows = slice(size // 3, size)
        assert other.training_rows(step, size, seed, rows)[0].equal(first[step][rows])


@pytest.mark.parametrize("fit", ["resize", "pad"])
@pytest.mark.parametrize("shape", [(6, 9), (20, 10), (16, 16), (50, 20)])
def test_images_are_fitted_onto_the_canvas(fit: Any, shape: tuple[int, int], tmp_path: Path) -> None:
    images = np.full((40, *shape, 3), 255, np.uint8)
    source = ArrayImages(path=file(tmp_path, images), canvas=16, fit=fit)
    found, _ = source.training_batch(0, 2, 0)
    factor = 16 / max(shape) if fit == "resize" else min(1, 16 / max(shape))
    height, width = (round(side * factor) for side in shape)
    expected = torch.zeros(16, 16)
    top, left = (16 - height) // 2, (16 - width) // 2
    expected[top : top + height, left : left + width] = 1
    torch.testing.assert_close(found, expected.expand(2, 3, -1, -1))
    assert source.record["image_size"] == [16, 16]
    assert any("16 x 16 pixels" in line for line in source.notices)


def test_images_that_are_not_finite_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)
    images = noise(40, 6, 6) / 255
    labels = LABELS.astype(float)
    images[3, 2, 2], images[20, 0, 0], labels[9] = np.nan, np.inf, np.nan
    source = ArrayImages(path=file(tmp_path, images, labels))
    assert "3 images left out: pixels or label are not finite" in source.notices
    kept = [n for n in range(40) if n not in (3, 9, 20)]
    assert same(source, torch.tensor(images[kept], dtype=torch.float32), LABELS[kept])


def swap(**arrays: Any) -> Callable[[Path], Path]:
    def setup(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)
        return folder / "data.npz"

    return setup


def content(data: bytes) -> Callable[[Path], Path]:
    def setup(folder: Path) -> Path:
        (folder / "data.npz").write_bytes(data)
        return folder / "data.npz"

    return setup


def lone_array(folder: Path) -> Path:
    np.save(folder / "data.npy", noise(4, 6, 6))
    return folder / "data.npy"


def labels_missing(folder: Path) -> Path:
    np.save(folder / "images.npy", noise(40, 6, 6))
    return folder


def cut(folder: Path) -> Path:
    path = file(folder, noise(40, 6, 6))
    path.write_bytes(path.read_bytes()[:500])
    return path


def cut_map(folder: Path) -> Path:
    labels_missing(folder)
    np.save(folder / "labels.npy", LABELS)
    (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:500])
    return folder


GREY = noise(40, 6, 6)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (lambda folder: folder / "nowhere.npz", "cannot read .*nowhere.npz: No such file or directory"),
        (lambda folder: "", "path is empty; name the file or folder of arrays: --set data"),
        (lambda folder: folder, "holds no images.npy, nor folders train, validation and test with one"),
        (labels_missing, "there is no .*labels.npy"),
        (lone_array, r"holds one array: save images \[N, height, width\] or"),
        (content(b"hello"), r"data.npz is not an .npz file: save images"),
        (cut, r"data.npz is not a file of arrays \(.*\); save images"),
        (cut_map, r"images.npy is not an array \("),
        (
            swap(x_train=GREY, y_train=LABELS),
            "holds x_train, y_train, not images and labels; save images",
        ),
        (swap(train_images=GREY, train_y=LABELS), "holds train_images, train_y, not train_labels; save"),
        (swap(images=GREY, labels=LABELS[:9]), "data.npz holds 9 labels for 40 images"),
        (swap(images=GREY[:0], labels=LABELS[:0]), "data.npz holds no images"),
        (
            swap(images=GREY, labels=LABELS.astype(object)),
            "is not a file of arrays .*Object arrays cannot be",
        ),
        (swap(images=GREY, labels=LABELS / 2), "holds a label 0.5: labels are whole numbers or texts"),
        (
            swap(images=GREY, labels=np.eye(40)),
            r"holds labels of float64 and shape \(40, 40\): save a who",
        ),
        (
            swap(images=GREY, labels=LABELS * 0),
            "there is only one class, '0': a classifier needs at",
        ),
        (
            swap(images=GREY[0], labels=LABELS),
            r"holds images of shape \(6, 6\), not \[N, height, width\]",
        ),
        (
            swap(images=noise(40, 6, 6, 7), labels=LABELS),
            r"shape \(40, 6, 6, 7\), not .* or with 1 to 4",
        ),
        (
            swap(images=noise(40, 2, 6, 3), labels=LABELS),
            "which dimension holds the channels is not",
        ),
        (
            swap(images=GREY.astype(int), labels=LABELS),
            "holds images of int64: save them as uint8 from 0",
        ),
        (
            swap(images=GREY.astype(np.float32), labels=LABELS),
            "holds float32 images from 0 to 255: divide them by 255",
        ),
        (swap(images=GREY / 255 - 0.5, labels=LABELS), "images from -0.5 to 0.5: scale them to 0 to 1"),
        (
            swap(images=GREY // 200, labels=LABELS),
            "uint8 images with nothing above 1, which is black: save",
        ),
        (swap(images=GREY * np.nan, labels=LABELS), "holds no image whose pixels are all finite"),
        (
            swap(train_images=GREY, train_labels=LABELS, test_images=GREY[:, :5], test_labels=LABELS),
            r"hold images of different shapes: \(40, 1, 6, 6\) and \(40, 1, 5, 6\)",
        ),
        (
            swap(train_images=GREY, train_labels=LABELS, test_images=GREY, test_labels=LABELS + 1),
            "there is no training image with label 4",
        ),
        (
            swap(
                train_images=GREY, train_labels=LABELS, test_images=GREY, test_labels=LABELS.astype(str)
            ),
            "hold numbers and texts as labels: save one kind",
        ),
        (
            swap(images=GREY, labels=LABELS, train_images=GREY, train_labels=LABELS),
            "holds images and train_images: keep one of them",
        ),
        (
            swap(train_images=GREY, train_labels=LABELS, val_images=GREY, validation_images=GREY),
            "holds validation_images and val_images, which both mean validation: keep one",
        ),
        (swap(images=GREY, labels=1e30 * LABELS), "holds a label 1e[+]30: labels are whole numbers or"),
    ],
)
def test_arrays_that_are_of_no_use(setup: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ArrayImages(path=setup(tmp_path))
    assert "\n" not in str(caught.value)


@FEW
@given(data=st.data())
def test_whatever_is_changed_in_a_file(data: st.DataObject, tmp_path: Path) -> None:
    """One line, or the arrays as they were."""
    path = file(tmp_path, GREY)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    try:
        source = ArrayImages(path=path)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(every(source)) == 40
