"""The feature store: the maps of every photo, computed once, as float16 memory maps.

A store is a folder in the cache, named after the backbone and a digest of all that its content depends
on: backbone, layers, preprocessing, weights, and the names and sizes of the photos. It holds a ``.npy``
file per layer, [photos, channels, height, width], and ``index.json``. The index is the last to be
written, and the folder has its final name only then, so a store is whole or not there. While it is
being computed it is the same folder with ``.partial`` at the end, with a journal of the chunks that are
done: whatever kills the work loses one chunk, and what is computed does not depend on interruptions.

A photo that cannot be read has zeros for features and its reason in the index; sources leave it out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsram_ppl.data.captions.backbones import Backbone, FeatureRequest
from wsram_ppl.data.captions.flickr8k_layouts import is_lfs_pointer
from wsram_ppl.errors import InputError, RunError, one_line
from wsram_ppl.files import write_atomically

__all__ = ["FeatureStore", "Unreadable", "extract", "read_picture", "store_folder"]

_FORMAT: Final = "wsram_ppl features 1"
_INDEX, _JOURNAL = "index.json", "journal.jsonl"
#: Photos per call of the net. Fixed, since another size may round differently.
_CHUNK: Final = 16

_log = logging.getLogger(__name__)

#: Called after each chunk with the photos done and their total.
Progress = Callable[[int, int], None]


class Unreadable(Exception):
    """A picture that cannot be read; the text says why."""


class _Entry(NamedTuple):
    """A row of the index; ``fault`` is None for a photo that could be read."""

    name: str
    size: int
    modified: int  # nanoseconds
    sha256: str
    fault: str | None


@dataclass(frozen=True)
class FeatureStore:
    """Features on disk, read as they are needed.

    Attributes:
        folder: where they are.
        shapes: (channels, height, width) of each layer.
        rows: row of each readable photo, by name.
        unreadable: why each other photo could not be read, by name.
    """

    folder: Path
    shapes: tuple[tuple[int, int, int], ...]
    rows: dict[str, int]
    unreadable: dict[str, str]
    _maps: tuple[npt.NDArray[np.float16], ...]

    @classmethod
    def open(cls, folder: Path, photos: Sequence[Path]) -> FeatureStore:
        """Opens a store and makes sure that it is of these photos as they are now.

        A photo is taken as unchanged if its size and time are; if only the time differs, by its content.

        Raises:
            InputError: there is no such store, it is damaged, or a photo has changed.
        """
        if not (folder / _INDEX).is_file():
            raise InputError(
                f"there are no features of these {len(photos):,} photos with these settings in "
                f"{str(folder.parent)!r}: compute them with python cli.py features EXPERIMENT"
            )
        again = f"delete {str(folder)!r} and compute them again with python cli.py features EXPERIMENT"
        try:
            index = json.loads((folder / _INDEX).read_bytes())
            if index["format"] != _FORMAT:
                raise ValueError(f"its format is {index['format']!r}")
            shapes = tuple((int(c), int(h), int(w)) for c, h, w in index["shapes"])
            entries = [_Entry(*row) for row in index["photos"]]
            maps = tuple(
                np.load(folder / _layer_file(layer), mmap_mode="r")
                for layer in index["request"]["layers"]
            )
            for array, shape in zip(maps, shapes, strict=True):
                if array.shape != (len(entries), *shape) or array.dtype != np.float16:
                    raise ValueError(f"a layer is {array.dtype} {list(array.shape)}")
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise InputError(f"the features are damaged ({one_line(error)}); {again}") from error
        changed = [e.name for e, photo in zip(entries, photos, strict=True) if not _unchanged(e, photo)]
        if changed:
            raise InputError(
                f"{len(changed):,} photos have changed since their features were computed (the first: "
                f"{changed[0]}); compute them again with python cli.py features EXPERIMENT"
            )
        return cls(
            folder,
            shapes,
            {entry.name: row for row, entry in enumerate(entries) if entry.fault is None},
            {entry.name: entry.fault for entry in entries if entry.fault is not None},
            maps,
        )

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, ...]:
        """For each layer the maps [B, C, H, W] of the photos ``rows`` [B], float16 on the CPU."""
        return tuple(torch.from_numpy(np.asarray(array[rows])) for array in self._maps)

    def notices(self) -> list[str]:
        """A line on the photos that could not be read, if any."""
        if not self.unreadable:
            return []
        name, fault = min(self.unreadable.items())
        count = len(self.unreadable)
        return [
            f"{count:,} photos cannot be read: left out, captions and all (the first: {name}: {fault})"
        ]


def store_folder(cache: Path, request: FeatureRequest, photos: Sequence[Path]) -> Path:
    """Where the features of these photos are, or will be.

    Raises:
        InputError: a photo is not there.
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


