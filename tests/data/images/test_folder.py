"""Folders of pictures: what is found in them, how it is split, read and told."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.data.images.pictures import folder, write
from wsram_ppl.config.catalogue import DATA_SOURCES
from wsram_ppl.data.images import folder as module
from wsram_ppl.data.images.folder import FolderImages
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import DataSource, DrawsRows, InformsModel, KeepsRecord


def source(root: Path, **options: Any) -> FolderImages:
    return FolderImages(root=root, **{"canvas": 8, **options})


def told(batch: tuple[Tensor, ...]) -> list[tuple[int, int]]:
    """Red of each picture, and its label."""
    images, labels = batch
    red = (images[:, 0].amax((-2, -1)) * 255).round().long()
    return [*zip(red.tolist(), labels.tolist(), strict=True)]


def epoch(images: FolderImages, size: int = 4, seed: int = 0) -> list[tuple[int, int]]:
    steps = len(images._train) // size
    return [each for step in range(steps) for each in told(images.training_batch(step, size, seed))]


def held_out(images: FolderImages, split: Any = "validation", size: int = 3) -> list[tuple[int, int]]:
    return [each for batch in images.evaluation_batches(size, split=split) for each in told(batch)]


def test_a_folder_of_classes_is_split_and_said(tmp_path: Path) -> None:
    images = source(folder(tmp_path, {"cat": 20, "dog": 30}))
    assert images.class_names == ("cat", "dog")
    assert images.notices == (
        "50 pictures of 2 classes: cat, dog",
        "pictures are resized to 8 x 8 pixels, padded with black if they are not square, in colour",
        "40 pictures for training, 5 for validation, 5 for test: drawn from each class alike, with "
        "data.split_seed 0",
    )
    parts = [epoch(images), held_out(images), held_out(images, "test")]
    assert [len(part) for part in parts] == [40, 5, 5]
    every = [each for part in parts for each in part]
    assert sorted(every) == sorted([(n, 0) for n in range(20)] + [(n, 1) for n in range(30)])
    assert images.model_options == {"classes": 2, "class_names": ("cat", "dog"), "image_channels": 3}
    for hook in (DataSource, DrawsRows, InformsModel, KeepsRecord):
        assert isinstance(images, hook)
    assert DATA_SOURCES.resolve("folder") is FolderImages


def test_batches_are_functions_of_their_arguments(tmp_path: Path) -> None:
    """Over the ends of epochs, by rows, from another object and in another order."""
    folder(tmp_path, {"cat": 12, "dog": 12})
    one, other = source(tmp_path), source(tmp_path)
    expected = {step: one.training_batch(step, 7, 3) for step in range(6)}
    for step in (5, 0, 2, 2, 1, 4, 3):
        other.training_batch(step + 10, 5, 1)
        images, labels = other.training_batch(step, 7, 3)
        assert images.equal(expected[step][0]) and labels.equal(expected[step][1])
        assert other.training_rows(step, 7, 3, slice(2, 5))[0].equal(images[2:5])
    assert told(one.training_batch(0, 7, 3)) != told(one.training_batch(0, 7, 4))
    assert one.training_batch(0, 7, 3)[0].shape == (7, 3, 8, 8)
    first = next(one.evaluation_batches(4, 1))
    assert told(first) == held_out(one)[:1]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "validation", "testing")])
def test_folders_of_splits(names: tuple[str, str, str], tmp_path: Path) -> None:
    train, validation, test = names
    counts = {f"{train}/a": 5, f"{train}/b": 5, f"{validation}/a": 2, f"{test}/b": 3, f"{test}/a": 1}
    images = source(folder(tmp_path, counts))
    assert images.notices[-1] == (
        "10 pictures for training, 2 for validation, 4 for test: as in the data"
    )
    assert sorted(held_out(images)) == [(0, 0), (1, 0)]
    assert sorted(held_out(images, "test")) == [(0, 0), (0, 1), (1, 1), (2, 1)]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """A folder of that name is a split only if it holds the folders of classes."""
    images = source(folder(tmp_path, {"car": 10, "train": 10, "boat": 10}))
    assert images.class_names == ("boat", "car", "train")
    assert "drawn from each class alike" in images.notices[-1]
    with pytest.raises(InputError, match="holds no pictures in folders"):
        source(folder(tmp_path / "splits", {"train": 10, "test": 10}))


def test_what_the_splits_lack(tmp_path: Path) -> None:
    images = source(folder(tmp_path, {"train/a": 20, "train/b": 20}))
    assert images.notices[-1] == (
        "36 pictures for training, 4 for validation, 0 for test: the second drawn from the training "
        "pictures, with data.split_seed 0"
    )
    assert len(held_out(images)) == 4
    with pytest.raises(InputError, match="there are no test pictures"):
        images.evaluation_batches(2, split="test")
    with pytest.raises(
        InputError, match=r"unknown split 'train'; held-out splits are validation and te"
    ):
        images.evaluation_batches(2, split="train")  # type: ignore[arg-type]


def test_nothing_is_dropped_without_a_word(tmp_path: Path) -> None:
    folder(tmp_path, {"train/a": 5, "train/b": 5, "val/a": 2, "val/zebra": 3, "train/empty": 0})
    for name in ("readme.txt", "train/list.csv", "train/a/notes.txt", "train/a/deep/.DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in ("train/empty", "extras", "train/.git"):
        (tmp_path / name).mkdir()
    (tmp_path / "train/b/gone.png").symlink_to("nowhere.png")
    images = source(tmp_path)
    assert images.notices[:-2] == (
        "13 pictures of 2 classes: a, b",
        "2 files left out, outside the class folders (the first: readme.txt)",
        "1 folder left out, that is not a split (the first: extras)",
        "1 folder left out, hidden (the first: train/.git)",
        "2 files left out, whose name is not a picture's (the first: train/a/deep/.DS_Store)",
        "1 folder left out, without pictures (the first: empty)",
        "3 pictures left out, of classes that train does not have (the first: val/zebra/000.png)",
    )


def test_folders_within_classes_and_links(tmp_path: Path) -> None:
    folder(tmp_path / "data", {"a": 2, "a/more/still": 3, "b": 4})
    folder(tmp_path / "else", {"c": 3})
    (tmp_path / "data" / "c").symlink_to(tmp_path / "else" / "c")
    (tmp_path / "data" / "a" / "again").symlink_to(tmp_path / "data" / "a")  # a circle
    images = source(tmp_path / "data")
    assert images.class_names == ("a", "b", "c")
    assert images.notices[0].startswith("17 pictures")  # those of a twice, by either name


# Reading.


@pytest.mark.parametrize(
    "ending", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "jp2", "PNG", "JPEG", "tga", "ico"]
)
def test_any_format_that_pillow_reads(ending: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(3):
            write(tmp_path / name / f"{number}.{ending}", (200, 100, 0), (16, 16))
    images, _ = source(tmp_path, canvas=16).training_batch(0, 2, 0)
    middle = (images[:, :, 8, 8] * 255).round()
    assert (middle - torch.tensor([200.0, 100.0, 0.0])).abs().max() <= 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("colour", [True, False])
def test_any_mode(mode: str, colour: bool, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture = Image.new("L", (8, 8), 255)
        picture = (
            Image.new("I;16", (8, 8), 65535) if mode == "I;16" else picture.convert("RGB").convert(mode)
        )
        for number in range(3):
            picture.save(tmp_path / name / (f"{number}.tif" if mode == "CMYK" else f"{number}.png"))
    images, _ = source(tmp_path, colour=colour).training_batch(0, 2, 0)
    assert images.shape == ((2, 3, 8, 8) if colour else (2, 8, 8))
    assert images.dtype == torch.float32 and images.min() >= 0.99


@pytest.mark.parametrize(
    ("fit", "size", "box"),
    [
        ("resize", (8, 8), (0, 0, 16, 16)),
        ("resize", (40, 20), (0, 4, 16, 12)),
        ("resize", (5, 10), (4, 0, 12, 16)),
        ("pad", (8, 4), (4, 6, 12, 10)),
        ("pad", (64, 32), (0, 4, 16, 12)),
        ("resize", (300, 1), (0, 7, 16, 8)),
    ],
)
def test_pictures_of_any_size_are_fitted(
    fit: Any, size: tuple[int, int], box: tuple[int, ...], tmp_path: Path
) -> None:
    """Their shape is kept; what is beside them is black."""
    for name in ("a", "b"):
        for number in range(3):
            write(tmp_path / name / f"{number}.png", (255, 255, 255), size)
    images, _ = source(tmp_path, canvas=16, fit=fit).training_batch(0, 1, 0)
    expected = torch.zeros(16, 16)
    left, top, right, bottom = box
    expected[top:bottom, left:right] = 1
    assert images[0].equal(expected.expand(3, -1, -1))


def test_photos_are_turned_as_they_say(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 8), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 8))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left is then above
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            picture.save(tmp_path / name / f"{number}.jpg", exif=exif, quality=95)
    images, _ = source(tmp_path, canvas=16).training_batch(0, 1, 0)
    assert images[0, 0, 2, 8] > 0.9 > 0.1 > images[0, 0, 13, 8]


def broken(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "text": b"no picture"}[how])


def test_files_that_are_no_pictures_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another of the class has the place of one in training; minibatches stay what they were else."""
    folder(tmp_path, {"train/a": 12, "train/b": 12, "val/a": 4, "val/b": 4})
    whole = epoch(source(tmp_path))
    faults = ("cut", "empty", "text")
    for number in range(11):
        broken(tmp_path / "train" / "b" / f"{number:03}.png", faults[number % 3])
    broken(tmp_path / "val" / "a" / "002.png", "text")
    with caplog.at_level("INFO", logger="wsram_ppl"):
        images = source(tmp_path)
        caplog.clear()
        found = epoch(images)
        left = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (3, 0), (3, 1)]
        assert sorted(held_out(images, size=1)) == left
    lines = caplog.messages
    assert len(lines) == 2
    assert re.match(
        r"1 picture so far cannot be read: left out \(the first: train/b/\d+.png: .*\)", lines[0]
    )
    assert re.match(r"10 pictures so far cannot be read: left out \(the first: train/b/", lines[1])
    for before, now in zip(whole, found, strict=True):
        assert now == (before if before[1] == 0 or before[0] == 11 else (11, 1))
    # By now all are known, and batches the same.
    assert epoch(images) == found == epoch(source(tmp_path))


