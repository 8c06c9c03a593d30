"""Diagnostics against sums over all outcomes, and that looking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from wsram_ppl.guides import InferenceNetwork
from wsram_ppl.models import GlimpseClassifier
from wsram_ppl.objectives import Objective, Prior, VariationalBound, WakeSleep
from wsram_ppl.objectives.diagnostics import gradient_moments, importance_sample, parameter_groups
from wsram_ppl.testing import ForceSamples

DATA, VALUES = 4, 3
Y = torch.ones(DATA, dtype=torch.float64)


class Model(nn.Module):
    """a ~ Categorical(3), y | a ~ Bernoulli, for each of four data."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.prior = nn.Parameter(torch.randn(DATA, VALUES, generator=generator, dtype=torch.float64))
        self.y = nn.Parameter(torch.randn(DATA, VALUES, generator=generator, dtype=torch.float64))

    def forward(self) -> None:
        with pyro.plate("data", DATA):
            a = pyro.sample("a", dist.Categorical(logits=self.prior))
            pyro.sample("y", dist.Bernoulli(logits=self.y[torch.arange(DATA), a]), obs=Y)

    @property
    def log_joint(self) -> Tensor:
        """log p(a, y), ``[data, a]``."""
        return (self.prior.log_softmax(-1) + nn.functional.logsigmoid(self.y)).detach()


class Guide(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self) -> None:
        with pyro.plate("data", DATA):
            pyro.sample("a", dist.Categorical(logits=self.logits))


# The importance sample.


@pytest.mark.parametrize("prior", [False, True])
def test_weights_ess_and_bound_of_given_particles(prior: bool) -> None:
    model = Model()
    guide: nn.Module = Prior(model) if prior else Guide(torch.linspace(-1, 1, 12).double().reshape(4, 3))
    a = torch.tensor([[0, 1, 2, 0], [1, 1, 2, 2], [2, 1, 0, 1], [1, 0, 0, 2], [0, 1, 2, 2]])
    with ForceSamples({"a": a}):
        sample = importance_sample(model, guide, num_particles=5)
    rows = torch.arange(DATA)
    log_q = (model.prior if prior else guide.logits).detach().log_softmax(-1)  # type: ignore[union-attr]
    weights = (model.log_joint - log_q)[rows, a].exp()
    torch.testing.assert_close(sample.log_weights.exp(), weights)
    torch.testing.assert_close(sample.weights, weights / weights.sum(0))
    torch.testing.assert_close(sample.ess, weights.sum(0) ** 2 / weights.square().sum(0))
    torch.testing.assert_close(sample.bound, weights.mean(0).log())
    assert not sample.log_weights.requires_grad


def test_with_the_posterior_as_guide_every_particle_is_worth_one() -> None:
    model = Model()
    sample = importance_sample(model, Guide(model.log_joint), num_particles=7)
    evidence = model.log_joint.logsumexp(-1)
    torch.testing.assert_close(sample.bound, evidence)
    torch.testing.assert_close(sample.ess, torch.full((DATA,), 7.0, dtype=torch.float64))
    torch.testing.assert_close(sample.log_weights, evidence.expand(7, DATA))


def test_the_bound_rises_to_the_evidence() -> None:
    """The mean weight is unbiased for p(y): at 40,000 particles within five standard errors."""
    model, particles = Model(), 40_000
    torch.manual_seed(0)
    sample = importance_sample(model, Prior(model), num_particles=particles, max_plate_nesting=1)
    evidence = model.log_joint.logsumexp(-1)
    weights = sample.log_weights.exp()
    error = (sample.bound.exp() - evidence.exp()).abs()
    assert (error < 5 * weights.std(0) / math.sqrt(particles)).all()
    # ESS / M tends to p(y)^2 / E[w^2].
    second = (model.log_joint * 2 - model.prior.detach().log_softmax(-1)).logsumexp(-1)
    torch.testing.assert_close(
        sample.ess / particles, (2 * evidence - second).exp(), rtol=0.02, atol=0.0
    )


