"""Log-weights of -inf, +-1e4 and +-1e30 leave every gradient finite, in float32 and float64.

A particle that is ruled out has weight zero, not NaN; a datum all of whose particles are ruled out
teaches nothing (its bound is -inf) and leaves the other data alone.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.objectives.cases import examples
from wsram_ppl.objectives import Objective, Prior, VariationalBound
from wsram_ppl.objectives import estimators as e
from wsram_ppl.testing import ForceSamples

from .test_plates import OBJECTIVES

DATA, PARTICLES = 4, 3
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


class Extreme(nn.Module):
    """p(a) p(b|a) exp(likelihood[datum, a]); a value of a may have prior probability 0."""

    def __init__(self, likelihood: Tensor, ruled_out: bool, is_guide: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(int(is_guide))
        dtype, data = likelihood.dtype, len(likelihood)

        self.first = nn.Parameter(torch.randn(3, generator=generator).to(dtype).repeat(data, 1))
        self.second = nn.Parameter(torch.randn(3, 3, generator=generator).to(dtype).repeat(data, 1, 1))
        self.network = nn.Parameter(torch.randn(3, generator=generator).to(dtype))
        self.likelihood, self.is_guide = likelihood, is_guide
        self.barrier = torch.zeros(3, dtype=dtype)
        if ruled_out and not is_guide:
            self.barrier[0] = -math.inf

    def infer(self, a: Tensor | None) -> dict[str, Any]:
        known = torch.zeros(1, dtype=torch.long) if a is None else a
        return {"baseline": {"nn_baseline": lambda a: self.network[a], "nn_baseline_input": known}}

    def forward(self) -> None:
        rows = torch.arange(len(self.likelihood))
        with pyro.plate("data", len(rows)):
            logits = self.first + self.barrier
            a = pyro.sample("a", dist.Categorical(logits=logits), infer=self.infer(None))
            logits = self.second[rows, a]
            pyro.sample("b", dist.Categorical(logits=logits), infer=self.infer(a))
            if not self.is_guide:
                pyro.factor("y", self.likelihood[rows, a])


def evaluate(
    objective: Objective, programs: list[nn.Module], values: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    with ForceSamples({name: v if len(v) > 1 else v[0] for name, v in values.items()}):
        loss = objective(*programs)()
    parameters = [p for program in programs for p in program.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
    ]


extremes = st.sampled_from([0.0, -1.0, -math.inf, 1e4, -1e4, 1e30, -1e30])


@every_objective
@given(
    likelihood=st.lists(extremes, min_size=3 * DATA, max_size=3 * DATA),
    ruled_out=st.booleans(),
    prior=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 999),
)
@examples(60)
def test_gradients_are_finite(
    name: str, likelihood: list[float], ruled_out: bool, prior: bool, dtype: Any, seed: int
) -> None:
    """Every gradient, running estimate and statistic but the bound is finite; the loss is the bound."""
    table = torch.tensor(likelihood, dtype=dtype).reshape(DATA, 3)
    model = Extreme(table, ruled_out and not prior, False)
    guide = Prior(model) if prior else Extreme(table, ruled_out, True)
    objective = OBJECTIVES[name](num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):  # the second step uses the running estimates that the first one left
        values = {site: torch.randint(3, (PARTICLES, DATA), generator=generator) for site in "ab"}
        loss, gradients = evaluate(objective, [model, guide], values)
        for found in gradients:
            assert found.isfinite().all(), found
        with ForceSamples(values):
            log_weights = objective.particles(model, guide).log_weights
        expected = -objective.bound(log_weights).sum()
        assert not expected.isnan()
        torch.testing.assert_close(loss, expected)
        assert objective.statistics["ess"].isfinite()
        assert all(mean.isfinite().all() for mean in objective.state_dict().values())


@every_objective
@given(seed=st.integers(0, 999), dtype=st.sampled_from([torch.float32, torch.float64]))
@examples(20)
def test_a_datum_without_any_weight_leaves_the_others_alone(name: str, seed: int, dtype: Any) -> None:
    """The other data's gradients are those of a batch without it; the loss is then +inf."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(DATA, 3, generator=generator).to(dtype)
    table[0] = -math.inf
    values = {site: torch.randint(3, (PARTICLES, DATA), generator=generator) for site in "ab"}
    per_datum = []
    for keep in (slice(0, None), slice(1, None)):
        programs: list[nn.Module] = [Extreme(table[keep], False, g) for g in (False, True)]
        objective = OBJECTIVES[name](num_particles=PARTICLES, vectorize_particles=True)
        loss, gradients = evaluate(objective, programs, {s: v[:, keep] for s, v in values.items()})
        assert loss.isinf() == (keep.start == 0)
        first, second, _, guide_first, guide_second, _ = gradients  # the networks are shared
        per_datum.append([g[1 - DATA :] for g in (first, second, guide_first, guide_second)])
    for one, other in zip(*per_datum, strict=True):
        torch.testing.assert_close(one, other)


