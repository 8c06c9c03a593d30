"""What each hand-made speed-up is worth: an update with it against one with the simple form.

    python benchmarks/speedups.py                # uncompiled
    python benchmarks/speedups.py --compiled     # compiled: each simple form is compiled once

One process, one thread, no prefetch; the two forms take turns in blocks of updates, and what is
compared is the time of the processor, which other processes touch least. A ratio of 1.05 says that the
simple form takes 5% longer.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import torch
from machine import describe
from torch import Tensor
from torch.fx import GraphModule
from torch.nn import functional as F
from turns import ratio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsram_ppl.config import load_config
from wsram_ppl.models import classifier
from wsram_ppl.models.classifier_network import SiteBaselines
from wsram_ppl.objectives import sampling
from wsram_ppl.primitives import glimpses
from wsram_ppl.primitives.handlers import PARTICLE_PLATE, Memoize, pyro_settings
from wsram_ppl.training import compiled
from wsram_ppl.training.trainer import Trainer

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "digits.toml"
OWN = ("training.threads=1", "training.prefetch=false")


# The simple forms.


def plates_of_pyro() -> AbstractContextManager[Any]:
    """Pyro's own plate around all particles, which expands every distribution."""

    def plate(size: int, dim: int, shared: Any = ()) -> Any:
        return pyro.plate(PARTICLE_PLATE, size, dim=dim)

    return patch.object(sampling, "ParticlePlate", plate)


def features_apart() -> AbstractContextManager[Any]:
    """The baseline network is evaluated for each of a glimpse's two sites."""

    def declare(self: SiteBaselines, indices: Any, state: Tensor, label: Tensor) -> list[Any]:
        def predict(site: int, state: Tensor) -> Tensor:
            predicted: Tensor = self(state, label) @ self.out.weight[site] + self.out.bias[site]
            return predicted

        return [
            {"baseline": {"nn_baseline": partial(predict, site), "nn_baseline_input": state}}
            for site in indices
        ]

    return patch.object(SiteBaselines, "declare", declare)


def nothing_memoized() -> AbstractContextManager[Any]:
    """Guide and model run the recurrence each."""

    def call(self: Memoize, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return patch.object(Memoize, "call", call)


def pooled() -> AbstractContextManager[Any]:
    """The pyramid by torch's pooling."""

    def average(images: Tensor, factor: int) -> Tensor:
        height, width = images.shape[-2:]
        return F.avg_pool2d(F.pad(images, (0, -width % factor, 0, -height % factor)), factor)

    return patch.object(glimpses, "_average", average)


def categorical_of_pyro() -> AbstractContextManager[Any]:
    """Pyro's categorical."""

    def categorical(logits: Tensor) -> Any:
        return dist.Categorical(logits=logits)

    return patch.object(classifier, "Categorical", categorical)


#: By name: the simple form, and the experiment's keys with which the fast one is used.
SPEEDUPS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], tuple[str, ...]]] = {
    "particle-plate": (plates_of_pyro, ()),
    "shared-features": (features_apart, ("objective.control_variate=learned",)),
    "memoize": (nothing_memoized, ()),
    "pyramid": (pooled, ()),
    "categorical": (categorical_of_pyro, ()),
}


def started(*overrides: str) -> Trainer:
    return Trainer.start(load_config(EXPERIMENT, [*OWN, *overrides]))


class Programs:
    """Compiles, but for what has been compiled before, and keeps the text of what it was given last."""

    def __init__(self) -> None:
        self.compile, self.known, self.last = compiled.compile_graph, set[str](), ""

    def __call__(self, graph: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.last = graph.code
        again = self.last in self.known
        self.known.add(self.last)
        return graph if again else self.compile(graph, inputs)


def weigh(
    simple: Callable[[], AbstractContextManager[Any]], fast: Trainer, slow: Trainer, rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of the processor for an update, by round: with the fast form, with the simple one."""
    found: tuple[list[float], list[float]] = [], []
    sides = ((fast, nullcontext), (slow, simple))
    for turn in range(rounds + 2):
        # Each goes first every other time.
        for side in (0, 1) if turn % 2 else (1, 0):
            trainer, form = sides[side]
            with form():
                trainer.update()  # finds the caches as the other has left them
                start = time.process_time()
                for _ in range(5):
                    trainer.update()
                if turn >= 2:
                    found[side].append(1e3 * (time.process_time() - start) / 5)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SPEEDUPS, default=list(SPEEDUPS), metavar="NAME")
    parser.add_argument("--compiled", action="store_true", help="compile both forms")
    parser.add_argument("--rounds", type=int, default=100, help="blocks of five updates (default: 100)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("pyro").setLevel(logging.WARNING)
    kind = ("training.compile=true",) if options.compiled else ()
    print(f"{describe('cpu')}; {options.rounds} rounds, {'' if kind else 'un'}compiled\n")
    print("| speed-up | the simple form | ms with it | ms without | ratio | 95% |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    programs = Programs()
    held: dict[tuple[str, ...], tuple[Trainer, str]] = {}
    with pyro_settings(validate=False), patch.object(compiled, "compile_graph", programs):
        for name in options.only:
            simple, keys = SPEEDUPS[name]
            said = " ".join((simple.__doc__ or "").split()).rstrip(".")
            if keys not in held:
                trainer = started(*kind, *keys)
                trainer.update()
                held[keys] = trainer, programs.last
            fast, program = held[keys]
            slow = fast  # what is not compiled can take either form
            if options.compiled:
                slow = started(*kind, *keys)
                with simple():
                    slow.update()
                if programs.last == program:
                    print(f"| {name} | {said} | | | the same program | |", flush=True)
                    continue
            fast_times, slow_times = weigh(simple, fast, slow, options.rounds)
            middle, low, high = ratio(slow_times, fast_times)
            fast_ms, slow_ms = statistics.median(fast_times), statistics.median(slow_times)
            numbers = f"{fast_ms:.2f} | {slow_ms:.2f} | **{middle:.3f}** | {low:.3f} to {high:.3f}"
            print(f"| {name} | {said} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