def test_the_importance_sample_of_the_classifier_is_per_image() -> None:
    torch.manual_seed(0)
    model = GlimpseClassifier(hidden=8, num_glimpses=2, patch=4, scales=(1, 2))
    batch = torch.rand(3, 20, 20), torch.tensor([1, 2, 3])
    sample = importance_sample(model, InferenceNetwork(model), *batch, num_particles=6)
    assert sample.log_weights.shape == sample.weights.shape == (6, 3)
    assert ((sample.ess >= 1) & (sample.ess <= 6)).all()


# Moments of the gradient.


class Coin(nn.Module):
    """a ~ Bernoulli(sigmoid(theta)), y | a with log-likelihoods 0 and `reward`."""

    def __init__(self, theta: float, reward: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.reward = reward

    def forward(self) -> None:
        a = pyro.sample("a", dist.Bernoulli(logits=self.theta))
        pyro.factor("y", self.reward * a)


def gradients_of_the_coin(coin: Coin) -> tuple[Tensor, Tensor]:
    """Eq. 5 without a baseline, of the loss, for a = 0 and 1; and the probability of a = 1."""
    p = torch.sigmoid(coin.theta.detach())
    return -torch.stack([torch.zeros_like(p), coin.reward * (1 - p)]), p


def test_moments_of_two_given_gradients_are_exact() -> None:
    """a = 0, then 1, 1: mean, variance and the correction for the mean's own error, by hand."""
    coin = Coin(0.4, 2.0)
    (g0, g1), _ = gradients_of_the_coin(coin)
    values = iter(torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64))
    with ForceSamples({"a": lambda fn: next(values)}):
        moments = gradient_moments(VariationalBound(num_particles=1), coin, Prior(coin), repeats=3)
    drawn = torch.stack([g0, g1, g1])
    variance = drawn.var().item()
    mean = drawn.mean().item() ** 2 - variance / 3
    assert list(moments) == ["model"]
    found = moments["model"]
    assert found.repeats == 3
    assert found.variance == pytest.approx(variance)
    assert found.mean == pytest.approx(mean)
    assert found.snr == pytest.approx(math.sqrt(mean / variance))


def test_moments_converge_to_the_known_ones() -> None:
    coin, repeats = Coin(0.4, 2.0), 1500
    (g0, g1), p = gradients_of_the_coin(coin)
    mean = ((1 - p) * g0 + p * g1).item()
    variance = (p * (1 - p) * (g1 - g0) ** 2).item()
    torch.manual_seed(0)
    found = gradient_moments(VariationalBound(num_particles=1), coin, Prior(coin), repeats=repeats)[
        "model"
    ]
    # Five standard errors; that of the variance of a two-valued variable from its fourth moment.
    fourth = (p * (1 - p) * (1 - 3 * p * (1 - p)) * (g1 - g0) ** 4).item()
    assert abs(found.variance - variance) < 5 * math.sqrt((fourth - variance**2) / repeats)
    assert abs(found.mean - mean**2) < 5 * 2 * abs(mean) * math.sqrt(variance / repeats)
    assert found.snr == pytest.approx(math.sqrt(found.mean / found.variance))


def test_no_variance_and_no_gradient() -> None:
    """A deterministic gradient has an infinite signal-to-noise ratio; a lost mean has none."""
    coin = Coin(0.4, 2.0)
    with ForceSamples({"a": torch.tensor(1.0, dtype=torch.float64)}):
        found = gradient_moments(VariationalBound(num_particles=1), coin, Prior(coin), repeats=4)[
            "model"
        ]
    (_, g1), _ = gradients_of_the_coin(coin)
    assert (found.variance, found.snr) == (0.0, math.inf)
    assert found.mean == pytest.approx(g1.item() ** 2)
    fair = Coin(0.0, 0.0)
    found = gradient_moments(VariationalBound(num_particles=1), fair, Prior(fair), repeats=4)["model"]
    assert found.mean <= 0.0


