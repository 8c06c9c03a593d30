"""How good are the particles, and how noisy is the gradient? For any Pyro model and guide."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from wsram_ppl import collectives
from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.base import Objective
from wsram_ppl.objectives.baselines import baseline_parameters
from wsram_ppl.objectives.importance import GuideGradient, ImportanceBound
from wsram_ppl.objectives.thermodynamic import ThermodynamicBound
from wsram_ppl.objectives.variational import VariationalBaseline, VariationalBound
from wsram_ppl.objectives.wake_sleep import ControlVariate, WakeSleep


@dataclass(frozen=True)
class ImportanceSample:
    """Particles of a guide, and what they show about each datum.

    Args:
        log_weights: log w~ = log p(a, y) - log q(a), ``[particle, *datum]``.
        weights: normalised over the particles of a datum, ``[particle, *datum]``.
        ess: effective sample size, in [1, M], ``[*datum]``.
        bound: L_M, in nats, ``[*datum]``; rises to log p(y | I) with M in expectation.
    """

    log_weights: Tensor
    weights: Tensor
    ess: Tensor
    bound: Tensor


@torch.no_grad()
def importance_sample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int,
    max_plate_nesting: int | float = float("inf"),
    **kwargs: Any,
) -> ImportanceSample:
    """Draws ``num_particles`` from the guide for each datum and weights them, all in one run.

    Example::

        >>> sample = importance_sample(model, guide, images, labels, num_particles=100)
        >>> sample.ess.mean()  # near 100 if the guide is near the posterior

    Raises:
        ValueError: for anything that the objectives do not support.
    """
    objective = ImportanceBound(
        num_particles, max_plate_nesting=max_plate_nesting, vectorize_particles=True
    )
    log_weights = objective.particles(model, guide, *args, **kwargs).log_weights
    return ImportanceSample(
        log_weights,
        estimators.normalized_weights(log_weights),
        estimators.effective_sample_size(log_weights),
        estimators.multi_sample_bound(log_weights),
    )


@dataclass(frozen=True)
class GradientMoments:
    """Moments of one parameter group's gradient over repeats, on one fixed minibatch.

    Args:
        mean: squared norm of the mean gradient, less its own sampling error (may be negative if
            noise dominates the mean).
        variance: total variance (sum over parameters) of a single gradient.
        snr: signal-to-noise ratio, sqrt(max(mean, 0) / variance).
        repeats: how many gradients were drawn.
    """

    mean: float
    variance: float
    snr: float
    repeats: int


def gradient_moments(
    objective: Objective,
    model: nn.Module,
    guide: nn.Module,
    *args: Any,
    repeats: int,
    groups: Mapping[str, list[nn.Parameter]] | None = None,
    **kwargs: Any,
) -> dict[str, GradientMoments]:
    """Mean, variance and signal-to-noise ratio of the gradient of the loss, per parameter group.

    The loss is the objective's, summed over the data plate (and over processes, each with its part of
    the minibatch). Running estimates and the parameters' ``.grad`` are unchanged. Uses the global random
    state.

    Args:
        repeats: how many gradients to draw, at least 2.
        groups: parameters by group name; by default ``"model"`` and, if it has parameters
            of its own, ``"guide"``.

    Raises:
        ValueError: fewer than 2 repeats.
    """
    if repeats < 2:
        raise ValueError(f"a variance needs at least 2 repeats, not {repeats}")
    if groups is None:
        groups = parameter_groups(model, guide)
    objective = copy.copy(objective)
    objective.running = copy.deepcopy(objective.running)
    held = objective.running.state_dict()
    parameters = [p for group in groups.values() for p in group if p.requires_grad]
    # Welford's update: one pass, no cancellation.
    means = [torch.zeros_like(p) for p in parameters]
    squares = [torch.zeros_like(p) for p in parameters]
    for count in range(1, repeats + 1):
        objective.running.load_state_dict(held)
        loss = objective.differentiable_loss(model, guide, *args, **kwargs)
        own = torch.autograd.grad(loss, parameters, allow_unused=True)
        gradients, _ = collectives.sum_tensors(own, parameters)
        for mean, square, gradient in zip(means, squares, gradients, strict=True):
            if gradient is not None:
                delta = gradient - mean
                mean += delta / count
                square += delta * (gradient - mean)
            else:
                delta = -mean
                mean += delta / count
                square += delta * -mean
    by_parameter = {
        id(p): (mean.square().sum(), square.sum() / (repeats - 1))
        for p, mean, square in zip(parameters, means, squares, strict=True)
    }
    moments = {}
    for name, group in groups.items():
        found = [by_parameter[id(p)] for p in group if id(p) in by_parameter]
        variance = float(sum(v for _, v in found))
        mean_square = float(sum(m for m, _ in found)) - variance / repeats
        signal = max(mean_square, 0.0)
        snr = (signal / variance) ** 0.5 if variance > 0 else float("inf") if signal > 0 else 0.0
        moments[name] = GradientMoments(mean_square, variance, snr, repeats)
    return moments


def fit_coefficients(
    objective: Objective,
    model: nn.Module,
    guide: nn.Module,
    batches: Iterable[tuple[Any, ...]],
    learning_rate: float = 3e-3,
) -> None:
    """Fits what an objective learns besides model and guide, which are unchanged.

    That means its running estimates, and the networks in an attribute ``baselines`` of model or guide,
    fitted by Adam on the least-squares terms of the objective's own loss.

    Args:
        batches: one update each.
    """
    networks = [*baseline_parameters(model), *baseline_parameters(guide)]
    optimizer = torch.optim.Adam(networks, lr=learning_rate) if networks else None
    for batch in batches:
        loss = objective.differentiable_loss(model, guide, *batch)
        if optimizer is not None:
            gradients = torch.autograd.grad(loss, networks, allow_unused=True)
            for parameter, gradient in zip(networks, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    for parameter in networks:
        parameter.grad = None


def all_estimators(
    num_particles: int, max_plate_nesting: int | float, pathwise: Sequence[str] = ()
) -> dict[str, Objective]:
    """Every objective with every choice of control variate or baseline, by name.

    Args:
        num_particles: of each objective, at least 2.
        max_plate_nesting, pathwise: see :class:`~wsram_ppl.objectives.base.Objective`. With ``pathwise``
            sites, objectives that can differentiate through the samples are included a second time.
    """
    common: dict[str, Any] = {
        "num_particles": num_particles,
        "vectorize_particles": True,
        "max_plate_nesting": max_plate_nesting,
    }
    found: dict[str, Objective] = {
        f"variational, {name}": VariationalBound(name, **common)
        for name in get_args(VariationalBaseline)
    }
    for name in get_args(GuideGradient):
        found[f"importance ({name.upper()})"] = ImportanceBound(guide_gradient=name, **common)
    found["thermodynamic"] = ThermodynamicBound(**common)
    for name in get_args(ControlVariate):
        found[f"wake-sleep, {name}"] = WakeSleep(name, **common)
    if pathwise:
        for name in get_args(VariationalBaseline):
            label = f"variational, {name}, pathwise"
            found[label] = VariationalBound(name, pathwise=pathwise, **common)
        found["importance (VIMCO), pathwise"] = ImportanceBound(pathwise=pathwise, **common)
    return found


@dataclass(frozen=True)
class EstimatorMoments:
    """One estimator's gradient at a checkpoint.

    Args:
        moments: per parameter group.
        milliseconds: duration of one evaluation with its gradient (median).
    """

    moments: dict[str, GradientMoments]
    milliseconds: float


def compare_estimators(
    estimators: Mapping[str, Objective],
    model: nn.Module,
    guide: nn.Module,
    batch: tuple[Any, ...],
    *,
    repeats: int,
    fit_batches: Sequence[tuple[Any, ...]] = (),
) -> dict[str, EstimatorMoments]:
    """Gradient moments of several estimators at the same parameters, on the same minibatch.

    Args:
        estimators: objectives by name. Each starts from copies of model and guide.
        repeats: gradients drawn from each; the median time is over at most 5 of them.
        fit_batches: minibatches on which each first fits its own coefficients and baselines
            (:func:`fit_coefficients`); without any, those in the checkpoint are used.
    """
    found = {}
    for name, objective in estimators.items():
        # Together, so that the copied guide belongs to the copied model.
        model_copy, guide_copy = copy.deepcopy((model, guide))
        fit_coefficients(objective, model_copy, guide_copy, fit_batches)
        moments = gradient_moments(objective, model_copy, guide_copy, *batch, repeats=repeats)
        time = gradient_milliseconds(objective, model_copy, guide_copy, *batch, repeats=min(repeats, 5))
        found[name] = EstimatorMoments(moments, time)
    return found


def gradient_milliseconds(
    objective: Objective, model: nn.Module, guide: nn.Module, *batch: Any, repeats: int
) -> float:
    """The median time of one gradient on a minibatch; updates running estimates."""
    parameters = [p for p in (*model.parameters(), *guide.parameters()) if p.requires_grad]
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        loss = objective.differentiable_loss(model, guide, *batch)
        torch.autograd.grad(loss, parameters, allow_unused=True)
        if loss.device.type == "cuda":
            torch.cuda.synchronize(loss.device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def parameter_groups(model: nn.Module, guide: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The model's parameters, and the guide's own, by group name; a group without any is left out.

    Coefficient networks that a module declares in an attribute ``baselines`` are in neither group: their
    gradient is that of a regression.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for name, module in (("model", model), ("guide", guide)):
        seen.update(id(p) for p in baseline_parameters(module))
        own = [p for p in module.parameters() if id(p) not in seen]
        seen.update(id(p) for p in own)
        if own:
            groups[name] = own
    return groups
