"""Latents in an inner plate: one weight per datum (the outer plate), exactly, masked or not.

Each datum has a latent z and K = 2 parts with a latent b_k and an observation y_k each. All parts of a
datum share one importance weight. The guide draws z first or last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor, nn

from tests.objectives.cases import examples
from wsram_ppl.objectives import ImportanceBound, Objective, VariationalBound, WakeSleep
from wsram_ppl.testing.enumeration import (
    Gradients,
    Program,
    Tables,
    Tuples,
    arbitrary_running_state,
    assert_equal,
    estimates,
    expected_bound,
    gradient,
    weighted_scores,
    weights,
)

PARTS = 2


@dataclass(frozen=True)
class NestedProblem:
    """The tables; ``keep`` says which parts count (the others are masked out).

    Args:
        theta: logits of z ``[2]``, of b_k ``[K, z, 2]``, of y_k ``[K, z, b, 2]``.
        eta: logits of z ``[2]`` and b_k ``[K, z, 2]``; or of b_k ``[K, 2]`` and z ``[b_0, b_1, 2]``.
        z_first: which of the two.
    """

    theta: list[Tensor]
    eta: list[Tensor]
    z_first: bool
    keep: tuple[bool, ...]

    @property
    def count(self) -> int:
        return int(2 ** (1 + sum(self.keep)))

    def values(self, index: Tensor) -> dict[str, Tensor]:
        z, rest = index % 2, index // 2
        b = []
        for kept in self.keep:
            b.append(rest % 2 if kept else torch.zeros_like(rest))
            rest = rest // 2 if kept else rest
        return {"z": z, "b": torch.stack(b, -2)}

    def _over_parts(self, of_part: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """sum over the parts that count of ``of_part(k, z, b_k)`` at all joint values, ``[A]``."""
        values = self.values(torch.arange(self.count).unsqueeze(0))
        z, b = values["z"][0], values["b"][0]
        parts = [of_part(k, z, b[k]) for k in range(PARTS) if self.keep[k]]
        return torch.stack(parts).sum(0) if parts else torch.zeros(self.count, dtype=torch.float64)

    def _z_and_b(self) -> tuple[Tensor, Tensor]:
        values = self.values(torch.arange(self.count).unsqueeze(0))
        return values["z"][0], values["b"][0]

    def log_prior(self, theta: Tables) -> Tensor:
        z, parts = theta[0].log_softmax(-1), theta[1].log_softmax(-1)
        return z[self._z_and_b()[0]] + self._over_parts(lambda k, z, b: parts[k, z, b])

    def log_likelihood(self, theta: Tables) -> Tensor:
        parts = theta[2].log_softmax(-1)
        return self._over_parts(lambda k, z, b: parts[k, z, b, 0])

    def log_proposal(self, eta: Tables) -> Tensor:
        z, b = self._z_and_b()
        if self.z_first:
            table = eta[1].log_softmax(-1)
            return eta[0].log_softmax(-1)[z] + self._over_parts(lambda k, z, b: table[k, z, b])
        table = eta[0].log_softmax(-1)
        last = eta[1].log_softmax(-1)[(*b, z)]
        return self._over_parts(lambda k, z, b: table[k, b]) + last

    def log_weights(self, theta: Tables, eta: Tables) -> Tensor:
        return self.log_prior(theta) + self.log_likelihood(theta) - self.log_proposal(eta)


def nested_problem(z_first: bool, keep: tuple[bool, ...], seed: int) -> NestedProblem:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    theta = [normal(2), normal(PARTS, 2, 2), normal(PARTS, 2, 2, 2)]
    eta = [normal(2), normal(PARTS, 2, 2)] if z_first else [normal(PARTS, 2), normal(2, 2, 2)]
    return NestedProblem(theta, eta, z_first, keep)


class _Nested(Program):
    """What both programs share: masks and baselines whose outputs broadcast in different ways."""

    def __init__(self, problem: NestedProblem, tables: Tables, rows: int, shape: str | None) -> None:
        super().__init__(tables, rows)
        self.problem = problem
        self.shape = shape
        self.part = torch.arange(PARTS).unsqueeze(-1)
        self.row = torch.arange(rows)

    def baseline(self, *known: Tensor) -> dict[str, Any]:
        """A baseline network on what is known, with an output that broadcasts in different ways."""
        if self.shape is None:
            return {}
        if self.shape == "constant":
            return {"baseline": {"nn_baseline": lambda x: x, "nn_baseline_input": torch.tensor(0.7)}}
        if self.shape == "parts":
            some = torch.tensor([[0.3], [-0.8]], dtype=torch.float64)
            return {"baseline": {"nn_baseline": lambda x: x, "nn_baseline_input": some}}
        state = sum((x.double() for x in known), torch.zeros(self.rows, dtype=torch.float64))
        return {"baseline": {"nn_baseline": torch.cos, "nn_baseline_input": state}}

    def parts(self) -> Any:
        mask = torch.tensor(self.problem.keep).unsqueeze(-1)
        return poutine.mask(mask=mask)


class NestedModel(_Nested):
    def forward(self) -> None:
        z_logits, b_logits, y_logits = self.tables
        with pyro.plate("data", self.rows, dim=-1):
            infer = self.baseline() if self.shape != "parts" else {}
            z = pyro.sample("z", dist.Categorical(logits=z_logits), infer=infer)
            with pyro.plate("parts", PARTS, dim=-2), self.parts():
                z = z if z.dim() == 1 else z.reshape(-1, 1, self.rows)
                b_dist = dist.Categorical(logits=b_logits[self.row, self.part, z])
                b = pyro.sample("b", b_dist, infer=self.baseline(z))
                y_dist = dist.Categorical(logits=y_logits[self.row, self.part, z, b])
                pyro.sample("y", y_dist, obs=torch.zeros(PARTS, self.rows, dtype=torch.long))


class NestedGuide(_Nested):
    def forward(self) -> None:
        first, second = self.tables
        with pyro.plate("data", self.rows, dim=-1):
            z: Tensor | None = None
            if self.problem.z_first:
                infer = self.baseline() if self.shape != "parts" else {}
                z = pyro.sample("z", dist.Categorical(logits=first), infer=infer)
            with pyro.plate("parts", PARTS, dim=-2), self.parts():
                if z is not None:
                    z = z if z.dim() == 1 else z.reshape(-1, 1, self.rows)
                    logits = second[self.row, self.part, z]
                    pyro.sample("b", dist.Categorical(logits=logits), infer=self.baseline(z))
                else:
                    logits = first.transpose(0, 1)
                    b = pyro.sample("b", dist.Categorical(logits=logits), infer=self.baseline())
            if z is None:
                logits = second[self.row, b[..., 0, :], b[..., 1, :]]
                logits = logits if logits.dim() == 2 else logits.unsqueeze(1)
                pyro.sample("z", dist.Categorical(logits=logits))


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "variational none": lambda **options: VariationalBound("none", **options),
    "variational leave-one-out": lambda **options: VariationalBound("leave-one-out", **options),
    "variational site": lambda **options: VariationalBound("site", **options),
    "importance": ImportanceBound,
    "none": lambda **options: WakeSleep("none", **options),
    "self-normalized": lambda **options: WakeSleep("self-normalized", **options),
    "unnormalized": lambda **options: WakeSleep("unnormalized", **options),
    "adaptive": lambda **options: WakeSleep("adaptive", **options),
    "learned": lambda **options: WakeSleep("learned", **options),
}


def target(name: str, tuples: Tuples) -> Gradients:
    """What the objective's estimate should have as expectation."""
    problem = tuples.problem
    if name.startswith("variational"):
        return gradient(expected_bound(tuples, "F"), problem)
    bound = gradient(expected_bound(tuples, "L"), problem)
    if name == "importance":
        return bound
    w = weights(tuples)
    eta = weighted_scores(tuples, w, lambda theta, eta: problem.log_proposal(eta))
    theta = bound.theta
    if name == "self-normalized":
        log_r = problem.log_prior(problem.theta) - problem.log_proposal(problem.eta)
        extra = weighted_scores(
            tuples, tuples.of(log_r).softmax(1), lambda theta, eta: problem.log_prior(theta)
        )
        less = gradient(extra, problem).theta
        theta = [t - u for t, u in zip(theta, less, strict=True)]
    return Gradients(theta, gradient(eta, problem).eta)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(
    z_first=st.booleans(),
    keep=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    vectorized=st.booleans(),
    shape=st.sampled_from([None, "constant", "parts", "state"]),
    seed=st.integers(0, 999),
)
@examples(25)
def test_inner_plate_and_mask(
    name: str, z_first: bool, keep: tuple[bool, ...], vectorized: bool, shape: str | None, seed: int
) -> None:
    """Latents in an inner plate, some parts masked: every objective has its exact expectation."""
    problem = nested_problem(z_first, keep, seed)
    tuples = Tuples(problem, 2)
    objective = OBJECTIVES[name](num_particles=2, vectorize_particles=vectorized)
    model: nn.Module = NestedModel(problem, problem.theta, tuples.rows, shape)
    guide: nn.Module = NestedGuide(problem, problem.eta, tuples.rows, shape)
    values = dict(tuples.values)
    values["z"] = values["z"].unsqueeze(-2) if vectorized else values["z"]

    def run() -> Gradients:
        return estimates(objective, model, guide, values).map(tuples.mean)  # type: ignore[arg-type]

    arbitrary_running_state(objective, run, seed)
    found, expected = run(), target(name, tuples)
    assert_equal(found.theta, expected.theta)
    assert_equal(found.eta, expected.eta)
