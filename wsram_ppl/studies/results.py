"""What the runs of a study measured: read from their directories and averaged over seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from wsram_ppl.errors import InputError
from wsram_ppl.runs.directory import SUMMARY, RunDirectory
from wsram_ppl.runs.metrics import Numbers, Rows, read_rows
from wsram_ppl.studies.statistics import Mean

__all__ = [
    "MEASURES",
    "TEST",
    "THRESHOLDS",
    "Reached",
    "Summary",
    "read_summary",
    "read_test",
    "smoothed",
    "summarize",
    "updates_to_reach",
]

#: In a run's directory: what it scored on test data, put there once the study is done.
TEST: Final = "test.json"

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


def read_test(run: Path, updates: int) -> dict[str, float]:
    """The ``test_error`` of a run, if its directory holds what ``evaluate --split test --json`` printed.

    Args:
        updates: of the run.

    Raises:
        InputError: the file holds something else.
    """
    path = run / TEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.get("split") != "test":
            raise ValueError("it is not of the test split")
        if found.get("updates") != updates:
            raise ValueError(f"it is of {found.get('updates')} updates, not {updates}")
        return {"test_error": float(found["error"])} if "error" in found else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"cannot read {path}: {error}; wsram evaluate {run} --split test --json > {path} makes it"
        ) from error


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


def _is_long(rows: Rows, window: int) -> bool:
    """Whether there are as many training errors as are smoothed."""
    found = rows.measured("error")
    return found is not None and len(found[0]) >= window


@dataclass(frozen=True)
class Reached:
    """How many updates it took to reach a training error.

    Attributes:
        updates: the mean over seeds, if all reached it: a mean over those that did would flatter.
        reached, count: how many seeds reached it, of how many that were long enough to tell.
    """

    updates: Mean | None
    reached: int
    count: int


#: What a table shows of each variant, as far as it was measured.
MEASURES: Final = ("error", "test_error", "bound", "ess", "updates_per_second", "seconds")


@dataclass(frozen=True)
class Summary:
    """One row of the table: a variant's finished runs.

    Attributes:
        seed: the only one; None for a row of all seeds.
        failed, missing: runs that failed, and runs that have not started.
        values: of each of :data:`MEASURES`, by seed; empty where not measured (models without labels
            have no error).
        particles: of the bound and the effective sample size, if all runs use the same number.
        reached: for each threshold.
    """

    name: str
    label: str
    paper: float | None
    seed: int | None
    finished: int
    failed: int
    missing: int
    values: Mapping[str, Mapping[int, float]]
    particles: int | None
    reached: Mapping[float, Reached]

    def mean(self, measure: str) -> Mean | None:
        """Over seeds; None where not measured."""
        return Mean.of(self.values[measure].values())


def summarize(
    name: str,
    label: str,
    paper: float | None,
    runs: Mapping[int, Path],
    failed: int,
    missing: int,
    window: int,
    seed: int | None = None,
) -> Summary:
    """The row of a variant, or of one seed of it.

    Args:
        runs: directories of the finished runs, by seed.
        window: length of the smoothing window, in rows.
    """
    summaries = {each: read_summary(run) for each, run in runs.items()}
    for each, run in runs.items():
        summaries[each] |= read_test(run, summaries[each]["updates"])
    reached = {}
    training = [read_rows(run, "train") for run in runs.values()]
    training = [rows for rows in training if _is_long(rows, window)]
    for threshold in THRESHOLDS:
        updates = [updates_to_reach(rows, threshold, window) for rows in training]
        known = [value for value in updates if value is not None]
        mean = Mean.of(known) if len(known) == len(updates) else None
        reached[threshold] = Reached(mean, len(known), len(updates))
    particles = {summary.get("particles") for summary in summaries.values()}
    return Summary(
        name=name,
        label=label,
        paper=paper,
        seed=seed,
        finished=len(runs),
        failed=failed,
        missing=missing,
        values={m: {e: float(s[m]) for e, s in summaries.items() if m in s} for m in MEASURES},
        particles=particles.pop() if len(particles) == 1 else None,
        reached=reached,
    )
