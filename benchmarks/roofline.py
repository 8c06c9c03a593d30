"""How far an update is from what the machine allows: its arithmetic and its memory traffic.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --set training.compile=true
    python benchmarks/roofline.py --device cuda --set training.cuda_graph=true

The operations of its matrix products are counted, and the bytes that have to move whatever one does:
weights, gradients, the optimiser's moments, images. The machine's rates are measured: a product of large
float32 matrices, a copy of what fits in no cache. No update takes less than the larger of the two times.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsram_ppl.config import load_config
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.training.trainer import Trainer

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "digits.toml"


class Traffic(TorchDispatchMode):
    """Bytes that operations would read and write if each found its operands in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, found)) if isinstance(x, Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return found


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of a call, after a few to warm up."""
    times = []
    for turn in range(repeats + 5):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if turn >= 5:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def rates(device: torch.device) -> tuple[float, float]:
    """Operations per second of a matrix product, bytes per second read and written by a copy."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    operations = 2 * side**3 / seconds(lambda: a @ b, device, 10)
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)
    place = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return operations, moved / seconds(lambda: place.copy_(source), device, 10)


def counted(overrides: list[str]) -> tuple[float, float, float]:
    """Operations of an update's products, bytes that have to move, and bytes that eager ones move."""
    usual = ["training.compile=false", "training.cuda_graph=false", "training.prefetch=false"]
    trainer = Trainer.start(load_config(EXPERIMENT, [*overrides, *usual]))
    batch = trainer.update()  # the optimiser's moments begin
    with FlopCounterMode(display=False) as operations:
        trainer.update()
    with Traffic() as traffic:
        trainer.update()

    def size(tensors: Any) -> int:
        return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))

    weights = size(trainer.parameters)
    moments = size(x for state in trainer.optimizer.state.values() for x in state.values())
    # Weights are read by the passes; gradients are written and read; the step reads and writes weights
    # and moments; images are read.
    gradients = size(p.grad for p in trainer.parameters)
    least = 3 * weights + 2 * gradients + 2 * moments + size(batch)
    return float(operations.get_total_flops()), float(least), float(traffic.bytes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="TABLE.KEY=VALUE"
    )
    options = parser.parse_args()
    logging.getLogger("pyro").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    own = [f"training.device={device}", f"training.threads={options.threads}", *options.overrides]
    with pyro_settings(validate=False):
        operations, least, eager = counted(own)
        trainer = Trainer.start(load_config(EXPERIMENT, own))
        measured = 1e3 * seconds(trainer.update, device, options.updates)
    per_second, bandwidth = rates(device)
    print(f"{describe(options.device)}, {options.threads} thread(s) {' '.join(options.overrides)}\n")
    print("| what | amount | the machine does | ms |\n| --- | --- | --- | --- |")
    rows = {
        "matrix products": (operations, "operations", per_second),
        "weights, gradients, moments, images: once": (least, "bytes", bandwidth),
        "operands of every operation, uncompiled": (eager, "bytes", bandwidth),
    }
    times = []
    for name, (amount, unit, rate) in rows.items():
        times.append(1e3 * amount / rate)
        amounts = f"{amount / 1e6:,.1f} million {unit} | {rate / 1e9:,.1f} billion a second"
        print(f"| {name} | {amounts} | {times[-1]:.3f} |")
    bound = max(times[:2])
    print(f"\nan update: {measured:.2f} ms, {measured / bound:.1f} times the least ({bound:.2f} ms)")


if __name__ == "__main__":
    main()
