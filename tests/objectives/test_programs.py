"""Pyro's own constructs: the same program written in two ways gives the same gradients.

Masks, factors, deterministic sites, subsampled plates, plate nesting guessed or given, particles
drawn at once or one after the other, and the three ways to take a training step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor, nn

from tests.objectives.cases import cases, examples
from wsram_ppl.objectives import ImportanceBound, Objective, Prior, WakeSleep
from wsram_ppl.testing import ForceSamples
from wsram_ppl.testing.enumeration import (
    Problem,
    StateNetwork,
    TableGuide,
    TableModel,
    arbitrary_running_state,
    assert_equal,
    estimates,
)

from .test_plates import OBJECTIVES

every_objective = pytest.mark.parametrize("name", OBJECTIVES)
Case = tuple[Problem, int]


def draws(problem: Problem, particles: int, rows: int, seed: int) -> dict[str, Tensor]:
    """Arbitrary latent values, ``[M, rows]`` per site."""
    generator = torch.Generator().manual_seed(seed)
    return problem.values(torch.randint(problem.count, (particles, rows), generator=generator))


# Vectorised and sequential particles.


@every_objective
@given(case=cases(least=2), declared=st.booleans(), seed=st.integers(0, 999))
@examples(20)
def test_vectorized_and_sequential_particles_agree(
    name: str, case: Case, declared: bool, seed: int
) -> None:
    """For the same draws: equal gradients, values, statistics and running estimates, to rounding."""
    problem, particles = case
    values = draws(problem, particles, 4, seed)
    network = StateNetwork(problem.names, seed)
    declare = network.declare if declared else None
    model, guide = TableModel(problem, 4, declare), TableGuide(problem, 4, declare)
    results = []
    for vectorized in (True, False):
        objective = OBJECTIVES[name](num_particles=particles, vectorize_particles=vectorized)
        if name == "variational site" and not problem.orders_agree:
            model.declare = None
        arbitrary_running_state(objective, lambda o=objective: estimates(o, model, guide, values), seed)
        found = estimates(objective, model, guide, values)
        results.append((found, {**objective.statistics, **objective.state_dict()}))
    (one, numbers), (other, other_numbers) = results
    assert_equal(one.theta, other.theta, 1e-12)
    assert_equal(one.eta, other.eta, 1e-12)
    torch.testing.assert_close(numbers, other_numbers, rtol=1e-12, atol=1e-12)


# One program, written in two ways.

K = 3


class Twin(nn.Module):
    """A latent per datum and one per part, ``parts`` a plate; ``variant`` changes how it is written."""

    def __init__(self, guide: bool, batch: int, variant: str = "", dtype: Any = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1 + guide)
        make = lambda *shape: nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))  # noqa: E731
        self.z, self.b, self.y = make(2), make(2, 3), make(2, 3, 4)
        self.guide, self.batch, self.variant = guide, batch, variant
        self.observed = torch.arange(batch) % 4
        self.full: int | None = None
        self.subsample: Tensor | None = None

    def data(self) -> Any:
        if self.full is None:
            return pyro.plate("data", self.batch, dim=-1)
        return pyro.plate("data", self.full, subsample=self.subsample, dim=-1)

    def forward(self, mask: Tensor | None = None) -> None:
        if self.variant == "deterministic" and not self.guide:
            pyro.deterministic("twice", 2 * self.z)
        with self.data() as index:
            observed = self.observed[index]
            z = pyro.sample("z", dist.Categorical(logits=self.z))
            if self.variant == "deterministic":
                pyro.deterministic("as float", z.double())
            with pyro.plate("parts", K, dim=-2), poutine.mask(mask=True if mask is None else mask):
                b = pyro.sample("b", dist.Categorical(logits=self.b[z]))
                if self.guide:
                    return
                y = dist.Categorical(logits=self.y[z, b])
                if self.variant == "factor":
                    pyro.factor("y", y.log_prob(observed))
                else:
                    pyro.sample("y", y, obs=observed.expand(K, -1))


def step(
    name: str, model: nn.Module, guide: nn.Module, *args: Any, **options: Any
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients (zeros where there is none) of a fresh objective after the same seed."""
    objective = OBJECTIVES[name](**{"num_particles": 3, "vectorize_particles": True, **options})
    pyro.set_rng_seed(5)
    loss = objective(model, guide)(*args)
    parameters = [*model.parameters(), *guide.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), [
        torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)
    ]