@every_objective
def test_a_weight_that_is_not_a_number_is_seen(name: str) -> None:
    """It does not count as nothing: loss and gradients are not numbers, and Pyro's warning says so."""
    table = torch.zeros(DATA, 3)
    table[0] = math.nan
    programs = [Extreme(table, False, is_guide) for is_guide in (False, True)]
    objective = OBJECTIVES[name](num_particles=PARTICLES, vectorize_particles=True)
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="Encountered NaN: loss"):
        assert math.isnan(objective.loss_and_grads(*programs))
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="Encountered NaN: loss"):
        assert math.isnan(objective.loss(*programs))
    grads = [p.grad for program in programs for p in program.parameters() if p.grad is not None]
    assert any(grad[:1].isnan().any() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_exact_however_large_the_surrogate(dtype: Any) -> None:
    """The logged number is the bound to the last bit, though the gradient's surrogate dwarfs it."""
    table = torch.zeros(DATA, 3, dtype=dtype)
    programs = [Extreme(table, False, g) for g in (False, True)]
    with torch.no_grad():
        programs[0].first *= 30  # ratios far from 1, and baselines far off
        programs[1].network += 1e9
    values = {site: torch.zeros(PARTICLES, DATA, dtype=torch.long) for site in "ab"}
    for name in OBJECTIVES:
        objective = OBJECTIVES[name](num_particles=PARTICLES, vectorize_particles=True)
        loss, _ = evaluate(objective, programs, values)
        with ForceSamples(values):
            assert loss.item() == objective.loss(*programs)


log_weights = st.lists(st.one_of(st.floats(-50, 50), extremes), min_size=2, max_size=6)


@given(log_weights)
@examples(200)
def test_leave_one_out_scans_equal_the_definition(values: list[float]) -> None:
    """The O(M) running scans give what leaving each particle out, one at a time, gives."""
    x = torch.tensor(values, dtype=torch.float64)
    others = [torch.cat([x[:m], x[m + 1 :]]) for m in range(len(x))]
    means = torch.stack([o.mean() for o in others])
    expected = torch.where(means.isfinite(), means, 0.0)
    rounding = 1e-9 + 1e-14 * float(x[x.isfinite()].abs().max() if x.isfinite().any() else 0.0)
    torch.testing.assert_close(e.leave_one_out_mean(x), expected, rtol=1e-9, atol=rounding)

    bound = torch.logsumexp(x, 0) - math.log(len(x))
    if bound.isfinite():
        stand_ins = [torch.cat([o, o.mean().reshape(1)]) for o in others]
        without = torch.stack([torch.logsumexp(s, 0) for s in stand_ins]) - math.log(len(x))
        expected = bound - torch.where(without.isfinite(), without, 0.0)
        torch.testing.assert_close(e.vimco_signal(x), expected, rtol=1e-9, atol=rounding)
    else:
        assert (e.vimco_signal(x) == 0).all()


def test_vimco_is_exact_where_one_particle_holds_all_the_weight() -> None:
    """Subtracting a dominant particle from the total would lose the others; the scans keep them."""
    x = torch.tensor([800.0, -1.0, -2.0], dtype=torch.float64)
    without = torch.logsumexp(torch.tensor([-1.0, -2.0, -1.5], dtype=torch.float64), 0)
    expected = torch.logsumexp(x, 0) - without
    assert e.vimco_signal(x)[0].item() == pytest.approx(expected.item(), abs=1e-12)


def test_ratios_saturate_instead_of_overflowing() -> None:
    """r stops at the fourth root of the largest float: its square still has room to be averaged."""
    for dtype in (torch.float32, torch.float64):
        r = e.ratio(torch.tensor([1e30, 0.0, -math.inf], dtype=dtype))
        assert r[0] > 1e9 and r[0].square() < 1e-15 * torch.finfo(dtype).max
        assert r[1:].tolist() == [1.0, 0.0]


def test_leave_one_out_needs_two_particles() -> None:
    with pytest.raises(ValueError, match="leave-one-out baseline needs at least 2 particles"):
        e.leave_one_out_mean(torch.zeros(1))
    with pytest.raises(ValueError, match="'leave-one-out' needs num_particles of at least 2"):
        VariationalBound("leave-one-out", num_particles=1)
