"""Every tuple of M particles, with its probability; gradients of each, or of their mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from wsram_ppl.testing.enumeration.problems import Problem, Tables


@dataclass(frozen=True)
class Tuples:
    """Every tuple of M joint values: ``index`` is ``[T, M]`` into the flat joint values."""

    problem: Any
    particles: int

    @cached_property
    def index(self) -> Tensor:
        """Flat joint values of each tuple's particles, ``[T, M]``."""
        values = torch.arange(self.problem.count)
        return torch.cartesian_prod(*[values] * self.particles).reshape(-1, self.particles)

    @property
    def rows(self) -> int:
        """The number of tuples: rows of the data plate."""
        return len(self.index)

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """The values of each latent in each tuple, ``[M, T]``."""
        found: dict[str, Tensor] = self.problem.values(self.index.T)
        return found

    def log_probability(self, log_proposal: Tensor) -> Tensor:
        """The log-probability of each tuple of independent particles: ``[A] -> [T]``."""
        return log_proposal[self.index].sum(1)

    @cached_property
    def probability(self) -> Tensor:
        """The log-probability under the guide, a constant; ``[T]``."""
        return self.log_probability(self.problem.log_proposal(self.problem.eta)).exp()

    def of(self, per_value: Tensor) -> Tensor:
        """Each tuple's particles' entries of a table: ``[A] -> [T, M]``."""
        return per_value[self.index]

    def mean(self, per_tuple: Tensor) -> Tensor:
        """The exact expectation: ``[T, ...] -> [...]``."""
        found: Tensor = torch.tensordot(self.probability.to(per_tuple), per_tuple, 1)
        return found


def gradient(function: Callable[[list[Tensor], list[Tensor]], Tensor], problem: Problem) -> Gradients:
    """The gradient of ``function(theta, eta)`` at the problem's tables, by autograd."""
    theta = [table.clone().requires_grad_() for table in problem.theta]
    eta = [table.clone().requires_grad_() for table in problem.eta]
    value = function(theta, eta)
    found = torch.autograd.grad(value, [*theta, *eta], allow_unused=True)
    full = [
        torch.zeros_like(table) if g is None else g
        for g, table in zip(found, [*theta, *eta], strict=True)
    ]
    return Gradients(full[: len(theta)], full[len(theta) :])


@dataclass(frozen=True)
class Gradients:
    """One tensor per table: ``[*table]`` for a target, ``[T, *table]`` for the estimates of tuples."""

    theta: list[Tensor]
    eta: list[Tensor]

    def map(self, function: Callable[[Tensor], Tensor]) -> Gradients:
        """A function of each gradient."""
        return Gradients([function(g) for g in self.theta], [function(g) for g in self.eta])

    def flat(self, which: str) -> Tensor:
        """All components of ``"theta"`` or ``"eta"`` estimates side by side, ``[T, components]``."""
        return torch.cat([g.flatten(1) for g in getattr(self, which)], 1)


def assert_equal(found: Tables, expected: Tables, tolerance: float = 1e-9) -> None:
    """Elementwise equality to 1e-9, relative to the largest finite component where that exceeds 1."""
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        scale = max(1.0, float(e[e.isfinite()].abs().max())) if e.isfinite().any() else 1.0
        torch.testing.assert_close(f, e, rtol=0.0, atol=tolerance * scale)
