"""How long the runs of a study will take, told before the first of them begins.

The pace of a run is its seconds per update, with its share of evaluations and of measurements of the
gradient's variance: that of an earlier run of the study, or of a few updates that are timed for it.
"""

from __future__ import annotations

import heapq
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from wsram_ppl.config import ExperimentConfig
from wsram_ppl.errors import RunError
from wsram_ppl.files import write_atomically
from wsram_ppl.runs.metrics import last_row, read_rows
from wsram_ppl.studies.executors.jobs import Job, Watcher
from wsram_ppl.studies.results import read_summary

__all__ = ["TIMED", "finished_pace", "forecast", "is_long", "time_updates"]

#: Updates of a timing. The first ones are slow (a compiled update is compiled then) and do not count.
TIMED: Final = 30
_SLOW: Final = 10
#: A timing takes its time as well: it is made where so many updates are to be done.
_WORTH: Final = 10_000


def is_long(jobs: Sequence[Job]) -> bool:
    """Whether the updates of these jobs are worth a timing."""
    return sum(map(_left, jobs)) >= _WORTH


def finished_pace(run: Path) -> float:
    """That of a finished run."""
    summary = read_summary(run)
    return float(summary["seconds"]) / int(summary["updates"])


def time_updates(
    configs: Mapping[str, ExperimentConfig],
    at_once: int,
    folder: Path,
    command: Callable[[Path, Path], Sequence[str]],
    run_jobs: Callable[[Sequence[Job], Watcher], Mapping[str, str]],
) -> dict[str, float]:
    """Trains as many runs as will be at work at once for a few updates, and keeps nothing of them.

    Args:
        configs: of the runs, by name; those that are timed are spread over them.
        folder: of the study; what the timings write is in a folder in there for the time being.
        command: makes the command that trains the config in the first path into the second.
        run_jobs: runs jobs, all at once, and returns the reason of every failure by name.

    Returns:
        Their paces, by name.

    Raises:
        RunError: none could be timed.
    """
    names = list(configs)
    count = min(at_once, len(names))
    chosen = [names[n * len(names) // count] for n in range(count)]
    with tempfile.TemporaryDirectory(prefix="timing-", dir=folder, ignore_cleanup_errors=True) as place:
        jobs = {}
        for number, name in enumerate(chosen):
            run = Path(place) / str(number)
            file, log = run.with_suffix(".toml"), run.with_suffix(".log")
            write_atomically(file, _for_a_timing(configs[name]).to_toml().encode(errors="replace"))
            label = str(run.relative_to(folder))
            jobs[name] = Job(label, command(file, run), run, log, TIMED)
        failures = run_jobs(list(jobs.values()), _Unwatched())
        timed = {name: job.run for name, job in jobs.items() if job.name not in failures}
        if not timed:
            raise RunError(f"a timing failed: {next(iter(failures.values()))}")
        return {name: _timed_pace(run, configs[name]) for name, run in timed.items()}


def _for_a_timing(config: ExperimentConfig) -> ExperimentConfig:
    """The same for a few updates, with one evaluation at their end."""
    off = {"eval_every": 0, "checkpoint_every": 0, "probe_every": 0, "loggers": ()}
    changed = {"steps": TIMED, "log_every": _SLOW, **off}
    return replace(config, training=config.training.model_copy(update=changed))


def _timed_pace(run: Path, config: ExperimentConfig) -> float:
    """What the timing of a run says of it."""
    rows, training = read_rows(run, "train"), config.training
    seconds = rows.columns["seconds"]
    first = int(np.argmax(rows.steps >= _SLOW))
    pace = float((seconds[-1] - seconds[first]) / (rows.steps[-1] - rows.steps[first]))
    if training.probe_every:
        pace *= 1 + training.probe_repeats / training.probe_every
    evaluation = float(read_summary(run)["seconds"]) - float(seconds[-1])
    return pace + evaluation / (training.eval_every or training.steps)


class _Unwatched(Watcher):
    """For jobs of which nothing is told."""

    def noted(self, text: str) -> None:
        pass

    def planned(self, jobs: Sequence[Job]) -> None:
        pass

    def started(self, job: Job) -> None:
        pass

    def progressed(self, job: Job, step: int, numbers: Mapping[str, float]) -> None:
        pass

    def ended(self, job: Job, failure: str | None) -> None:
        pass

    def waited(self) -> None:
        pass


def forecast(jobs: Sequence[Job], workers: int, paces: Mapping[str, float], what: str = "runs") -> str:
    """One line on what is about to be run, and how long it will take as far as that is known.

    Args:
        workers: jobs at once.
        paces: by the name of the job; the others take the mean of these.
        what: the jobs are.
    """
    kinds = sorted({job.steps for job in jobs})
    count = f"{len(jobs)} {what if len(jobs) > 1 else what.removesuffix('s')}"
    steps = " to ".join(f"{steps:,}" for steps in (kinds if len(kinds) == 1 else [kinds[0], kinds[-1]]))
    line = f"{count} of {steps} updates"
    if len(jobs) > 1:
        line += f", {workers if workers > 1 else 'one'} at a time"
    if not paces:
        return line
    usual = statistics.fmean(paces.values())
    free = [0.0] * workers  # when each worker has nothing to do
    for job in jobs:
        heapq.heapreplace(free, free[0] + _left(job) * paces.get(job.name, usual))
    return f"{line}: about {_about(max(free))} on this machine"


def _left(job: Job) -> int:
    """Updates that are still to be done, of a run that goes on."""
    return job.steps - (last_row(job.run) or (0,))[0]


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
