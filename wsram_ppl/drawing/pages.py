"""Common to all pictures: colours, and pictures side by side on a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Final

import matplotlib
from PIL import Image, ImageFont

__all__ = ["COLOURS", "INK", "PAPER", "distinct", "font", "grid"]

#: The colours of looks, in order, repeated after the last. Readable on black and on white.
COLOURS: Final = ("#ffd400", "#ff8c1a", "#ff4d6d", "#c77dff", "#4cc9f0", "#52e3a4")
#: The colour of text and lines.
INK: Final = "#202124"
#: The colour of the background.
PAPER: Final = "#ffffff"


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Letters of most alphabets, with this height in pixels (Pillow's own font is ASCII alone)."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), size)


def distinct(names: Iterable[str]) -> Iterator[str]:
    """The names, with a number after those that are taken, also on disks that ignore case."""
    taken: set[str] = set()
    for name in names:
        numbered = (name if n == 1 else f"{name}-{n}" for n in count(1))
        free = next(
            each for each in numbered if unicodedata.normalize("NFC", each).casefold() not in taken
        )
        taken.add(unicodedata.normalize("NFC", free).casefold())
        yield free


def grid(cells: Sequence[Image.Image], columns: int, gap: int) -> Image.Image:
    """Pictures of one size in rows, with a gap between them and to the edge."""
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    width, height = cells[0].width + gap, cells[0].height + gap
    page = Image.new("RGB", (columns * width + gap, rows * height + gap), PAPER)
    for index, cell in enumerate(cells):
        page.paste(cell, (gap + index % columns * width, gap + index // columns * height))
    return page
