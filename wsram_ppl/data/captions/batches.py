"""The common part of all sources of captioned pictures, and batches of sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsram_ppl.data.captions.vocabulary import END, Vocabulary
from wsram_ppl.data.epochs import Epochs, Rows, check_batch, generator
from wsram_ppl.interfaces import DataSource, HeldOut

__all__ = [
    "CaptionBatch",
    "CaptionSource",
    "EncodedCaptions",
    "Examples",
    "LengthBuckets",
    "PictureSource",
    "Rows",
]

#: ``(words [B, T + 1], mask [B, T + 1], *maps)``; see :mod:`wsram_ppl.data.captions`.
CaptionBatch = tuple[Tensor, ...]


class Examples(NamedTuple):
    """Pictures to describe, one row each.

    Attributes:
        names: of the pictures; :meth:`PictureSource.pictures` takes them.
        maps: for each layer [B, C, H, W], float32, on the source's device.
        references: for each picture its captions, normalised; none for the user's own pictures.
        notes: a line for each picture whose pixels had to be changed.
    """

    names: list[str]
    maps: tuple[Tensor, ...]
    references: list[list[str]]
    notes: tuple[str, ...] = ()


@runtime_checkable
class PictureSource(Protocol):
    """Pictures to describe, named by the user.

    Attributes:
        vocabulary: the words to describe them with.
        layer_shapes: (channels, height, width) of each layer's map.
    """

    vocabulary: Vocabulary
    layer_shapes: tuple[tuple[int, int, int], ...]

    def look_up(self, names: Sequence[str]) -> Examples:
        """Pictures named by the user."""
        ...

    def pictures(self, names: Sequence[str]) -> list[npt.NDArray[np.uint8]]:
        """The pictures themselves, each [height, width, 3], for drawing."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Puts what it looks up on ``device``; returns the source itself."""
        ...


@runtime_checkable
class CaptionSource(PictureSource, DataSource, Protocol):
    """A data source of captions; classes derived from it have ``model_options`` and ``record``."""

    @property
    def model_options(self) -> dict[str, Any]:
        """The implied options of a model: the number of words, and the channels of each layer."""
        return self.implied_options(self.record)

    @staticmethod
    def implied_options(record: Mapping[str, Any]) -> dict[str, Any]:
        """These options, for data with this record."""
        channels = tuple(channels for channels, _, _ in record["layer_shapes"])
        return {"vocabulary": len(Vocabulary(record["words"])), "channels": channels}

    @classmethod
    def for_pictures(cls, options: Mapping[str, Any], record: Mapping[str, Any]) -> PictureSource:
        """What looks up pictures for a run, without the data if it can: here the source itself.

        Args:
            options: of the constructor.
            record: the run's.
        """
        source: PictureSource = cls(**options)
        return source

    @property
    def record(self) -> dict[str, Any]:
        """The record kept with a run: the words by number, and the shapes of the maps."""
        return {**self.vocabulary.to_data(), "layer_shapes": [list(s) for s in self.layer_shapes]}

    def examples(
        self, size: int, limit: int | None = None, split: HeldOut = "validation"
    ) -> Iterator[Examples]:
        """The held-out pictures, each once, ``size`` at a time, or a fixed subset of ``limit``."""
        ...


class EncodedCaptions:
    """Sentences as numbers, stored one after another.

    Args:
        sentences: each from the start mark to the end mark, as ``Vocabulary.encode`` gives it.
    """

    def __init__(self, sentences: Sequence[Sequence[int]]) -> None:
        self.lengths = np.array([len(sentence) for sentence in sentences], dtype=np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1])).astype(np.int64)
        # One more, which the padding looks up.
        flat = np.fromiter((n for sentence in sentences for n in sentence), np.int64)
        self._flat = np.append(flat, END)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """``words`` and ``mask`` [B, T + 1] of the sentences ``rows`` [B], on the CPU."""
        lengths = self.lengths[rows]
        step = np.arange(lengths.max())
        inside = step < lengths[:, None]
        at = np.where(inside, self._starts[rows][:, None] + step, len(self._flat) - 1)
        mask = inside & (step > 0)
        return torch.from_numpy(self._flat[at]), torch.from_numpy(mask)


class LengthBuckets:
    """The order of training data: shuffled, but in batches of about equal length.

    The shuffled epochs follow each other without a gap and are cut into pools of several batches; the
    data of a pool are sorted by length and cut into batches, and the batches are shuffled. So every
    datum occurs once per epoch, give or take a pool, and a batch is a pure function of (step, size,
    seed).

    Args:
        lengths: [N], lengths of the data.
        batches: per pool. More means less padding, but less random batches.
    """

    def __init__(self, lengths: Rows, batches: int = 16) -> None:
        self._lengths = lengths
        self._batches = batches
        self._epochs = Epochs(len(lengths), _shuffling)
        self._pool: tuple[tuple[int, int, int], Rows] | None = None

    def rows(self, step: int, size: int, seed: int) -> Rows:
        """The indices [size] of the data in the batch of update ``step``.

        Raises:
            InputError: an argument is out of range, or ``size`` exceeds the number of data.
        """
        count = len(self._lengths)
        check_batch(step, size, seed, count, "training captions")
        per_pool = min(self._batches, count // size)
        pool, place = divmod(step, per_pool)
        key = (pool, size, seed)
        if self._pool is None or self._pool[0] != key:
            self._pool = (key, self._sorted_pool(pool, per_pool, size, seed))
        rows: Rows = self._pool[1][place]
        return rows

    def _sorted_pool(self, pool: int, per_pool: int, size: int, seed: int) -> Rows:
        """[batches, size]: the batches of a pool in order."""
        drawn = self._epochs.span(pool * per_pool * size, per_pool * size, seed)
        by_length = drawn[np.argsort(self._lengths[drawn], kind="stable")].reshape(per_pool, size)
        shuffled: Rows = by_length[generator(seed, 1, pool).permutation(per_pool)]
        return shuffled


def _shuffling(seed: int, epoch: int) -> np.random.Generator:
    return generator(seed, 0, epoch)
