"""Reading of pictures: any file that Pillow knows, as 8-bit RGB."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from wsram_ppl.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL import Image, ImageFile

__all__ = ["Unreadable", "is_lfs_pointer", "open_picture"]


class Unreadable(Exception):
    """A picture that cannot be read; the text says why."""


def is_lfs_pointer(content: bytes) -> bool:
    """Whether a file holds a pointer in place of its content, as Git writes it without Git LFS."""
    return content.startswith(b"version https://git-lfs.github.com/")


def open_picture(content: bytes) -> tuple[Image.Image, str]:
    """The picture in a file's content, in 8-bit RGB, upright, and a note on what had to be changed.

    Raises:
        Unreadable: it is not a picture.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputError(
            f"pillow is needed ({one_line(error)}): pip install 'wsram_ppl[captions]'"
        ) from error
    if is_lfs_pointer(content):
        raise Unreadable("a Git LFS pointer, not the photo itself")
    if not content:
        raise Unreadable("the file is empty")
    try:
        with Image.open(io.BytesIO(content)) as image:
            _see_transparent_colour(image, content)
            upright = ImageOps.exif_transpose(image)
            eight_bits, scaled = _eight_bits(upright, image.format == "PNG")
            opaque, composed = _on_white(eight_bits)
            return opaque, "; ".join(filter(None, (scaled, composed)))
    except Unreadable:
        raise
    except Exception as error:  # each decoder raises its own
        text = one_line(error)
        if "cannot identify image file" in text:
            text = "not a picture"
        raise Unreadable(text) from error


def _see_transparent_colour(image: ImageFile.ImageFile, content: bytes) -> None:
    """Repairs a PNG whose transparent colour Pillow misses because its pixels have another depth.

    Args:
        image: the picture opened from this content.
    """
    colour = image.info.get("transparency")
    if image.format != "PNG" or colour is None:
        return
    from PIL import Image

    raw = image.tile[0].args
    if raw in ("L;2", "L;4"):  # pixels are spread over 8 bits, the colour is not
        image.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[raw]
    if raw == "RGB;16B":  # pixels are cut to their high bytes
        with Image.open(io.BytesIO(content)) as same:
            # As read, with the low bytes last, it has these values.
            same.tile = [tile._replace(args="RGB;16L") for tile in same.tile]
            pixels = np.asarray(image, np.uint16) << 8 | np.asarray(same)
        del image.info["transparency"]
        opaque = (pixels != np.array(colour)).any(-1)
        image.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))


def _eight_bits(image: Image.Image, sixteen: bool) -> tuple[Image.Image, str]:
    """A grey picture of more than 8 bits, in 8 bits (others unchanged), and a note about it.

    Files of 32 bits do not define white: it is the smallest of 1 (for fractions), 255 and 65,535 that no
    pixel exceeds.

    Args:
        sixteen: whether this kind of file has 16 bits if it has more than 8, however it is read.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image, ""
    from PIL import Image

    pixels = np.asarray(image, np.float64)
    sixteen = sixteen or image.mode.startswith("I;16")
    candidates = (65535,) if sixteen else (1, 255, 65535) if image.mode == "F" else (255, 65535)
    white = next((each for each in candidates if pixels.max() <= each), None)
    if white is None or not pixels.min() >= 0:
        raise Unreadable(
            f"its pixels go from {pixels.min():g} to {pixels.max():g}, not from 0 to 1, 255 or 65535"
        )
    grey = Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))
    if (colourless := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(pixels == colourless, 0, 255).astype(np.uint8)))
    return grey, f"its pixels, from 0 to {white:,}, are scaled to 8 bits"


def _on_white(image: Image.Image) -> tuple[Image.Image, str]:
    """A picture in RGB, with transparent parts on white, and a note about it."""
    if not image.has_transparency_data:
        return image.convert("RGB"), ""
    from PIL import Image

    picture = image.convert("RGBA")
    if picture.getchannel("A").getextrema()[0] == 255:
        return picture.convert("RGB"), ""
    shown = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return shown.convert("RGB"), "its transparent parts are shown on white"
