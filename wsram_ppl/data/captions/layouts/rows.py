"""Captions in lines of text: the original file, and CSV of many kinds."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from wsram_ppl.data.captions.layouts.names import PHOTO
from wsram_ppl.data.captions.layouts.table import Row
from wsram_ppl.data.captions.layouts.text import Notes, lines
from wsram_ppl.errors import InputError

#: What a line should be, in words.
TOKEN_LINE, CSV_LINE = "NAME.jpg#0, a tab, a caption", "NAME.jpg,a caption"
#: What a title says about its column: the first that fits.
_TITLES: Final = {
    "number": r"number|index|unnamed|^((caption|comment|sentence)_?)?id$|^no\.?$|^#?$",
    "caption": r"caption|comment|sentence|text|description",
    "name": r"image|file|photo|picture|name",
}
#: The columns where titles do not tell more.
_FORMS: Final = (
    ["digits", "name", "digits", "caption"],
    ["name", "digits", "caption"],
    ["digits", "name", "caption"],
    ["name", "caption"],
)
#: A quoted field, up to the end of its line.
_QUOTED: Final = re.compile(r"""\s*"(?:[^"]|"")*"[^\S\n]*(?=\n|\Z)""")


def read_tokens(path: Path, notes: Notes) -> Iterator[Row]:
    """The rows of ``Flickr8k.token.txt``."""
    for number, line in lines(path, notes):
        if match := re.fullmatch(r"([^\t]+)#\d+\t(.*)", line):
            yield Row(match[1], match[2])
        else:
            notes.count(f"lines of {path.name} are not {TOKEN_LINE}: left out", f"line {number}")


def read_csv(path: Path, notes: Notes) -> Iterator[Row]:
    """The rows of ``captions.txt``. A quoted caption may continue on the next lines, up to the next row.

    Python's reader is not used: many copies have unquoted captions with commas and quotes, and a stray
    quote should spoil one row, not the rest of the file.

    Raises:
        InputError: there are several columns, and the titles do not tell the names and captions.
    """
    table = [*lines(path, notes)]
    separator = max(",;\t|", key=lambda s: sum(bool(_name_in(s).search(line)) for _, line in table))
    titles = table[0][1] if table and not _name_in(separator).search(table[0][1]) else ""
    patterns = [_row(columns, separator) for columns in _forms(titles, separator, path)]
    if re.search(f"{_TITLES['caption']}|{_TITLES['name']}", titles, re.IGNORECASE):
        table.pop(0)
    begins = max(patterns, key=lambda pattern: sum(bool(pattern.fullmatch(line)) for _, line in table))
    parts: list[list[tuple[int, str]]] = []
    for line in table:
        if not parts or begins.fullmatch(line[1]):
            parts.append([])
        parts[-1].append(line)
    for part in parts:
        if match := begins.fullmatch(part[0][1]):
            field = _QUOTED.match("\n".join([match["caption"], *(line for _, line in part[1:])]))
            caption = field[0] if field else match["caption"]
            yield Row(match["name"].strip().removeprefix('"'), _unquoted(caption))
        for number, _ in part[caption.count("\n") + 1 if match else 0 :]:
            notes.count(f"lines of {path.name} are not {CSV_LINE}: left out", f"line {number}")


def _forms(header: str, separator: str, path: Path) -> Sequence[Sequence[str]]:
    """The columns that there may be below a line of titles, or below none."""
    titles = [_unquoted(title).lower() for title in header.split(separator)]
    kinds = [next((k for k, words in _TITLES.items() if re.search(words, t)), "") for t in titles]
    if kinds.count("name") == kinds.count("caption") == 1 and kinds != ["name", "caption"]:
        return [kinds]
    if len(kinds) - (kinds[0] == "number") <= 2:
        return _FORMS
    raise InputError(
        f"{path}: its first line should be the titles of its columns, one of them image and one of them "
        f"caption, not {header[:80]!r}"
    )


def _name_in(separator: str) -> re.Pattern[str]:
    """A field that holds a photo's name, anywhere in a line."""
    s = re.escape(separator)
    return re.compile(rf'(?:^|{s})[^{s}]+?{PHOTO}"?\s*(?:{s}|$)', re.IGNORECASE)


def _row(columns: Sequence[str], separator: str) -> re.Pattern[str]:
    """The first line of a row. White space and quotes around fields are optional."""
    s = re.escape(separator)
    field = rf'\s*"(?:[^"]|"")*"\s*|[^{s}]*'
    patterns = {
        "digits": r'\s*(?:\d+|"\d+")\s*',
        "name": rf'(?P<name>[^{s}]+?{PHOTO})"?\s*',
        "caption": "(?P<caption>.*)" if columns[-1] == "caption" else f"(?P<caption>{field})",
    }
    return re.compile(s.join(patterns.get(kind, f"(?:{field})") for kind in columns), re.IGNORECASE)


def _unquoted(field: str) -> str:
    field = field.strip()
    if len(field) >= 2 and field[0] == field[-1] == '"':
        return field[1:-1].replace('""', '"')
    return field
