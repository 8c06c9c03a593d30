"""Text files of unknown origin, and what there is to tell about them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from wsram_ppl.data.pictures import is_lfs_pointer
from wsram_ppl.errors import InputError


class Notes:
    """A line for each kind of problem found so far, with its count, and for each choice made."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def tell(self, text: str) -> None:
        """Adds a line."""
        self._found[text] = []

    def count(self, text: str, example: str = "") -> None:
        """Counts a problem; its line begins with the count, and ends with the first example."""
        self._found.setdefault(text, []).append(example)

    def lines(self) -> tuple[str, ...]:
        """All lines, in the order in which the first of each kind was found."""
        counted = (
            (f"{len(examples):,} {text}" if examples else text, next(filter(None, examples), ""))
            for text, examples in self._found.items()
        )
        return tuple(one_spaced(f"{text} (the first: {e})" if e else text) for text, e in counted)

    def error(self, message: str) -> InputError:
        """An error that also quotes all lines, since they may say why."""
        return InputError(": ".join(filter(None, [message, "; ".join(self.lines())])))


def read_text(path: Path, notes: Notes) -> str:
    """The text of a file in UTF-8, or else in Latin-1, with a note.

    Raises:
        InputError: it cannot be read, or is a Git LFS pointer.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if is_lfs_pointer(content):
        raise InputError(
            f"{path} is a Git LFS pointer, not the file itself: run git lfs pull where it came from, or "
            "download the file"
        )
    try:
        return content.decode("utf-8-sig")
    except ValueError:
        notes.tell(f"{path.name} is not UTF-8: read as Latin-1")
        return content.decode("latin-1")


def lines(path: Path, notes: Notes) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, numbered from 1, whatever ends them."""
    for number, line in enumerate(re.split(r"\r\n|\n|\r", read_text(path, notes)), start=1):
        if line.strip():
            yield number, line.strip("\0 ")


def one_spaced(text: str) -> str:
    """The text with single spaces, and without anything that UTF-8 cannot encode."""
    return " ".join(text.encode("utf-8", "replace").decode().replace("\0", " ").split())
