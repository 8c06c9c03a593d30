"""Measurements during a run. They do not influence training."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wsram_ppl import collectives
from wsram_ppl.distributed.devices import Stream
from wsram_ppl.interfaces import Measure, batch_metrics, check_batch
from wsram_ppl.objectives.diagnostics import gradient_moments, parameter_groups
from wsram_ppl.primitives.handlers import evaluating
from wsram_ppl.training.evaluation import evaluate
from wsram_ppl.training.minibatches import cast
from wsram_ppl.training.reading import held_out, some_of_each_class
from wsram_ppl.training.trainer import Trainer

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "check_held_out",
    "draw_glimpses",
    "measure_held_out",
    "measure_minibatch",
    "measure_variance",
]

#: The probe's minibatch is that of a step beyond the end of any training.
_PROBE_STEP = 2**40

#: Seconds that the check of held-out data before the first update may take.
LOOK = 10.0

#: Held-out images in a picture of glimpses.
_DRAWN = 8


def measure_minibatch(trainer: Trainer, batch: tuple[Tensor, ...]) -> dict[str, float]:
    """Measurements of the last update and its minibatch.

    Raises:
        Diverged: one is not finite.
    """
    objective, model = trainer.components.objective, trainer.components.model
    with trainer.explained(lambda: batch, trainer.step), trainer.measuring(), trainer.drawing():
        trainer.seed(Stream.LOGGING)
        measures = batch_metrics(model, batch, objective.num_particles)
    measures = {name: Measure(value) for name, value in objective.statistics.items()} | measures
    totals = collectives.sum_by_name({name: each.total() for name, each in measures.items()})
    values = {name: total[0] / total[1] for name, total in totals.items()}
    trainer.check(batch, trainer.step)
    numbers = {name: float(value) for name, value in values.items()}
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    if bad:
        raise trainer.diverged(batch, trainer.step, bad)
    numbers["learning_rate"] = float(trainer.optimizer.param_groups[0]["lr"])
    numbers["entropy_weight"] = float(trainer.exploration.entropy)
    return numbers


def measure_held_out(trainer: Trainer) -> dict[str, Any]:
    """Measures on held-out data (:func:`wsram_ppl.training.evaluation.evaluate`).

    Raises:
        InputError: there are none, or they are not finite.
        SourceError: they cannot be read.
    """
    return _measure(trainer, _held_out(trainer))


def check_held_out(trainer: Trainer) -> None:
    """Checks held-out data, so that a fault in them is reported before any work is lost.

    Reads all of them, or as many as it can in :data:`LOOK` seconds, and measures on the first ones.

    Raises:
        InputError, SourceError: as for :func:`measure_held_out`.
    """
    begun = time.monotonic()
    for number, batch in enumerate(_held_out(trainer), start=1):
        check_batch(trainer.components.model, batch, f"held-out batch {number}")
        if number == 1:
            _measure(trainer, [tuple(part[:2] for part in batch)])
        if time.monotonic() - begun > LOOK:
            break


def _held_out(trainer: Trainer) -> Iterator[tuple[Tensor, ...]]:
    source = trainer.config.data.name
    return held_out(trainer.components.data, source, 256, trainer.training.eval_examples)


def _measure(trainer: Trainer, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Any]:
    training, components = trainer.training, trainer.components
    trainer.seed(Stream.EVALUATION)
    return evaluate(
        components.model,
        components.guide,
        map(partial(cast, precision=training.precision), batches),
        samples=training.eval_samples,
        particles=components.objective.num_particles,
        shard=trainer.shard,
    )


def draw_glimpses(trainer: Trainer) -> Image.Image:
    """Where the model looks in some held-out images, of each class alike, which are always the same.

    The model is one that :class:`~wsram_ppl.interfaces.Gazes`.
    """
    from wsram_ppl.drawing.glimpses import gaze_page

    model: Any = trainer.components.model
    some = some_of_each_class(trainer.components.data, trainer.config.data.name, _DRAWN)
    with torch.no_grad(), evaluating(model):
        return gaze_page(model.gaze(*cast(some, trainer.training.precision)))


def measure_variance(trainer: Trainer) -> dict[str, float]:
    """How noisy the gradient is now: moments of the gradient of the mean loss on a fixed minibatch.

    The minibatch depends only on the run's seed, so runs with the same seed can be compared. The
    gradient is that of the model's parameters, without coefficient networks, drawn ``probe_repeats``
    times: ``variance`` is summed over parameters, ``mean`` is the squared norm of the mean, ``snr``
    their signal-to-noise ratio (:class:`~wsram_ppl.objectives.diagnostics.GradientMoments`).
    """
    training, components = trainer.training, trainer.components
    minibatch = trainer.minibatches.extra(_PROBE_STEP)
    groups = {"model": parameter_groups(components.model, components.guide)["model"]}
    with trainer.fabric.autocast(), trainer.measuring(), trainer.drawing():
        trainer.seed(Stream.PROBE)
        moments = gradient_moments(
            components.objective,
            components.model,
            components.guide,
            *minibatch.prepared,
            repeats=training.probe_repeats,
            groups=groups,
        )["model"]
    data = training.batch_size**2  # from the sum of the loss over data to its mean
    return {"variance": moments.variance / data, "mean": moments.mean / data, "snr": moments.snr}
