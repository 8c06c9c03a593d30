"""Reads a copy of Flickr8k as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

from wsram_ppl.data.captions.layouts.files import DEEPEST, find_files
from wsram_ppl.data.captions.layouts.karpathy import read_karpathy
from wsram_ppl.data.captions.layouts.photos import Photo, join, match
from wsram_ppl.data.captions.layouts.rows import CSV_LINE, TOKEN_LINE, read_csv, read_tokens
from wsram_ppl.data.captions.layouts.splits import SPLIT_FILES, draw_splits, read_splits
from wsram_ppl.data.captions.layouts.table import Row, collect
from wsram_ppl.data.captions.layouts.text import Notes
from wsram_ppl.errors import InputError, nearest

#: Which files to read; "auto": those that exist.
Layout = Literal["auto", "illinois", "karpathy", "kaggle"]


@dataclass(frozen=True)
class Flickr8k:
    """What was found.

    Attributes:
        photos: every captioned photo whose file exists, by name.
        notices: a line for each problem, with its count, and for each choice made for the user.
    """

    photos: tuple[Photo, ...]
    notices: tuple[str, ...]


class _Format(NamedTuple):
    """The file of a layout, what it should hold, and its reader."""

    file: str
    expected: str
    read: Callable[[Path, Notes], Iterator[Row]]


_ENTRY: Final = '{"filename": "NAME.jpg", "split": "train", "sentences": [{"raw": "..."}]}'
_FORMATS: Final = {
    "illinois": _Format("Flickr8k.token.txt", f"a line should be {TOKEN_LINE}", read_tokens),
    "karpathy": _Format("dataset_flickr8k.json", f"an image should be {_ENTRY}", read_karpathy),
    "kaggle": _Format("captions.txt", f"a line should be {CSV_LINE}", read_csv),
}
_BELOW: Final = f"or at most {DEEPEST} folders below"
_EXPECTED: Final = (
    f"the root of Flickr8k should hold one of {', '.join(each.file for each in _FORMATS.values())}, "
    "and a folder of photos (Flicker8k_Dataset or Images)"
)


def read_flickr8k(
    root: str | os.PathLike[str], *, layout: Layout = "auto", split_seed: int = 0
) -> Flickr8k:
    """Reads captions and splits, and finds the photos without opening them.

    Args:
        root: the folder that holds all of it.
        layout: which files to read; "auto" takes the first of illinois, karpathy and kaggle that comes
            with splits, or else the first that exists.
        split_seed: seed of the split, if the captions come without one: an eighth of the photos for
            dev, an eighth for test.

    Raises:
        InputError: the folder, the captions or the photos are missing, or nothing in them is usable.
    """
    if layout not in get_args(Layout):
        raise InputError(
            f"unknown layout {layout!r};{nearest(str(layout), get_args(Layout))} "
            f"there are {', '.join(get_args(Layout))}"
        )
    folder, notes = Path(os.path.expanduser(os.fspath(root))), Notes()
    if not os.path.isdir(folder):
        state = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise InputError(f"{str(folder)!r} {state}; {_EXPECTED}")
    texts, photos = find_files(folder)
    split_files = {s: texts[file.lower()] for s, file in SPLIT_FILES.items() if file.lower() in texts}
    chosen, path = _choose_layout(folder, texts, layout, bool(split_files), notes)
    table = collect(_FORMATS[chosen].read(path, notes), path.name, notes)
    if not table:
        raise InputError(f"{path} holds no captions: {_FORMATS[chosen].expected}")
    remedies = {split: f"name its photos in {file}" for split, file in SPLIT_FILES.items()}
    if chosen == "karpathy":
        remedies = {s: f'give its photos "split": "{s}" in {path.name}' for s in SPLIT_FILES}
    elif split_files:
        read_splits(split_files, table, path.name, notes)
    else:
        draw_splits(table, split_seed, path.name, notes)
    matched = match(table, photos, notes)
    found = tuple(join(table, matched, folder, notes))
    if not matched:
        what = f"none of the {len(table):,} captioned photos is in {str(folder)!r} {_BELOW}"
        raise notes.error(f"{what}; {_EXPECTED}")
    used = {photo.split for photo in found}
    if "train" not in used:
        what = f"{str(folder)!r} holds no photo of the train split with a caption"
        raise notes.error(f"{what}; {remedies['train']}")
    for split, remedy in remedies.items():
        if split not in used:
            notes.tell(f"the {split} split is empty: {remedy}")
    return Flickr8k(found, notes.lines())


def _choose_layout(
    root: Path, texts: Mapping[str, Path], layout: Layout, has_split_files: bool, notes: Notes
) -> tuple[str, Path]:
    """The layout to read, and its file of captions."""
    there = {name: texts[f.file.lower()] for name, f in _FORMATS.items() if f.file.lower() in texts}
    if not there:
        raise InputError(f"no captions in {str(root)!r} {_BELOW}; {_EXPECTED}")
    if layout not in ("auto", *there):
        raise InputError(
            f"no {_FORMATS[layout].file} in {str(root)!r} {_BELOW}, which layout {layout!r} needs; "
            f"there is {', '.join(there)}"
        )
    with_splits = [name for name in there if has_split_files or name == "karpathy"]
    chosen = [*with_splits, *there][0] if layout == "auto" else layout
    if layout == "auto" and len(there) > 1:
        others = " and ".join(_FORMATS[name].file for name in there if name != chosen)
        what = "captions and splits are" if with_splits else "captions, without splits, are"
        notes.tell(f"{what} read from {there[chosen]}; {others} is also there (layout chooses another)")
    return chosen, there[chosen]