OBJECTIVES: list[Callable[[], Objective]] = [
    lambda: WakeSleep("adaptive", num_particles=3, vectorize_particles=True),
    lambda: WakeSleep("learned", num_particles=3, vectorize_particles=True),
    lambda: VariationalBound("site", num_particles=3, vectorize_particles=True),
]


@pytest.mark.parametrize("make", OBJECTIVES)
def test_looking_leaves_everything_alone(make: Callable[[], Objective]) -> None:
    torch.manual_seed(0)
    model = GlimpseClassifier(hidden=8, num_glimpses=2, patch=4, scales=(1, 2))
    guide = InferenceNetwork(model)
    batch = torch.rand(3, 20, 20), torch.tensor([1, 2, 3])
    objective = make()
    objective(model, guide)(*batch).backward()
    parts = [*model.parameters(), *guide.parameters()]
    weights = [p.detach().clone() for p in parts]
    gradients = [None if p.grad is None else p.grad.clone() for p in parts]
    running, statistics = objective.state_dict(), dict(objective.statistics)
    moments = gradient_moments(objective, model, guide, *batch, repeats=3)
    assert list(moments) == ["model", "guide"]
    assert all(m.variance > 0 and math.isfinite(m.snr) for m in moments.values())
    for parameter, weight, gradient in zip(parts, weights, gradients, strict=True):
        assert torch.equal(parameter, weight)
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)
    assert objective.state_dict().keys() == running.keys()
    assert all(torch.equal(v, running[k]) for k, v in objective.state_dict().items())
    assert all(torch.equal(v, statistics[k]) for k, v in objective.statistics.items())


def test_every_repeat_sees_the_same_running_estimates() -> None:
    """Otherwise the moments would be those of an estimator that changes while it is looked at."""
    model = Model()
    guide = Guide(torch.zeros(DATA, VALUES, dtype=torch.float64))
    objective = WakeSleep("adaptive", num_particles=2, vectorize_particles=True, decay=0.0)
    objective.differentiable_loss(model, guide)
    a = torch.tensor([[0, 1, 2, 0], [1, 1, 2, 2]])
    with ForceSamples({"a": a}):
        moments = gradient_moments(objective, model, guide, repeats=3)
    assert moments["model"].variance == pytest.approx(0.0, abs=1e-20)


def test_parameter_groups_of_model_and_guide() -> None:
    model = GlimpseClassifier(hidden=8, num_glimpses=2, patch=4)
    guide = InferenceNetwork(model)
    groups = parameter_groups(model, guide)
    assert set(map(id, groups["model"])) == set(map(id, model.network.parameters()))
    assert set(map(id, groups["guide"])) == set(map(id, guide.network.parameters()))
    assert list(parameter_groups(model, Prior(model))) == ["model"]


def test_groups_of_ones_own_and_parameters_without_gradient() -> None:
    model = Model()
    guide = Guide(torch.zeros(DATA, VALUES, dtype=torch.float64))
    unused = nn.Parameter(torch.zeros(2))
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    groups: dict[str, Any] = {"prior": [model.prior], "rest": [unused, frozen]}
    torch.manual_seed(0)
    found = gradient_moments(VariationalBound(num_particles=1), model, guide, repeats=3, groups=groups)
    assert list(found) == ["prior", "rest"]
    assert found["prior"].variance > 0
    assert (found["rest"].mean, found["rest"].variance, found["rest"].snr) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("repeats", [-1, 0, 1])
def test_a_variance_needs_two_repeats(repeats: int) -> None:
    coin = Coin(0.0, 1.0)
    with pytest.raises(ValueError, match=f"a variance needs at least 2 repeats, not {repeats}"):
        gradient_moments(VariationalBound(num_particles=1), coin, Prior(coin), repeats=repeats)
