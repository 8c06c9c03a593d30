"""Exact bias and variance of WakeSleep's control variates on small problems; prints markdown.

Two-step chains with 3 actions each and one observation, random logits, and the guide on the line
from prior to posterior. No sampling: all (3 * 3)^M tuples of particles are enumerated.

    python -m benchmarks.exact_variance --problems 25 --particles 2 5 > docs/results/exact_variance.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence

import torch

from wsram_ppl.testing.enumeration import random_problem
from wsram_ppl.testing.variance import Runs, Variances

SHARES = {"prior": 0.0, "1/4": 0.25, "halfway": 0.5, "3/4": 0.75, "posterior": 1.0}
THETA = [
    "none",
    "self-normalized: variance",
    "its squared bias",
    "unnormalized",
    "adaptive",
    "learned, no network",
    "learned, c(state)",
    "best constant, whole r",
    "best per site",
    "best c(state)",
]
ETA = ["none", "1/M", "learned, c(state)", "best c(state)"]

#: (first, second): the second should not have more variance than the first.
ORDERS = {
    "least squares: adaptive <= none": ("none", "adaptive"),
    "least squares: learned without network <= adaptive": ("adaptive", "learned, no network"),
    "least squares: learned <= learned without network": ("learned, no network", "learned, c(state)"),
    "least squares: learned <= none": ("none", "learned, c(state)"),
    "least squares: learned <= the paper's variance + squared bias": ("paper", "learned, c(state)"),
    "best coefficients: per site (partial r) <= constant (whole r)": (
        "best constant, whole r",
        "best per site",
    ),
    "best coefficients: c(state) <= per site": ("best per site", "best c(state)"),
}


def moments(seed: int, share: float, particles: int) -> tuple[dict[str, float], dict[str, float], float]:
    """One problem: (theta's columns, eta's columns, mean effective sample size)."""
    problem = random_problem([3, 3], share=share, contrast=2.0, outcomes=10, seed=seed)
    runs = Runs(problem, particles)
    v = Variances(runs)
    paper = v.components(runs.self_normalized)
    estimates = {
        "none": v.plain,
        "self-normalized: variance": paper,
        "unnormalized": v.components(runs.unnormalized),
        "adaptive": v.plain - v.fitted_constant() * v.whole_ratio,
        "learned, no network": v.with_coefficients(v.fitted("site")),
        "learned, c(state)": v.with_coefficients(v.fitted("state")),
        "best constant, whole r": v.best([v.whole_ratio]),
        "best per site": v.best(v.per_site),
        "best c(state)": v.best(v.per_state),
    }
    theta = {name: v.variance(estimate) for name, estimate in estimates.items()}
    theta["its squared bias"] = v.squared_bias(paper)
    theta["paper"] = theta["self-normalized: variance"] + theta["its squared bias"]
    for name, estimate in estimates.items():
        if name != "self-normalized: variance":
            assert v.squared_bias(estimate) < 1e-16, name

    v = Variances(runs, "eta")
    estimates = {
        "none": v.plain,
        "1/M": v.components(runs.self_normalized),
        "learned, c(state)": v.with_coefficients(v.fitted("state")),
        "best c(state)": v.best(v.per_state),
    }
    eta = {name: v.variance(estimate) for name, estimate in estimates.items()}
    w = runs.tuples.of(problem.log_weights(problem.theta, problem.eta)).softmax(1)
    return theta, eta, float(runs.tuples.mean(1 / w.square().sum(1)))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.3f}"


def shortfalls(found: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """How often, and by how much, an order is violated; over all problems, per position of the guide."""
    rows = []
    for claim, (first, second) in ORDERS.items():
        cells = []
        for problems in found.values():
            ratios = [p[second] / p[first] for p in problems if p[first] > 1e-12]
            worse = [ratio for ratio in ratios if ratio > 1 + 1e-9]
            cells.append(f"{len(worse)}/{len(ratios)}" + (f" (x{max(worse):.2f})" if worse else ""))
        rows.append([claim, *cells])
    return rows


def report(problems: int, particles: int) -> str:
    theta: dict[str, list[dict[str, float]]] = {}
    eta: dict[str, list[dict[str, float]]] = {}
    ess: dict[str, list[float]] = {}
    for place, share in SHARES.items():
        for seed in range(problems):
            of_theta, of_eta, size = moments(seed, share, particles)
            theta.setdefault(place, []).append(of_theta)
            eta.setdefault(place, []).append(of_eta)
            ess.setdefault(place, []).append(size)
    parts = [f"## M = {particles}", "### wake-p: gradient for the prior's logits"]
    rows = [
        [place, mean(ess[place]), *(mean([p[name] for p in theta[place]]) for name in THETA)]
        for place in SHARES
    ]
    parts.append(table(["q", "ESS", *THETA], rows))
    parts.append("### wake-q: gradient for the guide's logits")
    rows = [[place, *(mean([p[name] for p in eta[place]]) for name in ETA)] for place in SHARES]
    parts.append(table(["q", *ETA], rows))
    parts.append("### Orders: how often they are violated (and the worst ratio of variances)")
    parts.append(table(["wake-p", *SHARES], shortfalls(theta)))
    return "\n\n".join(parts)


INTRODUCTION = """\
# Exact bias and variance of the control variates

Total variance (the sum over the components of the gradient) of `WakeSleep`'s estimates for one
datum, by enumeration of all tuples of particles: no sampling error. Two-step chains, 3 actions per
step, the second step's logits depending on the first action; one observation with 10 outcomes whose
logits depend on both. Logits are normal, with standard deviation 1 for the actions and 2 for the
observation. The guide is (1 - s) prior + s posterior, s = 0, 1/4, 1/2, 3/4, 1. Means over {problems}
problems.

* "none" to "unnormalized": the options of `control_variate`, unchanged.
* "adaptive", "learned": at the least-squares coefficients that their running estimates and networks
  converge to when fitted for this one datum. In training they are shared between data.
* "best": the coefficients that minimise the variance in the table instead, which no estimator
  knows.
* All but "self-normalized" have the same expectation (its squared bias is the column after it).

`{command}` ({seconds:.0f} s on one core)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=25, help="random problems per row")
    parser.add_argument("--particles", type=int, nargs="+", default=[2, 5], help="values of M")
    options = parser.parse_args()
    if options.problems < 1 or min(options.particles) < 2:
        parser.error("at least one problem and two particles are needed")
    torch.set_num_threads(1)
    start = time.perf_counter()
    parts = [report(options.problems, particles) for particles in options.particles]
    command = "python -m benchmarks.exact_variance " + shlex.join(sys.argv[1:])
    seconds = time.perf_counter() - start
    print(INTRODUCTION.format(problems=options.problems, command=command.strip(), seconds=seconds))
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
