"""A problem as Pyro programs, and an objective's estimates for every tuple through the public API."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from wsram_ppl.objectives import Objective
from wsram_ppl.testing.enumeration.problems import Problem, Tables
from wsram_ppl.testing.enumeration.tuples import Gradients, Tuples
from wsram_ppl.testing.handlers import ForceSamples

#: Declares the baseline of a site, from its name and its state, in Pyro's schema.
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

    Raises:
        ValueError: the objective has another number of particles.
    """
    given = {len(value) for value in values.values()}
    if given != {objective.num_particles}:
        raise ValueError(f"values of {given} particles for an objective with {objective.num_particles}")
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
