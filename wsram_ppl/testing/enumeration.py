"""Small discrete models whose every expectation is a finite sum.

A :class:`Problem` is a chain of discrete latents with observations in between, given by tables of
logits, with a proposal given by tables in its own order. Everything about it is computed twice:

* from the tables alone (``log_prior``, ``log_likelihood``, ``log_proposal`` over all joint values, and
  the targets below), without probabilistic programming: this is what the objectives must match;
* through the public API: :class:`TableModel` and :class:`TableGuide` are ordinary Pyro programs.

:class:`Tuples` lists every possible tuple of M particles. Each tuple is one row of the data plate and
has its own copy of the tables, so that one call of an objective gives the gradient estimate for every
tuple; weighted by the tuples' probabilities these add up to the estimator's exact expectation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from wsram_ppl.objectives import Objective
from wsram_ppl.testing.handlers import ForceSamples

Tables = Sequence[Tensor]


def chain(tables: Tables) -> Tensor:
    """Joint log-probabilities ``[K_1, ..., K_N]`` of a chain given by logits ``[K_1, ..., K_n]``."""
    joint = tables[0].new_zeros(())
    for table in tables:
        joint = joint.unsqueeze(-1) + torch.log_softmax(table, -1)
    return joint


def conditionals(joint: Tensor) -> tuple[Tensor, ...]:
    """The tables whose :func:`chain` is the given joint (log-probabilities)."""
    tables = []
    for n in range(1, joint.dim() + 1):
        rest = tuple(range(n, joint.dim()))
        tables.append(torch.logsumexp(joint, rest) if rest else joint)
    return tuple(tables)


@dataclass(frozen=True)
class Problem:
    """A chain of latents a_0, a_1, ..., observations y_k made after the first k latents, and a guide.

    Args:
        prior: logits of a_n given all before it, ``[K_0, ..., K_n]``.
        likelihood: k -> logits of y_k given the first k latents, ``[K_0, ..., K_{k-1}, Y]``; y_k = 0.
        order: the guide draws a_{order[0]} first, then a_{order[1]}, ...
        proposal: its logits in that order.
    """

    prior: tuple[Tensor, ...]
    likelihood: Mapping[int, Tensor]
    order: tuple[int, ...]
    proposal: tuple[Tensor, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """K_0, ..., K_{N-1}: how many values each latent has."""
        return tuple(self.prior[-1].shape)

    @property
    def names(self) -> list[str]:
        """The names of the latent sites, in the model's order."""
        return [f"a{n}" for n in range(len(self.prior))]

    @property
    def theta(self) -> list[Tensor]:
        """All tables of the model: those of the prior, then those of the likelihood."""
        return [*self.prior, *self.likelihood.values()]

    @property
    def eta(self) -> list[Tensor]:
        """All tables of the guide."""
        return list(self.proposal)

    @property
    def count(self) -> int:
        """A, the number of joint values."""
        return self.prior[-1].numel()

    def values(self, index: Tensor) -> dict[str, Tensor]:
        """The value of each latent at flat joint values: ``[M, T] -> [M, T]`` per site."""
        parts = torch.unravel_index(index.contiguous(), self.sizes)
        return dict(zip(self.names, parts, strict=True))

    @property
    def orders_agree(self) -> bool:
        """Whether the guide draws in the model's order."""
        return self.order == tuple(sorted(self.order))

    # Over all joint values of the latents, flat, in the model's order: ``[A]``.

    def log_prior(self, theta: Tables) -> Tensor:
        """log p(a)."""
        return chain(theta[: len(self.prior)]).flatten()

    def log_likelihood(self, theta: Tables) -> Tensor:
        """log p(y | a)."""
        sizes = self.sizes
        total = theta[0].new_zeros(sizes)
        for k, table in zip(self.likelihood, theta[len(self.prior) :], strict=True):
            term = torch.log_softmax(table, -1)[..., 0]
            total = total + term.reshape(sizes[:k] + (1,) * (len(sizes) - k))
        return total.flatten()

    def log_proposal(self, eta: Tables) -> Tensor:
        """log q(a)."""
        back = sorted(range(len(self.order)), key=lambda axis: self.order[axis])
        return chain(eta).permute(back).flatten()

    def log_evidence(self) -> Tensor:
        """log p(y), a scalar."""
        return torch.logsumexp(self.log_prior(self.theta) + self.log_likelihood(self.theta), 0)

    def log_weights(self, theta: Tables, eta: Tables) -> Tensor:
        """log p(a) + log p(y | a) - log q(a)."""
        return self.log_prior(theta) + self.log_likelihood(theta) - self.log_proposal(eta)

    def with_proposal(self, log_joint: Tensor) -> Problem:
        """The same model with q(a) proportional to exp(log_joint), ``[A]``, in the model's order."""
        joint = torch.log_softmax(log_joint, 0).reshape(self.sizes)
        tables = conditionals(joint.permute(self.order))
        return Problem(self.prior, self.likelihood, self.order, tables)

    def towards_posterior(self, share: float, noise: Tensor | float = 0.0) -> Problem:
        """q = (1 - share) prior + share posterior, times exp(noise)."""
        prior = self.log_prior(self.theta).exp()
        posterior = (self.log_weights(self.theta, self.eta) + self.log_proposal(self.eta)).softmax(0)
        return self.with_proposal(((1 - share) * prior + share * posterior).log() + noise)


