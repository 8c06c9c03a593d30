"""Glimpses: small patches read from an image, at a chosen location and scale.

A glimpse of scale s is a k x k patch whose pixels are averages over s x s image pixels, so it shows
a window of (s k) x (s k) pixels. :func:`build_pyramid` averages an image once for all scales;
:func:`extract` reads any number of patches from the result. Coarse patches do not alias, since they are
interpolated between averages, not between pixels at distance s.

Locations are (x, y), x to the right and y downwards, with (0, 0) the centre of the image and -1 and +1
its edges (the edges of the outermost pixels, as in ``grid_sample`` with ``align_corners=False``).
Outside the image everything is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wsram_ppl.errors import InputError

__all__ = ["Levels", "Pyramid", "build_pyramid", "extract", "window"]


@dataclass(frozen=True)
class Levels:
    """The positions of an image's levels in one flat row, for images of one size.

    The levels follow each other, each with a frame of zeros one pixel wide. Everything outside is read
    from the frame, so that a patch over the edge is not a special case.

    Attributes:
        image_size: (height, width) of the images, in pixels.
        scales: image pixels per level pixel, for each level.
        spans: per level (position of pixel (0, 0), distance of vertical neighbours, height, width).
        total: length of the row.
        geometry: [levels, 4], per level: half the width and half the height of the image in level
            pixels; width and height of the level.
        layout: [levels, 2] int64, per level: the first two of ``spans``.
    """

    image_size: tuple[int, int]
    scales: tuple[int, ...]
    spans: tuple[tuple[int, int, int, int], ...]
    total: int
    geometry: Tensor
    layout: Tensor

    @classmethod
    def of(cls, images: Tensor, scales: Sequence[int]) -> Levels:
        """The levels for such images, on their device.

        Raises:
            InputError: an argument is out of range.
        """
        _check(images, scales)
        height, width = images.shape[-2:]
        spans = []
        total = 0
        for scale in scales:
            rows, columns = -(-height // scale), -(-width // scale)
            # The zero to the right of a row is also the one to the left of the next.
            stride = columns + 1
            spans.append((total + 1 + stride, stride, rows, columns))
            total += 1 + stride * (rows + 2)
        geometry = torch.tensor(
            [
                (width / 2 / scale, height / 2 / scale, span[3], span[2])
                for scale, span in zip(scales, spans, strict=True)
            ],
            dtype=torch.promote_types(images.dtype, torch.float32),
        )
        layout = torch.tensor([span[:2] for span in spans])
        return cls(
            image_size=(height, width),
            scales=tuple(scales),
            spans=tuple(spans),
            total=total,
            geometry=geometry.to(images.device, non_blocking=True),
            layout=layout.to(images.device, non_blocking=True),
        )

    def fit(self, images: Tensor) -> bool:
        """Whether the images have this size, dtype and device."""
        return (
            images.shape[-2:] == self.image_size
            and images.is_floating_point()
            and torch.promote_types(images.dtype, torch.float32) == self.geometry.dtype
            and images.device == self.geometry.device
        )


@dataclass(frozen=True)
class Pyramid:
    """Images at several scales, laid out so that one lookup reads patches at any scale.

    Attributes:
        buffer: [N, total], N the product of ``batch_shape``. A row holds the levels of one image, or of
            one channel of it.
        batch_shape: leading dimensions of the images, channels included.
        levels: the positions of the levels in a row.
        patch: k, the side of a patch in level pixels.
        colour: whether the last dimension of ``batch_shape`` holds the channels.
    """

    buffer: Tensor
    batch_shape: torch.Size
    levels: Levels
    patch: int
    colour: bool = False

    def level(self, index: int) -> Tensor:
        """The images averaged by ``scales[index]``: ``[*batch_shape, ceil(H / s), ceil(W / s)]``."""
        start, stride, height, width = self.levels.spans[index]
        rows = self.buffer[:, start : start + height * stride].view(-1, height, stride)
        return rows[:, :, :width].reshape(*self.batch_shape, height, width)


def build_pyramid(
    images: Tensor, scales: Sequence[int] | Levels, patch: int, *, colour: bool = False
) -> Pyramid:
    """Averages images by each of ``scales``, for :func:`extract`.

    If a scale does not divide a size, zeros are added on the right and at the bottom.
    Gradients flow to the images. Mixed precision does not change the pixels' dtype.

    Args:
        images: [..., H, W], or in colour [..., C, H, W]; floating point.
        scales: image pixels per patch pixel, distinct whole numbers from 1. Or the levels of images
            of the same size, which avoids a copy to the device.
        patch: k, the side of the patches in pixels.
        colour: whether the images have channels: a patch then shows all of them.

    Raises:
        InputError: an argument is out of range.
    """
    if colour and images.dim() < 3:
        raise InputError(
            f"images in colour are [..., channels, height, width], not of shape {tuple(images.shape)}"
        )
    if not isinstance(patch, int) or isinstance(patch, bool) or patch < 1:
        raise InputError(f"patch must be a whole number of at least 1, not {patch!r}")
    levels = scales if isinstance(scales, Levels) else Levels.of(images, scales)
    if not levels.fit(images):
        raise InputError(
            f"these levels are not for images of {images.dtype} and shape {tuple(images.shape)} on "
            f"{images.device}: make them with Levels.of"
        )
    flat = images.reshape(-1, *levels.image_size)
    # Joined, not written into their places: a compiler makes one copy of that.
    row: list[Tensor] = []
    for level in _averages(flat, levels.scales):
        count, rows, columns = level.shape
        # The frame is what lies before the first row, behind each row and after the last one.
        edge, behind = level.new_zeros(count, columns + 1), level.new_zeros(count, rows, 1)
        row += [level.new_zeros(count, 1), edge, torch.cat((level, behind), 2).flatten(1), edge]
    buffer = torch.cat(row, 1)
    return Pyramid(buffer, images.shape[:-2], levels, patch, colour)


def extract(pyramid: Pyramid, location: Tensor, scale_index: Tensor) -> Tensor:
    """The patches of the chosen levels at the chosen locations, by bilinear interpolation.

    All pixels of a patch have the same offset from the pixels of its level, so a patch is read as
    one (k + 1) x (k + 1) window, then interpolated between its rows and between its columns.

    Locations are not clamped: a patch far outside is all zeros (at infinity too). If a location is
    NaN, the patch is NaN. Gradients flow to the images, and to locations that require them (samples that
    are differentiated through): the derivative of the interpolation, which jumps where a location
    passes from one pixel to the next, and is 0 where everything is black.

    Args:
        pyramid: made from images with batch shape [..., B].
        location: [..., B, 2], (x, y) with -1 and +1 the edges of the image.
        scale_index: [..., B] int64, index into the pyramid's scales (not checked, which would wait
            for the device).
            The shapes of the images' batch, ``location`` (without its 2) and ``scale_index`` are
            broadcast together, so either may lack the particle dimensions on the left.

    Returns:
        [..., B, k * k], row by row, with the images' dtype. For images in colour [..., B, C * k * k],
        channel by channel; the images' batch is then everything before their channels.

    Example::

        pyramid = build_pyramid(images, scales=(1, 2, 4), patch=12)        # images [B, 100, 100]
        patches = extract(pyramid, location, scale_index)                  # [5, B, 144]
    """
    k = pyramid.patch
    if pyramid.colour:  # all channels are read at the same locations
        location, scale_index = location.unsqueeze(-2), scale_index.unsqueeze(-1)
    geometry = _rows(pyramid.levels.geometry, scale_index)
    layout = _rows(pyramid.levels.layout, scale_index)
    half, size = geometry[..., :2], geometry[..., 2:]
    # The centre of the patch's first pixel; 0 is the centre of the level's first pixel.
    first = torch.addcmul(half - k / 2, location.to(half.dtype), half)
    # Just outside is equivalent to far outside, and fits into an integer index.
    first = torch.minimum(first.clamp(min=-(k + 1)), size)
    corner = first.detach().floor()
    fraction = (first - corner).to(pyramid.buffer.dtype)

    steps = torch.arange(k + 1, device=corner.device, dtype=corner.dtype)
    grid = (corner.nan_to_num(nan=0.0)[..., None] + steps).clamp(min=-1.0)
    grid = torch.minimum(grid, size[..., None]).long()  # -1 and the size: the frame of zeros
    columns, rows = grid[..., 0, None, :], grid[..., 1, :, None]
    count, total = pyramid.buffer.shape
    images = (torch.arange(count, device=corner.device) * total).view(pyramid.batch_shape)
    origin, stride = (layout[..., 0] + images)[..., None, None], layout[..., 1, None, None]
    position = origin + rows * stride + columns
    pixels = pyramid.buffer.view(-1).index_select(0, position.view(-1)).view(position.shape)

    x, y = fraction[..., 0, None, None], fraction[..., 1, None, None]
    pixels = torch.lerp(pixels[..., :-1, :], pixels[..., 1:, :], y)
    pixels = torch.lerp(pixels[..., :-1], pixels[..., 1:], x)
    return pixels.flatten(-3 if pyramid.colour else -2)


def window(
    location: Tensor, scale: int | Tensor, image_size: tuple[int, int], patch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The square of the image that a glimpse shows, for drawing.

    Args:
        location: [..., 2], (x, y) with -1 and +1 the edges of the image.
        scale: [...] or one number: image pixels per patch pixel (the scale itself, not its index).
        image_size: (height, width) in pixels.
        patch: k, the side of the patch in its own pixels.

    Returns:
        left, top, side: each [...], in image pixels; 0 is the left (upper) edge of the first pixel.
        The square may extend over the image's edges.
    """
    height, width = image_size
    x, y = location.detach().unbind(-1)
    side = (torch.zeros_like(x) + scale) * patch
    return (x + 1) * (width / 2) - side / 2, (y + 1) * (height / 2) - side / 2, side


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """table[index], without waiting for the device: [levels, n], [...] -> [..., n]."""
    return table.index_select(0, index.reshape(-1)).view(index.shape + table.shape[1:])


