"""Wake-sleep on a Gaussian mixture: importance weights per datum, or over the whole minibatch.

The model of "Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow" (Le et al.,
arXiv 1805.10469): one of 20 clusters z is chosen, and x is drawn from it. The clusters' probabilities
are learned; a network proposes the cluster of each x. Trained on the same data with as many updates
and particles by this library's WakeSleep and by Pyro's ReweightedWakeSleep, which normalises one set
of weights over the whole minibatch. The held-out log-likelihood is exact.

    python examples/gaussian_mixture.py --steps 2000
"""

from __future__ import annotations

import argparse
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import ELBO, SVI, ReweightedWakeSleep
from pyro.nn import PyroModule
from torch import Tensor, nn

from wsram_ppl.objectives import WakeSleep

CLUSTERS, WIDTH = 20, 5.0
MEANS = 10.0 * torch.arange(CLUSTERS)
TRUE_PROBS = (torch.arange(CLUSTERS) + 5.0) / (torch.arange(CLUSTERS) + 5.0).sum()


class Mixture(PyroModule):
    """z ~ Categorical(softmax(logits)), x ~ Normal(mean_z, 5)."""

    def __init__(self) -> None:
        super().__init__("model")
        self.logits = nn.Parameter(torch.linspace(1.0, -1.0, CLUSTERS))  # the wrong slope

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.logits))
            pyro.sample("x", dist.Normal(MEANS[z], WIDTH), obs=x)


class Recognition(PyroModule):
    """q(z | x)."""

    def __init__(self) -> None:
        super().__init__("guide")
        self.network = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, CLUSTERS))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.network(x[:, None] / 100 - 1)))


def draw(count: int) -> Tensor:
    return dist.Normal(MEANS[torch.multinomial(TRUE_PROBS, count, replacement=True)], WIDTH).sample()


def log_likelihood(log_probs: Tensor, x: Tensor) -> float:
    """Mean of log p(x) over the data, all clusters summed out."""
    return (log_probs + dist.Normal(MEANS, WIDTH).log_prob(x[:, None])).logsumexp(-1).mean().item()


def train(objective: ELBO, steps: int, batch: int) -> tuple[float, float]:
    """Held-out log-likelihood per datum after training, and the training time in seconds."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, guide, held_out = Mixture(), Recognition(), draw(10_000)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), objective)
    start = time.perf_counter()
    for _ in range(steps):
        svi.step(draw(batch))
    found = log_likelihood(model.logits.detach().log_softmax(0), held_out)
    return found, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description="WakeSleep and Pyro's ReweightedWakeSleep.")
    parser.add_argument("--steps", type=int, default=2000, help="updates (default: 2000)")
    parser.add_argument("--batch", type=int, default=100, help="data per update (default: 100)")
    parser.add_argument("--particles", type=int, default=10, help="particles per datum (default: 10)")
    options = parser.parse_args()
    common = {"num_particles": options.particles, "vectorize_particles": True, "max_plate_nesting": 1}
    for name, objective in {
        "WakeSleep(control_variate='none')": WakeSleep("none", **common),
        "WakeSleep(control_variate='adaptive')": WakeSleep("adaptive", **common),
        "pyro.infer.ReweightedWakeSleep": ReweightedWakeSleep(**common),
    }.items():
        found, seconds = train(objective, options.steps, options.batch)
        print(f"{name:<40} {found:.4f} nats per datum ({seconds:.0f} s)")
    pyro.set_rng_seed(1)
    print(f"{'the true distribution':<40} {log_likelihood(TRUE_PROBS.log(), draw(10_000)):.4f}")


if __name__ == "__main__":
    main()
