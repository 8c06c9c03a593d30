"""Translated scaled MNIST: digits resized and placed at random on a black canvas."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from wsram_ppl.data.digits.clutter import Clutter, ClutterOption, add_clutter, draw_clutter
from wsram_ppl.data.digits.files import DIGIT_SIZE, Digits, read_mnist, read_sample
from wsram_ppl.data.digits.photos import read_digits
from wsram_ppl.data.digits.placement import draw_placements, place
from wsram_ppl.data.epochs import (
    Epochs,
    check_batch,
    check_held_out,
    check_whole,
    generator,
)
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import HeldOut

__all__ = ["MNISTDigits", "PlacedDigits", "SampleDigits"]

# Each use of random numbers has its own stream.
_ORDER, _PLACEMENT, _TEST_ORDER, _TEST_PLACEMENT, _VALIDATION_ORDER, _VALIDATION_PLACEMENT = range(6)
_CLUTTER, _TEST_CLUTTER, _VALIDATION_CLUTTER = range(6, 9)
#: The streams of a held-out split: for its order, its placements and its clutter.
_STREAMS: Final = {
    "validation": (_VALIDATION_ORDER, _VALIDATION_PLACEMENT, _VALIDATION_CLUTTER),
    "test": (_TEST_ORDER, _TEST_PLACEMENT, _TEST_CLUTTER),
}


class PlacedDigits:
    """A data source of digits, resized and placed at random, entirely on a black square canvas.

    Training: every epoch is a new permutation of the digits, and every step draws new placements and
    clutter, all determined by the run's seed. Evaluation: the digits of a held-out split in an order and
    at positions determined by ``test_seed``. Random numbers are drawn on the CPU, so every device gets
    the same batches (up to rounding); the digits themselves are on the device.

    Args:
        training, validation, test: the digits of each split.
        scale: smallest and largest factor of the resize; the factor is uniform between them.
        canvas: side of the canvas in pixels; the largest digit must fit.
        test_seed: determines the order, the positions and the clutter of held-out digits.
        clutter: pieces of other digits of the split, added at random positions; None for none.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        training: Digits,
        validation: Digits,
        test: Digits,
        *,
        scale: tuple[float, float],
        canvas: int,
        test_seed: int,
        clutter: ClutterOption | None = None,
    ) -> None:
        self.scale = _checked_scale(scale)
        self.canvas = _checked_canvas(canvas, self.scale[1])
        check_whole("test_seed", test_seed, at_least=0)
        fewest = min(len(split.labels) for split in (training, validation, test))
        self.clutter = Clutter.of(clutter, self.canvas, fewest)
        self._training = training
        self.num_training = len(training.labels)
        self._epochs = Epochs(self.num_training, partial(generator, _ORDER))
        self._held_out = {
            name: self._fixed(digits, test_seed, *_STREAMS[name])
            for name, digits in (("validation", validation), ("test", test))
        }

    def training_batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of update ``step``, the same for the same arguments.

        Batches follow each other through the epochs without a gap, so one may hold the end of an
        epoch and the start of the next.

        Args:
            step: the update, from 0.
            size: digits in the batch, at most their total number.
            seed: the run's seed, from 0.

        Returns:
            images [size, canvas, canvas], float32 in [0, 1], and labels [size], int64.

        Raises:
            InputError: an argument is out of range.
        """
        return self.training_rows(step, size, seed, slice(0, size))

    def training_rows(self, step: int, size: int, seed: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Some rows of the batch of update ``step``; only their digits are placed."""
        return self.compose(*self.training_choices(step, size, seed, rows))

    def training_choices(self, step: int, size: int, seed: int, rows: slice) -> tuple[Tensor, ...]:
        """The numbers of the digits of these rows, their placements and, if any, their clutter."""
        check_batch(step, size, seed, self.num_training, "training digits")
        drawn = self._draw((seed, step), size, self.num_training, _PLACEMENT, _CLUTTER)
        chosen = torch.from_numpy(self._epochs.span(step * size, size, seed)[rows])
        device = self._training.labels.device
        placed, clutter = drawn.part(rows, device)
        chosen = chosen.to(device, non_blocking=True)
        return (chosen, placed) if clutter is None else (chosen, placed, clutter)

    def compose(
        self, chosen: Tensor, placements: Tensor, clutter: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The rows of these choices (:meth:`training_choices`)."""
        return self._batch(self._training, chosen, _Drawn(placements, clutter))

    def evaluation_batches(
        self, size: int, limit: int | None = None, split: HeldOut = "validation"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The digits of a held-out split at fixed positions, which do not depend on the arguments.

        Args:
            size: digits per batch; the last batch may be smaller.
            limit: only the first ``limit`` (a fixed random subset); None for all.

        Yields:
            images [B, canvas, canvas], float32 in [0, 1], and labels [B], int64.

        Raises:
            InputError: ``size`` or ``limit`` is below 1, or there is no such split.
        """
        check_held_out(size, limit, f"{split} digits", split)
        digits, order, drawn = self._held_out[split]
        order = order[:limit]
        count = len(order)
        spans = (slice(first, min(first + size, count)) for first in range(0, count, size))
        return (self._batch(digits, order[span], drawn.part(span, order.device)) for span in spans)

    def to(self, device: torch.device | str) -> Self:
        """Moves the digits to ``device``, where the batches will be; returns the source itself."""
        self._training = self._training.to(device)
        self._held_out = {
            name: _Fixed(
                split.digits.to(device), split.order.to(device), split.drawn.part(slice(None), device)
            )
            for name, split in self._held_out.items()
        }
        return self

    @classmethod
    def read_pictures(
        cls, files: Sequence[str], options: Mapping[str, Any], record: Mapping[str, Any]
    ) -> tuple[Tensor, list[str]]:
        """Pictures of digits on the canvas, light on dark.

        A picture of the canvas's size is not resized. Any other one is a digit with its margin: it is
        reduced to the size of the largest digits, if it is larger, and centred; dark on light is
        inverted.

        Raises:
            InputError: a file is not a picture.
        """
        given = {**(cls.__init__.__kwdefaults__ or {}), **options}
        return read_digits(files, given["canvas"], round(DIGIT_SIZE * given["scale"][1]))

    @staticmethod
    def implied_options(record: Mapping[str, Any]) -> dict[str, Any]:
        """Empty: a model has ten classes by default."""
        return {}

    def _fixed(self, digits: Digits, seed: int, order: int, placement: int, clutter: int) -> _Fixed:
        # In the files neighbours are similar (in MNIST the second half of the test set is harder),
        # and the first few must represent all of it.
        count = len(digits.labels)
        permutation = torch.from_numpy(generator(order, seed).permutation(count))
        return _Fixed(digits, permutation, self._draw((seed,), count, count, placement, clutter))

    def _draw(
        self, key: tuple[int, ...], count: int, digits: int, placement: int, clutter: int
    ) -> _Drawn:
        """The random parts of ``count`` images, apart from the digits that they show."""
        placements = draw_placements(
            generator(placement, *key), count, DIGIT_SIZE, self.scale, self.canvas
        )
        if not self.clutter.pieces:
            return _Drawn(placements, None)
        pieces = draw_clutter(generator(clutter, *key), count, digits, self.clutter, self.canvas)
        return _Drawn(placements, pieces)

    def _batch(self, digits: Digits, chosen: Tensor, drawn: _Drawn) -> tuple[Tensor, Tensor]:
        images = place(digits.images.index_select(0, chosen), drawn.placements, self.canvas)
        if drawn.clutter is not None:
            add_clutter(images, drawn.clutter, digits.images, chosen, self.clutter.size)
        return images, digits.labels.index_select(0, chosen)


class _Drawn(NamedTuple):
    """The random parts of B images: placements ``[3, B]``, and clutter ``[B, pieces, 5]`` if any."""

    placements: Tensor
    clutter: Tensor | None

    def part(self, rows: slice, device: torch.device | str) -> _Drawn:
        """The same for some of the images, on the device."""
        placements = self.placements[:, rows].to(device, non_blocking=True)
        if self.clutter is None:
            return _Drawn(placements, None)
        return _Drawn(placements, self.clutter[rows].to(device, non_blocking=True))


class _Fixed(NamedTuple):
    """A held-out split: its digits, their order, and the random parts of each image."""

    digits: Digits
    order: Tensor
    drawn: _Drawn


class SampleDigits(PlacedDigits):
    """A sample of MNIST in the package (9,000 + 1,000 + 2,000 digits), placed at random.

    The last 1,000 of its 10,000 training digits are held out for validation.

    Args:
        scale: smallest and largest factor of the resize; the factor is uniform between them.
        canvas: side of the canvas in pixels; the largest digit must fit.
        test_seed: determines the order, the positions and the clutter of held-out digits.
        clutter: pieces of other digits at random positions (Mnih et al. 2014): how many, and their
            side in pixels.

    Raises:
        InputError: an option is out of range, or the package's file is damaged.
    """

    def __init__(
        self,
        *,
        scale: tuple[PositiveFloat, PositiveFloat] = (0.6, 1.6),
        canvas: PositiveInt = 100,
        test_seed: NonNegativeInt = 0,
        clutter: ClutterOption | None = None,
    ) -> None:
        training, test = read_sample()
        splits = training.part(slice(-1000)), training.part(slice(-1000, None)), test
        #: The record kept with a run: an earlier version had other splits.
        self.record = {"sample": [len(split.labels) for split in splits]}
        super().__init__(*splits, scale=scale, canvas=canvas, test_seed=test_seed, clutter=clutter)


class MNISTDigits(PlacedDigits):
    """All of MNIST (50,000 + 10,000 + 10,000 digits), placed at random.

    The last sixth of the training digits, 10,000, is held out for validation.

    Args:
        root: folder that holds ``MNIST/raw/train-images-idx3-ubyte.gz`` and its companions, as
            ``torchvision.datasets.MNIST`` lays them out (gzipped or not); the files may also be in
            ``raw`` below it or in the folder itself, and have Kaggle's names. If they are missing,
            torchvision downloads them.
        scale: smallest and largest factor of the resize; the factor is uniform between them.
        canvas: side of the canvas in pixels; the largest digit must fit.
        test_seed: determines the order, the positions and the clutter of held-out digits.
        clutter: pieces of other digits at random positions (Mnih et al. 2014): how many, and their
            side in pixels.

    Raises:
        InputError: an option is out of range; a file is missing and cannot be downloaded, or is
            damaged.
    """

    def __init__(
        self,
        *,
        root: str | Path = "data",
        scale: tuple[PositiveFloat, PositiveFloat] = (0.6, 1.6),
        canvas: PositiveInt = 100,
        test_seed: NonNegativeInt = 0,
        clutter: ClutterOption | None = None,
    ) -> None:
        if not os.fspath(root).strip():
            raise InputError("root is empty; name the folder that holds (or will hold) MNIST")
        training, test = read_mnist(root)
        first = len(training.labels) - len(training.labels) // 6  # the first one for validation
        splits = training.part(slice(first)), training.part(slice(first, None)), test
        digest = hashlib.sha256()
        for part in (part for split in splits for part in split):
            digest.update(part.numpy().tobytes())
        #: The record kept with a run: other data sets use the same file names.
        self.record = {"digits": digest.hexdigest()}
        super().__init__(*splits, scale=scale, canvas=canvas, test_seed=test_seed, clutter=clutter)


def _checked_scale(scale: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, scale)
    except (TypeError, ValueError):
        raise InputError(f"scale must be two numbers, such as [0.6, 1.6], not {scale!r}") from None
    if not (0 < low <= high and math.isfinite(high)):
        raise InputError(
            f"scale must be the smallest and the largest factor, 0 < smallest <= largest, not {scale!r}"
        )
    return low, high


def _checked_canvas(canvas: int, high: float) -> int:
    check_whole("canvas", canvas, at_least=1)
    if DIGIT_SIZE * high > canvas:
        raise InputError(
            f"a digit resized by {high:g} is {DIGIT_SIZE * high:g} pixels wide and does not fit on "
            f"a canvas of {canvas}; use a canvas of at least {math.ceil(DIGIT_SIZE * high)} or a "
            f"largest scale of at most {canvas / DIGIT_SIZE:.3g}"
        )
    return canvas
