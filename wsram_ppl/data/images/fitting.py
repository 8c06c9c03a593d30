"""Fits pictures of any size onto a canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Fit", "describe_fit", "fit_images", "fit_picture"]

#: "resize": as large as the canvas allows, whatever its size; "pad": reduced only if it is larger than
#: the canvas. The aspect ratio is kept, and the rest of the canvas is black.
Fit = Literal["resize", "pad"]


def describe_fit(canvas: int, fit: Fit) -> str:
    """A description of how pictures are fitted."""
    if fit == "pad":
        return f"put on a black square of {canvas} x {canvas} pixels, reduced if they are larger"
    return f"resized to {canvas} x {canvas} pixels, padded with black if they are not square"


def fit_picture(picture: Image.Image, canvas: tuple[int, int], fit: Fit) -> Image.Image:
    """A picture on the canvas (height, width), in its own colour mode."""
    from PIL import Image

    height, width = _fitted_size(picture.height, picture.width, canvas, fit)
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    if (height, width) == canvas:
        return picture
    page = Image.new(picture.mode, canvas[::-1])
    page.paste(picture, ((canvas[1] - width) // 2, (canvas[0] - height) // 2))
    return page


def fit_images(images: Tensor, canvas: int, fit: Fit) -> Tensor:
    """Images ``[B, C, height, width]`` in [0, 1] on a square: ``[B, C, canvas, canvas]``."""
    height, width = _fitted_size(images.shape[-2], images.shape[-1], (canvas, canvas), fit)
    if (height, width) != images.shape[-2:]:
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True).clamp_(0.0, 1.0)
    top, left = (canvas - height) // 2, (canvas - width) // 2
    return F.pad(images, (left, canvas - width - left, top, canvas - height - top))


def _fitted_size(height: int, width: int, canvas: tuple[int, int], fit: Fit) -> tuple[int, int]:
    factor = min(canvas[0] / height, canvas[1] / width)
    if fit == "pad":
        factor = min(factor, 1.0)
    return max(1, round(height * factor)), max(1, round(width * factor))