def assert_same(one: tuple[Tensor, list[Tensor]], other: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-12, atol=1e-12)
    assert_equal(one[1], other[1], 1e-12)
    assert any(g.abs().max() > 0.01 for g in one[1])


@every_objective
@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("variant", ["factor", "deterministic"])
def test_variants(name: str, variant: str, vectorized: bool) -> None:
    """``pyro.factor`` is an observation; ``pyro.deterministic``, in or outside a plate, is nothing."""
    options = {"vectorize_particles": vectorized}
    plain = step(name, Twin(False, 6), Twin(True, 6), **options)
    assert_same(plain, step(name, Twin(False, 6, variant), Twin(True, 6, variant), **options))


@every_objective
def test_masks_of_every_broadcastable_shape(name: str) -> None:
    """A mask may be given as ``[parts, 1]``, ``[data]``, whole, or as True."""
    full = torch.ones(K, 6, dtype=torch.bool)
    full[1] = False
    whole = step(name, Twin(False, 6), Twin(True, 6), full)
    assert_same(whole, step(name, Twin(False, 6), Twin(True, 6), full[:, :1]))
    everything = step(name, Twin(False, 6), Twin(True, 6))
    assert_same(everything, step(name, Twin(False, 6), Twin(True, 6), torch.ones(6, dtype=torch.bool)))
    assert not torch.equal(whole[0], everything[0])


@every_objective
def test_a_mask_hides_a_datum(name: str) -> None:
    """A datum masked out as a whole adds nothing: the rest is as in a smaller batch."""
    keep = torch.tensor([True, False, True, True, False, True])
    values = {
        "z": torch.randint(2, (3, 1, 6), generator=torch.Generator().manual_seed(0)),
        "b": torch.randint(3, (3, K, 6), generator=torch.Generator().manual_seed(0)),
    }

    class Masked(Twin):
        def forward(self, mask: Tensor | None = None) -> None:
            with poutine.mask(mask=keep):
                super().forward(mask)

    with ForceSamples(values):
        masked = step(name, Masked(False, 6), Masked(True, 6))
    model, guide = Twin(False, 4), Twin(True, 4)
    model.observed = model.observed.new_tensor([0, 2, 3, 1])
    with ForceSamples({key: v[..., keep] for key, v in values.items()}):
        assert_same(masked, step(name, model, guide))


@every_objective
@pytest.mark.parametrize("vectorized", [False, True])
def test_the_scale_of_a_subsampled_plate_stays_outside(name: str, vectorized: bool) -> None:
    """A minibatch of 5 of 100: the loss and its gradient are 20 times those of these 5 alone."""
    index = torch.tensor([3, 20, 77, 4, 98])
    whole = []
    for is_guide in (False, True):
        program = Twin(is_guide, 100)
        program.full, program.subsample = 100, index
        whole.append(program)
    small = [Twin(False, 5), Twin(True, 5)]
    small[0].observed = whole[0].observed[index]
    options = {"vectorize_particles": vectorized}
    loss, gradients = step(name, *small, **options)
    assert_same(step(name, *whole, **options), (20 * loss, [20 * g for g in gradients]))


def test_a_random_subsample_is_the_guides() -> None:
    """``subsample_size``: the model sees the minibatch that the guide drew, anew every time."""
    seen: list[list[int]] = []

    def program(is_guide: bool) -> Callable[[], None]:
        def run() -> None:
            with pyro.plate("data", 50, subsample_size=4) as index:
                seen.append(index.tolist())
                z = pyro.sample("z", dist.Bernoulli(torch.full((50,), 0.5)[index]))
                if not is_guide:
                    pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(4))

        return run

    for vectorized in (True, False):
        objective = ImportanceBound(3, max_plate_nesting=1, vectorize_particles=vectorized)
        drawn = []
        for _ in range(2):
            objective.loss(program(False), program(True))
            assert all(rows == seen[0] for rows in seen)  # a weight compares particles of the same data
            drawn.append(seen[0])
            seen.clear()
        assert drawn[0] != drawn[1]


