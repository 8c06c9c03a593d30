"""The device of a run, and the seeds of its random numbers."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch

from wsram_ppl.config.settings import check_device
from wsram_ppl.errors import InputError

__all__ = ["Stream", "resolve_device", "seed_for"]


class Stream(IntEnum):
    """The uses of random numbers in a run; each has its own stream at every step."""

    PARAMETERS, SAMPLES, LOGGING, EVALUATION, PROBE = range(5)


def seed_for(seed: int, stream: int, step: int = 0, *process: int) -> int:
    """A 64-bit seed for one use of random numbers at one step (in one process, if given).

    Seeding by (seed, stream, step), rather than running one generator on, makes every step's draws
    the same whether or not the run was interrupted, evaluated or logged before it.
    """
    key = (seed, stream, step, *process)
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)


def resolve_device(name: str) -> torch.device:
    """The torch device of a config's ``training.device``.

    Raises:
        InputError: it is not available, or not supported.
    """
    try:
        check_device(name)
    except ValueError as error:
        raise InputError(f"device '{name}': {error}") from None
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(f"device '{name}' does not exist: torch sees {count} CUDA devices; use cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("device 'mps' does not exist; use cpu")
    return device
