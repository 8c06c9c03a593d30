"""Pictures of where a model looked: stills, an animation, and a map of many sequences of looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from wsram_ppl.drawing.pages import COLOURS, INK, PAPER, font, grid
from wsram_ppl.interfaces import Gaze

__all__ = ["draw_gaze", "draw_look", "gaze_page", "seen_share"]

_GOOD, _BAD = "#1a7f37", "#cf222e"
_GAP = 10
_WIDTH = 200  # approximate width of one image in the picture
_LARGE = 400  # width of a single image
_LEAST = 12  # smallest side of a patch in the picture
_LINE = 12  # height of a number's box
_CAPTION = 15  # height of a caption's line
_LEGEND = 290  # width of the map's legend
_LARGEST_GIF = 65_535

#: Left, top, right and bottom, in pixels of the picture.
_Box = tuple[int, int, int, int]


def draw_gaze(gaze: Gaze, path: Path, columns: int = 4, zoom: int | None = None) -> list[Path]:
    """Writes ``path`` (PNG: all glimpses, numbered) and the same with ``.gif`` (one after the other).

    Under each image stand the patches as the model saw them, framed in the colour of their glimpse.

    Args:
        columns: images per row.
        zoom: picture pixels per image pixel; by default so that an image is nearly 200 pixels wide.

    Returns:
        The files written; a page with more pixels to a side than a GIF can have has no second one.
    """
    page = gaze_page(gaze, columns, zoom)
    page.save(path)
    if max(page.size) > _LARGEST_GIF:
        return [path]
    frames = [gaze_page(gaze, columns, zoom, shown) for shown in range(gaze.windows.shape[1] + 1)]
    moving = path.with_suffix(".gif")
    frames[0].save(
        moving,
        save_all=True,
        append_images=[*frames[1:], frames[-1]],
        duration=700,
        loop=0,
    )
    return [path, moving]


def draw_look(gaze: Gaze, path: Path, sampled: Tensor | None = None) -> Path:
    """Writes a PNG of where a model looked in one image, large.

    Args:
        gaze: of the one image.
        sampled: ``[S, N, 3]``, windows of S sampled sequences: the image is then drawn a second time,
            brighter where more of them looked.

    Returns:
        The file written.
    """
    zoom = max(1, _LARGE // max(gaze.images.shape[-2:]))
    least = 0 if sampled is None else _LEGEND
    cells = [_cell(gaze, 0, gaze.windows.shape[1], zoom, least)]
    if sampled is not None:
        cells.append(_heat(gaze.images[0], sampled, zoom, cells[0].size))
    grid(cells, len(cells), _GAP).save(path)
    return path


def seen_share(windows: Tensor, size: tuple[int, int]) -> Tensor:
    """The fraction of sequences that saw each pixel: ``[S, N, 3] -> [height, width]``."""
    height, width = size
    rows, columns = (torch.arange(n, device=windows.device) + 0.5 for n in size)
    total = torch.zeros(height, width, device=windows.device)
    for left, top, side in (each.unbind(-1) for each in windows):
        across = (columns >= left[:, None]) & (columns < (left + side)[:, None])
        down = (rows >= top[:, None]) & (rows < (top + side)[:, None])
        total += (down[:, :, None] & across[:, None, :]).any(0)
    return total / len(windows)


def _heat(image: Tensor, windows: Tensor, zoom: int, size: tuple[int, int]) -> Image.Image:
    """The image, darkened, with the fraction of sequences that looked there as a glow, and a scale."""
    share = seen_share(windows, (image.shape[-2], image.shape[-1])).cpu()
    picture = _picture(image, 1)
    pixels = np.asarray(picture, np.float64) * 0.45
    glow = _glow(share.numpy().astype(np.float64))
    strength = 0.75 * np.sqrt(share.numpy())[..., None]
    mixed = (pixels * (1 - strength) + glow * strength).round().astype(np.uint8)
    cell = Image.new("RGB", size, PAPER)
    cell.paste(_enlarged(Image.fromarray(mixed), zoom), (0, 0))
    pen, letters = ImageDraw.Draw(cell), font(12)
    top = picture.height * zoom + 6
    ramp = _glow(np.linspace(0, 1, 101)[None]).round().astype(np.uint8)
    cell.paste(Image.fromarray(ramp).resize((101, 12)), (0, top))
    pen.text((108, top - 2), f"0 to 100% of {len(windows)} sampled", fill=INK, font=letters)
    pen.text((0, top + 16), "sequences looked there", fill=INK, font=letters)
    return cell


def _glow(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours from violet to yellow: ``[...] -> [..., 3]``."""
    stops = np.array([[60, 20, 110], [200, 50, 90], [255, 150, 40], [255, 250, 150]], np.float64)
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(share, at, stops[:, channel]) for channel in range(3)], -1)


