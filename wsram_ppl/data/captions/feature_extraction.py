"""Computing a feature store, chunk by chunk, so that an interruption costs at most one chunk.

While a store is computed, the folder ``NAME.partial`` beside it holds a file per chunk of photos, and
the incomplete store. Each attempt goes through all chunks in order, takes those that exist and computes
the others, so that the result does not depend on interruptions.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from wsram_ppl.data.captions.backbones import Backbone, FeatureRequest
from wsram_ppl.data.captions.feature_store import (
    Entry,
    FeatureStore,
    layer_file,
    store_folder,
    write_index,
)
from wsram_ppl.data.pictures import Unreadable, open_picture
from wsram_ppl.errors import InputError, RunError, one_line
from wsram_ppl.files import locked

__all__ = ["Picture", "Progress", "extract", "read_picture"]

#: Photos per call of the net. Fixed, since other sizes may round differently.
_CHUNK: Final = 16

_log = logging.getLogger(__name__)

#: Called before each chunk, and at the end, with the photos done and their total.
Progress = Callable[[int, int], None]


class Picture(NamedTuple):
    """A picture, ready for a net.

    Attributes:
        pixels: [height, width, 3], uint8 RGB, upright.
        note: changes that affect how it looks, if any; "" for most pictures.
    """

    pixels: npt.NDArray[np.uint8]
    note: str


class _Chunk(NamedTuple):
    """Up to ``_CHUNK`` photos, and for each layer their maps [photos, C, H, W]."""

    entries: list[Entry]
    maps: list[npt.NDArray[np.float16]]


def extract(
    request: FeatureRequest,
    photos: Sequence[Path],
    cache: Path,
    *,
    weights: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda done, total: None,
) -> FeatureStore:
    """Computes the features of photos, or continues where an earlier attempt was stopped.

    Args:
        request: what to compute.
        photos: files, in the order of the rows; names must be unique.
        cache: the folder that holds all stores.
        weights: see :class:`~wsram_ppl.data.captions.backbones.Backbone`.

    Returns:
        The store; immediately if it exists and the photos are unchanged.

    Raises:
        InputError: no photos, no readable photos, repeated names, or a wrong request.
        RunError: the disk is full or read-only, another process is computing the same features, or
            features are not finite in float16.
    """
    if not photos:
        raise InputError("there are no photos to compute features of")
    if len({photo.name for photo in photos}) < len(photos):
        raise InputError("two photos have the same name")
    folder = store_folder(cache, request, photos)
    partial = folder.with_name(f"{folder.name}.partial")
    if folder.is_dir():
        try:
            store = FeatureStore.open(folder, photos)
        except InputError as error:
            _log.warning("%s: computing everything again, since %s", folder, error)
        else:
            shutil.rmtree(partial, ignore_errors=True)  # left by an attempt that was killed late
            return store
    backbone = Backbone(request, weights, device)
    busy = f"another process is computing these features ({str(partial)!r}); wait for it, or end it"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock"), busy):
            # Another process may have finished in the meantime.
            with contextlib.suppress(InputError):
                return FeatureStore.open(folder, photos)
            finished = _compute(partial, request, photos, backbone, progress)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(finished, folder)
            shutil.rmtree(partial)
    except OSError as error:
        raise RunError(
            f"cannot write features to {str(partial)!r}: {error.strerror or error}; what is done is "
            "kept, run the same command again to continue"
        ) from error
    return FeatureStore.open(folder, photos)


def read_picture(path: Path, size: int | None = None) -> Picture:
    """A picture from its file, scaled to 8 bits, with transparent parts on white.

    Args:
        size: side in pixels of the square to resize it to, bicubic; None: unchanged.

    Raises:
        Unreadable: the file cannot be read or is not a picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or one_line(error)) from error
    return _decode(content, size)


