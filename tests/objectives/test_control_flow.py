"""Stochastic control flow: traces of different structure, one particle after the other, exactly.

``a`` decides whether there is a latent ``b``, and ``b`` whether there is a ``c``. All tuples of traces
are run one by one and weighted by their probabilities.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.objectives.cases import examples
from wsram_ppl.objectives import ImportanceBound, Prior, VariationalBound, WakeSleep
from wsram_ppl.testing import ForceSamples
from wsram_ppl.testing.enumeration import assert_equal

from .test_plates import OBJECTIVES

PARTICLES = 2


class Branching(nn.Module):
    """p or q: a in {0, 1}; b in {0, 1} where a = 1; c in {0, 1} where b = 1; y after all."""

    def __init__(self, seed: int, is_guide: bool, declared: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2 * seed + is_guide)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

        self.a, self.b, self.c, self.y = normal(2), normal(2), normal(2), normal(2, 2, 2)
        self.is_guide, self.declared = is_guide, declared
        if is_guide:
            del self.y

    def infer(self, value: float) -> dict[str, Any]:
        known = torch.tensor(value, dtype=torch.float64)
        return (
            {"baseline": {"nn_baseline": torch.sin, "nn_baseline_input": known}} if self.declared else {}
        )

    def forward(self) -> None:
        a = pyro.sample("a", dist.Categorical(logits=self.a), infer=self.infer(1.0))
        b = c = torch.tensor(0)
        if a == 1:
            b = pyro.sample("b", dist.Categorical(logits=self.b), infer=self.infer(2.0))
        if b == 1:
            c = pyro.sample("c", dist.Categorical(logits=self.c), infer=self.infer(5.0))
        if not self.is_guide:
            y = dist.Bernoulli(logits=self.y[a, b, c])
            pyro.sample("y", y, obs=torch.tensor(1.0, dtype=torch.float64))


TRACES: list[tuple[int, ...]] = [(0,), (1, 0), (1, 1, 0), (1, 1, 1)]


def log_density(program: Branching) -> Tensor:
    """Over all traces, from the tables: ``[A]``."""
    tables = [program.a.log_softmax(-1), program.b.log_softmax(-1), program.c.log_softmax(-1)]
    return torch.stack(
        [sum(table[v] for table, v in zip(tables, trace, strict=False)) for trace in TRACES]  # type: ignore[misc]
    )


def log_likelihood(program: Branching) -> Tensor:
    padded = [(*trace, 0, 0)[:3] for trace in TRACES]
    return torch.stack([-torch.nn.functional.softplus(-program.y[index]) for index in padded])


def forced(traces: tuple[tuple[int, ...], ...]) -> ForceSamples:
    """Particle after particle takes the next trace's values."""

    def values(position: int) -> Iterator[Tensor]:
        return iter([torch.tensor(t[position]) for t in traces if len(t) > position])

    iterators = {site: values(n) for n, site in enumerate("abc")}
    return ForceSamples({site: lambda fn, i=i: next(i) for site, i in iterators.items()})


