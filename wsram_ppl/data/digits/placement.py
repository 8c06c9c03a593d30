"""Places small images, resized, on a black canvas: translated and scaled MNIST.

A resize followed by a translation treats rows and columns alike and separately, so the canvas is

    canvas = A_y @ image @ A_x^T,    A_y [canvas, h], A_x [canvas, w],

which takes two small batched matrix products per batch instead of a lookup per pixel.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw_placements", "place"]


def draw_placements(
    generator: np.random.Generator, count: int, size: int, scale: tuple[float, float], canvas: int
) -> Tensor:
    """Random placements of ``size`` x ``size`` images, each entirely on the canvas.

    The factor is uniform in ``scale`` and, given the factor s, the left and the top edge are each
    uniform in [0, canvas - s * size], not rounded to pixels.

    Returns:
        [3, count] float32 on the CPU: factor, left, top (pixels of the canvas).
    """
    uniform = generator.random((3, count))
    factor = scale[0] + (scale[1] - scale[0]) * uniform[0]
    room = np.maximum(canvas - size * factor, 0.0)
    return torch.from_numpy(np.stack((factor, room * uniform[1], room * uniform[2])).astype(np.float32))


def place(images: Tensor, placements: Tensor, canvas: int) -> Tensor:
    """Resizes each image and puts it on a canvas of zeros.

    Bilinear, and for a factor below 1 with the triangle filter widened to 1/factor image pixels, so
    that nothing aliases: at whole-pixel sizes and positions the result is that of
    ``torch.nn.functional.interpolate(mode="bilinear", antialias=True)``, pasted. As there, the
    weights of a canvas pixel sum to 1 over the image, and canvas pixels whose centre lies outside
    the resized image are 0.

    Args:
        images: [B, n, n], uint8 (0..255), or in 0..1 with the dtype of ``placements``.
        placements: [3, B]: factor, left, top, in canvas pixels; see :func:`draw_placements`.
        canvas: side of the square canvas, in pixels.

    Returns:
        [B, canvas, canvas] in [0, 1], with the dtype of ``placements``.
    """
    with _no_autocast(images.device.type):
        if images.dtype == torch.uint8:
            images = images.to(placements.dtype).mul_(1 / 255)
        columns, rows = _weights(placements[0], placements[1:], images.shape[-1], canvas)
        # Rounding can push a white pixel above 1.
        placed: Tensor = rows.mT @ (images @ columns)
        return placed.clamp_(0.0, 1.0)


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Turns off mixed precision, which would change the dtype of the pixels.

    Does nothing if it is off already: leaving such a context empties a cache that all threads share, so
    that a minibatch made ahead would change the rounding of a concurrent update.
    """
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _weights(factor: Tensor, starts: Tensor, size: int, canvas: int) -> Tensor:
    """The weight of each of ``size`` pixels in each canvas pixel.

    The weight is the triangle 1 - |u - j| / width at the distance of the canvas pixel's centre u
    from the pixel's centre j, both in image pixels, with width = max(1, 1 / factor).

    Args:
        factor: [B].
        starts: [2, B], of columns and rows.

    Returns:
        [2, B, size, canvas].
    """
    factor, starts = factor[:, None], starts[..., None]
    width = (1 / factor).clamp(min=1.0)
    centre = torch.arange(canvas, device=factor.device, dtype=factor.dtype) + 0.5
    pixel = torch.arange(size, device=factor.device, dtype=factor.dtype) + 0.5
    u = (centre - starts) / factor
    distance = (u / width)[..., None, :] - (pixel / width)[..., None]
    triangle = distance.abs_().neg_().add_(1.0).clamp_(min=0.0)
    # A centre inside the image is within one width of a pixel's centre, so its sum is not 0.
    total = triangle.sum(-2).clamp_(min=torch.finfo(factor.dtype).tiny)
    inside = (u > 0) & (u < size)
    return triangle.mul_((inside / total)[..., None, :])