def _averages(images: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """Images [N, H, W] averaged by each scale."""
    found = {1: images}
    for scale in sorted(scales):
        # Averages of averages: the coarser levels are almost free.
        finer = max(s for s in found if scale % s == 0)
        found[scale] = _average(found[finer], scale // finer)
    return [found[scale] for scale in scales]


def _average(images: Tensor, factor: int) -> Tensor:
    """Means over factor x factor blocks: [N, H, W] -> [N, ceil(H / factor), ceil(W / factor)].

    Strided slices are added: cheaper on a CPU than ``avg_pool2d`` or a mean over reshaped blocks.
    """
    if factor == 1:
        return images
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        images = F.pad(images, (0, -width % factor, 0, -height % factor))
    rows = images[:, ::factor]
    for shift in range(1, factor):
        rows = rows + images[:, shift::factor]
    blocks = rows[:, :, ::factor]
    for shift in range(1, factor):
        blocks = blocks + rows[:, :, shift::factor]
    return blocks * (1 / factor**2)


def _check(images: Tensor, scales: Sequence[int]) -> None:
    if images.dim() < 2 or 0 in images.shape[-2:] or not images.is_floating_point():
        raise InputError(
            "glimpses need floating-point images [..., height, width], not "
            f"{images.dtype} of shape {tuple(images.shape)}"
        )
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in scales)
    if not scales or not whole or len(set(scales)) < len(scales):
        raise InputError(
            f"scales must be one or more different whole numbers from 1, not {list(scales)}"
        )
