"""Where the time of an update goes, compared with that of its matrix products: ``make profile``.

The products of an update are recorded with their shapes and timed again by themselves, on operands in
the cache: a lower bound for any way of calling them on this machine.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsram_ppl.config import load_config
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.primitives.layers import _product
from wsram_ppl.training.trainer import Trainer

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "digits.toml"
ONEDNN = "mkldnn::_linear_pointwise"  # left @ right^T
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", ONEDNN)
Shapes = tuple[str, tuple[tuple[int, ...], ...]]


def median_ms(work: object, repeats: int) -> float:
    """Median milliseconds of a call, after a few warm-up calls."""
    assert callable(work)
    times = []
    for turn in range(repeats + 10):
        start = time.perf_counter()
        work()
        if turn >= 10:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def products_alone(products: Counter[Shapes]) -> tuple[float, float]:
    """Milliseconds of all these products by themselves, and their billions of operations."""
    total, operations = 0.0, 0.0
    for (name, shapes), count in products.items():
        matrices = shapes[1:] if name == "aten::addmm" else shapes
        left, right = (torch.randn(shape) for shape in matrices[:2])
        outputs = right.shape[0 if name == ONEDNN else -1]

        multiply = _product if name == ONEDNN else torch.matmul
        total += count * median_ms(partial(multiply, left, right), 50)
        operations += count * 2e-9 * left.numel() * outputs
    return total, operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE"
    )
    options = parser.parse_args()
    logging.getLogger("pyro").setLevel(logging.WARNING)
    overrides = ["training.prefetch=false", "training.threads=1", *options.overrides]
    with pyro_settings(validate=False):
        trainer = Trainer.start(load_config(EXPERIMENT, overrides))
        whole = median_ms(trainer.update, options.updates)
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            start = time.perf_counter()
            for _ in range(options.updates):
                trainer.update()
            watched = 1e3 * (time.perf_counter() - start) / options.updates
    kinds: Counter[str] = Counter()
    products: Counter[Shapes] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        milliseconds = event.self_cpu_time_total / 1e3 / options.updates
        if event.key in PRODUCTS:
            kinds["matrix products"] += milliseconds
            shapes = tuple(tuple(shape) for shape in event.input_shapes[:3] if shape)
            products[event.key, shapes] += event.count / options.updates
        elif event.key.startswith("aten::"):
            kinds["other operations on tensors"] += milliseconds
        elif event.key.startswith("Optimizer"):
            kinds["optimiser, around its operations"] += milliseconds
        else:
            kinds["backward pass, around its operations"] += milliseconds
    kinds["Python: Pyro, the library, the loop"] = watched - sum(kinds.values())
    print(f"one update: {whole:.1f} ms; {watched:.1f} ms while profiled:\n")
    print("| what | ms | share |\n| --- | --- | --- |")
    for kind, milliseconds in kinds.most_common():
        print(f"| {kind} | {milliseconds:.1f} | {milliseconds / watched:.0%} |")
    alone, operations = products_alone(products)
    print(
        f"\nits matrix products by themselves: {alone:.1f} ms for {operations:.2f} billion operations "
        f"({operations / alone * 1e3:.0f} per second); an update takes {whole / alone:.1f} times that"
    )


if __name__ == "__main__":
    main()
