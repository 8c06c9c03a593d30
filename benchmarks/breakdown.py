"""Where the time of an update goes, compared with that of its matrix products: ``make profile``.

The products of an update are noted with their shapes and timed once more by themselves, on operands that
are at hand: a bound that no way of calling them can beat on this machine. ``--compiled`` is the same for
a compiled update, whose fused kernels are told apart by the operations that they are made of.
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
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsram_ppl.config import load_config
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.training.trainer import Trainer

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "digits.toml"
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
DRAWS = ("normal", "exponential", "rand", "uniform", "bernoulli")
#: What the optimiser's step is made of.
STEP = ("Optimizer", "aten::_foreach", "aten::_fused_adam", "aten::addcdiv", "aten::addcmul")
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
        total += count * median_ms(partial(torch.matmul, left, right), 50)
        operations += count * 2e-9 * left.numel() * right.shape[-1]
    return total, operations


def family(name: str) -> str:
    """What kind of work an event of the profiler is."""
    if name in PRODUCTS:
        return "matrix products"
    if name.startswith(STEP):
        return "optimiser"
    if "cpp_fused" in name or "triton" in name:
        # Named after the operations that they are made of.
        if "index" in name or "gather" in name or "scatter" in name:
            return "fused kernels that read glimpses, or pass their gradient on"
        return "other fused kernels"
    if name.startswith("aten::"):
        if any(draw in name for draw in DRAWS):
            return "random numbers"
        return "other operations on tensors"
    return "around operations: backward pass, launches"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE"
    )
    parser.add_argument("--compiled", action="store_true", help="of a compiled update")
    options = parser.parse_args()
    logging.getLogger("pyro").setLevel(logging.WARNING)
    overrides = ["training.prefetch=false", "training.threads=1", *options.overrides]
    if options.compiled:
        inductor.cpp.enable_kernel_profile = True  # kernels that the profiler sees
        overrides.append("training.compile=true")
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
    kernels: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        milliseconds = event.self_cpu_time_total / 1e3 / options.updates
        kinds[family(event.key)] += milliseconds
        if "cpp_fused" in event.key or "triton" in event.key:
            kernels[event.key] += milliseconds
        shapes = tuple(tuple(shape) for shape in event.input_shapes[:3] if shape)
        if event.key in PRODUCTS and len(shapes) > 1:
            products[event.key, shapes] += event.count / options.updates
    kinds["Python: Pyro, the library, the loop"] = watched - sum(kinds.values())
    print(f"one update: {whole:.1f} ms; {watched:.1f} ms while profiled:\n")
    print("| what | ms | share |\n| --- | --- | --- |")
    for kind, milliseconds in kinds.most_common():
        print(f"| {kind} | {milliseconds:.1f} | {milliseconds / watched:.0%} |")
    if kernels:
        print("\nthe largest fused kernels, by the operations that they are made of:\n")
        for name, milliseconds in kernels.most_common(8):
            print(f"* {milliseconds:.2f} ms: `{name}`")
    alone, operations = products_alone(products)
    print(
        f"\nits matrix products by themselves: {alone:.1f} ms for {operations:.2f} billion operations "
        f"({operations / alone * 1e3:.0f} per second); an update takes {whole / alone:.1f} times that"
    )


if __name__ == "__main__":
    main()
