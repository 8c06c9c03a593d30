"""Digits in picture files of the user's own."""

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
        canvas: a picture of this size is taken as it is.
        largest: side that another one is made to have, if it is larger.

    Returns:
        The images, and a line for each picture that had to be changed otherwise than in size.

    Raises:
        InputError: a file is no picture.
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
            said += ["dark on light: turned round"] * turned
            digit = Image.fromarray(pixels.round().astype(np.uint8))
            grey = fit_picture(fit_picture(digit, (largest, largest), "pad"), (canvas, canvas), "pad")
        if said:
            notes.append(f"{file}: {'; '.join(said)}")
        images.append(torch.from_numpy(np.array(grey)))
    return torch.stack(images).float().mul_(1 / 255), notes


def _light_on_dark(pixels: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], bool]:
    """With the paper black and the ink white, and whether it was the other way round."""
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    paper = float(np.median(edge))
    turned = paper > 127
    ink = (paper - pixels if turned else pixels - paper).clip(0)
    return ink * (255 / max(float(ink.max()), 1.0)), turned
