"""Measuring a model on held-out data."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from wsram_ppl import collectives
from wsram_ppl.distributed.sharding import BatchShard
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import Measure, batch_metrics, check_batch, plate_nesting
from wsram_ppl.objectives.diagnostics import importance_sample
from wsram_ppl.primitives.handlers import evaluating

__all__ = ["evaluate"]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    guide: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    samples: int,
    particles: int,
    shard: BatchShard | None = None,
) -> dict[str, Any]:
    """Means over all data of the bound, the effective sample size and the model's own measures.

    Args:
        batches: each is passed as ``model(*batch)``; the first dimension of its first tensor counts.
        samples: glimpse sequences (or similar) per datum behind a prediction.
        particles: M of the bound, drawn from the guide.
        shard: the part of each batch that this process works on; by default all of it.

    Returns:
        ``bound`` (L_M per datum in nats, which rises to the log-likelihood with M in expectation),
        ``ess`` (in [1, M]), ``particles``, ``samples``, ``examples``, and the model's ``metrics``.

    Raises:
        InputError: no data, or data that are not finite or that the model cannot work on.
    """
    totals: dict[str, Tensor] = {}
    examples = 0
    with evaluating(model, guide):
        for number, whole in enumerate(batches, start=1):
            check_batch(model, whole, f"held-out batch {number}")
            size = whole[0].shape[0]
            examples += size
            batch = shard.part(whole) if shard else whole
            if not batch[0].shape[0]:
                continue  # the last batch may have fewer rows than there are processes
            with shard.drawing(size) if shard else nullcontext():
                sample = importance_sample(
                    model,
                    guide,
                    *batch,
                    num_particles=particles,
                    max_plate_nesting=plate_nesting(model),
                )
                measures = {"bound": Measure(sample.bound), "ess": Measure(sample.ess)}
                measures |= batch_metrics(model, batch, samples)
            for name, measure in measures.items():
                totals[name] = totals.get(name, 0.0) + measure.total()
    if examples == 0:
        raise InputError("there is no data to evaluate on")
    if shard:
        totals = collectives.sum_by_name(totals)
    means = {name: float(total[0] / total[1]) for name, total in totals.items()}
    return means | {"particles": particles, "samples": samples, "examples": examples}
