"""What every layout is read as: rows, collected by photo."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from wsram_ppl.data.captions.layouts.names import key_of, parts_of
from wsram_ppl.data.captions.layouts.text import Notes, one_spaced
from wsram_ppl.data.captions.vocabulary import normalize

#: The names in the split files; ``dev`` is the validation split.
Split = Literal["train", "dev", "test"]


class Row(NamedTuple):
    """A caption, and the name of its photo, as written; the split, where it is written beside them."""

    name: str
    caption: str
    split: Split | None = None


@dataclass
class Entry:
    """All that rows say about a photo: its names (folder and name), its captions, and its splits."""

    names: set[tuple[str, str]] = field(default_factory=set)
    captions: list[str] = field(default_factory=list)
    splits: set[Split] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The name without a folder."""
        return min(self.names)[1]


#: Entries by the key of their names.
Table = dict[str, Entry]


def collect(rows: Iterable[Row], source: str, notes: Notes) -> Table:
    """The photos of all rows, with those captions that hold a word.

    Args:
        source: where the rows are from, for the notes.
    """
    table: Table = defaultdict(Entry)
    for name, text, split in rows:
        entry, caption = table[key_of(name)], one_spaced(text)
        entry.names.add(parts_of(name))
        if split:
            entry.splits.add(split)
        if normalize(caption):
            entry.captions.append(caption)
        else:
            notes.count(f"captions of {source} are empty: left out")
    return dict(table)
