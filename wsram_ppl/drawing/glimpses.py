"""Pictures of where a model looked: a still and an animation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from wsram_ppl.drawing.pages import COLOURS, INK, PAPER, grid
from wsram_ppl.interfaces import Gaze

__all__ = ["draw_gaze"]

_GOOD, _BAD = "#1a7f37", "#cf222e"
_GAP = 10
_WIDTH = 200  # of one image in the picture, about
_LEAST = 12  # side of a patch in the picture


def draw_gaze(gaze: Gaze, path: Path, columns: int = 4, zoom: int | None = None) -> list[Path]:
    """Writes ``path`` (PNG: all glimpses, numbered) and the same with ``.gif`` (one after the other).

    Under each image stand the patches as the model saw them, framed in the colour of their glimpse.

    Args:
        columns: images in a row.
        zoom: picture pixels per image pixel; by default so that an image is nearly 200 pixels wide.

    Returns:
        The two files written.
    """
    glimpses = gaze.windows.shape[1]
    zoom = zoom or max(1, _WIDTH // gaze.images.shape[-1])
    still = _page(gaze, glimpses, columns, zoom)
    still.save(path)
    frames = [_page(gaze, shown, columns, zoom) for shown in range(glimpses + 1)]
    moving = path.with_suffix(".gif")
    frames[0].save(
        moving,
        save_all=True,
        append_images=[*frames[1:], frames[-1]],
        duration=700,
        loop=0,
    )
    return [path, moving]


def _page(gaze: Gaze, shown: int, columns: int, zoom: int) -> Image.Image:
    """All images with their first ``shown`` glimpses, in a grid."""
    cells = [_cell(gaze, index, shown, zoom) for index in range(len(gaze.captions))]
    return grid(cells, columns, _GAP)


def _cell(gaze: Gaze, index: int, shown: int, zoom: int) -> Image.Image:
    """One image with its windows, the patches below, and the caption."""
    picture = _picture(gaze.images[index], zoom)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=13)
    windows = gaze.windows[index].tolist()
    for n, (left, top, side) in enumerate(windows[:shown]):
        colour = COLOURS[n % len(COLOURS)]
        box = [zoom * left, zoom * top, zoom * (left + side), zoom * (top + side)]
        draw.rectangle(box, outline=colour, width=2 if n + 1 == shown else 1)
        # The number stays readable where the window reaches over the edge.
        at = (min(max(box[0] + 3, 1), picture.width - 10), min(max(box[1] + 1, 0), picture.height - 15))
        draw.text(at, str(n + 1), fill=colour, font=font)
    count = len(windows)
    side = max(_LEAST, (picture.width - (count - 1) * 4) // count)
    width = max(picture.width, count * (side + 4) - 4)
    cell = Image.new("RGB", (width, picture.height + side + 28), PAPER)
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
    colour = (_GOOD if gaze.correct[index] else _BAD) if finished else INK
    text = gaze.captions[index] if finished else gaze.captions[index].split(",")[0]
    pen.text((0, picture.height + side + 8), text, fill=colour, font=font)
    return cell


def _picture(image: Tensor, zoom: int) -> Image.Image:
    """``[height, width]`` or ``[channels, height, width]``; other channels than red, green and blue are
    drawn as their mean."""
    if image.dim() == 3 and image.shape[0] != 3:
        image = image.mean(0)
    elif image.dim() == 3:
        image = image.permute(1, 2, 0)
    pixels: NDArray[np.uint8] = (image.clamp(0, 1) * 255).round().byte().cpu().numpy()
    picture = Image.fromarray(pixels).convert("RGB")
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