def _compute(
    partial: Path,
    request: FeatureRequest,
    photos: Sequence[Path],
    backbone: Backbone,
    progress: Progress,
) -> Path:
    """The folder, in ``partial``, of the complete store; only one chunk is in memory at a time."""
    folder = partial / "store"
    folder.mkdir(exist_ok=True)
    entries: list[Entry] = []
    with contextlib.ExitStack() as stack:
        # Files, not memory maps: a full disk then raises an error and does not kill the process.
        files = [stack.enter_context(open(folder / layer_file(n), "wb")) for n in request.layers]
        for file, shape in zip(files, backbone.shapes, strict=True):
            header = {"descr": "<f2", "fortran_order": False, "shape": (len(photos), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, len(photos), _CHUNK):
            path, part = partial / f"{first}.npz", photos[first : first + _CHUNK]
            chunk = _load_chunk(path, part, backbone.shapes)
            if chunk is None:
                progress(first, len(photos))
                chunk = _compute_chunk(part, request.image_size, backbone)
                _save_chunk(path, chunk)
            entries += chunk.entries
            for file, maps in zip(files, chunk.maps, strict=True):
                file.write(maps.tobytes())
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    progress(len(photos), len(photos))
    if all(entry.fault is not None for entry in entries):
        shutil.rmtree(partial)
        raise InputError(
            f"none of the {len(photos):,} photos can be read; the first, {photos[0]}: {entries[0].fault}"
        )
    write_index(folder, request, backbone, entries)
    return folder


def _load_chunk(
    path: Path, photos: Sequence[Path], shapes: Sequence[tuple[int, int, int]]
) -> _Chunk | None:
    """An earlier attempt's chunk for these photos; None if missing, damaged or for other photos."""
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            entries, *maps = (file[name] for name in file.files)
        chunk = _Chunk([Entry(*row) for row in json.loads(str(entries))], maps)
    except Exception:  # anything that zip, NumPy and JSON raise
        return None
    fits = [each.shape for each in maps] == [(len(photos), *shape) for shape in shapes]
    same = len(chunk.entries) == len(photos) and all(map(Entry.describes, chunk.entries, photos))
    return chunk if fits and same else None


def _save_chunk(path: Path, chunk: _Chunk) -> None:
    """Writes atomically. Damage by a power failure shows in the checksums in the file."""
    content = io.BytesIO()
    np.savez(content, np.array(json.dumps(chunk.entries)), *chunk.maps)
    torn = path.with_suffix(".torn")
    torn.write_bytes(content.getvalue())
    os.replace(torn, path)


def _compute_chunk(photos: Sequence[Path], size: int, backbone: Backbone) -> _Chunk:
    pictures = np.zeros((_CHUNK, size, size, 3), np.uint8)  # black where a picture is missing
    entries = []
    for place, photo in enumerate(photos):
        content, fault, note = b"", None, ""
        length = modified = 0
        try:
            status = photo.stat()
            length, modified = status.st_size, status.st_mtime_ns
            content = photo.read_bytes()
            pictures[place], note = _decode(content, size)
        except Unreadable as error:
            fault = str(error)
        except OSError as error:
            fault = error.strerror or one_line(error)
        entries.append(Entry.make(photo, length, modified, content, fault, note))
    maps = [m.half().cpu().numpy().astype("<f2") for m in backbone(torch.from_numpy(pictures))]
    for place, entry in enumerate(entries):
        if entry.fault is not None:
            for layer in maps:
                layer[place] = 0
        elif not all(np.isfinite(layer[place]).all() for layer in maps):
            raise RunError(
                f"the features of {entry.name} are not finite in float16: do mean and std fit the "
                "backbone?"
            )
    return _Chunk(entries, [layer[: len(photos)] for layer in maps])


def _decode(content: bytes, size: int | None) -> Picture:
    with warnings.catch_warnings():
        # No warnings about broken comments in a file whose pixels can be read.
        warnings.simplefilter("ignore")
        picture, note = open_picture(content)
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), 3)  # bicubic
    return Picture(np.array(picture), note)
