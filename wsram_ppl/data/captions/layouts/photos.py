"""Which file each photo is, and what is known of those that have one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from wsram_ppl.data.captions.layouts.names import key_of
from wsram_ppl.data.captions.layouts.table import Split, Table
from wsram_ppl.data.captions.layouts.text import Notes


class Photo(NamedTuple):
    """A photo with its captions as written, apart from white space.

    ``split`` is None for a photo that no split file names.
    """

    name: str
    path: Path
    split: Split | None
    captions: tuple[str, ...]


def match(table: Table, photos: Sequence[Path], notes: Notes) -> dict[str, Path]:
    """The file of each captioned photo that has one, by key.

    Of several, it is the one in the folder that is written before the name; or else in the folder with
    most of the captioned photos; or else the one with exactly the name.
    """
    by_key: dict[str, list[Path]] = {}
    for path in photos:
        by_key.setdefault(key_of(path.name), []).append(path)
    there = {key: by_key[key] for key in table if key in by_key}
    captioned = Counter(path.parent for paths in there.values() for path in paths)
    chosen: dict[str, Path] = {}
    for key, paths in there.items():
        folder, name = min(table[key].names)
        ranks = [
            (path.parent.name == folder, captioned[path.parent], path.name == name) for path in paths
        ]
        chosen[key] = paths.pop(ranks.index(max(ranks)))
        for path in paths:
            what = "more photos have the name of a captioned one, apart from folder or case: not used"
            notes.count(what, f"{str(path)!r} beside {str(chosen[key])!r}")
    places = {path.parent for path in chosen.values()}
    for path in photos:
        if path.parent in places and key_of(path.name) not in table:
            notes.count("photos in the same folders have no captions", path.name)
    return chosen


def join(table: Table, files: Mapping[str, Path], root: Path, notes: Notes) -> Iterator[Photo]:
    """The photos with a file, a caption and one name, by name.

    Args:
        files: of the photos, by key.
        root: where they were looked for, for the notes.
    """
    for key, entry in sorted(table.items(), key=lambda item: item[1].name):
        if len(entry.names) > 1:  # which of them is meant is not guessed
            first, second, *_ = ("/".join(filter(None, name)) for name in sorted(entry.names))
            what = (
                "names occur twice, apart from folder or case: left out; photos need names of their own"
            )
            notes.count(what, f"{first!r} and {second!r}")
            continue
        if len(entry.splits) > 1:
            kept = "kept in the later of train, dev, test, so never trained on"
            notes.count(f"photos are in two splits: {kept}", entry.name)
        if not entry.captions:
            notes.count("photos have only empty captions: left out", entry.name)
        elif key not in files:
            for _ in entry.captions:
                notes.count(f"captions are of photos that are not in {root}: left out", entry.name)
        else:
            split = max(entry.splits, key=get_args(Split).index, default=None)
            if split is None:
                notes.count("photos with captions are in no split: not used", entry.name)
            yield Photo(entry.name, files[key], split, tuple(entry.captions))
