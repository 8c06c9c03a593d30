"""Small picture files for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

#: What an image is told by: its colour.
Colour = tuple[int, int, int]


def write(path: Path, colour: Colour = (255, 0, 0), size: tuple[int, int] = (8, 8)) -> None:
    """A picture of one colour, width x height; its name says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def folder(root: Path, counts: Mapping[str, int], size: tuple[int, int] = (8, 8)) -> Path:
    """``counts`` pictures in each folder, told by their red; green tells the folder."""
    for place, (name, count) in enumerate(counts.items()):
        for number in range(count):
            write(root / name / f"{number:03}.png", (number, 40 * place, 0), size)
    return root


def half(root: Path, classes: Sequence[str] = ("dark", "light"), count: int = 20) -> Path:
    """Noise that is dark in one class and light in the other."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 100, (12, 10 + number % 5, 3)) + 150 * place
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root