def random_problem(
    sizes: Sequence[int],
    order: Sequence[int] | None = None,
    observed: Iterable[int] | None = None,
    share: float = 0.5,
    noise: float = 0.0,
    spread: float = 1.0,
    seed: int = 0,
    contrast: float | None = None,
    outcomes: int = 2,
) -> Problem:
    """A problem with normal logits.

    Args:
        sizes: values of each latent.
        order: of the guide; by default the model's.
        observed: after how many latents there is an observation; by default after all.
        share: of the posterior in the proposal; the rest is prior.
        noise: standard deviation of a random factor (in logs) on the proposal.
        spread: standard deviation of the logits.
        seed: of all random numbers.
        contrast: standard deviation of the observations' logits, if it is not ``spread``.
        outcomes: number of values of each observation.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    contrast = spread if contrast is None else contrast
    sizes = tuple(sizes)
    prior = tuple(spread * normal(*sizes[: n + 1]) for n in range(len(sizes)))
    after = [len(sizes)] if observed is None else sorted(set(observed))
    likelihood = {k: contrast * normal(*sizes[:k], outcomes) for k in after}
    order = tuple(range(len(sizes))) if order is None else tuple(order)
    problem = Problem(prior, likelihood, order, conditionals(torch.zeros([sizes[n] for n in order])))
    return problem.towards_posterior(share, noise * normal(problem.log_prior(problem.theta).numel()))


#: More tuples than this are not enumerated in tests.
MOST_TUPLES = 1300


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
    """Elementwise equality to 1e-9, relative to the largest component where that exceeds 1."""
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        scale = max(1.0, float(e.abs().max()))
        torch.testing.assert_close(f, e, rtol=0.0, atol=tolerance * scale)


# The same problem as Pyro programs.

Declare = Callable[[str, Tensor], dict[str, Any]]


def _pick(table: Tensor, history: Sequence[Tensor]) -> Tensor:
    """``[rows, K_0, ..., K_n]`` at the values so far (``[..., rows]`` each) -> ``[..., rows, K_n]``."""
    if not history:
        return table
    return table[(torch.arange(table.shape[0]), *history)]


def state_of(history: Sequence[Tensor], like: Tensor) -> Tensor:
    """The state before the next latent: the values so far, ``[..., rows, 3]``, padded with -1."""
    padding = [torch.full(like.shape[:1], -1)] * (3 - len(history))
    return torch.stack(torch.broadcast_tensors(*history, *padding), -1).to(like)


class Program(nn.Module):
    """Tables, one copy per row, and an optional declaration of baselines from a site's state."""

    def __init__(self, tables: Tables, rows: int, declare: Declare | None = None) -> None:
        super().__init__()
        self.tables = nn.ParameterList(
            table.expand(rows, *table.shape).contiguous().clone() for table in tables
        )
        self.declare = declare

    @property
    def rows(self) -> int:
        """The data plate: one datum for each row of the tables."""
        return len(self.tables[0])

    def latent(self, name: str, table: Tensor, history: Sequence[Tensor]) -> Tensor:
        """Samples a latent site, given the values before it; declares its baseline, if any."""
        logits = _pick(table, history)
        infer: Any = self.declare(name, state_of(history, table)) if self.declare else None
        value: Tensor = pyro.sample(name, dist.Categorical(logits=logits), infer=infer)
        return value


