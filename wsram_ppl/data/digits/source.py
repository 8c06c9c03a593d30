"""Translated scaled MNIST: digits resized and placed at random on a black canvas."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import torch
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from wsram_ppl.data.digits.files import DIGIT_SIZE, NUM_CLASSES, Digits, read_mnist, read_sample
from wsram_ppl.data.digits.placement import draw_placements, place
from wsram_ppl.data.epochs import Epochs, check_batch, check_held_out, check_whole, generator
from wsram_ppl.errors import InputError

__all__ = ["MNISTDigits", "PlacedDigits", "SampleDigits"]

# Each use of random numbers has its own stream.
_ORDER, _PLACEMENT, _TEST_ORDER, _TEST_PLACEMENT = range(4)


class PlacedDigits:
    """A data source of digits, resized and placed at random, whole, on a black square canvas.

    Training: every epoch is a fresh permutation of the digits, and every step draws fresh
    placements, both fixed by the run's seed. Evaluation: the test digits in an order and at places
    fixed by ``test_seed``. Random numbers are drawn on the CPU, so every device gets the same
    batches (to rounding); the digits themselves live on the device.

    Args:
        training, test: the digits of either split.
        scale: least and greatest factor of the resize; the factor is uniform between them.
        canvas: side of the canvas in pixels; the largest digit must fit.
        test_seed: fixes the order and the places of the test digits.

    Raises:
        InputError: an option is out of range.
    """

    num_classes = NUM_CLASSES

    def __init__(
        self,
        training: Digits,
        test: Digits,
        *,
        scale: tuple[float, float],
        canvas: int,
        test_seed: int,
    ) -> None:
        self.scale = _checked_scale(scale)
        self.canvas = _checked_canvas(canvas, self.scale[1])
        check_whole("test_seed", test_seed, at_least=0)
        self._training, self._test = training, test
        self.num_training, self.num_test = len(training.labels), len(test.labels)
        self._epochs = Epochs(self.num_training, partial(generator, _ORDER))
        # In the files neighbours are alike (in MNIST the second half of the test set is harder),
        # and the first few must stand for all of it.
        order = torch.from_numpy(generator(_TEST_ORDER, test_seed).permutation(self.num_test))
        self._test = Digits(*(part[order] for part in test))
        self._test_placements = draw_placements(
            generator(_TEST_PLACEMENT, test_seed),
            self.num_test,
            DIGIT_SIZE,
            self.scale,
            self.canvas,
        )

    def training_batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        """The batch of update ``step``, the same for the same arguments.

        Batches follow each other through the epochs without a gap, so one may hold the end of an
        epoch and the start of the next.

        Args:
            step: the update, from 0.
            size: digits in the batch, at most as many as there are.
            seed: the run's seed, from 0.

        Returns:
            images [size, canvas, canvas], float32 in [0, 1], and labels [size], int64.

        Raises:
            InputError: an argument is out of range.
        """
        return self.training_rows(step, size, seed, slice(0, size))

    def training_rows(self, step: int, size: int, seed: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Some rows of the batch of update ``step``; the other digits are not placed."""
        check_batch(step, size, seed, self.num_training, "training digits")
        placements = draw_placements(
            generator(_PLACEMENT, seed, step), size, DIGIT_SIZE, self.scale, self.canvas
        )
        device = self._training.labels.device
        chosen = torch.from_numpy(self._epochs.span(step * size, size, seed)[rows])
        chosen = chosen.to(device, non_blocking=True)
        images = self._training.images.index_select(0, chosen)
        placements = placements[:, rows].to(device, non_blocking=True)
        return place(images, placements, self.canvas), self._training.labels.index_select(0, chosen)

    def evaluation_batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """The test digits at their fixed places; a digit's place does not depend on the arguments.

        Args:
            size: digits per batch; the last batch may be smaller.
            limit: only the first so many (a fixed random subset); None for all.

        Yields:
            images [B, canvas, canvas], float32 in [0, 1], and labels [B], int64.

        Raises:
            InputError: ``size`` or ``limit`` is below 1.
        """
        check_held_out(size, limit, "test digits")
        count = self.num_test if limit is None else min(limit, self.num_test)
        spans = (slice(first, min(first + size, count)) for first in range(0, count, size))
        return (
            (
                place(self._test.images[span], self._test_placements[:, span], self.canvas),
                self._test.labels[span],
            )
            for span in spans
        )

    def to(self, device: torch.device | str) -> Self:
        """Moves the digits to ``device``, where the batches will be; returns the source itself."""
        self._training = Digits(*(part.to(device) for part in self._training))
        self._test = Digits(*(part.to(device) for part in self._test))
        self._test_placements = self._test_placements.to(device)
        return self


class SampleDigits(PlacedDigits):
    """A sample of MNIST in the package (10,000 training, 2,000 test digits), placed at random.

    Args:
        scale: least and greatest factor of the resize; the factor is uniform between them.
        canvas: side of the canvas in pixels; the largest digit must fit.
        test_seed: fixes the order and the places of the test digits.

    Raises:
        InputError: an option is out of range, or the package's file is damaged.
    """

    def __init__(
        self,
        *,
        scale: tuple[PositiveFloat, PositiveFloat] = (0.6, 1.6),
        canvas: PositiveInt = 100,
        test_seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(*read_sample(), scale=scale, canvas=canvas, test_seed=test_seed)


class MNISTDigits(PlacedDigits):
    """All of MNIST (60,000 training, 10,000 test digits), placed at random.

    Args:
        root: folder that holds ``MNIST/raw/train-images-idx3-ubyte.gz`` and its companions, as
            ``torchvision.datasets.MNIST`` lays them out (gzipped or not); the files may also lie in
            ``raw`` below it or in itself, and be named as on Kaggle. If they are missing, torchvision
            downloads them.
        scale: least and greatest factor of the resize; the factor is uniform between them.
        canvas: side of the canvas in pixels; the largest digit must fit.
        test_seed: fixes the order and the places of the test digits.

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
    ) -> None:
        if not os.fspath(root).strip():
            raise InputError("root is empty; name the folder that holds (or shall hold) MNIST")
        splits = read_mnist(root)
        digest = hashlib.sha256()
        for part in (part for split in splits for part in split):
            digest.update(part.numpy().tobytes())
        #: What is kept with a run: other data have files of these names too.
        self.record = {"digits": digest.hexdigest()}
        super().__init__(*splits, scale=scale, canvas=canvas, test_seed=test_seed)


def _checked_scale(scale: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, scale)
    except (TypeError, ValueError):
        raise InputError(f"scale must be two numbers, as in [0.6, 1.6], not {scale!r}") from None
    if not (0 < low <= high and math.isfinite(high)):
        raise InputError(
            f"scale must be the least and the greatest factor, 0 < least <= greatest, not {scale!r}"
        )
    return low, high


def _checked_canvas(canvas: int, high: float) -> int:
    check_whole("canvas", canvas, at_least=1)
    if DIGIT_SIZE * high > canvas:
        raise InputError(
            f"a digit resized by {high:g} is {DIGIT_SIZE * high:g} pixels wide and does not fit on "
            f"a canvas of {canvas}; use a canvas of at least {math.ceil(DIGIT_SIZE * high)} or a "
            f"greatest scale of at most {canvas / DIGIT_SIZE:.3g}"
        )
    return canvas