@pytest.mark.parametrize("name", ["importance", "wake-sleep"])
def test_particles_one_by_one_share_a_random_subsample(name: str) -> None:
    """Each datum as a minibatch of one: the mean over minibatches is the loss of all data.

    The guide is the posterior, so that the loss has no noise but the choice of the datum.
    """
    data = torch.tensor([-3.0, 0.5, 4.0])

    def program(is_guide: bool) -> Callable[[], None]:
        def run() -> None:
            with pyro.plate("data", 3, subsample_size=1) as index:
                y, two = data[index], torch.tensor(2.0)
                if is_guide:
                    pyro.sample("z", dist.Normal(y / 2, two.rsqrt()))
                else:
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                    pyro.sample("y", dist.Normal(z, 1.0), obs=y)

        return run

    exact = -3 * dist.Normal(0.0, 2**0.5).log_prob(data)
    kind = ImportanceBound if name == "importance" else WakeSleep
    objective = kind(num_particles=4, max_plate_nesting=1)
    losses = torch.tensor([objective.loss(program(False), program(True)) for _ in range(30)])
    distances = (losses[:, None] - exact).abs()
    assert distances.min(1).values.max() < 1e-4  # every loss is of one datum
    assert set(distances.argmin(1).tolist()) == {0, 1, 2}


@every_objective
def test_plate_nesting_guessed_or_given(name: str) -> None:
    """Guessing gives what the true nesting, or a larger one, gives; it leaves the random state alone."""
    model, guide = Twin(False, 6), Twin(True, 6)
    guessed = step(name, model, guide)
    after = torch.get_rng_state()
    for nesting in (2, 4):
        assert_same(guessed, step(name, model, guide, max_plate_nesting=nesting))
        assert torch.equal(after, torch.get_rng_state())


def test_a_changed_copy_has_the_same_plates() -> None:
    """``dataclasses.replace`` takes the plates as they were given, without that of the particles."""
    objective = ImportanceBound(3, max_plate_nesting=2, vectorize_particles=True)
    for _ in range(2):
        objective = replace(objective, num_particles=4)
        assert objective.max_plate_nesting == 2
        assert math.isfinite(objective.loss(Twin(False, 6), Twin(True, 6)))


def test_two_inner_plates_with_a_mask_along_one() -> None:
    """A baseline network is fitted to just the elements that the mask keeps, however it broadcasts."""
    keep = torch.tensor([True, False, True]).reshape(3, 1, 1)
    weight = torch.zeros((), dtype=torch.float64, requires_grad=True)
    zero = torch.zeros((), dtype=torch.float64)

    def program(is_guide: bool, *shape: int) -> None:
        options = {"nn_baseline": lambda x: weight + x, "nn_baseline_input": zero.expand(shape)}
        with pyro.plate("data", 4, dim=-1):
            if not is_guide:
                pyro.sample("x", dist.Normal(zero, 1.0), obs=zero)
            inner, outer = pyro.plate("inner", 2, dim=-2), pyro.plate("outer", 3, dim=-3)
            with inner, outer, poutine.mask(mask=keep):
                z = pyro.sample("z", dist.Bernoulli(logits=zero), infer={"baseline": options})
                if not is_guide:
                    pyro.sample("y", dist.Normal(z, 1.0), obs=zero)

    for shape in ((), (4,), (2, 1), (3, 1, 1), (3, 1, 4)):
        for name in ("variational site", "learned"):
            for vectorized in (True, False):
                objective = OBJECTIVES[name](num_particles=2, vectorize_particles=vectorized)
                with ForceSamples({"z": torch.ones(3, 2, 4, dtype=torch.float64)}):
                    loss = objective.differentiable_loss(
                        lambda shape=shape: program(False, *shape),
                        lambda shape=shape: program(True, *shape),
                    )
                (fit,) = torch.autograd.grad(loss, weight)
                # 16 of the 24 elements count. "learned": residuals M w - c, with M w = 1, c = 0
                # for theta and c = 1 for eta. "site": the element's own log N(0; 1, 1).
                signal = dist.Normal(zero, 1.0).log_prob(zero + 1)
                residuals = 1.0 if name == "learned" else signal.item()
                assert fit.item() == pytest.approx(-2 * 16 * residuals)