def test_a_class_without_a_readable_picture(tmp_path: Path) -> None:
    folder(tmp_path, {"a": 6, "b": 6})
    for number in range(6):
        (tmp_path / "b" / f"{number:03}.png").write_text("")
    with pytest.raises(
        InputError, match=r"none of the training pictures of class 'b' can be read \(the first: b/00"
    ):
        epoch(source(tmp_path))


def test_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    """That is no fault of a picture, and would make minibatches others than they were."""
    images = source(folder(tmp_path, {"a": 6, "b": 6}))
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(FileNotFoundError):
        epoch(images)


def test_pictures_that_are_changed_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder(tmp_path, {"a": 6, "b": 6})
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a" / "000.png")
    images = source(tmp_path)
    caplog.clear()
    with caplog.at_level("INFO", logger="wsram_ppl"):
        epoch(images, 2)
        for split in ("validation", "test"):
            held_out(images, split)
    assert caplog.messages == [
        "1 picture so far had to be changed (the first: a/000.png: its transparent parts are shown on "
        "white)"
    ]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: b"\x89PNG\r\n\x1a\n" + b))
def test_whatever_is_in_a_file(content: bytes, tmp_path: Path) -> None:
    """It is a picture or it is left out, with a word."""
    folder(tmp_path, {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1})
    (tmp_path / "train" / "a" / "000.png").write_bytes(content)
    images, labels = source(tmp_path).training_batch(0, 4, 0)
    assert images.shape == (4, 3, 8, 8) and images.isfinite().all()
    assert labels.bincount().tolist() == [2, 2]


