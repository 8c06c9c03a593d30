"""A later latent of the guide that sees a whole plate, on ways that are not followed: still exact.

z are three coins of a plate, g is drawn after them from a function of all, and p(y | z, g) of each
element. So each z reaches the terms of the others through g, unless the function was found to read
nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from wsram_ppl.objectives import VariationalBound
from wsram_ppl.objectives.dependence import dependencies
from wsram_ppl.testing import ForceSamples

Y = torch.tensor([0.3, -0.5, 1.2], dtype=torch.float64)


def new(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, z: Tensor) -> Tensor:
        return 2 * z.sum(-1)


def written(z: Tensor) -> Tensor:
    rows = torch.zeros_like(Y)
    rows[:] = z
    return 2 * rows.sum()


def given_out(z: Tensor) -> Tensor:
    total = new(0.0)
    torch.sum(z, 0, out=total)
    return 2 * total


def scripted() -> Callable[[Tensor], Tensor]:
    total: Callable[[Tensor], Tensor] = torch.jit.trace(lambda z: 2 * z.sum(-1), Y)  # type: ignore[no-untyped-call]
    return total


#: Functions of z that are followed.
FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "operations": lambda z: 2 * z.sum(-1),
    "own function": lambda z: Doubled.apply(z),  # type: ignore[no-untyped-call]
    "elements": lambda z: torch.stack([2 * each for each in z]).sum(),
    "data": lambda z: 2 * z.data.sum(-1),
}
#: Those through which a choice goes unseen.
UNSEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "branch": lambda z: new(4.0 if z[0] > 0 else -1.0),
    "written": written,
    "out": given_out,
    "vmap": lambda z: torch.func.vmap(lambda each: 2 * each)(z).sum(-1),
    "traced": lambda z: scripted()(z),
    "NumPy": lambda z: torch.as_tensor(2 * np.asarray(z).sum(-1)),
    "copied": lambda z: 2 * torch.tensor(z.tolist(), dtype=torch.float64).sum(),
    "DLPack": lambda z: 2 * torch.from_dlpack(z).sum(-1),
    "equal": lambda z: new(4.0 if torch.equal(z, torch.ones_like(Y)) else -1.0),
    "contains": lambda z: new(4.0 if 1 in z else -1.0),
    "unique": lambda z: new(2.0 * len(z.unique())),
    "nonzero": lambda z: new(2.0 * len(z.nonzero())),
    "selected": lambda z: new(2.0 * len(Y[z > 0])),
    "text": lambda z: new(4.0 if f"{z.sum()}" == "3.0" else -1.0),
    "type": lambda z: {Tensor: lambda z: 2 * z.sum(-1)}[type(z)](z),
}


class Program:
    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        self.way = way
        self.w = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
        self.u = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def guide(self) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(logits=self.w))
        pyro.sample("g", dist.Bernoulli(logits=self.way(z) + self.u))

    def model(self) -> None:
        g = pyro.sample("g", dist.Bernoulli(new(0.2)))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(new(0.5)))
            pyro.sample("y", dist.Normal(z + g, 1.0), obs=Y)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", [*FOLLOWED, *UNSEEN])
def test_the_gradient_is_exact(name: str) -> None:
    program = Program(lambda z: new(1.0))
    objective = VariationalBound(num_particles=1)
    objective.differentiable_loss(program.model, program.guide)  # nothing of this is held to be true
    program.way = {**FOLLOWED, **UNSEEN}[name]
    parameters = [program.w, program.u]
    total = [torch.zeros_like(each) for each in parameters]
    target = new(0.0)
    for *z, g in itertools.product((0.0, 1.0), repeat=4):
        with ForceSamples({"z": torch.tensor(z, dtype=torch.float64), "g": new(g)}):
            loss = objective.differentiable_loss(program.model, program.guide)
            found = torch.autograd.grad(-loss, parameters, allow_unused=True)
            log_q, log_p = (
                poutine.trace(p).get_trace().log_prob_sum() for p in (program.guide, program.model)
            )
        target = target + log_q.exp() * (log_p - log_q)
        for sum_, gradient in zip(total, found, strict=True):
            sum_ += 0.0 if gradient is None else log_q.exp().detach() * gradient
    for estimate, exact in zip(total, torch.autograd.grad(target, parameters), strict=True):
        torch.testing.assert_close(estimate, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("name", [*FOLLOWED, *UNSEEN])
def test_what_is_known(name: str) -> None:
    found = dependencies(Program({**FOLLOWED, **UNSEEN}[name]).guide, (), {})
    assert found == (None if name in UNSEEN else {"z": frozenset(), "g": frozenset({"z"})})


def test_independent_latents_stay_apart() -> None:
    """Nothing is assumed where all is followed: writing constants, sizes and types are no reads."""

    def guide() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)))
        rows = torch.zeros(z.shape, dtype=z.dtype)
        rows[: len(z)] = 1.0
        assert z.dim() == 1
        assert z.is_floating_point()
        pyro.sample("g", dist.Bernoulli(rows.mean() / 2))

    assert dependencies(guide, (), {}) == {"z": frozenset(), "g": frozenset()}


class Counting(nn.Module):
    """A guide that changes buffers and attributes when it runs."""

    written: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("written", torch.zeros(3))
        self.register_buffer("replaced", torch.zeros(3))
        self.last: Tensor | None = None
        self.runs = 0

    def forward(self) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.5)))
        self.written.add_(z)
        self.replaced = self.replaced + z
        self.last, self.runs = z, self.runs + 1
        pyro.sample("g", dist.Bernoulli(logits=z.sum()))


@pytest.mark.parametrize("method", [False, True])
def test_a_guide_is_left_as_it_was(method: bool) -> None:
    guide = Counting()
    dependencies(guide.forward if method else guide, (), {})
    assert guide.runs == 0 and guide.last is None
    for buffer in (guide.written, guide.replaced):
        assert type(buffer) is Tensor and buffer.eq(0).all()
    assert [*guide.state_dict()] == ["written", "replaced"]
