"""Measuring a model on held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor, nn

from wsram_ppl import collectives
from wsram_ppl.distributed.sharding import Share
from wsram_ppl.errors import InputError
from wsram_ppl.objectives.diagnostics import importance_sample


@contextmanager
def pyro_settings(*, validate: bool) -> Iterator[None]:
    """Parameters belong to their modules; distributions are checked only if asked for.

    Checks wait for the device, and a module's parameters in Pyro's global store would be shared with
    every other module that has parameters of the same names.
    """
    with pyro.settings.context(module_local_params=True), pyro.validation_enabled(validate):
        yield


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Modules are in evaluation mode (no dropout) while entered, and then as they were."""
    modes = [module.training for module in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


class Measure(NamedTuple):
    """Something measured on each datum, and what the datum counts in the mean (by default 1).

    A measure per word of a sentence, say, counts as often as the sentence has words.
    """

    values: Tensor
    weights: Tensor | None = None

    def total(self) -> Tensor:
        """``[2]``, float64: the weighted sum and the sum of weights."""
        values = self.values.double()
        weights = torch.ones_like(values) if self.weights is None else self.weights.to(values)
        return torch.stack([(values * weights).sum(), weights.sum()])


def batch_metrics(model: nn.Module, batch: tuple[Tensor, ...], samples: int) -> dict[str, Measure]:
    """The model's own measures of each datum of a batch, if it has a method ``metrics``.

    ``metrics(*batch, samples)`` may return any by name, ``error`` among them where there is one: values
    ``[B]``, or a :class:`Measure`.
    """
    measure = getattr(model, "metrics", None)
    found = {} if measure is None else measure(*batch, samples)
    return {k: v if isinstance(v, Measure) else Measure(v) for k, v in found.items()}


@torch.no_grad()
def evaluate(
    model: nn.Module,
    guide: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    *,
    samples: int,
    particles: int,
    share: Share | None = None,
) -> dict[str, Any]:
    """Means over all data of the bound, the effective sample size and the model's own measures.

    Args:
        batches: each is passed as ``model(*batch)``; the first dimension of its first tensor counts.
        samples: glimpse sequences (or the like) per datum behind a prediction.
        particles: M of the bound, from the guide.
        share: of each batch that this process works on; by default all.

    Returns:
        ``log_likelihood`` (L_M per datum in nats, a lower bound in expectation), ``ess`` (of M),
        ``particles``, ``samples``, ``examples``, and the model's ``metrics``.

    Raises:
        InputError: no data.
    """
    nesting = getattr(model, "max_plate_nesting", float("inf"))
    totals: dict[str, Tensor] = {}
    examples = 0
    with evaluating(model, guide):
        for whole in batches:
            size = whole[0].shape[0]
            examples += size
            batch = share.part(whole) if share else whole
            if not batch[0].shape[0]:
                continue  # the last batch may be smaller than there are processes
            with share.drawing(size) if share else nullcontext():
                sample = importance_sample(
                    model, guide, *batch, num_particles=particles, max_plate_nesting=nesting
                )
                measures = {"log_likelihood": Measure(sample.bound), "ess": Measure(sample.ess)}
                measures |= batch_metrics(model, batch, samples)
            for name, measure in measures.items():
                totals[name] = totals.get(name, 0.0) + measure.total()
    if examples == 0:
        raise InputError("there is no data to evaluate on")
    if share:
        totals = collectives.sum_by_name(totals)
    means = {name: float(total[0] / total[1]) for name, total in totals.items()}
    return means | {"particles": particles, "samples": samples, "examples": examples}