def gradients_of(loss: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


@pytest.mark.parametrize("name", OBJECTIVES)
@given(seed=st.integers(0, 999), prior=st.booleans(), declared=st.booleans())
@examples(3)
def test_traces_of_different_structure(name: str, seed: int, prior: bool, declared: bool) -> None:
    """Every objective keeps its expectation where the latents of a trace depend on other latents."""
    model = Branching(seed, False, declared)
    guide: nn.Module = Prior(model) if prior else Branching(seed, True, declared)
    eta = list(guide.parameters())
    parameters = [*model.parameters(), *eta]
    objective = OBJECTIVES[name](num_particles=PARTICLES)
    with forced((TRACES[3], TRACES[1])):
        objective(model, guide)().backward()
    state = objective.state_dict()

    def log_q() -> Tensor:
        return log_density(model) if prior else log_density(guide)  # type: ignore[arg-type]

    index = torch.tensor(list(itertools.product(range(len(TRACES)), repeat=PARTICLES)))
    probability = log_q().detach()[index].sum(1).exp()
    total = [torch.zeros_like(p) for p in parameters]
    for row, weight in zip(index.tolist(), probability, strict=True):
        objective.load_state_dict(state)
        with forced(tuple(TRACES[i] for i in row)):
            found = gradients_of(-objective(model, guide)(), parameters)
        total = [t + weight * g for t, g in zip(total, found, strict=True)]

    log_p, log_w = log_density(model), log_density(model) + log_likelihood(model) - log_q()
    if isinstance(objective, WakeSleep):
        w = log_w.detach()[index].softmax(1)
        coefficient = w
        if name == "self-normalized":
            coefficient = w - (log_p - log_q()).detach()[index].softmax(1)
        wake_p = (w * log_likelihood(model)[index] + coefficient * log_p[index]).sum(1)
        target = (probability * wake_p).sum()
        if not prior:
            target = target + (probability * (w * log_q()[index]).sum(1)).sum()
    elif name.startswith("variational"):
        target = (log_q().exp() * log_w).sum()
    else:
        bound = torch.logsumexp(log_w[index], 1)
        target = (log_q()[index].sum(1).exp() * bound).sum()
    expected = gradients_of(target, parameters)
    if prior and isinstance(objective, WakeSleep):  # r = 1: the paper's choice is unbiased too
        unbiased = (probability * (w * (log_likelihood(model) + log_p)[index]).sum(1)).sum()
        assert_equal(expected, gradients_of(unbiased, parameters))
    assert_equal(total, expected)


def coming_and_going(lz: Tensor, lv: Tensor, is_guide: bool) -> None:
    """z always, v where c = 1; y around their sum."""
    c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5)))
    total = pyro.sample("z", dist.Normal(lz if is_guide else 0.0 * lz, 1.0))
    if c == 1:
        total = total + pyro.sample("v", dist.Normal(lv if is_guide else 0.0 * lv, 1.0))
    if not is_guide:
        pyro.sample("y", dist.Normal(total, 1.0), obs=torch.tensor(1.3))


@pytest.mark.parametrize("branches", list(itertools.product((0.0, 1.0), repeat=2)))
def test_doubly_reparameterised_sites_that_some_particles_have(branches: tuple[float, ...]) -> None:
    """sum_m w_m^2 d log w~_m / d a, whichever particle has the site, and none for those without."""
    loc = torch.tensor([0.3, -0.4], requires_grad=True)

    def model() -> None:
        coming_and_going(loc[0], loc[1], False)

    def guide() -> None:
        coming_and_going(loc[0], loc[1], True)

    objective = ImportanceBound(2, pathwise=["z", "v"], doubly_reparameterized=True)
    chosen = iter(branches)
    torch.manual_seed(0)
    with ForceSamples({"c": lambda fn: torch.tensor(next(chosen))}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no particle may have v
        loss = objective.differentiable_loss(model, guide)
    (found,) = torch.autograd.grad(-loss, loc)

    chosen = iter(branches)
    torch.manual_seed(0)
    with ForceSamples({"c": lambda fn: torch.tensor(next(chosen))}):
        particles = objective.particles(model, guide)
    weights = torch.softmax(particles.log_weights, 0)
    expected = torch.zeros(2)
    for weight, draw in zip(weights, particles.draws, strict=True):
        values = {n: s["value"].detach() for n, s in draw.guide_trace.nodes.items() if n in "zv"}
        rest = 1.3 - sum(values.values())
        for position, name in enumerate("zv"):
            if name in values:
                slope = rest - values[name] + (values[name] - loc[position].detach())
                expected[position] += (weight**2 * slope).item()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("baseline", ["none", "site"])
def test_a_subsample_one_by_one_around_plates(baseline: Any) -> None:
    """Particles without the sites of the first: the rows are drawn anew for each."""
    data = torch.arange(18.0).reshape(6, 3)
    logit = torch.tensor(0.3, requires_grad=True)

    def program(is_guide: bool) -> None:
        for n in pyro.plate("documents", 6, subsample_size=2):
            t = pyro.sample(f"t_{n}", dist.Bernoulli(logits=logit if is_guide else 0 * logit))
            with pyro.plate(f"words_{n}", 3):
                z = pyro.sample(f"z_{n}", dist.Bernoulli(0.3 + 0.2 * t))
                if not is_guide:
                    pyro.sample(f"x_{n}", dist.Normal(z, 1.0), obs=data[n])

    objective = VariationalBound(baseline, num_particles=4)
    for _ in range(3):
        loss = objective.differentiable_loss(lambda: program(False), lambda: program(True))
        assert torch.autograd.grad(loss, logit)[0].isfinite()
