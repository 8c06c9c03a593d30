"""Kills a training run repeatedly (kill -9, at random moments) and checks the final result.

Every run that was killed, however often, is compared with an undisturbed one: weights, optimiser,
running estimates and metrics rows must be equal bit for bit.

    python scripts/survive_kills.py --kills 20
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.tiny_run import tiny_config
from wsram_ppl.config import ExperimentConfig
from wsram_ppl.runs.checkpoints import load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.metrics import METRICS
from wsram_ppl.training.loop import train

#: Every kind of state: running estimates, momentum, schedules, probes; and frequent checkpoints.
SETTINGS = (
    "objective.control_variate=learned",
    "training.steps=300",
    "training.log_every=3",
    "training.eval_every=40",
    "training.checkpoint_every=5",
    "training.probe_every=50",
    "training.probe_repeats=2",
)
#: Columns that measure time.
_TIMES = ("seconds", "updates_per_second")


def rows(run: RunDirectory) -> list[dict[str, str]]:
    """The rows of a run's metrics, without times."""
    with open(run.path / METRICS, newline="") as file:
        return [{k: v for k, v in row.items() if k not in _TIMES} for row in csv.DictReader(file)]


def equal(one: RunDirectory, other: RunDirectory) -> bool:
    """Whether two runs have the same result, bit for bit."""
    first, second = (load_checkpoint(run.checkpoint) for run in (one, other))
    a, b = first.tensors, second.tensors
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return same and first.step == second.step and rows(one) == rows(other)


def _work(config: ExperimentConfig, folder: str) -> None:
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    train(config, RunDirectory(folder))


def train_and_kill(
    config: ExperimentConfig, run: RunDirectory, chance: random.Random, kills: int, seconds: float = 0.6
) -> int:
    """Trains to the end in processes, some of which are killed; returns how many were.

    Args:
        seconds: how long a process lives on average.
    """
    # Forked, since a new process would spend its life importing torch.
    context, killed = multiprocessing.get_context("fork"), 0
    while True:
        process = context.Process(target=_work, args=(config, str(run)))
        process.start()
        if killed < kills:
            process.join(chance.expovariate(1 / seconds))
            if process.is_alive():
                process.kill()
                killed += 1
        process.join()
        if process.exitcode == 0:
            return killed
        if process.exitcode != -9:
            raise SystemExit(f"a process of {run} exited with {process.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="seed of the kill times")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance, config = random.Random(options.seed), tiny_config(*SETTINGS)
    begun, killed, survived, runs = time.monotonic(), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = RunDirectory(Path(folder) / "whole")
        train_and_kill(config, whole, chance, 0)
        while killed < options.kills:
            run = RunDirectory(Path(folder) / f"killed-{runs}")
            kills = train_and_kill(config, run, chance, options.kills - killed)
            killed, runs = killed + kills, runs + 1
            survived += kills if equal(run, whole) else 0
    print(
        f"{survived} of {killed} kills survived: {runs} runs of {config.training.steps} updates, "
        f"equal bit for bit to an undisturbed one ({time.monotonic() - begun:.0f} s)"
    )
    sys.exit(survived < killed)


if __name__ == "__main__":
    main()
