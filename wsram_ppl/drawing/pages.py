"""What all pictures share: colours, and pictures side by side on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image

__all__ = ["COLOURS", "INK", "PAPER", "grid"]

#: Of what was looked at, in order; repeated after the last. Readable on black and on white.
COLOURS: Final = ("#ffd400", "#ff8c1a", "#ff4d6d", "#c77dff", "#4cc9f0", "#52e3a4")
INK: Final = "#202124"
PAPER: Final = "#ffffff"


def grid(cells: Sequence[Image.Image], columns: int, gap: int) -> Image.Image:
    """Pictures of one size in rows, so many pixels apart and from the edge."""
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    width, height = cells[0].width + gap, cells[0].height + gap
    page = Image.new("RGB", (columns * width + gap, rows * height + gap), PAPER)
    for index, cell in enumerate(cells):
        page.paste(cell, (gap + index % columns * width, gap + index // columns * height))
    return page