def extract(
    request: FeatureRequest,
    photos: Sequence[Path],
    cache: Path,
    *,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> FeatureStore:
    """Computes the features of photos, or goes on where an earlier attempt was stopped.

    Args:
        request: what to compute.
        photos: files, in the order of the rows; names are not to repeat.
        cache: the folder of all stores.
        weights: see :class:`~wsram_ppl.data.captions.backbones.Backbone`.

    Returns:
        The store; at once if it is there already and the photos are unchanged.

    Raises:
        InputError: no photos, none that can be read, repeated names, or a wrong request.
        RunError: the disk is full or cannot be written, another process computes the same features, or
            features are not finite in float16.
    """
    if not photos:
        raise InputError("there are no photos to compute features of")
    if len({photo.name for photo in photos}) < len(photos):
        raise InputError("two photos have the same name")
    folder = store_folder(cache, request, photos)
    if (folder / _INDEX).is_file():
        try:
            return FeatureStore.open(folder, photos)
        except InputError as error:
            _log.warning("%s: computing all again, since %s", folder, error)
    backbone = Backbone(request, weights, device)
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with _alone(partial):
            # Another process may have finished while this one waited to begin.
            with contextlib.suppress(InputError):
                return FeatureStore.open(folder, photos)
            _compute(partial, request, photos, backbone, progress or (lambda done, total: None))
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(partial, folder)
    except OSError as error:
        raise RunError(
            f"cannot write features to {str(partial)!r}: {error.strerror or error}; what is done is "
            "kept, run the same command again to go on"
        ) from error
    return FeatureStore.open(folder, photos)


def read_picture(path: Path, size: int | None = None) -> npt.NDArray[np.uint8]:
    """A picture as [height, width, 3], uint8 RGB, upright.

    Args:
        size: resize it to a square of so many pixels, bicubic; None: as it is.

    Raises:
        Unreadable: the file cannot be read or holds no picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or one_line(error)) from error
    return _decode(content, size)


# ---------------------------------------------------------------- computing


def _compute(
    folder: Path,
    request: FeatureRequest,
    photos: Sequence[Path],
    backbone: Backbone,
    progress: Progress,
) -> None:
    """Fills the folder of a store: chunk by chunk, features first, then the journal."""
    entries = _resume(folder, request, photos)
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(
                _layer(folder / _layer_file(layer), (len(photos), *shape), bool(entries))
            )
            for layer, shape in zip(request.layers, backbone.shapes, strict=True)
        ]
        journal = stack.enter_context(open(folder / _JOURNAL, "ab"))
        progress(len(entries), len(photos))
        for first in range(len(entries), len(photos), _CHUNK):
            chunk = photos[first : first + _CHUNK]
            pictures, found = _read_chunk(chunk, request.image_size)
            for file, maps in zip(files, backbone(pictures), strict=True):
                file.write(first, _as_stored(maps, found)[: len(chunk)])
            journal.write(json.dumps(found).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
            entries += found
            progress(len(entries), len(photos))
    if all(entry.fault is not None for entry in entries):
        shutil.rmtree(folder)
        raise InputError(
            f"none of the {len(photos):,} photos can be read; the first, {photos[0]}: {entries[0].fault}"
        )
    index = {
        "format": _FORMAT,
        "request": request.to_data(),
        "modules": backbone.modules,
        "shapes": backbone.shapes,
        "photos": entries,
    }
    write_atomically(folder / _INDEX, json.dumps(index, indent=1).encode() + b"\n")
    (folder / _JOURNAL).unlink()


class _LayerFile(NamedTuple):
    """A layer's file and where its numbers start.

    Written as a file, not as a memory map: on a full disk that is an error, not a dead process.
    """

    raw: BinaryIO
    start: int

    def write(self, row: int, features: npt.NDArray[np.float16]) -> None:
        """Writes rows from ``row`` on, through to the disk."""
        self.raw.seek(self.start + row * features[0].nbytes)
        self.raw.write(features.tobytes())
        self.raw.flush()
        os.fsync(self.raw.fileno())


@contextlib.contextmanager
def _layer(path: Path, shape: tuple[int, ...], resumed: bool) -> Iterator[_LayerFile]:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f2", "fortran_order": False, "shape": shape}
    )
    start = len(header.getvalue())
    with open(path, "r+b" if resumed else "w+b") as file:
        file.write(header.getvalue())
        file.truncate(start + 2 * int(np.prod(shape)))
        yield _LayerFile(file, start)


def _resume(folder: Path, request: FeatureRequest, photos: Sequence[Path]) -> list[_Entry]:
    """The entries of the photos that an earlier attempt has done; empty for a fresh start."""
    journal = folder / _JOURNAL
    entries: list[_Entry] = []
    whole = 0  # bytes of the journal that can be trusted
    try:
        for line in journal.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            entries += (_Entry(*row) for row in json.loads(line))
            whole += len(line)
    except FileNotFoundError:
        return []
    except (ValueError, TypeError):
        entries, whole = [], 0
    if (
        len(entries) > len(photos)
        or not all(_unchanged(*pair) for pair in zip(entries, photos, strict=False))
        or not all((folder / _layer_file(layer)).is_file() for layer in request.layers)
    ):
        entries, whole = [], 0
    os.truncate(journal, whole)
    return entries


def _read_chunk(photos: Sequence[Path], size: int) -> tuple[Tensor, list[_Entry]]:
    """Pictures [_CHUNK, size, size, 3], black where there is none, and the photos' entries."""
    pictures = np.zeros((_CHUNK, size, size, 3), np.uint8)
    entries = []
    for place, photo in enumerate(photos):
        content, fault = b"", None
        length = modified = 0
        try:
            status = photo.stat()
            length, modified = status.st_size, status.st_mtime_ns
            content = photo.read_bytes()
            pictures[place] = _decode(content, size)
        except Unreadable as error:
            fault = str(error)
        except OSError as error:
            fault = error.strerror or one_line(error)
        digest = hashlib.sha256(content).hexdigest()
        entries.append(_Entry(_text(photo.name), length, modified, digest, fault))
    return torch.from_numpy(pictures), entries


def _as_stored(maps: Tensor, entries: Sequence[_Entry]) -> npt.NDArray[np.float16]:
    stored = maps.to(torch.float16).cpu().numpy().astype("<f2")
    for place, entry in enumerate(entries):
        if entry.fault is not None:
            stored[place] = 0
        elif not np.isfinite(stored[place]).all():
            raise RunError(
                f"the features of {entry.name} are not finite in float16: do mean and std fit the "
                "backbone?"
            )
    return stored


def _decode(content: bytes, size: int | None) -> npt.NDArray[np.uint8]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputError(
            f"pillow is needed ({one_line(error)}): pip install 'wsram_ppl[captions]'"
        ) from error
    if is_lfs_pointer(content):
        raise Unreadable("a Git LFS pointer, not the photo itself")
    if not content:
        raise Unreadable("the file is empty")
    try:
        with warnings.catch_warnings():
            # Broken comments in a file are no reason to bother anyone while its pixels can be read.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
                if size is not None and upright.size != (size, size):
                    upright = upright.resize((size, size), Image.Resampling.BICUBIC)
                return np.array(upright)
    except Exception as error:  # each decoder has its own
        text = one_line(error)
        if "cannot identify image file" in text:
            text = "not a picture"
        raise Unreadable(text) from error


# ---------------------------------------------------------------- files


def _layer_file(layer: Any) -> str:
    return f"layer-{int(layer)}.npy"


def _text(name: str) -> str:
    """A file name that JSON can hold."""
    return os.fsencode(name).decode("utf-8", "replace")


def _unchanged(entry: _Entry, photo: Path) -> bool:
    try:
        status = photo.stat()
        if entry.name != _text(photo.name) or entry.size != status.st_size:
            return False
        if entry.modified == status.st_mtime_ns:
            return True
        return hashlib.sha256(photo.read_bytes()).hexdigest() == entry.sha256
    except OSError:
        return entry.fault is not None  # it could not be read then either


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from computing into the folder.

    The lock goes with its process, however that ends; its empty file stays. Where there are no such
    locks (Windows), nothing is kept from anything.
    """
    with open(folder.with_name(f".{folder.stem}.lock"), "ab") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except BlockingIOError:
            raise RunError(
                f"another process is computing these features ({str(folder)!r}); wait for it, or end it"
            ) from None
        yield