# Memory and time.


def test_small_folders_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = source(folder(tmp_path, {"a": 10, "b": 10}))
    first = epoch(images)
    monkeypatch.setattr(module, "open_picture", None)
    assert epoch(images) == first


def test_only_so_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And batches do not depend on it."""
    folder(tmp_path, {"a": 10, "b": 10})
    expected = source(tmp_path)
    for room in (0, 5 * 8 * 8 * 3 + 1):
        monkeypatch.setattr(module, "_KEPT", room)
        images = source(tmp_path)
        assert len(images._kept) == room // 192
        for step in range(6):
            assert images.training_batch(step, 5, 0)[0].equal(expected.training_batch(step, 5, 0)[0])


def test_no_file_is_opened_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor asked for its size: a hundred thousand files are listed in seconds."""
    folder(tmp_path, {"a": 5, "b": 5})
    asked: list[str] = []
    monkeypatch.setattr(os, "stat", lambda path, **_: asked.append(str(path)))
    monkeypatch.setattr("builtins.open", None)
    source(tmp_path)
    assert asked == []


# What the run keeps.


def test_the_record_tells_training_pictures_apart(tmp_path: Path) -> None:
    folder(tmp_path, {"train/a": 6, "train/b": 6, "val/a": 2, "val/b": 2})
    first = source(tmp_path).record
    assert first["classes"] == ["a", "b"] and first["channels"] == 3
    write(tmp_path / "val" / "a" / "another.png")
    assert source(tmp_path).record == first
    write(tmp_path / "train" / "a" / "another.png")
    changed = source(tmp_path).record
    assert {key for key in first if first[key] != changed[key]} == {"training"}
    assert source(tmp_path, colour=False).record["channels"] == 1


