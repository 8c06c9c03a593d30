"""Picture files named by the user, for a model to look at."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsram_ppl.data.images.fitting import Fit, fit_picture
from wsram_ppl.data.pictures import Unreadable, open_picture
from wsram_ppl.errors import InputError, one_line

__all__ = ["open_file", "read_files"]


def read_files(
    files: Sequence[str], channels: int, size: tuple[int, int], fit: Fit
) -> tuple[Tensor, list[str]]:
    """Pictures on canvases of (height, width): ``[B(, channels), height, width]`` in [0, 1].

    Returns:
        The images, and a line for each picture that had to be changed in anything but size.

    Raises:
        InputError: a file is not a picture, or the run's images have neither one nor three channels.
    """
    if channels not in (1, 3):
        raise InputError(f"pictures have 1 or 3 channels, but the run's images have {channels}")
    images, notes = [], []
    for file in files:
        picture, note = open_file(file)
        if note:
            notes.append(f"{file}: {note}")
        fitted = fit_picture(picture if channels == 3 else picture.convert("L"), size, fit)
        images.append(torch.from_numpy(np.array(fitted)))
    pixels = torch.stack(images).float().mul_(1 / 255)
    return (pixels.permute(0, 3, 1, 2).contiguous() if channels == 3 else pixels), notes


def open_file(file: str) -> tuple[Image.Image, str]:
    """A picture in RGB, and a note on what had to be changed.

    Raises:
        InputError: it cannot be read or is not a picture.
    """
    try:
        with open(os.path.expanduser(file), "rb") as content:
            return open_picture(content.read())
    except Unreadable as error:
        raise InputError(f"cannot read the picture {file!r}: {error}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"cannot read the picture {file!r}: {reason}") from error
