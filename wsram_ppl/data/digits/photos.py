"""Digits in the user's own picture files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["read_digits"]


def read_digits(files: Sequence[str], canvas: int, largest: int) -> tuple[Tensor, list[str]]:
    """Pictures of digits, light on dark: ``[B, canvas, canvas]`` in [0, 1].

    Args:
        canvas: a picture of this size is not resized.
        largest: side to which any other picture is reduced, if it is larger.

    Returns:
        The images, and a line for each picture that had to be changed in anything but size.

    Raises:
        InputError: a file is not a picture.
    """
    from PIL import Image

    from wsram_ppl.data.images.files import open_file
    from wsram_ppl.data.images.fitting import fit_picture

    images, notes = [], []
    for file in files:
        picture, note = open_file(file)
        grey = picture.convert("L")
        said = [note] if note else []
        if grey.size != (canvas, canvas):
            pixels, turned = _light_on_dark(np.asarray(grey, np.float64))
            said += ["dark on light: inverted"] * turned
            digit = Image.fromarray(pixels.round().astype(np.uint8))
            grey = fit_picture(fit_picture(digit, (largest, largest), "pad"), (canvas, canvas), "pad")
        if said:
            notes.append(f"{file}: {'; '.join(said)}")
        images.append(torch.from_numpy(np.array(grey)))
    return torch.stack(images).float().mul_(1 / 255), notes


def _light_on_dark(pixels: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], bool]:
    """The picture with black paper and white ink, and whether it had to be inverted."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paper = float(np.median(edge))
    turned = paper > 127
    ink = (paper - pixels if turned else pixels - paper).clip(0)
    return ink * (255 / max(float(ink.max()), 1.0)), turned
