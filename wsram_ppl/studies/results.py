"""What runs measured, read from their directories, and the table that compares the variants."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsram_ppl.errors import InputError
from wsram_ppl.runs.directory import METRICS, SUMMARY

__all__ = [
    "THRESHOLDS",
    "Mean",
    "Reached",
    "Rows",
    "Summary",
    "read_rows",
    "read_summary",
    "smoothed",
    "summarize",
    "table_csv",
    "table_markdown",
    "updates_to_reach",
]

#: Training errors at which the updates are counted.
THRESHOLDS: Final = (0.5, 0.2)

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """The rows of one split of a run's ``metrics.csv``.

    Attributes:
        steps: updates done, ``[T]``, increasing.
        columns: each ``[T]``; NaN where a row says nothing.
    """

    steps: Numbers
    columns: Mapping[str, Numbers]

    def measured(self, name: str) -> tuple[Numbers, Numbers] | None:
        """Steps and values of the rows that have this number; None where none has."""
        values = self.columns.get(name)
        if values is None or not (known := ~np.isnan(values)).any():
            return None
        return self.steps[known], values[known]


def read_rows(run: Path, split: str) -> Rows:
    """The rows of a split (``train``, ``eval``, ``probe``); none if it has none.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run / METRICS
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [row for row in reader if row["split"] == split]
            names = [name for name in reader.fieldnames or () if name not in ("step", "split")]
        steps = np.array([int(row["step"]) for row in rows], dtype=np.float64)
        columns = {
            name: np.array([float(row[name] or "nan") for row in rows], dtype=np.float64)
            for name in names
        }
    except (OSError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    return Rows(steps, columns)


def read_summary(run: Path) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
        InputError: it is damaged.
    """
    path = run / SUMMARY
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; remove the run to do it again") from error
    if not isinstance(summary, dict):
        raise InputError(f"{path} is no summary; remove the run to do it again")
    return summary


def smoothed(values: Numbers, window: int) -> Numbers:
    """Each value's mean with the up to ``window`` - 1 values before it; ``[T] -> [T]``."""
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    means: Numbers = (sums[ends] - sums[starts]) / (ends - starts)
    return means


def updates_to_reach(rows: Rows, threshold: float, window: int) -> float | None:
    """The first update at which the mean of the last ``window`` training errors is at most this.

    None: never, or not measured, or fewer rows than the window has.
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
    """After how many updates a training error was reached.

    Attributes:
        updates: the mean over seeds, if all reached it: one over those that did would be flattering.
        reached, count: how many seeds did, of how many.
    """

    updates: Mean | None
    reached: int
    count: int


@dataclass(frozen=True)
class Summary:
    """One row of the table: a variant's finished runs.

    Attributes:
        failed, missing: runs that failed, and that were not run.
        measures: ``error`` (None for models without), ``log_likelihood``, ``ess``,
            ``updates_per_second``.
        particles: behind the bound and the effective sample size, where all runs have as many.
        reached: by threshold.
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


MEASURES: Final = ("error", "log_likelihood", "ess", "updates_per_second")


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
        window: of the smoothing, in rows.
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


# ---------------------------------------------------------------- tables


def table_csv(rows: Sequence[Summary]) -> str:
    """The table for programs: plain numbers, errors as fractions, empty where there is none."""
    file = io.StringIO()
    head = ["variant", "label", "finished", "failed", "missing"]
    head += [f"{measure}_{part}" for measure in MEASURES for part in ("mean", "se")]
    head += ["particles", "paper_error"]
    for threshold in THRESHOLDS:
        start = f"updates_to_{threshold:.0%}".replace("%", "")
        head += [f"{start}_mean", f"{start}_se", f"{start}_reached"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        cells: list[object] = [row.name, row.label, row.finished, row.failed, row.missing]
        for measure in MEASURES:
            cells += _parts(row.measures[measure])
        cells += [row.particles, row.paper]
        for threshold in THRESHOLDS:
            reached = row.reached[threshold]
            cells += [*_parts(reached.updates), reached.reached]
        writer.writerow(["" if c is None else f"{c:.6g}" if isinstance(c, float) else c for c in cells])
    return file.getvalue()


def table_cells(rows: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """The table for people: its head and its rows. Columns without any number are left out."""
    columns: dict[str, list[str]] = {"variant": [row.label for row in rows]}
    columns["test error"] = [_percent(row.measures["error"]) for row in rows]
    columns["paper's error"] = ["" if row.paper is None else f"{row.paper:.2%}" for row in rows]
    columns["bound (nats)"] = [_plus_minus(row.measures["log_likelihood"], 3) for row in rows]
    particles = {row.particles for row in rows if row.finished}
    known = next(iter(particles)) if len(particles) == 1 else None
    each = ["" if known or not row.particles else f" of {row.particles}" for row in rows]
    columns[f"ESS (of {known})" if known else "ESS"] = [
        _plus_minus(row.measures["ess"], 2) + of for row, of in zip(rows, each, strict=True)
    ]
    columns["updates/s"] = [_plus_minus(row.measures["updates_per_second"], 1) for row in rows]
    for threshold in THRESHOLDS:
        columns[f"updates to {threshold:.0%}"] = [_reached(row.reached[threshold], row) for row in rows]
    columns["runs"] = [_runs(row) for row in rows]
    if all(row.measures["error"] is None for row in rows):
        for name in list(columns):
            if name == "test error" or name.startswith("updates to"):
                del columns[name]
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    return list(shown), [list(cells) for cells in zip(*shown.values(), strict=True)]


def table_markdown(rows: Sequence[Summary], caption: str) -> str:
    """The table for people, in Markdown, with its caption below."""
    head, body = table_cells(rows)
    lines = [head, ["---"] * len(head), *body]
    text = "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)
    return f"{text}\n\n{caption}\n"


def table_caption(window: int, thresholds: Sequence[float] = THRESHOLDS) -> str:
    """What the numbers of the table are."""
    named = " or ".join(f"{threshold:.0%}" for threshold in thresholds)
    return (
        "Mean and standard error over seeds at the end of the runs. Test error, bound (per example, "
        "higher is better) and effective sample size (ESS): on held-out data. Updates/s: without "
        f"evaluations, as the machine was then loaded. Updates to {named}: the first logged update at "
        f"which the training error, as the mean of the last {window} logged minibatches, is at most "
        "that; given only if every finished seed reached it."
    )


def _parts(mean: Mean | None) -> list[float | None]:
    return [None, None] if mean is None else [mean.value, mean.se]


def _percent(mean: Mean | None) -> str:
    if mean is None:
        return ""
    se = "" if mean.se is None else f" ± {100 * mean.se:.2f}"
    return f"{100 * mean.value:.2f}{se}%"


def _plus_minus(mean: Mean | None, digits: int) -> str:
    if mean is None:
        return ""
    form = f".{digits}f" if abs(mean.value) < 1e5 else ".3g"
    se = "" if mean.se is None else f" ± {mean.se:{form}}"
    # No hyphen for a minus sign.
    return f"{mean.value:{form}}{se}".replace("-", "−")


def _reached(reached: Reached, row: Summary) -> str:
    if row.finished == 0:
        return ""
    if reached.updates is None:
        some = f" ({reached.reached} of {reached.count} seeds did)" if reached.reached else ""
        return f"not reached{some}"
    return _plus_minus(reached.updates, 0)


def _runs(row: Summary) -> str:
    parts = [str(row.finished)] if row.finished else []
    parts += [f"{row.failed} failed"] if row.failed else []
    parts += [f"{row.missing} not run"] if row.missing else []
    return ", ".join(parts)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|")
