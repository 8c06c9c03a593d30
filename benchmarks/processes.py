"""The cost of several processes: bytes sent per update, time of each exchange, updates per second.

Lightning Fabric runs this script again for every additional process, all on this machine.

    python benchmarks/processes.py --devices 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsram_ppl import collectives
from wsram_ppl.config import load_config
from wsram_ppl.distributed.processes import Processes
from wsram_ppl.distributed.sharding import BatchShard
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The median of ``count`` calls, after one warm-up call."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return 1e3 * sorted(times)[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--experiment", default=str(ROOT / "experiments" / "digits.toml"))
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--set", action="append", default=[], help="as for cli.py train")
    options = parser.parse_args()
    overrides = ["training.threads=1", f"training.devices={options.devices}", *options.set]
    config = load_config(options.components, overrides)
    with pyro_settings(validate=False):
        processes = Processes.launch(config.training)
        trainer = Trainer.start(config, processes)
        sent = collectives.traffic
        trainer.update()
        tensors, control, calls = sent.tensor_bytes, sent.control_bytes, sent.calls
        trainer.update()
        tensors, control = sent.tensor_bytes - tensors, sent.control_bytes - control
        calls = sent.calls - calls
        update = milliseconds(trainer.update, options.updates)
        exchange = milliseconds(collectives.exchange, 200)
        gradient = milliseconds(
            lambda: collectives.sum_tensors([p.grad for p in trainer.parameters], trainer.parameters), 50
        )
        if processes.first:
            numbers = sum(p.numel() for p in trainer.parameters)
            print(
                f"{numbers:,} parameters, {config.training.batch_size} data, {options.devices} processes"
            )
            print(f"sent per update: {tensors:,} bytes of tensors, {control} of control, {calls} calls")
            print(
                f"{update:.1f} ms an update, {exchange:.2f} an exchange, {gradient:.2f} to sum gradients"
            )
        processes.close()
        if processes.first:
            draws(trainer)


def draws(trainer: Trainer) -> None:
    """The cost of drawing for all data and keeping one's own, by the number of processes."""
    parts, size = trainer.components, trainer.training.batch_size
    batch = parts.data.training_batch(0, size, 0)
    for count in (1, 2, 8, 64, 256):
        share = BatchShard(0, count, torch.device("cpu"))

        def run(share: BatchShard = share) -> None:
            share.seed(0, 1)
            with torch.no_grad(), share.drawing(size * share.count):
                parts.objective.particles(parts.model, parts.guide, *batch)

        print(f"{count:>4} processes of {size} data each: {milliseconds(run, 9):.1f} ms forward")


if __name__ == "__main__":
    main()
