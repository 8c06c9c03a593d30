"""Sleep-q: the guide learns from the model's fantasies, and insomnia mixes it with wake-q, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.cases import examples
from wsram_ppl.objectives import WakeSleep
from wsram_ppl.testing.enumeration import Gradients, Program, Tables, assert_equal, estimates

from .test_plates import OBJECTIVES

OPTIONS = [name for name in OBJECTIVES if name not in ("importance",) and "variational" not in name]
PARTICLES = 2
#: Values of a_0, a_1 and of the observations y_0 (which depends on a_0) and y_1 (on both).
SIZES = (2, 2, 2, 2)


def joint(theta: Tables) -> Tensor:
    """log p(a0, a1, y0, y1), ``[16]``; tables ``[a0]``, ``[a0 a1]``, ``[a0 y0]``, ``[a0 a1 y1]``."""
    a0, a1, y0, y1 = (table.log_softmax(-1) for table in theta)
    return (
        a0[:, None, None, None] + a1[:, :, None, None] + y0[:, None, :, None] + y1[:, :, None]
    ).flatten()


def conditional(eta: Tables) -> Tensor:
    """log q(a0, a1 | y0, y1), ``[16]``: a1 first, from tables ``[y0 y1 a1]``, ``[y0 y1 a1 a0]``."""
    a1, a0 = (table.log_softmax(-1) for table in eta)
    return (a1.unsqueeze(-1) + a0).permute(3, 2, 0, 1).flatten()


class SleepModel(Program):
    def forward(self, y0: Tensor, y1: Tensor) -> None:
        t0, t1, s0, s1 = self.tables
        row = torch.arange(self.rows)
        with pyro.plate("data", self.rows):
            a0 = pyro.sample("a0", dist.Categorical(logits=t0))
            pyro.sample("y0", dist.Categorical(logits=s0[row, a0]), obs=y0)
            a1 = pyro.sample("a1", dist.Categorical(logits=t1[row, a0]))
            pyro.sample("y1", dist.Categorical(logits=s1[row, a0, a1]), obs=y1)


class SleepGuide(Program):
    def forward(self, y0: Tensor, y1: Tensor, observations: Mapping[str, Tensor] | None = None) -> None:
        if observations is not None:
            y0, y1 = observations["y0"], observations["y1"]
        t1, t0 = self.tables
        row = torch.arange(self.rows)
        with pyro.plate("data", self.rows):
            a1 = pyro.sample("a1", dist.Categorical(logits=t1[row, y0, y1]))
            pyro.sample("a0", dist.Categorical(logits=t0[row, y0, y1, a1]))


def tables(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


class Setting:
    """All 16^2 pairs of fantasies of one datum; every pair is a row."""

    def __init__(self, seed: int) -> None:
        self.theta = tables(seed, (2,), (2, 2), (2, 2), (2, 2, 2))
        self.eta = tables(seed + 1000, (2, 2, 2), (2, 2, 2, 2))
        self.index = torch.cartesian_prod(*[torch.arange(16)] * PARTICLES)  # [T, M]
        parts = torch.unravel_index(self.index.T.contiguous(), SIZES)
        self.values = dict(zip(("a0", "a1", "y0", "y1"), parts, strict=True))
        self.probability = joint(self.theta)[self.index].sum(1).exp()
        rows = len(self.index)
        self.y = torch.zeros(rows, dtype=torch.long), torch.ones(rows, dtype=torch.long)
        self.model, self.guide = SleepModel(self.theta, rows), SleepGuide(self.eta, rows)

    def estimate(self, objective: WakeSleep) -> Gradients:
        return estimates(objective, self.model, self.guide, self.values, *self.y)


def wake_sleep(name: str, insomnia: float, vectorized: bool) -> WakeSleep:
    return WakeSleep(
        name,  # type: ignore[arg-type]
        insomnia=insomnia,
        num_particles=PARTICLES,
        vectorize_particles=vectorized,
    )


@given(st.integers(0, 999), st.booleans(), st.sampled_from(OPTIONS))
@examples(30)
def test_sleep_q_is_the_gradient_on_fantasies(seed: int, vectorized: bool, name: str) -> None:
    """insomnia = 0: eta gets the gradient of E_{p(a, y)}[log q(a|y)], whatever the data are."""
    setting = Setting(seed)
    found = setting.estimate(wake_sleep(name, 0.0, vectorized))
    eta = [table.requires_grad_() for table in setting.eta]
    target = (joint(setting.theta).exp() * conditional(eta)).sum()
    expected = list(torch.autograd.grad(target, eta))
    assert_equal([torch.tensordot(setting.probability, g, 1) for g in found.eta], expected)


@pytest.mark.parametrize("name", OPTIONS)
@given(seed=st.integers(0, 999), vectorized=st.booleans(), insomnia=st.floats(0, 1))
@examples(15)
def test_insomnia_mixes_exactly(name: str, seed: int, vectorized: bool, insomnia: float) -> None:
    """insomnia * wake-q + (1 - insomnia) * sleep-q, tuple by tuple; theta's gradient is wake-p alone."""
    setting = Setting(seed)
    asleep, awake, mixed = (
        setting.estimate(wake_sleep(name, share, vectorized)) for share in (0.0, 1.0, insomnia)
    )
    expected = [insomnia * w + (1 - insomnia) * s for w, s in zip(awake.eta, asleep.eta, strict=True)]
    assert_equal(mixed.eta, expected)
    assert_equal(mixed.theta, awake.theta)
    assert_equal(asleep.theta, awake.theta)
    assert any((w - s).abs().max() > 1e-3 for w, s in zip(awake.eta, asleep.eta, strict=True))


@pytest.mark.parametrize("vectorized", [False, True])
def test_fantasies_are_drawn_from_the_model(vectorized: bool) -> None:
    """The guide sees the fantasy's observations, fresh ones per particle, and not the data."""
    seen: list[Tensor] = []

    def model(y: Tensor) -> None:
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Normal(torch.zeros(3), 1.0))
            pyro.deterministic("double", 2 * a)
            pyro.sample("y", dist.Normal(100 + a, 0.01), obs=y)

    def guide(y: Tensor, observations: Any = None) -> None:
        if observations is not None:
            y = observations["y"]
            assert set(observations) == {"y"}
            seen.append(y)
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Normal(y - 100, 1.0))
            pyro.deterministic("double", 2 * a)
            if observations is not None:
                torch.testing.assert_close(a, y - 100, rtol=0.0, atol=0.1)

    objective = WakeSleep(insomnia=0.5, num_particles=4, vectorize_particles=vectorized)
    objective.differentiable_loss(model, guide, torch.zeros(3))
    fantasies = torch.cat([y.reshape(-1, 3) for y in seen])
    assert fantasies.shape == (4, 3) and len(fantasies.unique()) == 12
    assert (fantasies - 100).abs().max() < 6