class TableModel(Program):
    """The problem's model as a Pyro program over ``rows`` data."""

    def __init__(self, problem: Problem, rows: int, declare: Declare | None = None) -> None:
        super().__init__(problem.theta, rows, declare)
        self.problem = problem

    def forward(self) -> None:
        count = len(self.problem.prior)
        observed = dict(zip(self.problem.likelihood, self.tables[count:], strict=True))
        history: list[Tensor] = []
        with pyro.plate("data", self.rows):
            for n in range(count + 1):
                if n in observed:
                    logits = _pick(observed[n], history)
                    y = torch.zeros(self.rows, dtype=torch.long)
                    pyro.sample(f"y{n}", dist.Categorical(logits=logits), obs=y)
                if n < count:
                    history.append(self.latent(f"a{n}", self.tables[n], history))
            self.in_plate()

    def in_plate(self) -> None:
        """Hook for what a subclass adds at the end."""


class TableGuide(Program):
    """The problem's proposal as a Pyro guide over ``rows`` data."""

    def __init__(self, problem: Problem, rows: int, declare: Declare | None = None) -> None:
        super().__init__(problem.eta, rows, declare)
        self.problem = problem

    def forward(self) -> None:
        history: list[Tensor] = []
        with pyro.plate("data", self.rows):
            for n, table in zip(self.problem.order, self.tables, strict=True):
                history.append(self.latent(f"a{n}", table, history))


def force(values: Mapping[str, Tensor], vectorized: bool) -> ForceSamples:
    """Makes an objective draw these particles (``[M, rows]`` per site)."""
    if vectorized:
        return ForceSamples({name: v if v.shape[0] > 1 else v[0] for name, v in values.items()})

    def next_of(v: Tensor) -> Callable[[Any], Tensor]:
        particles = itertools.cycle(v)
        return lambda fn: next(particles)

    return ForceSamples({name: next_of(v) for name, v in values.items()})


def estimates(
    objective: Objective,
    model: Program,
    guide: nn.Module,
    values: Mapping[str, Tensor],
    *args: Any,
) -> Gradients:
    """The objective's gradient estimate (ascent) for every row, through the public API.

    Args:
        values: the latent values of all particles, ``[M, rows]`` per site.
        args: arguments of model and guide.
    """
    theta = list(model.tables)
    eta = list(guide.tables) if isinstance(guide, Program) else []
    with force(values, objective.vectorize_particles):
        loss = objective(model, guide)(*args)
    found = torch.autograd.grad(-loss, [*theta, *eta], allow_unused=True)
    full = [
        torch.zeros_like(table) if g is None else g
        for g, table in zip(found, [*theta, *eta], strict=True)
    ]
    return Gradients(full[: len(theta)], full[len(theta) :])


def expectation(
    objective: Objective,
    tuples: Tuples,
    declare_model: Declare | None = None,
    declare_guide: Declare | None = None,
) -> Gradients:
    """The exact expectation of an objective's gradient estimate, over all tuples of particles."""
    model = TableModel(tuples.problem, tuples.rows, declare_model)
    guide = TableGuide(tuples.problem, tuples.rows, declare_guide)
    return estimates(objective, model, guide, tuples.values).map(tuples.mean)


# Targets, from the tables alone.


