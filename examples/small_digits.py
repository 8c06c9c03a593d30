"""The package's handwritten digits at half their size, and how well a model explains them."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsram_ppl.data.digits.files import read_sample
from wsram_ppl.objectives.diagnostics import importance_sample

SIDE = 14


@cache
def small_digits() -> tuple[Tensor, Tensor]:
    """Training and test digits, [N, 14, 14], black (0) and white (1)."""
    training, test = ((F.avg_pool2d(split.images / 255, 2) > 0.5).float() for split in read_sample())
    return training, test


def held_out(model: nn.Module, guide: nn.Module, count: int = 500) -> float:
    """L_200 in nats per test digit."""
    batches = small_digits()[1][:count].flatten(1).split(50)
    weigh = partial(importance_sample, model, guide, num_particles=200, max_plate_nesting=1)
    return torch.cat([weigh(x).bound for x in batches]).mean().item()
