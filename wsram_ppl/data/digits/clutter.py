"""Clutter: pieces of other digits on the canvas, as in Mnih et al. (2014)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import NonNegativeInt
from torch import Tensor

from wsram_ppl.data.digits.files import DIGIT_SIZE
from wsram_ppl.data.epochs import check_whole
from wsram_ppl.errors import InputError

__all__ = ["Clutter", "ClutterOption", "add_clutter", "draw_clutter"]

#: As in an experiment: ``{ pieces = 8, size = 8 }``; missing keys have the defaults of :class:`Clutter`.
ClutterOption = dict[Literal["pieces", "size"], NonNegativeInt]


class Clutter(NamedTuple):
    """How much clutter there is.

    Attributes:
        pieces: number of pieces on each canvas.
        size: side of a piece, which is a square, in pixels.
    """

    pieces: int = 8
    size: int = 8

    @classmethod
    def of(cls, option: Mapping[Any, int] | None, canvas: int, digits: int) -> Clutter:
        """The option, checked for a canvas of this side and this number of digits; None: no pieces.

        Raises:
            InputError: it is not possible.
        """
        if option is None:
            return cls(pieces=0)
        unknown = sorted(set(option) - set(cls._fields))
        if unknown:
            raise InputError(f"clutter has no {unknown[0]!r}; it has {' and '.join(cls._fields)}")
        clutter = cls(**option)
        check_whole("clutter.pieces", clutter.pieces, at_least=0)
        check_whole("clutter.size", clutter.size, at_least=1)
        if clutter.size > min(DIGIT_SIZE, canvas):
            raise InputError(
                f"clutter.size = {clutter.size}: a piece of a digit has at most "
                f"{min(DIGIT_SIZE, canvas)} pixels a side here"
            )
        if clutter.pieces and digits < 2:
            raise InputError("clutter is made of other digits, but there is only one")
        return clutter


def draw_clutter(
    generator: np.random.Generator, count: int, digits: int, clutter: Clutter, canvas: int
) -> Tensor:
    """Random pieces for ``count`` canvases, everything uniform.

    Args:
        digits: N, the number of digits that pieces are cut from.

    Returns:
        [count, pieces, 5] int64 on the CPU: the distance to the other digit, less one; the
        piece's upper and left edge in it; the same two on the canvas. In pixels, entirely inside.
    """
    inside, room = DIGIT_SIZE - clutter.size + 1, canvas - clutter.size + 1
    ends = [digits - 1, inside, inside, room, room]
    return torch.from_numpy(generator.integers(0, ends, (count, clutter.pieces, 5)))


def add_clutter(images: Tensor, drawn: Tensor, digits: Tensor, own: Tensor, size: int) -> Tensor:
    """Adds pieces to images, in place; values above white are clamped to white.

    Args:
        images: [B, canvas, canvas] in [0, 1].
        drawn: [B, pieces, 5], from :func:`draw_clutter`.
        digits: [N, 28, 28] uint8, the digits that pieces are cut from.
        own: [B], which of them each image shows: its pieces are cut from others.

    Returns:
        The images.
    """
    further, row, column, top, left = (part[..., None, None] for part in drawn.unbind(-1))
    step = torch.arange(size, device=images.device)
    down, right = step[:, None], step
    other = (own[:, None, None, None] + 1 + further) % len(digits)
    pixels = digits.reshape(-1)[(other * DIGIT_SIZE + row + down) * DIGIT_SIZE + column + right]
    places = (top + down) * images.shape[-1] + left + right
    # Integers, whose sum does not depend on the order in which a GPU adds them.
    levels = torch.zeros_like(images).flatten(1)
    levels.scatter_add_(1, places.flatten(1), pixels.to(images.dtype).flatten(1))
    return images.add_(levels.view_as(images), alpha=1 / 255).clamp_(max=1.0)
