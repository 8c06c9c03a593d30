"""Trains a tiny model for a long time and measures what must not grow: memory, open files, logs.

python scripts/long_run.py --updates 20000
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.tiny_run import tiny_config
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.metrics import METRICS
from wsram_ppl.training.loop import train

#: As small as possible, with every activity of a run: rows, evaluations, probes, checkpoints.
SETTINGS = (
    "data.canvas=28",
    "data.scale=[1.0, 1.0]",
    "model.hidden=4",
    "model.num_glimpses=1",
    "model.scales=[2]",
    "objective.control_variate=learned",
    "objective.num_particles=2",
    "exploration.entropy=0",
    "training.batch_size=4",
    "training.log_every=50",
    "training.eval_every=1000",
    "training.checkpoint_every=500",
    "training.probe_every=1000",
    "training.probe_repeats=2",
)


def memory() -> float:
    """Memory in use by this process (resident set), in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def size(*files: Path) -> float:
    """The size of files, and of those in folders, in KiB."""
    total = 0
    for file in files:
        total += sum(map(os.path.getsize, file.iterdir())) if file.is_dir() else os.path.getsize(file)
    return total / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, default=20_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    marks = sorted({options.updates * part // 20 for part in (1, 2, 5, 10, 15, 20)})
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder) / "run")

        def progress(step: int, numbers: Mapping[str, float] | None) -> None:
            if step in marks:
                logs = size(run.path / METRICS), size(run.path / "tensorboard")
                print(
                    f"{step:>8} {memory():>12.1f} {open_files():>11} {logs[0]:>16.1f} {logs[1]:>16.1f}",
                    flush=True,
                )

        print(
            f"{'updates':>8} {'memory, MiB':>12} {'open files':>11} {'metrics.csv, KiB':>16} events, KiB"
        )
        train(tiny_config(*SETTINGS, f"training.steps={options.updates}"), run, progress)


if __name__ == "__main__":
    main()