def expected_bound(tuples: Tuples, kind: str) -> Callable[[Tables, Tables], Tensor]:
    """(theta, eta) -> E[F] (``kind="F"``) or E[L_M] (``"L"``), a differentiable function of both."""
    problem = tuples.problem

    def function(theta: Tables, eta: Tables) -> Tensor:
        log_q = problem.log_proposal(eta)
        log_w = problem.log_weights(theta, eta)
        if kind == "F":
            mean: Tensor = (log_q.exp() * log_w).sum()
            return mean
        bound = torch.logsumexp(tuples.of(log_w), 1) - torch.tensor(float(tuples.particles)).log()
        expected: Tensor = (tuples.log_probability(log_q).exp() * bound).sum()
        return expected

    return function


def weights(tuples: Tuples) -> Tensor:
    """Each tuple's normalised importance weights, constants; ``[T, M]``."""
    problem = tuples.problem
    return tuples.of(problem.log_weights(problem.theta, problem.eta)).softmax(1)


def weighted_scores(
    tuples: Tuples, coefficient: Tensor, log_density: Callable[[Tables, Tables], Tensor]
) -> Callable[[Tables, Tables], Tensor]:
    """(theta, eta) -> E[sum_m coefficient_m log density(a^m)], to be differentiated in the density only.

    Args:
        coefficient: constants, ``[T, M]``.
        log_density: (theta, eta) -> ``[A]``.
    """

    def function(theta: Tables, eta: Tables) -> Tensor:
        each = (coefficient * tuples.of(log_density(theta, eta))).sum(1)
        return (tuples.probability * each).sum()

    return function


def combined_scores(
    tuples: Tuples, tables: Tables, *terms: tuple[Tensor, Callable[[Tables], Tensor]]
) -> list[Tensor]:
    """What each tuple's estimate should be: a sum over terms and m of coefficient_m d log-density(a^m).

    Args:
        tables: theta or eta.
        terms: pairs of a coefficient ``[T, M]`` and a log-density, from the tables to ``[A]``.

    Returns:
        ``[T, *table]`` for each of the tables.
    """
    total = [torch.zeros(tuples.rows, *table.shape, dtype=table.dtype) for table in tables]
    for coefficient, log_density in terms:

        def function(*tables: Tensor, log_density: Callable[[Tables], Tensor] = log_density) -> Tensor:
            return log_density(tables)

        scores = torch.autograd.functional.jacobian(function, tuple(tables), vectorize=True)
        for sum_, score in zip(total, scores, strict=True):
            sum_ += torch.einsum("tm,tm...->t...", coefficient, score[tuples.index])
    return total


# Baselines and coefficients that depend on the state.


class StateNetwork(nn.Module):
    """A random function of the state ``[..., rows, 3]`` for each site, ``-> [..., rows]``."""

    def __init__(self, names: Iterable[str], seed: int, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(scale * torch.randn(shape, generator=generator, dtype=torch.float64))

        self.slope = nn.ParameterDict({name: normal(3, 2) for name in names})
        self.shift = nn.ParameterDict({name: normal(2) for name in names})

    def at(self, name: str, state: Tensor) -> Tensor:
        """The output at a site, for any state."""
        hidden = torch.sin(state @ self.slope[name].to(state) + self.shift[name].to(state))
        return hidden.sum(-1)

    def declare(self, name: str, state: Tensor) -> dict[str, Any]:
        """The declaration as ``nn_baseline``, in Pyro's schema."""
        network = lambda state: self.at(name, state)  # noqa: E731
        return {"baseline": {"nn_baseline": network, "nn_baseline_input": state}}


def arbitrary_running_state(objective: Objective, run: Callable[[], object], seed: int) -> None:
    """Replaces an objective's running estimates by arbitrary positive numbers."""
    run()
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: 0.1 + 2 * torch.rand(mean.shape, generator=generator, dtype=mean.dtype)
        for name, mean in objective.state_dict().items()
    }
    objective.load_state_dict(state)
