"""Names of photos: which are some, and which of them mean the same photo."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import Final

#: A pattern for the end of a photo's name; a second download of it appends ".1".
PHOTO: Final = r"\.(?:jpe?g|png|webp|bmp|gif)(?:\.\d+)?"
_ENDS_SO: Final = re.compile(rf".{PHOTO}\Z", re.IGNORECASE | re.DOTALL)


def is_photo(name: str) -> bool:
    """Whether a name ends like a photo's."""
    return _ENDS_SO.search(name) is not None


@functools.lru_cache  # the captions of a photo follow one another
def parts_of(written: str) -> tuple[str, str]:
    """The last folder written before a name (or ""), and the name without the ".1" of a copy."""
    text = written.encode("utf-8", "replace").decode().replace("\0", " ").strip()
    *folders, name = re.split(r"[\\/]", text)
    return folders[-1] if folders else "", re.sub(r"\.\d+\Z", "", name) if is_photo(name) else name


@functools.lru_cache
def key_of(written: str) -> str:
    """What all names of a photo have in common: no folder, no ".1", no case, one Unicode form."""
    name = unicodedata.normalize("NFC", parts_of(written)[1])
    return unicodedata.normalize("NFC", name.casefold())
