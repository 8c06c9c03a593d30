"""A hidden Markov model, with a network that reads a sequence backwards to propose the states.

    z_t ~ Categorical(transition[z_(t-1)])        y_t ~ Categorical(emission[z_t]), t = 1 ... 8

Every sequence has its own importance weights. The sum over all paths is known, so that the bound
can be compared with the log-likelihood itself.

    python examples/hmm.py --steps 1000
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn import functional as F

from wsram_ppl.objectives import WakeSleep
from wsram_ppl.objectives.diagnostics import importance_sample

STATES, SYMBOLS, LENGTH, HIDDEN, BATCH = 4, 8, 8, 32, 20


class Chain(PyroModule):
    """The model."""

    def __init__(self) -> None:
        super().__init__("model")
        self.initial = nn.Parameter(torch.zeros(STATES))
        self.transition = nn.Parameter(torch.zeros(STATES, STATES))
        self.emission = nn.Parameter(torch.randn(STATES, SYMBOLS))

    def forward(self, y: Tensor) -> None:
        with pyro.plate("sequences", len(y)):
            logits = self.initial
            for t in range(LENGTH):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))
                pyro.sample(f"y_{t}", dist.Categorical(logits=self.emission[z]), obs=y[:, t])
                logits = self.transition[z]

    def log_likelihood(self, y: Tensor) -> Tensor:
        """log p(y) of each sequence, all paths summed out."""
        emissions = dist.Categorical(logits=self.emission)
        return dist.DiscreteHMM(self.initial, self.transition, emissions, duration=LENGTH).log_prob(y)


class Smoother(PyroModule):
    """The guide: q(z_t | z_(t-1), y_t, y_(t+1), ...), with a baseline for objectives that use one."""

    def __init__(self) -> None:
        super().__init__("guide")
        self.read = nn.GRU(SYMBOLS, HIDDEN, batch_first=True)
        self.propose = nn.Linear(HIDDEN, STATES)
        self.follow = nn.Parameter(torch.zeros(STATES, STATES))
        self.baselines = nn.Sequential(nn.Linear(HIDDEN, 1), nn.Flatten(-2))

    def forward(self, y: Tensor) -> None:
        future = self.read(F.one_hot(y, SYMBOLS).float().flip(1))[0].flip(1)
        logits = self.propose(future)
        with pyro.plate("sequences", len(y)):
            previous = torch.zeros(STATES)
            for t in range(LENGTH):
                baseline = {"nn_baseline": self.baselines, "nn_baseline_input": future[:, t]}
                q = dist.Categorical(logits=logits[:, t] + previous)
                previous = self.follow[pyro.sample(f"z_{t}", q, infer={"baseline": baseline})]


def sequences(count: int) -> Tensor:
    """[count, 8] from a chain that keeps its state with probability 0.8, where each state mostly emits
    two symbols of its own."""
    states = torch.eye(STATES)
    stay = 0.8 * states + 0.2 * (1 - states) / (STATES - 1)
    write = 0.9 * states.repeat_interleave(2, 1) / 2 + 0.1 / SYMBOLS
    truth = dist.DiscreteHMM(torch.zeros(STATES), stay.log(), dist.Categorical(write), duration=LENGTH)
    return truth.sample((count,))


def train(objective: ELBO, steps: int, seed: int) -> tuple[Chain, Smoother]:
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    model, guide, y = Chain(), Smoother(), sequences(2000)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), objective)
    for _ in range(steps):
        svi.step(y[torch.randint(len(y), (BATCH,))])
    return model, guide


def held_out(model: Chain, guide: Smoother) -> float:
    """L_200 in nats per sequence."""
    pyro.set_rng_seed(1000)
    y = sequences(500)
    sample = importance_sample(model, guide, y, num_particles=200, max_plate_nesting=1)
    return sample.bound.mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description="A hidden Markov model by wake-sleep.")
    parser.add_argument(
        "--steps", type=int, default=1000, help="updates of 20 sequences (default: 1000)"
    )
    options = parser.parse_args()
    objective = WakeSleep("adaptive", num_particles=5, vectorize_particles=True)
    model, guide = train(objective, options.steps, seed=0)
    print(f"L_200 {held_out(model, guide):.3f} nats per held-out sequence")
    pyro.set_rng_seed(1000)
    print(f"exact {model.log_likelihood(sequences(500)).mean().item():.3f}")


if __name__ == "__main__":
    main()
