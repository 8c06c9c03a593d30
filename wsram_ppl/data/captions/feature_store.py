"""The feature store: the maps of every photo, computed once, as float16 memory maps.

A store is a folder in the cache, named after the backbone and a digest of everything that its content
depends on: backbone, layers, preprocessing, weights, and the names and sizes of the photos. It holds a
``.npy`` file per layer, [photos, channels, height, width], and ``index.json``. The folder gets its name
only when it is complete; :mod:`wsram_ppl.data.captions.feature_extraction` creates it.

A photo that cannot be read has zeros for features and its reason in the index; sources leave it out.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsram_ppl.data.captions.backbones import Backbone, FeatureRequest
from wsram_ppl.errors import InputError, one_line
from wsram_ppl.files import write_atomically

__all__ = ["Entry", "FeatureStore", "layer_file", "store_folder", "write_index"]

_FORMAT: Final = "wsram_ppl features 2"
_INDEX: Final = "index.json"


class Entry(NamedTuple):
    """A row of the index.

    ``fault`` is None for a photo that could be read; ``note`` says how its pixels were changed.
    """

    name: str
    size: int
    modified: int  # nanoseconds
    sha256: str
    fault: str | None
    note: str

    @classmethod
    def make(
        cls, photo: Path, size: int, modified: int, content: bytes, fault: str | None, note: str
    ) -> Self:
        """The entry of a photo whose file holds ``content``."""
        return cls(_text(photo.name), size, modified, hashlib.sha256(content).hexdigest(), fault, note)

    def describes(self, photo: Path) -> bool:
        """Whether the photo is unchanged: by size and time; if only the time differs, by content."""
        try:
            status = photo.stat()
            if self.name != _text(photo.name) or self.size != status.st_size:
                return False
            if self.modified == status.st_mtime_ns:
                return True
            return hashlib.sha256(photo.read_bytes()).hexdigest() == self.sha256
        except OSError:
            return self.fault is not None  # it could not be read before either


@dataclass(frozen=True)
class FeatureStore:
    """Features on disk, read as they are needed.

    Attributes:
        folder: the folder that holds them.
        shapes: (channels, height, width) of each layer.
        rows: row of each readable photo, by name.
        unreadable: why each of the other photos could not be read, by name.
        notes: how the pixels of some photos were changed, by name.
    """

    folder: Path
    shapes: tuple[tuple[int, int, int], ...]
    rows: dict[str, int]
    unreadable: dict[str, str]
    notes: dict[str, str]
    _maps: tuple[npt.NDArray[np.float16], ...]

    @classmethod
    def open(cls, folder: Path, photos: Sequence[Path]) -> FeatureStore:
        """Opens a store and makes sure that it matches the photos in their current state.

        Raises:
            InputError: there is no such store, it is damaged, or a photo has changed.
        """
        if not (folder / _INDEX).is_file():
            raise InputError(
                f"there are no features of these {len(photos):,} photos with these settings in "
                f"{str(folder.parent)!r}: compute them with wsram features EXPERIMENT"
            )
        again = f"delete {str(folder)!r} and compute them again with wsram features EXPERIMENT"
        try:
            index = json.loads((folder / _INDEX).read_bytes())
            if index["format"] != _FORMAT:
                raise ValueError(f"its format is {index['format']!r}")
            shapes = tuple((int(c), int(h), int(w)) for c, h, w in index["shapes"])
            entries = [Entry(*row) for row in index["photos"]]
            maps = tuple(
                np.load(folder / layer_file(layer), mmap_mode="r")
                for layer in index["request"]["layers"]
            )
            for array, shape in zip(maps, shapes, strict=True):
                if array.shape != (len(entries), *shape) or array.dtype != np.float16:
                    raise ValueError(f"a layer is {array.dtype} {list(array.shape)}")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"the features are damaged ({one_line(error)}); {again}") from error
        changed = [e.name for e, photo in zip(entries, photos, strict=True) if not e.describes(photo)]
        if changed:
            raise InputError(
                f"{len(changed):,} photos have changed since their features were computed (the first: "
                f"{changed[0]}); compute them again with wsram features EXPERIMENT"
            )
        return cls(
            folder,
            shapes,
            {entry.name: row for row, entry in enumerate(entries) if entry.fault is None},
            {entry.name: entry.fault for entry in entries if entry.fault is not None},
            {entry.name: entry.note for entry in entries if entry.note},
            maps,
        )

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, ...]:
        """For each layer, the maps [B, C, H, W] of the photos ``rows`` [B], float16 on the CPU."""
        return tuple(torch.from_numpy(np.asarray(array[rows])) for array in self._maps)

    def notices(self) -> list[str]:
        """One line about the photos that could not be read, and one about those with changed pixels."""
        return [
            f"{len(photos):,} photos {what} (the first: {min(photos)}: {photos[min(photos)]})"
            for photos, what in (
                (self.unreadable, "cannot be read: left out, with their captions"),
                (self.notes, "were changed before use"),
            )
            if photos
        ]


def store_folder(cache: Path, request: FeatureRequest, photos: Sequence[Path]) -> Path:
    """Where the features of these photos are, or will be.

    Raises:
        InputError: a photo is missing.
    """
    digest = hashlib.sha256(f"{_FORMAT}\0{request.digest()}\0".encode())
    for photo in photos:
        try:
            size = photo.stat().st_size
        except OSError as error:
            raise InputError(f"cannot look at the photo {str(photo)!r}: {error.strerror}") from None
        digest.update(f"{size}\0".encode() + os.fsencode(photo.name) + b"\0")
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in request.backbone)
    return cache / f"{name}-{digest.hexdigest()[:16]}"


def write_index(
    folder: Path, request: FeatureRequest, backbone: Backbone, entries: Sequence[Entry]
) -> None:
    """Writes the index of a store, the last of its files.

    Raises:
        RunError: it cannot be written.
    """
    index = {
        "format": _FORMAT,
        "request": request.to_data(),
        "modules": backbone.modules,
        "shapes": backbone.shapes,
        "photos": entries,
    }
    write_atomically(folder / _INDEX, json.dumps(index, indent=1).encode() + b"\n")


def layer_file(layer: int) -> str:
    """The name of a layer's file."""
    return f"layer-{int(layer)}.npy"


def _text(name: str) -> str:
    """A file name in a form that JSON can represent."""
    return os.fsencode(name).decode("utf-8", "replace")
