"""What the runs of a study measured: read from their directories and averaged over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from wsram_ppl.errors import InputError
from wsram_ppl.runs.directory import SUMMARY, RunDirectory
from wsram_ppl.runs.metrics import Numbers, Rows, read_rows

__all__ = [
    "MEASURES",
    "THRESHOLDS",
    "Mean",
    "Reached",
    "Summary",
    "read_summary",
    "smoothed",
    "summarize",
    "updates_to_reach",
]

#: Training errors for which the number of updates to reach them is reported.
THRESHOLDS: Final = (0.5, 0.2)


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        InputError: it is missing or damaged.
    """
    found = RunDirectory(run).summary("remove the run to do it again")
    if found is None:
        raise InputError(f"{run} has no {SUMMARY}: it is not finished")
    return found


def smoothed(values: Numbers, window: int) -> Numbers:
    """The mean of each value and the up to ``window`` - 1 values before it; ``[T] -> [T]``."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: Numbers = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def updates_to_reach(rows: Rows, threshold: float, window: int) -> float | None:
    """The first update where the mean of the last ``window`` training errors is at most ``threshold``.

    None if that never happens, the error was not measured, or there are fewer rows than ``window``.
    """
    found = rows.measured("error")
    if found is None or len(found[0]) < window:
        return None
    steps, errors = found[0][window - 1 :], smoothed(found[1], window)[window - 1 :]
    below = np.flatnonzero(errors <= threshold)
    return float(steps[below[0]]) if len(below) else None


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        se: standard error (the sample's standard deviation over sqrt(count)); None for one seed.
    """

    value: float
    se: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """None without values."""
        if not values:
            return None
        count = len(values)
        value = math.fsum(values) / count
        if count == 1:
            return cls(value, None, 1)
        variance = math.fsum((v - value) ** 2 for v in values) / (count - 1)
        return cls(value, math.sqrt(variance / count), count)


@dataclass(frozen=True)
class Reached:
    """How many updates it took to reach a training error.

    Attributes:
        updates: the mean over seeds, if all reached it: a mean over those that did would flatter.
        reached, count: how many seeds reached it, of how many.
    """

    updates: Mean | None
    reached: int
    count: int


@dataclass(frozen=True)
class Summary:
    """One row of the table: a variant's finished runs.

    Attributes:
        failed, missing: runs that failed, and runs that have not started.
        measures: ``error`` (None for models without), ``bound``, ``ess``,
            ``updates_per_second``.
        particles: of the bound and the effective sample size, if all runs use the same number.
        reached: for each threshold.
    """

    name: str
    label: str
    paper: float | None
    finished: int
    failed: int
    missing: int
    measures: Mapping[str, Mean | None]
    particles: int | None
    reached: Mapping[float, Reached]


#: What a table shows of each variant, as far as it was measured.
MEASURES: Final = ("error", "bound", "ess", "updates_per_second")


def summarize(
    name: str,
    label: str,
    paper: float | None,
    runs: Sequence[Path],
    failed: int,
    missing: int,
    window: int,
) -> Summary:
    """The row of a variant.

    Args:
        runs: directories of the finished runs.
        window: length of the smoothing window, in rows.
    """
    summaries = [read_summary(run) for run in runs]
    reached = {}
    training = [read_rows(run, "train") for run in runs]
    for threshold in THRESHOLDS:
        updates = [updates_to_reach(rows, threshold, window) for rows in training]
        known = [value for value in updates if value is not None]
        mean = Mean.of(known) if len(known) == len(updates) else None
        reached[threshold] = Reached(mean, len(known), len(updates))
    particles = {summary.get("particles") for summary in summaries}
    return Summary(
        name=name,
        label=label,
        paper=paper,
        finished=len(runs),
        failed=failed,
        missing=missing,
        measures={m: Mean.of([float(s[m]) for s in summaries if m in s]) for m in MEASURES},
        particles=particles.pop() if len(particles) == 1 else None,
        reached=reached,
    )
