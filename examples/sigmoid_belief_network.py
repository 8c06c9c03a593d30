"""A sigmoid belief network: two layers of binary causes above the pixels of a digit.

    h2 ~ Bernoulli(...), 50     h1 ~ Bernoulli(linear(h2)), 100     x ~ Bernoulli(linear(h1)), 14 x 14

The recognition network runs the other way, from x to h1 to h2. Wake-sleep was invented for Helmholtz
machines of this kind.

    python examples/sigmoid_belief_network.py --steps 2000
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI
from pyro.nn import PyroModule
from small_digits import SIDE, held_out, small_digits
from torch import Tensor, nn

from wsram_ppl.objectives import WakeSleep

TOP, MIDDLE, PIXELS, BATCH = 50, 100, SIDE * SIDE, 20


def binary(logits: Tensor) -> dist.TorchDistribution:
    return dist.Bernoulli(logits=logits).to_event(1)


class Network(PyroModule):
    """The model, from causes to pixels."""

    def __init__(self) -> None:
        super().__init__("model")
        self.top = nn.Parameter(torch.zeros(TOP))
        self.middle, self.pixels = nn.Linear(TOP, MIDDLE), nn.Linear(MIDDLE, PIXELS)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("digits", len(x)):
            h2 = pyro.sample("h2", binary(self.top))
            h1 = pyro.sample("h1", binary(self.middle(h2)))
            pyro.sample("x", binary(self.pixels(h1)), obs=x)


class Recognition(PyroModule):
    """The guide, from pixels to causes. The baselines are for objectives that subtract one."""

    def __init__(self) -> None:
        super().__init__("guide")
        self.middle, self.top = nn.Linear(PIXELS, MIDDLE), nn.Linear(MIDDLE, TOP)
        self.baselines = nn.ModuleList(
            nn.Sequential(nn.Linear(PIXELS, 100), nn.Tanh(), nn.Linear(100, 1), nn.Flatten(-2))
            for _ in range(2)
        )

    def forward(self, x: Tensor) -> None:
        above, top = ({"nn_baseline": net, "nn_baseline_input": x} for net in self.baselines)
        with pyro.plate("digits", len(x)):
            h1 = pyro.sample("h1", binary(self.middle(x)), infer={"baseline": above})
            pyro.sample("h2", binary(self.top(h1)), infer={"baseline": top})


def train(objective: ELBO, steps: int, seed: int) -> tuple[Network, Recognition]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide, (x, _) = Network(), Recognition(), small_digits()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-3}), objective)
    for _ in range(steps):
        svi.step(x[torch.randint(len(x), (BATCH,))].flatten(1))
    return model, guide


def main() -> None:
    parser = argparse.ArgumentParser(description="A sigmoid belief network by wake-sleep.")
    parser.add_argument("--steps", type=int, default=2000, help="updates of 20 digits (default: 2000)")
    options = parser.parse_args()
    objective = WakeSleep("adaptive", num_particles=5, vectorize_particles=True)
    found = held_out(*train(objective, options.steps, seed=0))
    print(f"log p(x) > {found:.1f} nats per held-out digit")


if __name__ == "__main__":
    main()
