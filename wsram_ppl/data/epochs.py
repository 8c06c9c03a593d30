"""Common to data sources: streams of random numbers, shuffled epochs, checks of arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import HeldOut

__all__ = [
    "Epochs",
    "Rows",
    "check_batch",
    "check_held_out",
    "check_split",
    "check_whole",
    "generator",
    "moved",
]

#: Integers, usually the indices of data.
Rows = npt.NDArray[np.int64]


class Epochs:
    """Data in a new random order every epoch; the epochs follow each other without a gap.

    Args:
        count: N, the number of data.
        stream: the random numbers that determine the order of an epoch, by seed and epoch.
    """

    def __init__(self, count: int, stream: Callable[[int, int], np.random.Generator]) -> None:
        self._count, self._stream = count, stream
        self._orders: dict[tuple[int, int], Rows] = {}

    def span(self, first: int, size: int, seed: int) -> Rows:
        """The data from position ``first`` of the infinite sequence on: [size], each below N."""
        epoch, place = divmod(first, self._count)
        parts = [self._order(seed, epoch)[place : place + size]]
        missing = size - len(parts[0])
        while missing > 0:
            epoch += 1
            parts.append(self._order(seed, epoch)[:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def _order(self, seed: int, epoch: int) -> Rows:
        """The permutation of an epoch, [N]."""
        key = (seed, epoch)
        if key not in self._orders:
            while len(self._orders) > 1:  # two: a batch may also need the next epoch
                del self._orders[next(iter(self._orders))]
            self._orders[key] = self._stream(seed, epoch).permutation(self._count)
        return self._orders[key]


def generator(*key: int) -> np.random.Generator:
    """Independent random numbers for each key: neighbouring keys give unrelated streams."""
    return np.random.default_rng(key)  # NumPy hashes the whole key


def check_whole(what: str, value: Any, *, at_least: int) -> None:
    """InputError unless ``value`` is a whole number and at least ``at_least``."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < at_least:
        raise InputError(f"{what} must be a whole number of at least {at_least}, not {value!r}")


def check_batch(step: int, size: int, seed: int, count: int | None = None, what: str = "data") -> None:
    """InputError unless a batch with these arguments can be drawn (from ``count`` of ``what``)."""
    check_whole("the step", step, at_least=0)
    check_whole("the batch size", size, at_least=1)
    check_whole("the seed", seed, at_least=0)
    if count is not None and size > count:
        raise InputError(
            f"a batch of {size:,} cannot be drawn from {count:,} {what}; choose a smaller batch_size"
        )


def check_split(name: str) -> None:
    """InputError unless ``name`` is a held-out split."""
    if name not in get_args(HeldOut):
        raise InputError(f"unknown split {name!r}; held-out splits are validation and test")


def check_held_out(size: int, limit: int | None, what: str, split: str) -> None:
    """InputError unless ``size``, ``limit`` (of ``what``) and ``split`` suit held-out batches."""
    check_split(split)
    check_whole("the batch size", size, at_least=1)
    if limit is not None:
        check_whole(f"the number of {what}", limit, at_least=1)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the host, moved to ``device``, without waiting for the copy to a GPU."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
