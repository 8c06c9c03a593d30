"""Captions of generated scenes, as a data source.

A scene (:mod:`wsram_ppl.data.captions.scene_generator`) has one caption for each of its shapes:

    a small red circle
    a small red circle left of a large blue square      (and the same scene from the other shape)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from wsram_ppl.data.captions.batches import (
    CaptionBatch,
    CaptionSource,
    Examples,
)
from wsram_ppl.data.captions.scene_generator import (
    COLOURS,
    KINDS,
    LAYER_SHAPES,
    SIZES,
    Scenes,
    Whole,
    draw,
    feature_maps,
    generate,
)
from wsram_ppl.data.captions.vocabulary import END, START, Vocabulary
from wsram_ppl.data.epochs import check_batch, check_held_out, check_split, check_whole, moved
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import HeldOut

__all__ = ["VOCABULARY", "SceneCaptions", "sentences"]

#: All words of all captions.
VOCABULARY: Final = Vocabulary(("a", *SIZES, *COLOURS, *KINDS, "left", "right", "of", "above", "below"))
_NUMBER: Final = {word: number for number, word in enumerate(VOCABULARY.words)}
_RELATIONS: Final = np.array(
    [
        [_NUMBER["left"], _NUMBER["of"]],
        [_NUMBER["right"], _NUMBER["of"]],
        [_NUMBER["above"], -1],
        [_NUMBER["below"], -1],
    ]
)
#: Which infinite sequence of scenes each split uses.
_TRAINING, _VALIDATION, _TEST = range(3)


def sentences(scenes: Scenes, first: Whole | None = None) -> tuple[Whole, npt.NDArray[np.bool_]]:
    """The scenes' captions, as ``words`` and ``mask`` [B, T + 1] (see :mod:`wsram_ppl.data.captions`).

    Args:
        first: [B], the shape to name first; None: the one chosen by each scene.
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
    # Seen from the other shape, left is right and above is below.
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
    # Absent words are moved to the end, as padding.
    absent = said < 0
    order = np.argsort(absent, axis=1, kind="stable")
    inside = ~np.take_along_axis(absent, order, 1)
    words = np.where(inside, np.take_along_axis(said, order, 1), END)
    longest = int(inside.sum(1).max())
    mask = inside.copy()
    mask[:, 0] = False
    return words[:, :longest], mask[:, :longest]


class SceneCaptions(CaptionSource):
    """Generated scenes of one or two coloured shapes, with captions and small maps of two layers.

    See :mod:`wsram_ppl.data.captions` for the batch. Training scenes never repeat; held-out scenes come
    from sequences of their own.

    Args:
        held_out: number of scenes of each held-out split.
        noise: standard deviation of the noise in the maps; a shape that fills a cell has features
            with mean square 1 per attribute.
        test_seed: the seed of the held-out scenes.

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
        self.layer_shapes = LAYER_SHAPES
        self._held_out, self._noise, self._test_seed = held_out, noise, test_seed
        self._device = torch.device("cpu")

    def training_batch(self, step: int, size: int, seed: int) -> CaptionBatch:
        """The batch of update ``step``: ``size`` scenes that occur in no other step.

        Raises:
            InputError: an argument is out of range.
        """
        check_batch(step, size, seed)
        return self._batch(generate((_TRAINING, seed), step * size, size))

    def evaluation_batches(
        self, size: int, limit: int | None = None, split: HeldOut = "validation"
    ) -> Iterator[CaptionBatch]:
        """The held-out scenes, or the first ``limit``, each with one of its captions.

        Raises:
            InputError: ``size`` or ``limit`` is below 1, or the split does not exist.
        """
        return (self._batch(self.scenes(part, split)) for part in self._parts(size, limit, split))

    def examples(
        self, size: int, limit: int | None = None, split: HeldOut = "validation"
    ) -> Iterator[Examples]:
        """The held-out scenes, or the first ``limit``; their names are their numbers.

        Raises:
            InputError: ``size`` or ``limit`` is below 1, or the split does not exist.
        """
        return (self._examples(part, split) for part in self._parts(size, limit, split))

    def look_up(self, names: Sequence[str]) -> Examples:
        """Scenes of the validation split by name, such as ``"17"``; of the test split as ``"test/17"``.

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

    def scenes(self, numbers: range, split: HeldOut = "validation") -> Scenes:
        """Held-out scenes, with the true positions of everything."""
        return generate((_row(split), self._test_seed), numbers.start, len(numbers))

    def to(self, device: torch.device | str) -> Self:
        """Puts batches on ``device``; scenes are generated on the host. Returns the source itself."""
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
        prefix = "" if split == "validation" else f"{split}/"
        return Examples([f"{prefix}{n}" for n in numbers], self._maps(scenes), references)

    def _maps(self, scenes: Scenes) -> tuple[Tensor, ...]:
        return tuple(self._move(part) for part in feature_maps(scenes, self._noise))

    def _move(self, array: npt.NDArray[np.generic]) -> Tensor:
        return moved(torch.from_numpy(array), self._device)

    def _parts(self, size: int, limit: int | None, split: HeldOut) -> list[range]:
        check_held_out(size, limit, "held-out scenes", split)
        count = min(limit or self._held_out, self._held_out)
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def _find(self, name: str) -> tuple[HeldOut, int]:
        split, _, number = name.rpartition("/")
        known = number.isdecimal() and len(number) < 10 and int(number) < self._held_out
        if split in ("", "test") and known:
            return ("test" if split else "validation"), int(number)
        raise InputError(
            f"there is no held-out scene {name!r}; there are 0 to {self._held_out - 1:,}, and test/0 to "
            f"test/{self._held_out - 1:,}"
        )


def _row(split: str) -> int:
    """The number of the sequence of scenes that a held-out split uses."""
    check_split(split)
    return _VALIDATION if split == "validation" else _TEST
