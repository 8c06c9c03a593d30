"""Which files there are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from wsram_ppl.data.captions.layouts.names import is_photo
from wsram_ppl.errors import InputError

#: How many levels below the root files are found.
DEEPEST: Final = 3


def find_files(root: Path) -> tuple[dict[str, Path], list[Path]]:
    """The files in a folder and those below it, without hidden ones.

    Returns:
        Text and JSON files by lower-case name (of several, the nearest to the root), and all photos.

    Raises:
        InputError: a folder cannot be listed (but those without permission, such as lost+found, are
            passed over).
    """
    found: list[tuple[int, str, list[str]]] = []
    for place, below, names in os.walk(root, onerror=_refuse, followlinks=True):
        depth = len(Path(place).relative_to(root).parts)
        below[:] = filter(_is_shown, below) if depth < DEEPEST else []
        found.append((depth, place, sorted(filter(_is_shown, names))))
    # Links may lead to a folder again.
    nearest = {os.path.realpath(each[1]): each for each in sorted(found, reverse=True)}
    there = [Path(place, name) for _, place, names in sorted(nearest.values()) for name in names]
    texts: dict[str, Path] = {}
    for path in there:
        if path.suffix.lower() in (".txt", ".json") and os.path.isfile(path):
            texts.setdefault(path.name.lower(), path)
    return texts, [path for path in there if is_photo(path.name) and os.path.isfile(path)]


def _refuse(error: OSError) -> None:
    if not isinstance(error, PermissionError):
        raise InputError(f"cannot list {error.filename!r}: {error.strerror}") from None


def _is_shown(name: str) -> bool:
    """Not hidden, and not what macOS adds to archives."""
    return not name.startswith(".") and name != "__MACOSX"