# Training steps.


class Chain(nn.Module):
    """A model or guide with parameters of its own."""

    def __init__(self, is_guide: bool) -> None:
        super().__init__()
        torch.manual_seed(is_guide)
        self.first = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
        self.is_guide = is_guide

    def forward(self, y: Tensor) -> None:
        pyro.module("guide" if self.is_guide else "model", self)  # so that SVI finds them
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.Categorical(logits=self.first))
            b = pyro.sample("b", dist.Categorical(logits=self.second[a]))
            if not self.is_guide:
                mean = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
                pyro.sample("y", dist.Normal(mean[b], 1.0), obs=y)


@every_objective
@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_svi_and_torch_optimizers_agree(name: str, proposal: str) -> None:
    """``SVI`` and ``objective(model, guide)`` with ``torch.optim`` take the same steps, and improve."""
    y = torch.tensor([2.0, 2.2, -1.0, 1.9], dtype=torch.float64)
    options = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}

    def programs() -> tuple[nn.Module, nn.Module]:
        model = Chain(False)
        return model, Chain(True) if proposal == "guide" else Prior(model)

    model, guide = programs()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.05}), OBJECTIVES[name](**options))
    pyro.set_rng_seed(0)
    losses = [svi.step(y) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 1.0

    pyro.clear_param_store()
    model2, guide2 = programs()
    loss_fn = OBJECTIVES[name](**options)(model2, guide2)
    parameters = [*model2.parameters(), *guide2.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    pyro.set_rng_seed(0)
    for expected in losses:
        optimizer.zero_grad()
        loss = loss_fn(y)
        loss.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected, abs=1e-10)
    trained = [*model.parameters(), *guide.parameters()]
    for one, other in zip(trained, parameters, strict=True):
        torch.testing.assert_close(one, other)


@every_objective
def test_the_loss_is_the_bound(name: str) -> None:
    """``loss``, ``loss_and_grads`` and ``differentiable_loss`` give one number: minus the bound, summed.

    ``loss`` leaves running estimates and gradients alone.
    """
    model, guide = Twin(False, 6), Twin(True, 6)
    objective: Objective = OBJECTIVES[name](num_particles=3, vectorize_particles=True)
    pyro.set_rng_seed(5)
    particles = objective.particles(model, guide)
    expected = -objective.bound(particles.log_weights).sum()
    numbers = []
    for method in (objective.loss, objective.loss_and_grads, objective.differentiable_loss):
        pyro.set_rng_seed(5)
        number = method(model, guide)
        numbers.append(number.item() if isinstance(number, Tensor) else number)
        if method == objective.loss:
            assert objective.state_dict() == {}
            assert all(p.grad is None for p in [*model.parameters(), *guide.parameters()])
    assert numbers == pytest.approx([float(expected)] * 3, abs=1e-12)
    assert any(p.grad is not None for p in model.parameters())


def test_a_model_without_latents_trains() -> None:
    """With nothing to sample every bound is log p(y), and its gradient that of log p(y)."""

    class Observed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self) -> None:
            with pyro.plate("data", 3):
                pyro.sample("y", dist.Normal(self.loc, 1.0), obs=torch.arange(3.0).double())

    for name in OBJECTIVES:
        for vectorized in (False, True):
            model = Observed()
            objective = OBJECTIVES[name](num_particles=2, vectorize_particles=vectorized)
            loss = objective.differentiable_loss(model, lambda: None)
            (found,) = torch.autograd.grad(loss, model.loc)
            torch.testing.assert_close(found, -torch.arange(3.0).double())
            log_p = dist.Normal(model.loc, 1.0).log_prob(torch.arange(3.0).double())
            torch.testing.assert_close(loss, -log_p.sum())
