"""Compares this package's objectives with Pyro's on ``examples/``, at equal updates; markdown.

Every program is trained with the same seeds, optimiser, minibatches and five particles, and
compared by the same held-out bound, L_200 (``held_out`` of the example).

    python -m benchmarks.programs > docs/results/programs.md
"""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO, ReweightedWakeSleep, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

from wsram_ppl.objectives import ImportanceBound, VariationalBound, WakeSleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

PARTICLES = 5
#: Updates of each program.
STEPS = {"discrete_vae": 1000, "sigmoid_belief_network": 1000, "hmm": 500, "lda": 500, "air": 1500}


class TraceGraphOfCopies(TraceGraph_ELBO):
    """TraceGraph_ELBO with five copies of every datum instead of five particles.

    The estimator is the same, times five. Pyro does not support a network as baseline with vectorised
    particles, and sequential particles would take five times as long.
    """

    def loss_and_grads(self, model: Any, guide: Any, data: Tensor) -> float:
        loss: float = super().loss_and_grads(model, guide, data.repeat_interleave(PARTICLES, 0))
        return loss / PARTICLES


def objectives(program: Any) -> dict[str, Callable[[], ELBO]]:
    """The objectives by name, each newly created for every run."""
    subsampled = program.__name__ == "lda"
    common: dict[str, Any] = {
        "num_particles": PARTICLES,
        "vectorize_particles": True,
        "max_plate_nesting": 2 if subsampled else 1,
    }
    ours = common | ({"pathwise": program.PATHWISE} if hasattr(program, "PATHWISE") else {})
    # Wake-q uses scores, so that local latents are pathwise only in its other form.
    others: dict[str, dict[str, Any]] = {
        "lda": {"pathwise": ["weights", "topics"]},
        "air": {"doubly_reparameterized": True},
    }
    wake_sleep = ours | others.get(program.__name__, {})
    return {
        "Trace_ELBO": lambda: Trace_ELBO(**common),
        "TraceGraph_ELBO": lambda: TraceGraph_ELBO(**common) if subsampled else TraceGraphOfCopies(),
        "ReweightedWakeSleep": lambda: ReweightedWakeSleep(**common),
        "VariationalBound": lambda: VariationalBound(baseline="leave-one-out", **ours),
        "ImportanceBound": lambda: ImportanceBound(**ours),
        "WakeSleep": lambda: WakeSleep("adaptive", **wake_sleep),
    }


def measure(program: Any, objective: ELBO, steps: int, seed: int) -> dict[str, float]:
    """The results of a run, by name; nan if its parameters became nan."""
    start = time.perf_counter()
    try:
        model, guide = program.train(objective, steps, seed)
        found = {"L_200": program.held_out(model, guide)}
    except ValueError as error:  # a distribution rejects its parameters
        if "nan" not in str(error):
            raise
        return {"L_200": math.nan}
    if hasattr(program, "miscounted"):
        found["miscounted"] = 100 * program.miscounted(guide)
    print(f"{found} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    return found


def cell(values: list[float]) -> str:
    """The mean, and the runs in brackets."""
    return f"**{statistics.mean(values):.2f}** ({', '.join(f'{value:.2f}' for value in values)})"


def report(programs: list[str], seeds: int, steps: int | None) -> str:
    cells: dict[str, dict[str, str]] = {}
    for name in programs:
        program, updates = importlib.import_module(name), steps or STEPS[name]
        for objective, make in objectives(program).items():
            print(f"{name}, {objective}", file=sys.stderr)
            runs = [measure(program, make(), updates, seed) for seed in range(seeds)]
            for quantity in runs[0]:
                column = f"{name}, {updates} updates: {quantity}"
                values = [run.get(quantity, math.nan) for run in runs]
                cells.setdefault(column, {})[objective] = cell(values)
    rows = [["objective", *cells], ["---"] * (1 + len(cells))]
    for objective in next(iter(cells.values())):
        rows.append([objective, *(column.get(objective, "") for column in cells.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


INTRODUCTION = """\
# Real programs, by objective

The programs in `examples/`, each trained with the same seeds, optimiser and minibatches and with
{particles} particles. L_200 is in nats per held-out datum (higher is better); for LDA it is given the
posterior means of the topics. "miscounted" is a percentage of held-out pictures. Shown are the mean
over {seeds} seeds and each seed. `TraceGraph_ELBO` has the baselines that the guides declare (none in
LDA), `VariationalBound` the leave-one-out one, `WakeSleep` the adaptive control variate. Where latents
can carry pathwise gradients (LDA, AIR), `Trace_ELBO` and `TraceGraph_ELBO` use them, and this
package's objectives do so too (`pathwise=`): `WakeSleep` for the global ones of LDA, and in AIR with
`doubly_reparameterized=True`.

`{command}` ({minutes:.0f} min on one core)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--steps", type=int, help="updates of every program, for a trial run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pyro").setLevel(logging.WARNING)
    start = time.perf_counter()
    table = report(options.programs, options.seeds, options.steps)
    print(
        INTRODUCTION.format(
            particles=PARTICLES,
            seeds=options.seeds,
            command=shlex.join(["python", "-m", "benchmarks.programs", *sys.argv[1:]]),
            minutes=(time.perf_counter() - start) / 60,
        )
    )
    print(table)


if __name__ == "__main__":
    main()
