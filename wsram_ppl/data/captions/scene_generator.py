"""Generated scenes of one or two shapes: the pictures, and what a conv net might see of them.

A scene has one shape, or two of which one is clearly left of or above the other. A shape has a size, a
colour and a kind, and the two shapes of a scene never agree in all three.

The two maps stand for two layers of a conv net. A cell sees the fraction of it that a shape covers,
times the shape's attributes, mixed by a fixed matrix, plus noise: ``fine`` [16, 8, 8] shows colour and
size, and the kind of small shapes only; ``coarse`` [24, 4, 4] shows colour and size, and the kind of
large shapes only. A mean over cells mixes the shapes. So a correct caption needs a look at each shape,
in the layer that suits its size.

A scene is a pure function of a seed and its number, for any number of scenes at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = [
    "COLOURS",
    "KINDS",
    "LAYER_SHAPES",
    "SIZES",
    "Floats",
    "Scenes",
    "Whole",
    "coverage",
    "draw",
    "feature_maps",
    "generate",
]

#: An array of real numbers.
Floats = npt.NDArray[np.float64]
#: An array of whole numbers.
Whole = npt.NDArray[np.int64]

#: Sizes of a shape, in words.
SIZES: Final = ("small", "large")
#: Kinds of shapes, in words.
KINDS: Final = ("circle", "square", "triangle", "cross")
#: Colours of shapes by their words: red, green and blue, 0 to 255.
COLOURS: Final = {
    "red": (220, 50, 47),
    "green": (60, 170, 70),
    "blue": (60, 90, 220),
    "yellow": (235, 205, 60),
    "purple": (150, 70, 190),
    "white": (240, 240, 240),
}
_BACKGROUND: Final = 40

#: (channels, height, width) of the two maps, fine and coarse.
LAYER_SHAPES: Final = ((16, 8, 8), (24, 4, 4))
_RADII: Final = ((0.16, 0.2), (0.34, 0.4))  # of each size, where the picture spans [-1, 1]^2
_ATTRIBUTES: Final = len(SIZES) + len(COLOURS) + len(KINDS)
_NOISES: Final = [c * h * w for c, h, w in LAYER_SHAPES]

# Random 64-bit words per scene; each of the later ones holds four 16-bit values of noise.
_DRAWS: Final = 16
_WORDS: Final = _DRAWS + -(-sum(_NOISES) // 16) * 4


@dataclass(frozen=True)
class Scenes:
    """B scenes of up to two shapes; the first dimension of everything is B.

    Attributes:
        count: [B], shapes in the scene, 1 or 2. Values of an absent second shape are undefined.
        size, colour, kind: [B, 2], indices into ``SIZES``, ``COLOURS``, ``KINDS``.
        centre: [B, 2, 2], (x, y) of each shape, where the picture spans [-1, 1]^2, y downwards.
        radius: [B, 2], half of a shape's width and height.
        first: [B], the shape that the scene's caption names first.
        noise: [B, cells], uniform in [-sqrt(3), sqrt(3)), of variance 1, float32.
    """

    count: Whole
    size: Whole
    colour: Whole
    kind: Whole
    centre: Floats
    radius: Floats
    first: Whole
    noise: npt.NDArray[np.float32]

    @property
    def relation(self) -> Whole:
        """[B], where shape 0 is relative to shape 1: 0 left, 1 right, 2 above, 3 below."""
        apart = self.centre[:, 0] - self.centre[:, 1]
        axis = (np.abs(apart[:, 1]) > np.abs(apart[:, 0])).astype(np.int64)
        return 2 * axis + (np.take_along_axis(apart, axis[:, None], 1)[:, 0] > 0)


def generate(seed: tuple[int, ...], first: int, count: int) -> Scenes:
    """Scenes ``first`` to ``first + count - 1`` of the infinite sequence given by ``seed``."""
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    # Counter-based, so that scene n can be drawn without the n before it; 4 words per step.
    bits = np.random.Philox(key=key, counter=first * (_WORDS // 4)).random_raw(count * _WORDS)
    bits = bits.reshape(count, _WORDS)
    u = (bits[:, :_DRAWS] >> np.uint64(11)) * 2.0**-53

    each = len(SIZES) * len(COLOURS) * len(KINDS)
    look = np.stack((_pick(u[:, 0], each), _pick(u[:, 1], each - 1)), 1)
    look[:, 1] += look[:, 1] >= look[:, 0]  # all looks except that of the first shape
    size, rest = np.divmod(look, len(COLOURS) * len(KINDS))
    colour, kind = np.divmod(rest, len(KINDS))

    low, high = np.array(_RADII)[size].transpose(2, 0, 1)
    radius = low + (high - low) * u[:, 2:4]
    room = 1 - radius
    shapes = 1 + (u[:, 4] >= 0.2).astype(np.int64)
    # Two shapes: one on either side of the middle, at most 0.6 as far apart along the other axis.
    along = radius + 0.05 + (room - radius - 0.05) * u[:, 5:7]
    along *= np.where(u[:, 7:8] < 0.5, [[-1.0, 1.0]], [[1.0, -1.0]])
    across = np.empty_like(along)
    across[:, 0] = room[:, 0] * (2 * u[:, 8] - 1)
    shift = 0.6 * np.abs(along[:, 0] - along[:, 1]) * (2 * u[:, 9] - 1)
    across[:, 1] = np.clip(across[:, 0] + shift, -room[:, 1], room[:, 1])
    # A single shape: anywhere.
    alone = shapes == 1
    along[alone, 0] = (room[:, 0] * (2 * u[:, 5] - 1))[alone]
    upright = (u[:, 10] < 0.5)[:, None, None]
    centre = np.where(upright, np.stack((across, along), -1), np.stack((along, across), -1))

    first_named = np.where(alone, 0, _pick(u[:, 11], 2))
    shifts = np.arange(0, 64, 16, dtype=np.uint64)
    parts = (bits[:, _DRAWS:, None] >> shifts).astype(np.uint16).reshape(count, -1)[:, : sum(_NOISES)]
    noise = (parts.astype(np.float32) * np.float32(2**-15) - 1) * np.float32(3**0.5)
    return Scenes(shapes, size, colour, kind, centre, radius, first_named, noise)


def _pick(uniform: npt.NDArray[Any], options: int) -> Whole:
    return (uniform * options).astype(np.int64)


def coverage(scenes: Scenes, cells: int, samples: int = 6) -> npt.NDArray[np.float32]:
    """The fraction of each cell that each shape covers: [B, 2, cells, cells], in [0, 1].

    Args:
        cells: per side.
        samples: sample points per cell and side.
    """
    points = cells * samples
    at = (2 * np.arange(points, dtype=np.float32) + 1) / points - 1
    # In units of the radius, from the centre.
    x = ((at - scenes.centre[..., :1]) / scenes.radius[..., None]).astype(np.float32)[:, :, None, :]
    y = ((at - scenes.centre[..., 1:]) / scenes.radius[..., None]).astype(np.float32)[:, :, :, None]
    kind = scenes.kind[:, :, None, None]
    square = (np.abs(x) <= 0.9) & (np.abs(y) <= 0.9)
    inside = np.select(
        [kind == 0, kind == 1, kind == 2],
        [
            x**2 + y**2 <= 1,
            square,
            # Wide at the bottom.
            (np.abs(x) <= (y + 1) / 2) & (y <= 1),
        ],
        ((np.abs(x) <= 0.33) | (np.abs(y) <= 0.33)) & (np.abs(x) <= 1) & (np.abs(y) <= 1),
    )
    inside[scenes.count == 1, 1] = False
    shape = (*inside.shape[:2], cells, samples, cells, samples)
    shares: npt.NDArray[np.float32] = inside.reshape(shape).mean((3, 5), dtype=np.float32)
    return shares


def draw(scenes: Scenes, pixels: int = 96) -> npt.NDArray[np.uint8]:
    """The pictures, [B, pixels, pixels, 3]."""
    shares = coverage(scenes, pixels, 3)[..., None]
    colours = np.array(list(COLOURS.values()), np.float32)[scenes.colour][:, :, None, None]
    picture = _BACKGROUND + (shares * (colours - _BACKGROUND)).sum(1)
    rounded: npt.NDArray[np.uint8] = np.round(picture).astype(np.uint8)
    return rounded


def feature_maps(scenes: Scenes, noise: float) -> tuple[npt.NDArray[np.float32], ...]:
    """The maps of both layers, [B, channels, height, width], with noise of this standard deviation."""
    found = []
    noises = np.split(scenes.noise, np.cumsum(_NOISES)[:-1], 1)
    for layer, (channels, height, width) in enumerate(LAYER_SHAPES):
        shares = coverage(scenes, height, samples=48 // height).reshape(-1, 2, height * width)
        seen = shares.transpose(0, 2, 1) @ (_attributes(scenes, layer) @ _MIXING[layer])
        seen += np.float32(noise) * noises[layer].reshape(-1, height * width, channels)
        found.append(np.ascontiguousarray(seen.transpose(0, 2, 1)).reshape(-1, channels, height, width))
    return tuple(found)


def _attributes(scenes: Scenes, layer: int) -> npt.NDArray[np.float32]:
    """What a layer shows of each shape, [B, 2, _ATTRIBUTES]: 1 for each word that applies."""
    told = np.eye(len(KINDS), dtype=np.float32)[scenes.kind] * (scenes.size == layer)[..., None]
    sizes = np.eye(len(SIZES), dtype=np.float32)[scenes.size]
    return np.concatenate((sizes, np.eye(len(COLOURS), dtype=np.float32)[scenes.colour], told), -1)


def _mixing(channels: int, seed: int) -> npt.NDArray[np.float32]:
    """[_ATTRIBUTES, channels], orthogonal rows of mean square 1."""
    square = np.random.Generator(np.random.Philox(seed)).standard_normal((channels, channels))
    rows: npt.NDArray[np.float32] = np.linalg.qr(square)[0][:_ATTRIBUTES].astype(np.float32)
    return rows * np.float32(channels**0.5)


_MIXING: Final = [_mixing(shape[0], layer) for layer, shape in enumerate(LAYER_SHAPES)]
