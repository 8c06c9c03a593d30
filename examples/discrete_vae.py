"""A discrete variational autoencoder: a digit is encoded by 20 choices of one out of 10.

    z_i ~ Categorical(10), i = 1 ... 20        x ~ Bernoulli(decoder(z)), 14 x 14 pixels

There is no gradient through a choice, and 10^20 codes are too many to sum over: the encoder learns
which of its samples explain the digit.

    python examples/discrete_vae.py --steps 2000
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

CHOICES, OPTIONS, HIDDEN, PIXELS, BATCH = 20, 10, 200, SIDE * SIDE, 20


class Decoder(PyroModule):
    """The model: log p(z) + log p(x | z)."""

    def __init__(self) -> None:
        super().__init__("model")
        self.prior = nn.Parameter(torch.zeros(CHOICES, OPTIONS))
        self.pixels = nn.Sequential(
            nn.Linear(CHOICES * OPTIONS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, PIXELS)
        )

    def forward(self, x: Tensor) -> None:
        with pyro.plate("digits", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(logits=self.prior).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.pixels(z.flatten(-2))).to_event(1), obs=x)


class Encoder(PyroModule):
    """The guide: log q(z | x). The baseline is for objectives that subtract one."""

    def __init__(self) -> None:
        super().__init__("guide")
        self.choices = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CHOICES * OPTIONS)
        )
        self.baselines = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1), nn.Flatten(-2)
        )

    def forward(self, x: Tensor) -> None:
        baseline = {"nn_baseline": self.baselines, "nn_baseline_input": x}
        with pyro.plate("digits", len(x)):
            logits = self.choices(x).unflatten(-1, (CHOICES, OPTIONS))
            q = dist.OneHotCategorical(logits=logits).to_event(1)
            pyro.sample("z", q, infer={"baseline": baseline})


def train(objective: ELBO, steps: int, seed: int) -> tuple[Decoder, Encoder]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide, (x, _) = Decoder(), Encoder(), small_digits()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-3}), objective)
    for _ in range(steps):
        svi.step(x[torch.randint(len(x), (BATCH,))].flatten(1))
    return model, guide


def main() -> None:
    parser = argparse.ArgumentParser(description="A discrete variational autoencoder by wake-sleep.")
    parser.add_argument("--steps", type=int, default=2000, help="updates of 20 digits (default: 2000)")
    options = parser.parse_args()
    objective = WakeSleep("adaptive", num_particles=5, vectorize_particles=True)
    found = held_out(*train(objective, options.steps, seed=0))
    print(f"log p(x) > {found:.1f} nats per held-out digit")


if __name__ == "__main__":
    main()
