"""A folder of picture files, one subfolder per class, as a data source."""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from wsram_ppl.data.epochs import Rows, check_whole
from wsram_ppl.data.images.files import read_files
from wsram_ppl.data.images.fitting import Fit, describe_fit, fit_picture
from wsram_ppl.data.images.source import SPLITS, LabelledImages, count_of, listed
from wsram_ppl.data.images.splitting import SPLIT_NAMES
from wsram_ppl.data.pictures import Unreadable, open_picture
from wsram_ppl.errors import InputError, one_line

__all__ = ["FolderImages"]

_log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.uint8]

#: Bytes of decoded pictures kept in memory, so that small folders are decoded only once.
_KEPT: Final = 512 * 2**20
_THREADS: Final = 8


class FolderImages(LabelledImages):
    """Pictures in a folder, one subfolder for each class.

    Files are read when they are needed, many at once, and no more than half a gigabyte of decoded
    pictures is kept. A file that is not a picture is not used: in training another one of its class
    takes its place, and held-out data leave it out. This is reported, with a count.

    Args:
        root: contains a folder of pictures for each class; or folders ``train``, ``validation`` (or
            ``val``) and ``test`` that do. Without ``validation`` a part of ``train`` is held out.
        canvas: side of the square that pictures are fitted into, in pixels.
        fit: "resize" to the canvas, or "pad", which only shrinks larger ones; aspect ratios are kept.
        colour: whether pictures are in RGB; otherwise they are grey.
        split_seed: seed of the split, if there is none, and of the order of held-out pictures.
        held_out: fraction of the pictures drawn for validation, and for test, if there is no
            split.

    Raises:
        InputError: the folder is missing or contains nothing usable, or an option is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path = "",
        canvas: PositiveInt = 100,
        fit: Fit = "resize",
        colour: bool = True,
        split_seed: NonNegativeInt = 0,
        held_out: Annotated[float, Field(gt=0, lt=0.5)] = 0.1,
    ) -> None:
        if not os.fspath(root).strip():
            raise InputError("root is empty; name the folder of the pictures: --set data.root=DIR")
        check_whole("canvas", canvas, at_least=1)
        self._root = os.path.expanduser(root)
        found = _list(self._root)
        self._files, self.canvas, self._fit = found.files, canvas, fit
        self._mode = "RGB" if colour else "L"
        in_colour = "in colour" if colour else "in grey"
        super().__init__(
            found.labels,
            found.splits,
            found.classes,
            channels=3 if colour else 1,
            split_seed=split_seed,
            held_out=held_out,
            notices=(*found.notices, f"pictures are {describe_fit(canvas, fit)}, {in_colour}"),
        )
        shape = (canvas, canvas, 3) if colour else (canvas, canvas)
        #: Decoded pictures, by number from 0, as many as fit. Memory is allocated as it fills.
        self._kept = np.empty((min(len(found.files), _KEPT // int(np.prod(shape))), *shape), np.uint8)
        self._is_kept = np.zeros(len(self._kept), bool)
        self._broken: set[int] = set()
        self._problems = _Problems()
        self._others = {
            label: self._train[found.labels[self._train] == label]
            for label in np.unique(found.labels[self._train]).tolist()
        }

    @classmethod
    def read_pictures(
        cls, files: Sequence[str], options: Mapping[str, Any], record: Mapping[str, Any]
    ) -> tuple[Tensor, list[str]]:
        """Pictures of any folder, fitted like those of a source with these options.

        Raises:
            InputError: a file is not a picture.
        """
        given = {**(cls.__init__.__kwdefaults__ or {}), **options}
        size = (given["canvas"], given["canvas"])
        return read_files(files, record["channels"], size, given["fit"])

    def _read_for_training(self, chosen: Rows) -> Tensor:
        labels = self._labels[torch.from_numpy(chosen)].tolist()
        asked = [
            self._readable(number, label) for number, label in zip(chosen.tolist(), labels, strict=True)
        ]
        found = [*_pool().map(self._picture, asked)]
        while any(picture is None for picture in found):  # first attempt to read them
            asked = [self._readable(number, label) for number, label in zip(asked, labels, strict=True)]
            found = [
                self._picture(number) if picture is None else picture
                for number, picture in zip(asked, found, strict=True)
            ]
        return self._tensor([picture for picture in found if picture is not None])

    def _read_held_out(self, chosen: Rows) -> tuple[Tensor, Rows]:
        found = [*_pool().map(self._picture, chosen.tolist())]
        present = [picture for picture in found if picture is not None]
        kept = np.array([picture is not None for picture in found], bool)
        return self._tensor(present), chosen[kept]

    def _identity(self, chosen: Rows) -> Iterator[bytes]:
        return (os.fsencode(self._files[number]) for number in chosen.tolist())

    def _readable(self, number: int, label: int) -> int:
        """A training picture, or the next one of its class that is not known to be unreadable."""
        if number not in self._broken:
            return number
        others = self._others[label]
        place = int(np.searchsorted(others, number))
        for step in range(1, len(others)):
            other = int(others[(place + step) % len(others)])
            if other not in self._broken:
                return other
        raise InputError(
            f"none of the training pictures of class {self.class_names[label]!r} can be read "
            f"(the first: {self._files[others[0]]})"
        )

    def _picture(self, number: int) -> Pixels | None:
        """A picture's pixels, [canvas, canvas] or [canvas, canvas, 3]; None if it is not a picture.

        Raises:
            OSError: the file cannot be read.
        """
        if number in self._broken:
            return None
        if number < len(self._kept) and self._is_kept[number]:
            kept: Pixels = self._kept[number]
            return kept
        name = self._files[number]
        with open(os.path.join(self._root, name), "rb") as file:
            content = file.read()
        try:
            picture, note = open_picture(content)
        except Unreadable as error:
            self._broken.add(number)
            self._problems.add("cannot be read: left out", name, str(error))
            return None
        if note:
            self._problems.add("had to be changed", name, note)
        if picture.mode != self._mode:
            picture = picture.convert(self._mode)
        pixels: Pixels = np.asarray(fit_picture(picture, (self.canvas, self.canvas), self._fit))
        if number < len(self._kept):
            self._kept[number] = pixels
            self._is_kept[number] = True
        return pixels

    def _tensor(self, pictures: list[Pixels]) -> Tensor:
        if not pictures:
            return torch.empty(0)
        pixels = torch.from_numpy(np.stack(pictures))
        return pixels.permute(0, 3, 1, 2).contiguous() if pixels.dim() == 4 else pixels


class _Problems:
    """Counts problems in files and logs them: the first of each kind, then every power of ten."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}
        self._first: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, name: str, reason: str) -> None:
        with self._lock:
            first = self._first.setdefault(kind, f"{name}: {reason}")
            names = self._names.setdefault(kind, set())
            if name in names:
                return
            names.add(name)
            count = len(names)
        if math.log10(count).is_integer():
            _log.info("%s so far %s (the first: %s)", count_of(count, "picture"), kind, first)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Decodes pictures: Pillow releases Python's lock for that."""
    # Pillow's warnings, about broken comments for example, do not matter if pixels can be read.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    here = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1
    return ThreadPoolExecutor(min(_THREADS, cores), "pictures")


