"""Generated scenes: a shape or two, sentences that describe them, and what a conv net might see.

A scene is one shape, or two of which one is clearly left of or above the other. A shape has a size, a
colour and a kind, and no two shapes of a scene agree in all three. Its captions are

    a small red circle
    a small red circle left of a large blue square      (and the same scene from the other shape)

The two maps stand for two layers of a conv net. A cell sees the share of it that a shape covers, times
the shape's attributes, mixed by a fixed matrix, plus noise: ``fine`` [16, 8, 8] tells colour and size,
and the kind of small shapes only; ``coarse`` [24, 4, 4] tells colour and size, and the kind of large
shapes only. A mean over cells mixes the shapes up. So a right caption takes a look at each shape, in
the layer that its size asks for.

A scene is a pure function of a seed and its number, for any number of scenes at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from wsram_ppl.data.captions.batches import (
    CaptionBatch,
    Examples,
    HeldOut,
    check_split,
    moved,
    options_of,
    record_of,
)
from wsram_ppl.data.captions.vocabulary import END, START, Vocabulary
from wsram_ppl.data.epochs import check_batch, check_held_out, check_whole
from wsram_ppl.errors import InputError

__all__ = [
    "COLOURS",
    "KINDS",
    "LAYER_SHAPES",
    "SIZES",
    "VOCABULARY",
    "SceneCaptions",
    "Scenes",
    "coverage",
    "draw",
    "generate",
    "named_shapes",
    "sentences",
]

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

SIZES: Final = ("small", "large")
KINDS: Final = ("circle", "square", "triangle", "cross")
COLOURS: Final = {
    "red": (220, 50, 47),
    "green": (60, 170, 70),
    "blue": (60, 90, 220),
    "yellow": (235, 205, 60),
    "purple": (150, 70, 190),
    "white": (240, 240, 240),
}
_BACKGROUND: Final = 40
VOCABULARY: Final = Vocabulary(("a", *SIZES, *COLOURS, *KINDS, "left", "right", "of", "above", "below"))
_NUMBER: Final = {word: number for number, word in enumerate(VOCABULARY.words)}

#: (channels, height, width) of the two maps, fine and coarse.
LAYER_SHAPES: Final = ((16, 8, 8), (24, 4, 4))
_RADII: Final = ((0.16, 0.2), (0.34, 0.4))  # of each size, where the picture spans [-1, 1]^2
_ATTRIBUTES: Final = len(SIZES) + len(COLOURS) + len(KINDS)
_NOISES: Final = [c * h * w for c, h, w in LAYER_SHAPES]

# Each scene has so many random words of 64 bits, four of 16 bits for noise in each of the later ones.
_DRAWS: Final = 16
_WORDS: Final = _DRAWS + -(-sum(_NOISES) // 16) * 4
_TRAINING, _DEV, _TEST = range(3)


@dataclass(frozen=True)
class Scenes:
    """B scenes of up to two shapes; the first dimension of everything is B.

    Attributes:
        count: [B], shapes in the scene, 1 or 2. What belongs to an absent second shape is not defined.
        size, colour, kind: [B, 2], places in ``SIZES``, ``COLOURS``, ``KINDS``.
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
        """[B], where shape 0 is of shape 1: 0 left, 1 right, 2 above, 3 below."""
        apart = self.centre[:, 0] - self.centre[:, 1]
        axis = (np.abs(apart[:, 1]) > np.abs(apart[:, 0])).astype(np.int64)
        return 2 * axis + (np.take_along_axis(apart, axis[:, None], 1)[:, 0] > 0)


