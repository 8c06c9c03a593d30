"""The exact variance of the wake-sleep estimators on small problems, and its optimum.

Every estimate comes from the objectives themselves, for all tuples of particles at once; a variance
is then a finite sum. The control variates are linear in their coefficients,

    estimate(c) = plain - sum_j c_j V_j,        E[V_j] = 0,

so that the coefficients that minimise the estimate's total variance (the sum over all components of
the gradient) solve a linear system. Coefficients are in units of 1/M: c = 1 is the paper's 1/M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from wsram_ppl.objectives import WakeSleep
from wsram_ppl.testing.enumeration import (
    Gradients,
    Problem,
    TableGuide,
    TableModel,
    Tuples,
    chain,
    estimates,
)

#: A coefficient for each site and each value of the latents before it: ``[K_0, ..., K_{n-1}]`` per site.
Coefficients = dict[str, Tensor]


def constant(problem: Problem, value: float) -> Coefficients:
    """The same coefficient everywhere."""
    sizes = problem.sizes
    return {
        name: torch.full(sizes[:n], value, dtype=torch.float64) for n, name in enumerate(problem.names)
    }


def indicators(problem: Problem) -> list[Coefficients]:
    """A basis: coefficients that are 1 at one state of one site and 0 elsewhere, in order."""
    found = []
    for name, table in constant(problem, 0.0).items():
        for state in range(table.numel()):
            one = torch.zeros(table.numel(), dtype=torch.float64)
            one[state] = 1.0
            found.append({**constant(problem, 0.0), name: one.reshape(table.shape)})
    return found


def _declaration(coefficients: Coefficients, less: float) -> Any:
    """Declares the tables, minus a number, as each site's baseline network."""

    def declare(name: str, state: Tensor) -> dict[str, Any]:
        table = coefficients[name] - less

        def look_up(state: Tensor) -> Tensor:
            known = state[..., : table.dim()].long()
            return table[tuple(known.unbind(-1))].expand(state.shape[:-1])

        return {"baseline": {"nn_baseline": look_up, "nn_baseline_input": state}}

    return declare


@dataclass(frozen=True)
class Runs:
    """All tuples' estimates of both gradients, from the objectives.

    Args:
        problem: with its sites in the same order in model and guide.
        particles: M.

    Raises:
        ValueError: the orders differ.
    """

    problem: Problem
    particles: int

    def __post_init__(self) -> None:
        if not self.problem.orders_agree:
            raise ValueError("guide and model draw in different orders: their sites cannot be paired")

    @cached_property
    def tuples(self) -> Tuples:
        """All tuples of particles."""
        return Tuples(self.problem, self.particles)

    def wake_sleep(
        self,
        control_variate: Any,
        coefficients: Coefficients | None = None,
        state: dict[str, Tensor] | None = None,
    ) -> Gradients:
        """WakeSleep's estimates for the latents' tables in model and guide.

        Args:
            coefficients: declared as baseline networks on both programs.
            state: the objective's running estimates.
        """
        objective = WakeSleep(
            control_variate,
            num_particles=self.particles,
            vectorize_particles=True,
            max_plate_nesting=1,
        )
        objective.load_state_dict(state or {})
        on_model = on_guide = None
        if coefficients is not None:
            on_model = _declaration(coefficients, 0.0)  # theta: the running constant (0) + network
            on_guide = _declaration(coefficients, 1.0)  # eta: 1 + network
        model = TableModel(self.problem, self.tuples.rows, on_model)
        guide = TableGuide(self.problem, self.tuples.rows, on_guide)
        found = estimates(objective, model, guide, self.tuples.values)
        return Gradients(found.theta[: len(self.problem.prior)], found.eta)

    @cached_property
    def plain(self) -> Gradients:
        """The estimates of all tuples, without control variate."""
        return self.wake_sleep("none")

    @cached_property
    def self_normalized(self) -> Gradients:
        """The estimates of all tuples, with the paper's control variate."""
        return self.wake_sleep("self-normalized")

    @cached_property
    def unnormalized(self) -> Gradients:
        """The estimates of all tuples, with r / M as control variate."""
        return self.wake_sleep("unnormalized")

    @cached_property
    def learned(self) -> list[Gradients]:
        """The estimates with the coefficients of :func:`indicators`."""
        return [self.wake_sleep("learned", one) for one in indicators(self.problem)]