# The files.


class _Listing(NamedTuple):
    """The contents of a folder: ``files`` by number, below it; their labels; its splits, if any."""

    files: list[str]
    labels: Rows
    splits: dict[str, Rows]
    classes: list[str]
    notices: list[str]


class _Left:
    """What is left out, by kind: how many, and the first of them."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[str]] = {}

    def add(self, what: str, why: str, name: str) -> None:
        self._found.setdefault((what, why), []).append(name)

    def notices(self) -> Iterator[str]:
        for (what, why), names in self._found.items():
            yield f"{count_of(len(names), what)} left out, {why} (the first: {min(names)})"


def _list(root: str) -> _Listing:
    """All pictures of a folder, without opening any.

    Raises:
        InputError: there are none, or the folders have another structure.
    """
    left = _Left()
    try:
        top = _folders(root, "", left)
    except OSError as error:
        advice = "it should hold a folder of pictures for each class"
        raise InputError(f"cannot read {root!r}: {error.strerror}; {advice}") from error
    by_split = _splits(root, top, left)
    pictures: dict[str, dict[str, list[str]]] = {}
    for split, folder in by_split.items():
        classes = top if not folder else _folders(root, folder, left)
        pictures[split] = {name: _pictures(root, os.path.join(folder, name), left) for name in classes}
    classes = sorted({name for found in pictures.values() for name, files in found.items() if files})
    first = "train" if "train" in pictures else ""
    for name in sorted({name for found in pictures.values() for name in found} - set(classes)):
        left.add("folder", "without pictures", name)
    for name in [name for name in classes if not pictures[first].get(name)]:
        for found in pictures.values():
            for file in found.pop(name, []):
                left.add("picture", f"of classes that {by_split[first]} does not have", file)
        classes.remove(name)
    if not classes:
        raise InputError(
            f"{root!r} holds no pictures in folders: put those of each class into their own folder, "
            f"such as {os.path.join(root, 'cat', '1.jpg')}"
        )
    files: list[str] = []
    labels: list[int] = []
    splits: dict[str, Rows] = {}
    for split, found in pictures.items():
        before = len(files)
        for label, name in enumerate(classes):
            files += found.get(name, [])
            labels += [label] * len(found.get(name, []))
        splits[split] = np.arange(before, len(files))
    said = f"{count_of(len(files), 'picture')} of {listed(classes)}"
    splits.pop("", None)
    return _Listing(files, np.array(labels, np.int64), splits, classes, [said, *left.notices()])


def _splits(root: str, top: list[str], left: _Left) -> dict[str, str]:
    """The folder of each split, below the root; {"": ""} if the root itself holds the classes."""
    named = {
        split: [folder for folder in top if folder.lower() in names]
        for split, names in SPLIT_NAMES.items()
    }
    meant = [folder for folders in named.values() for folder in folders]
    if len(meant) < len(top) and not any(_folders(root, folder, _Left()) for folder in meant):
        return {"": ""}  # they hold pictures: classes of these names, beside others
    if not named["train"]:
        if top and len(meant) == len(top):
            raise InputError(f"{root!r} holds {' and '.join(meant)}, but no folder train to learn from")
        return {"": ""}
    for split, folders in named.items():
        if len(folders) > 1:
            raise InputError(
                f"{root!r} holds {' and '.join(folders)}, which both mean {split}: keep one of them"
            )
    for folder in top:
        if [folder] not in named.values():
            left.add("folder", "that is not a split", folder)
    return {split: named[split][0] for split in SPLITS if named[split]}


def _folders(root: str, below: str, left: _Left) -> list[str]:
    """The names of folders in a folder; files there are left out."""
    found = []
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            name = os.path.join(below, entry.name)
            if not entry.is_dir():
                left.add("file", "outside the class folders", name)
            elif entry.name.startswith("."):
                left.add("folder", "hidden", name)
            else:
                found.append(entry.name)
    return sorted(found)


def _pictures(root: str, below: str, left: _Left) -> list[str]:
    """The picture files in a folder and those below it, judged by their names alone."""
    endings, found, pending = _endings(), [], [below]
    followed = set()
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    name = os.path.join(folder, entry.name)
                    if entry.is_dir():
                        if entry.is_symlink():  # which may form a cycle
                            target = os.path.realpath(entry.path)
                            if target in followed:
                                continue
                            followed.add(target)
                        pending.append(name)
                    elif os.path.splitext(entry.name)[1].lower() in endings:
                        found.append(name)
                    else:
                        left.add("file", "whose name is not a picture's", name)
        except OSError as error:
            left.add("folder", f"unreadable: {error.strerror or one_line(error)}", folder)
    return sorted(found)


@functools.cache
def _endings() -> frozenset[str]:
    """The extensions of files that Pillow can open, in lower case."""
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError(
            f"pillow is needed ({one_line(error)}): pip install 'wsram_ppl[cli]'"
        ) from error
    registered = Image.registered_extensions()
    return frozenset(ending for ending, kind in registered.items() if kind in Image.OPEN)
