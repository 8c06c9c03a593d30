"""The package's handwritten digits at half their size, for the other examples."""

from __future__ import annotations

from functools import cache

from torch import Tensor
from torch.nn import functional as F

from wsram_ppl.data.digits.files import read_sample

SIDE = 14


@cache
def small_digits() -> tuple[Tensor, Tensor]:
    """Training and test digits, [N, 14, 14], black (0) and white (1)."""
    training, test = ((F.avg_pool2d(split.images / 255, 2) > 0.5).float() for split in read_sample())
    return training, test