def generate(seed: tuple[int, ...], first: int, count: int) -> Scenes:
    """The scenes number ``first`` to ``first + count`` of the endless row that ``seed`` fixes."""
    key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    # A counter, so that scene n can be drawn without the n before it; it gives 4 words a step.
    bits = np.random.Philox(key=key, counter=first * (_WORDS // 4)).random_raw(count * _WORDS)
    bits = bits.reshape(count, _WORDS)
    u = (bits[:, :_DRAWS] >> np.uint64(11)) * 2.0**-53

    each = len(SIZES) * len(COLOURS) * len(KINDS)
    look = np.stack((_pick(u[:, 0], each), _pick(u[:, 1], each - 1)), 1)
    look[:, 1] += look[:, 1] >= look[:, 0]  # all looks but the first's
    size, rest = np.divmod(look, len(COLOURS) * len(KINDS))
    colour, kind = np.divmod(rest, len(KINDS))

    low, high = np.array(_RADII)[size].transpose(2, 0, 1)
    radius = low + (high - low) * u[:, 2:4]
    room = 1 - radius
    shapes = 1 + (u[:, 4] >= 0.2).astype(np.int64)
    # Two shapes: one on either side of the middle, at most .6 as far apart along the other axis.
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


# ---------------------------------------------------------------- pictures


def coverage(scenes: Scenes, cells: int, samples: int = 6) -> npt.NDArray[np.float32]:
    """The share of each cell that each shape covers: [B, 2, cells, cells], in [0, 1].

    Args:
        cells: per side.
        samples: points per cell and side that are looked at.
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
    """What a layer can tell of each shape, [B, 2, _ATTRIBUTES]: 1 for each word that fits."""
    told = np.eye(len(KINDS), dtype=np.float32)[scenes.kind] * (scenes.size == layer)[..., None]
    sizes = np.eye(len(SIZES), dtype=np.float32)[scenes.size]
    return np.concatenate((sizes, np.eye(len(COLOURS), dtype=np.float32)[scenes.colour], told), -1)


def _mixing(channels: int, seed: int) -> npt.NDArray[np.float32]:
    """[_ATTRIBUTES, channels], orthogonal rows of mean square 1."""
    square = np.random.Generator(np.random.Philox(seed)).standard_normal((channels, channels))
    rows: npt.NDArray[np.float32] = np.linalg.qr(square)[0][:_ATTRIBUTES].astype(np.float32)
    return rows * np.float32(channels**0.5)


_MIXING: Final = [_mixing(shape[0], layer) for layer, shape in enumerate(LAYER_SHAPES)]


# ---------------------------------------------------------------- sentences

_RELATIONS: Final = np.array(
    [
        [_NUMBER["left"], _NUMBER["of"]],
        [_NUMBER["right"], _NUMBER["of"]],
        [_NUMBER["above"], -1],
        [_NUMBER["below"], -1],
    ]
)


def sentences(scenes: Scenes, first: Whole | None = None) -> tuple[Whole, npt.NDArray[np.bool_]]:
    """The scenes' captions, as ``words`` and ``mask`` [B, T + 1] (see :mod:`wsram_ppl.data.captions`).

    Args:
        first: [B], the shape to name first; None: as each scene says.
    """
    first = scenes.first if first is None else first
    count = len(scenes.count)
    two = (scenes.count == 2)[:, None]
    phrases = np.empty((count, 2, 4), np.int64)
    phrases[..., 0] = _NUMBER["a"]
    for place, (known, values) in enumerate(
        ((SIZES, scenes.size), (tuple(COLOURS), scenes.colour), (KINDS, scenes.kind)), start=1
    ):
        phrases[..., place] = np.array([_NUMBER[word] for word in known])[values]
    row = np.arange(count)
    # From the other shape, left is right and above is below.
    relation = _RELATIONS[scenes.relation ^ first]
    said = np.concatenate(
        (
            np.full((count, 1), START),
            phrases[row, first],
            np.where(two, relation, -1),
            np.where(two, phrases[row, 1 - first], -1),
            np.full((count, 1), END),
        ),
        1,
    )
    # Words that a sentence does not have go to its end, as padding.
    absent = said < 0
    order = np.argsort(absent, axis=1, kind="stable")
    inside = ~np.take_along_axis(absent, order, 1)
    words = np.where(inside, np.take_along_axis(said, order, 1), END)
    longest = int(inside.sum(1).max())
    mask = inside.copy()
    mask[:, 0] = False
    return words[:, :longest], mask[:, :longest]


def named_shapes(scenes: Scenes, words: Whole) -> Whole:
    """Which shape each word is about, [B, T + 1]: 0 or 1, or -1 for none.

    A phrase "a SIZE COLOUR KIND" is about the shape of its scene that it describes, all four words; what
    describes no shape of the scene, relations, marks and padding are about none. So it also reads
    sentences that a model made up.

    Args:
        words: [B, T + 1], numbers of the vocabulary, up to the first end mark.
    """
    about = np.full(words.shape, -1)
    looks = [
        np.array([_NUMBER[word] for word in known])[values]
        for known, values in (
            (SIZES, scenes.size),
            (tuple(COLOURS), scenes.colour),
            (KINDS, scenes.kind),
        )
    ]
    going = np.cumsum(words == END, 1) == 0
    for t in range(words.shape[1] - 3):
        phrase = words[:, t : t + 4]
        for shape in (0, 1):
            fits = (phrase[:, 0] == _NUMBER["a"]) & going[:, t + 3] & (shape < scenes.count)
            for place, look in enumerate(looks, start=1):
                fits = fits & (phrase[:, place] == look[:, shape])
            about[fits, t : t + 4] = shape
    return about


# ---------------------------------------------------------------- the source


class SceneCaptions:
    """Generated scenes of one or two coloured shapes, with captions and small maps of two layers.

    See :mod:`wsram_ppl.data.captions` for the batch. Training scenes never repeat; held-out scenes come from
    rows of their own.

    Args:
        held_out: number of scenes of each held-out split.
        noise: standard deviation of the noise in the maps, where a shape that fills a cell has features
            of mean square 1 per attribute.
        test_seed: fixes the held-out scenes.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        *,
        held_out: PositiveInt = 1000,
        noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1,
        test_seed: NonNegativeInt = 0,
    ) -> None:
        check_whole("held_out", held_out, at_least=1)
        check_whole("test_seed", test_seed, at_least=0)
        if not 0 <= noise < float("inf"):
            raise InputError(f"noise = {noise}: should be a number of at least 0")
        self.vocabulary = VOCABULARY
        self.layer_shapes: tuple[tuple[int, int, int], ...] = LAYER_SHAPES
        self._held_out, self._noise, self._test_seed = held_out, noise, test_seed
        self._device = torch.device("cpu")

    @property
    def model_options(self) -> dict[str, Any]:
        return options_of(self)

    @property
    def record(self) -> dict[str, Any]:
        return record_of(self)

    def training_batch(self, step: int, size: int, seed: int) -> CaptionBatch:
        """The batch of update ``step``: ``size`` scenes that no other step has.

        Raises:
            InputError: an argument is out of range.
        """
        check_batch(step, size, seed)
        return self._batch(generate((_TRAINING, seed), step * size, size))

    def evaluation_batches(
        self, size: int, limit: int | None = None, split: HeldOut = "dev"
    ) -> Iterator[CaptionBatch]:
        """The held-out scenes, or the first ``limit``, each with one of its captions.

        Raises:
            InputError: ``size`` or ``limit`` is below 1, or the split does not exist.
        """
        return (self._batch(self.scenes(part, split)) for part in self._parts(size, limit, split))

    def examples(
        self, size: int, limit: int | None = None, split: HeldOut = "dev"
    ) -> Iterator[Examples]:
        """The held-out scenes, or the first ``limit``; their names are their numbers.

        Raises:
            InputError: ``size`` or ``limit`` is below 1, or the split does not exist.
        """
        return (self._examples(part, split) for part in self._parts(size, limit, split))

    def look_up(self, names: Sequence[str]) -> Examples:
        """Scenes of the dev split by name, as ``"17"``; of the test split as ``"test/17"``.

        Raises:
            InputError: no name, or there is no such scene.
        """
        if not names:
            raise InputError("name at least one scene")
        parts = [self._examples(range(n, n + 1), split) for split, n in map(self._find, names)]
        maps = [torch.cat(layers) for layers in zip(*(part.maps for part in parts), strict=True)]
        return Examples([*names], tuple(maps), [part.references[0] for part in parts])

    def pictures(self, names: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
        """The scenes' pictures, each [96, 96, 3].

        Raises:
            InputError: there is no such scene.
        """
        return [draw(self.scenes(range(n, n + 1), split))[0] for split, n in map(self._find, names)]

    def scenes(self, numbers: range, split: HeldOut = "dev") -> Scenes:
        """Held-out scenes, with the truth about where everything is."""
        return generate((_row(split), self._test_seed), numbers.start, len(numbers))

    def to(self, device: torch.device | str) -> Self:
        """Batches will be on ``device``; scenes are generated on the host. Returns the source itself."""
        self._device = torch.device(device)
        return self

    def _batch(self, scenes: Scenes) -> CaptionBatch:
        words, mask = (self._move(part) for part in sentences(scenes))
        return words, mask, *self._maps(scenes)

    def _examples(self, numbers: range, split: HeldOut) -> Examples:
        scenes = self.scenes(numbers, split)
        texts = [
            [
                VOCABULARY.decode(row)
                for row in sentences(scenes, np.full(len(numbers), first))[0].tolist()
            ]
            for first in (0, 1)
        ]
        references = [
            [*own] if n == 2 else [own[0]] for n, *own in zip(scenes.count, *texts, strict=True)
        ]
        prefix = "" if split == "dev" else f"{split}/"
        return Examples([f"{prefix}{n}" for n in numbers], self._maps(scenes), references)

    def _maps(self, scenes: Scenes) -> tuple[Tensor, ...]:
        return tuple(self._move(part) for part in feature_maps(scenes, self._noise))

    def _move(self, array: npt.NDArray[np.generic]) -> Tensor:
        return moved(torch.from_numpy(array), self._device)

    def _parts(self, size: int, limit: int | None, split: HeldOut) -> list[range]:
        check_held_out(size, limit, "held-out scenes")
        _row(split)
        count = min(limit or self._held_out, self._held_out)
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def _find(self, name: str) -> tuple[HeldOut, int]:
        split, _, number = name.rpartition("/")
        if split in ("", "test") and number.isdecimal() and int(number) < self._held_out:
            return ("test" if split else "dev"), int(number)
        raise InputError(
            f"there is no held-out scene {name!r}; there are 0 to {self._held_out - 1:,}, and test/0 to "
            f"test/{self._held_out - 1:,}"
        )


def _row(split: str) -> int:
    """The number of the row of scenes that a held-out split is."""
    check_split(split)
    return _DEV if split == "dev" else _TEST