@dataclass(frozen=True)
class Variances:
    """Statistics of the estimates of one gradient: for the latents' logits in model or guide.

    Args:
        runs: the estimates.
        which: ``"theta"`` (the prior's tables) or ``"eta"``.
    """

    runs: Runs
    which: str = "theta"

    def components(self, estimate: Gradients) -> Tensor:
        """The chosen gradient, ``[T, components]``."""
        return estimate.flat(self.which)

    # The estimates without control variate, and the control variates.

    @cached_property
    def plain(self) -> Tensor:
        """V without control variate."""
        return self.components(self.runs.plain)

    @cached_property
    def whole_ratio(self) -> Tensor:
        """V of one constant with the whole ratio (for eta, whose scores need no ratio, with 1)."""
        return self.plain - self.components(self.runs.unnormalized)

    @cached_property
    def per_state(self) -> list[Tensor]:
        """V of one coefficient per site and state, with partial ratios."""
        return [self.plain - self.components(run) for run in self.runs.learned]

    @cached_property
    def per_site(self) -> list[Tensor]:
        """V of one coefficient per site, with partial ratios."""
        tables = constant(self.runs.problem, 0.0).values()
        variates = iter(self.per_state)
        return [torch.stack([next(variates) for _ in range(t.numel())]).sum(0) for t in tables]

    @cached_property
    def one_constant(self) -> Tensor:
        """V of one coefficient for all sites, with partial ratios."""
        return torch.stack(self.per_site).sum(0)

    def with_coefficients(self, coefficients: Coefficients) -> Tensor:
        """The "learned" estimate with given coefficients."""
        c = torch.cat([table.flatten() for table in coefficients.values()])
        return sum((-x * v for x, v in zip(c, self.per_state, strict=True)), self.plain)

    # Moments.

    def mean(self, estimate: Tensor) -> Tensor:
        """The expectation of an estimate given for every tuple."""
        return self.runs.tuples.mean(estimate)

    def variance(self, estimate: Tensor) -> float:
        """The total variance: the sum over components."""
        deviation = estimate - self.mean(estimate)
        return float(self.runs.tuples.mean(deviation.square().sum(1)))

    def squared_bias(self, estimate: Tensor) -> float:
        """The bias against the expectation of the plain estimate."""
        return float((self.mean(estimate) - self.mean(self.plain)).square().sum())

    def best(self, variates: Sequence[Tensor]) -> Tensor:
        """The estimate with the coefficients that minimise its total variance, ``[T, components]``."""
        weight = self.runs.tuples.probability.sqrt().unsqueeze(1)
        design = torch.stack([(weight * v).flatten() for v in variates], 1)
        target = (weight * (self.plain - self.mean(self.plain))).flatten()
        solved = torch.linalg.pinv(design.T @ design, hermitian=True) @ (design.T @ target)
        return sum((-c * v for c, v in zip(solved, variates, strict=True)), self.plain)

    # Least squares, as in training: E[(w - c r / M)^2] instead of the gradient's own variance.

    def fitted_constant(self) -> float:
        """What "adaptive" converges to: one c, with the whole ratio."""
        return float(self._fit(self._ratio(len(self.runs.problem.sizes)), known=0))

    def fitted(self, kind: str) -> Coefficients:
        """What "learned" converges to.

        Args:
            kind: ``"site"`` for c_n (no network declared), ``"state"`` for c_n(state).
        """
        sizes, found = self.runs.problem.sizes, {}
        for n, name in enumerate(self.runs.problem.names):
            c = self._fit(self._ratio(n + 1), known=n if kind == "state" else 0)
            found[name] = c if kind == "state" else c.expand(sizes[:n])
        return found

    def _ratio(self, count: int) -> Tensor:
        """r_{1:count} of every particle, ``[T, M]``; 1 for eta."""
        problem, tuples = self.runs.problem, self.runs.tuples
        sizes = problem.sizes
        if self.which == "eta":
            return torch.ones(tuples.index.shape, dtype=torch.float64)
        log_r = chain(problem.prior[:count]) - chain(problem.proposal[:count])
        log_r = log_r.reshape(sizes[:count] + (1,) * (len(sizes) - count)).expand(sizes)
        return tuples.of(log_r.flatten().exp())

    def _fit(self, r: Tensor, known: int) -> Tensor:
        """c minimising E[(M w - c r)^2] for each value of the first ``known`` latents."""
        problem, tuples = self.runs.problem, self.runs.tuples
        w = tuples.of(problem.log_weights(problem.theta, problem.eta)).softmax(1) * self.runs.particles
        sizes = problem.sizes[:known]
        state = torch.zeros_like(tuples.index)
        for k, size in enumerate(sizes):
            state = state * size + tuples.values[f"a{k}"].T
        weight = tuples.probability.unsqueeze(1)
        moments = torch.zeros(2, math.prod(sizes), dtype=torch.float64)
        for row, product in zip(moments, (w * r, r * r), strict=True):
            row.index_add_(0, state.flatten(), (weight * product).flatten())
        return (moments[0] / moments[1]).reshape(sizes)