@pytest.mark.parametrize(
    ("setup", "options", "message"),
    [
        (
            lambda root: None,
            {"root": "nowhere"},
            r"cannot read 'nowhere': No such file or directory; ",
        ),
        (lambda root: None, {"root": " "}, "root is empty; name the folder of the pictures"),
        (
            lambda root: None,
            {},
            r"holds no pictures in folders: put those of each class into their",
        ),
        (lambda root: write(root / "1.png"), {}, r"holds no pictures in folders.*cat/1.jpg"),
        (
            lambda root: write(root / "cat/1.png"),
            {},
            "there is only one class, 'cat': a classifier needs",
        ),
        (
            lambda root: write(root / "test/cat/1.png"),
            {},
            "holds test, but no folder train to learn",
        ),
        (
            lambda root: folder(root, {"train/a": 1, "val/a": 1, "dev/a": 1}),
            {},
            "holds dev and val, which both mean validation: keep one of them",
        ),
        (
            lambda root: folder(root, {"a": 2, "b": 2}),
            {"canvas": 0},
            "canvas must be a whole number ",
        ),
    ],
)
def test_folders_that_are_of_no_use(
    setup: Callable[[Path], Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    setup(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        source(**{"root": tmp_path, **options})
    assert "\n" not in str(caught.value)


def test_more_than_there_is(tmp_path: Path) -> None:
    images = source(folder(tmp_path, {"a": 5, "b": 5}))
    with pytest.raises(
        InputError, match="a batch of 64 cannot be drawn from 6 training pictures; choose"
    ):
        images.training_batch(0, 64, 0)


def test_names_that_are_no_utf8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    root = os.fsencode(tmp_path)
    for name in (b"caf\xe9", b"b"):
        os.mkdir(os.path.join(root, name))
        for number in range(3):
            shutil.copy(
                folder(tmp_path / "x", {"y": 1}) / "y" / "000.png",
                os.path.join(root, name, b"%d.png" % number),
            )
    shutil.rmtree(tmp_path / "x")
    images = source(tmp_path)
    assert images.class_names == ("b", "caf\udce9")
    assert "6 pictures of 2 classes: b, caf\udce9" in caplog.messages
    assert images.training_batch(0, 2, 0)[0].isfinite().all()