def gaze_page(
    gaze: Gaze, columns: int = 4, zoom: int | None = None, shown: int | None = None
) -> Image.Image:
    """All images with their first ``shown`` glimpses, in a grid.

    Args:
        columns, zoom: as in :func:`draw_gaze`.
        shown: None: all of them.
    """
    zoom = zoom or max(1, _WIDTH // gaze.images.shape[-1])
    shown = gaze.windows.shape[1] if shown is None else shown
    cells = [_cell(gaze, index, shown, zoom) for index in range(len(gaze.captions))]
    return grid(cells, columns, _GAP)


def _cell(gaze: Gaze, index: int, shown: int, zoom: int, least: int = 0) -> Image.Image:
    """One image with its windows, the patches below, and the caption; at least so many pixels wide."""
    picture = _picture(gaze.images[index], zoom)
    draw = ImageDraw.Draw(picture)
    letters = font(12)
    windows = gaze.windows[index].tolist()
    boxes = [
        # The last pixel of a window is inside.
        [zoom * x, zoom * y, zoom * x + max(zoom * side - 1, 0), zoom * y + max(zoom * side - 1, 0)]
        for x, y, side in windows[:shown]
    ]
    for n, box in enumerate(boxes):
        draw.rectangle(box, outline=COLOURS[n % len(COLOURS)], width=2 if n + 1 == shown else 1)
    taken: list[_Box] = []
    for n, box in enumerate(boxes):
        text = str(n + 1)
        taken.append(_free_corner(box, 5 + 8 * len(text), picture.size, taken))
        draw.rectangle(taken[-1], fill=COLOURS[n % len(COLOURS)])
        draw.text((taken[-1][0] + 3, taken[-1][1] - 1), text, fill=INK, font=letters)
    count = len(windows)
    side = max(_LEAST, (picture.width - (count - 1) * 4) // count)
    width = max(picture.width, count * (side + 4) - 4, least)
    # On two lines for all, if any is too long for one.
    lines = 1 + any(letters.getlength(caption) > width for caption in gaze.captions)
    cell = Image.new("RGB", (width, picture.height + side + 13 + lines * _CAPTION), PAPER)
    cell.paste(picture, (0, 0))
    pen = ImageDraw.Draw(cell)
    for n in range(count):
        left, top = n * (side + 4), picture.height + 4
        if n < shown:
            patch = _picture(gaze.patches[index, n], 1).resize((side, side), Image.Resampling.NEAREST)
            cell.paste(patch, (left, top))
        outline = COLOURS[n % len(COLOURS)] if n < shown else "#d0d7de"
        pen.rectangle([left, top, left + side - 1, top + side - 1], outline=outline, width=2)
    finished = shown == count
    answer = {True: _GOOD, False: _BAD, None: INK}[gaze.correct[index]]
    colour = answer if finished else INK
    known = "," in gaze.captions[index]  # otherwise the caption is not an answer
    text = gaze.captions[index] if finished else gaze.captions[index].split(",")[0] if known else ""
    text = text.replace(", ", ",\n", 1) if lines > 1 else text
    pen.text((0, picture.height + side + 8), text, fill=colour, font=letters)
    return cell


def _free_corner(window: list[float], width: int, size: tuple[int, int], taken: Sequence[_Box]) -> _Box:
    """The position of a window's number: outside one of its corners, if no other number is there.

    If all are taken, numbers form a column inside the window and below, always inside the picture.
    """
    left, top, right, bottom = window
    above, below = top - _LINE - 1, bottom + 1
    corners = [(left, above), (right - width, above), (left, below), (right - width, below)]
    corners += [(left + 2, top + 2 + step * (_LINE + 1)) for step in range(1 + size[1] // _LINE)]
    places = []
    for x, y in corners:
        # Also if the window extends over the edge.
        x, y = min(max(x, 1), size[0] - width - 2), min(max(y, 1), size[1] - _LINE - 2)
        places.append((round(x), round(y), round(x) + width, round(y) + _LINE))
    free = (
        box
        for box in places
        if all(box[2] < o[0] or o[2] < box[0] or box[3] < o[1] or o[3] < box[1] for o in taken)
    )
    return next(free, places[0])


def _picture(image: Tensor, zoom: int) -> Image.Image:
    """``[height, width]`` or ``[channels, height, width]``; channels other than red, green and blue are
    drawn as their mean."""
    if image.dim() == 3 and image.shape[0] != 3:
        image = image.mean(0)
    elif image.dim() == 3:
        image = image.permute(1, 2, 0)
    pixels: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return _enlarged(Image.fromarray(pixels).convert("RGB"), zoom)


def _enlarged(picture: Image.Image, zoom: int) -> Image.Image:
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
