"""Attend, infer, repeat: how many digits are in the picture, where, and what do they look like?

    count ~ Categorical(0, 1, 2)
    where_i ~ Normal(0, 1.5), what_i ~ Normal(0, 1)      for each digit
    x ~ Normal(what_i, decoded and drawn at where_i, 0.3), 24 x 24 pixels

Only pictures are given. The count is discrete; positions and appearances are reparameterised and
carry gradients (``pathwise``). Absent objects are masked, in model and guide.

    python examples/air.py --steps 2000
"""

from __future__ import annotations

import argparse
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI
from pyro.nn import PyroModule
from small_digits import small_digits
from torch import Tensor, nn
from torch.nn import functional as F

from wsram_ppl.objectives import VariationalBound
from wsram_ppl.objectives.diagnostics import importance_sample

CANVAS, SIDE, OBJECTS, WHAT, HIDDEN, BATCH = 24, 10, 2, 10, 200, 20
PATHWISE = ["where_*", "what_*"]


def normal(loc: Tensor, scale: Tensor) -> dist.TorchDistribution:
    return dist.Normal(loc, scale).to_event(1)


def axes(where: Tensor) -> tuple[Tensor, Tensor]:
    """Maps a digit's rows and columns to those of the canvas: [..., 24, 10] each.

    A row between two pixels is shared by both, so that it moves smoothly with ``where``.
    """
    offset = torch.arange(CANVAS).unsqueeze(-1) - torch.arange(SIDE)
    start = (CANVAS - SIDE) * where.sigmoid()[..., None, None]
    rows, columns = (1 - (offset - start).abs()).relu().unbind(-3)
    return rows, columns


def draw(picture: Tensor, where: Tensor) -> Tensor:
    """A digit [..., 10, 10] on an empty canvas, [..., 24, 24]."""
    rows, columns = axes(where)
    return rows @ picture @ columns.mT


def look(canvas: Tensor, where: Tensor) -> Tensor:
    """The part of the canvas where ``draw`` draws, [..., 10, 10]."""
    rows, columns = axes(where)
    return rows.mT @ canvas @ columns


class Scene(PyroModule):
    """The model."""

    def __init__(self) -> None:
        super().__init__("model")
        self.decode = nn.Sequential(nn.Linear(WHAT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, SIDE * SIDE))
        nn.init.constant_(self.decode[-1].bias, -2.0)  # nearly black

    def forward(self, x: Tensor) -> None:
        with pyro.plate("pictures", len(x)):
            count = pyro.sample("count", dist.Categorical(torch.ones(OBJECTS + 1)))
            canvas = torch.zeros(CANVAS, CANVAS)
            for i in range(OBJECTS):
                with poutine.mask(mask=count > i):
                    where = pyro.sample(f"where_{i}", normal(torch.zeros(2), torch.full((2,), 1.5)))
                    what = pyro.sample(f"what_{i}", normal(torch.zeros(WHAT), torch.ones(WHAT)))
                digit = draw(self.decode(what).sigmoid().unflatten(-1, (SIDE, SIDE)), where)
                canvas = canvas + (count > i)[..., None, None] * digit
            pyro.sample("x", dist.Normal(canvas, 0.3).to_event(2), obs=x)


class Attention(PyroModule):
    """The guide: counts, then looks at one place after another, and erases what it has seen."""

    def __init__(self) -> None:
        super().__init__("guide")
        self.see = nn.Sequential(nn.Linear(CANVAS**2, HIDDEN), nn.ReLU())
        self.count = nn.Linear(HIDDEN, OBJECTS + 1)
        self.count.bias.data[-1] += 3.0  # look everywhere at first
        self.where = nn.Linear(HIDDEN, 4)
        self.what = nn.Sequential(nn.Linear(SIDE**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * WHAT))
        self.baselines = nn.Sequential(
            nn.Linear(CANVAS**2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1), nn.Flatten(-2)
        )

    def forward(self, x: Tensor) -> None:
        baseline = {"nn_baseline": self.baselines, "nn_baseline_input": x.flatten(-2)}
        with pyro.plate("pictures", len(x)):
            q = dist.Categorical(logits=self.count(self.see(x.flatten(-2))))
            count = pyro.sample("count", q, infer={"baseline": baseline})
            rest = x
            for i in range(OBJECTS):
                with poutine.mask(mask=count > i):
                    loc, scale = self.where(self.see(rest.flatten(-2))).chunk(2, -1)
                    where = pyro.sample(f"where_{i}", normal(loc, F.softplus(scale - 2)))
                    glimpse = look(rest, where)
                    loc, scale = self.what(glimpse.flatten(-2)).chunk(2, -1)
                    pyro.sample(f"what_{i}", normal(loc, F.softplus(scale - 2)))
                rest = rest - draw(glimpse, where)


def pictures(digits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Pictures of zero to two digits at random positions, and their numbers of digits."""
    digits = digits[:, 2:-2, 2:-2]  # without their frame
    number = torch.randint(OBJECTS + 1, (count,))
    canvas = torch.zeros(count, CANVAS, CANVAS)
    for i in range(OBJECTS):
        chosen = digits[torch.randint(len(digits), (count,))]
        canvas += (number > i)[:, None, None] * draw(chosen, 1.5 * torch.randn(count, 2))
    return canvas, number


def train(objective: ELBO, steps: int, seed: int) -> tuple[Scene, Attention]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide, (digits, _) = Scene(), Attention(), small_digits()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 3e-3}), objective)
    for _ in range(steps):
        svi.step(pictures(digits, BATCH)[0])
    return model, guide


@torch.no_grad()
def held_out(model: Scene, guide: Attention, count: int = 500) -> float:
    """L_200 in nats per picture of test digits."""
    pyro.set_rng_seed(1000)
    batches = pictures(small_digits()[1], count)[0].split(20)
    weigh = partial(importance_sample, model, guide, num_particles=200, max_plate_nesting=1)
    return torch.cat([weigh(x).bound for x in batches]).mean().item()


@torch.no_grad()
def miscounted(guide: Attention, count: int = 1000) -> float:
    """The fraction of pictures of test digits for which the guide's likeliest count is wrong."""
    pyro.set_rng_seed(1000)
    x, number = pictures(small_digits()[1], count)
    return (guide.count(guide.see(x.flatten(-2))).argmax(-1) != number).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="Attend, infer, repeat.")
    parser.add_argument("--steps", type=int, default=2000, help="updates of 20 pictures (default: 2000)")
    options = parser.parse_args()
    objective = VariationalBound(
        baseline="leave-one-out", num_particles=5, vectorize_particles=True, pathwise=PATHWISE
    )
    model, guide = train(objective, options.steps, seed=0)
    print(f"log p(x) > {held_out(model, guide):.1f} nats per held-out picture")
    print(f"miscounted: {miscounted(guide):.1%}")


if __name__ == "__main__":
    main()
