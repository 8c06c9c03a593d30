"""Splits that do not come with the captions: from files of names, or drawn."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, get_args

from wsram_ppl.data.captions.layouts.names import key_of
from wsram_ppl.data.captions.layouts.table import Split, Table
from wsram_ppl.data.captions.layouts.text import Notes, lines

#: The name of each split's file.
SPLIT_FILES: Final[dict[Split, str]] = {
    split: f"Flickr_8k.{split}Images.txt" for split in get_args(Split)
}


def read_splits(files: Mapping[Split, Path], table: Table, source: str, notes: Notes) -> None:
    """Adds the splits whose files name the photos, with or without suffix and a caption's number.

    Args:
        source: where the captions are from, for the notes.
    """
    by_stem: dict[str, list[str]] = {}
    for key in table:
        by_stem.setdefault(os.path.splitext(key)[0], []).append(key)
    for split, path in files.items():
        for _, line in lines(path, notes):
            key = key_of(re.sub(r"#\d+\s*\Z", "", line))
            meant = [key] if key in table else by_stem.get(key, [])
            if len(meant) == 1:
                table[meant[0]].splits.add(split)
            else:
                notes.count(f"names in the split files have no captions in {source}: left out", line)


def draw_splits(table: Table, seed: int, source: str, notes: Notes) -> None:
    """Draws an eighth of the photos each for dev and test, by the rank of a hash of each name.

    By a hash, so that adding or removing a photo hardly moves any other between splits.
    """

    def digest(key: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{table[key].name}".encode()).digest()

    share = len(table) // 8
    for place, key in enumerate(sorted(table, key=digest)):
        table[key].splits.add("dev" if place < share else "test" if place < 2 * share else "train")
    notes.tell(
        f"{source} comes without splits: {len(table) - 2 * share:,} photos for train, {share:,} for dev "
        f"and {share:,} for test are drawn with split_seed {seed}; scores are not comparable with those "
        "on the published split"
    )
