"""Data sources: where the batches of a run come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from wsram_ppl.data.digits.source import MNISTDigits, SampleDigits

__all__ = ["DataSource", "MNISTDigits", "SampleDigits", "training_rows"]


@runtime_checkable
class DataSource(Protocol):
    """What the training loop and the evaluation need of a data source.

    A batch is a tuple of tensors whose first dimension is the datum; it is handed over as
    ``model(*batch)`` and ``guide(*batch)``. For digits it is images [B, canvas, canvas], float32 in
    [0, 1], and labels [B], int64.
    """

    def training_batch(self, step: int, size: int, seed: int) -> tuple[Tensor, ...]:
        """The batch of update ``step`` (from 0): ``size`` training data.

        A pure function of its arguments, so that a run can be resumed at any step.
        """
        ...

    # A source may also have ``training_rows(step, size, seed, rows: slice)``, the rows of that batch
    # alone, and so spare one of several processes the work for the others' (see :func:`training_rows`).

    def evaluation_batches(self, size: int, limit: int | None = None) -> Iterator[tuple[Tensor, ...]]:
        """The fixed held-out set, or the first ``limit`` of it; the last batch may be smaller."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Moves the data to ``device``, where its batches will be; returns the source itself."""
        ...


def training_rows(
    source: DataSource, step: int, size: int, seed: int, rows: slice
) -> tuple[Tensor, ...]:
    """Some rows of the batch of update ``step``, without the rest where the source can do that."""
    own = getattr(source, "training_rows", None)
    if own is not None and rows != slice(0, size):
        return tuple(own(step, size, seed, rows))
    return tuple(part[rows] for part in source.training_batch(step, size, seed))
