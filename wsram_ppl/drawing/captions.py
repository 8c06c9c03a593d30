"""Pictures of a caption: for each word, the layer and the place where the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from wsram_ppl.captions.decoding import Looks, Sentences
from wsram_ppl.data.captions.batches import PictureSource
from wsram_ppl.data.captions.vocabulary import END
from wsram_ppl.drawing.pages import COLOURS, INK, PAPER, font, grid
from wsram_ppl.errors import RunError

__all__ = ["draw_caption", "draw_captions"]

_SIDE = 176  # the longer side of a photo in the picture
_GAP = 8
_COLUMNS = 6
_LINE = 20
_DIM = 0.5  # brightness where the model did not look


def draw_caption(
    photo: npt.NDArray[np.uint8],
    words: Sequence[str],
    looks: Looks,
    sizes: Sequence[tuple[int, int]],
    path: Path,
) -> None:
    """Writes a PNG: the photo, then a copy for each word that shows where the model looked.

    The more paths of looks saw a region, the brighter it is; the frame is what the most probable path
    saw, in the colour of its layer, which is named beside the word.

    Args:
        photo: [height, width, 3].
        words: the words to show, "." for the end.
        looks: for this photo alone (B = 1), and at least these words.
        sizes: (height, width) of each layer, in cells.
        path: the file to write.
    """
    small = _shrunk(photo)
    tiles = [_tile(small, "", None)]
    best = int(looks.weights[:, 0].argmax())
    for t, word in enumerate(words):
        seen_by = np.zeros((small.height, small.width))
        for s in range(looks.layers.shape[0]):
            left, top, right, low = _box(looks, s, t, small)
            seen_by[top:low, left:right] += float(looks.weights[s, 0])
        light = _DIM + (1 - _DIM) * seen_by / seen_by.max()
        layer = int(looks.layers[best, 0, t])
        seen = Image.fromarray((np.asarray(small) * light[..., None]).astype(np.uint8))
        left, top, right, low = _box(looks, best, t, small)
        colour = COLOURS[layer % len(COLOURS)]
        ImageDraw.Draw(seen).rectangle([left, top, right - 1, low - 1], outline=colour, width=2)
        height, width = sizes[layer]
        tiles.append(_tile(seen, word, f"{height} x {width}", colour))
    grid(tiles, _COLUMNS, _GAP).save(path)


def draw_captions(
    source: PictureSource, names: Sequence[str], sentences: Sentences, files: Sequence[Path]
) -> bool:
    """Draws the captions of pictures that a source knows by name, each to its own PNG.

    Returns:
        Whether there was anything to draw: whether the model reports where it looked.

    Raises:
        RunError: a file cannot be written.
    """
    if sentences.looks is None:
        return False
    sizes = [(height, width) for _, height, width in source.layer_shapes]
    for index, (name, file) in enumerate(zip(names, files, strict=True)):
        (photo,) = source.pictures([name])
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            said = source.vocabulary.decode(sentences.words[index].tolist()).split()
            ended = END in sentences.words[index].tolist()
            draw_caption(photo, [*said, "."] if ended else said, sentences.looks.of(index), sizes, file)
        except OSError as error:
            raise RunError(f"cannot write {file}: {error.strerror or error}") from error
    return True


def _shrunk(photo: npt.NDArray[np.uint8]) -> Image.Image:
    image = Image.fromarray(photo)
    factor = _SIDE / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    small = factor < 1
    return image.resize((width, height), Image.Resampling.LANCZOS if small else Image.Resampling.NEAREST)


def _box(looks: Looks, s: int, t: int, image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of what was read, in pixels; at least one pixel wide."""
    x, y = looks.centres[s, 0, t].tolist()
    wide, high = looks.sizes[s, 0, t].tolist()
    edges = []
    for middle, length, pixels in (x, wide, image.width), (y, high, image.height):
        low = round((middle - length / 2 + 1) / 2 * pixels)
        top = round((middle + length / 2 + 1) / 2 * pixels)
        low = min(max(low, 0), pixels - 1)
        edges.append((low, min(max(top, low + 1), pixels)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _tile(image: Image.Image, word: str, layer: str | None, colour: str = INK) -> Image.Image:
    tile = Image.new("RGB", (_SIDE, image.height + _LINE + 4), PAPER)
    tile.paste(image, ((_SIDE - image.width) // 2, 0))
    pen = ImageDraw.Draw(tile)
    letters = font(13)
    pen.text((2, image.height + 3), word, fill=INK, font=letters)
    if layer is not None:
        start = _SIDE - 2 - round(pen.textlength(layer, font=letters)) - 12
        box = [start, image.height + 7, start + 8, image.height + 15]
        pen.rectangle(box, fill=colour, outline=INK)
        pen.text((start + 12, image.height + 3), layer, fill=INK, font=letters)
    return tile
