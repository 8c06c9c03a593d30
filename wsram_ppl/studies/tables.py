"""The table that compares the variants of a study: for programs and for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from wsram_ppl.studies.results import MEASURES, THRESHOLDS, Mean, Reached, Summary

__all__ = ["table_caption", "table_cells", "table_csv", "table_markdown"]


def table_csv(rows: Sequence[Summary]) -> str:
    """The table for programs: plain numbers, errors as fractions, empty where there is no value."""
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
    """The table for people: its head and its rows. Empty columns are left out."""
    columns: dict[str, list[str]] = {"variant": [row.label for row in rows]}
    columns["validation error"] = [_percent(row.measures["error"]) for row in rows]
    columns["paper's error"] = ["" if row.paper is None else f"{row.paper:.2%}" for row in rows]
    particles = {row.particles for row in rows if row.finished}
    known = next(iter(particles)) if len(particles) == 1 else None
    columns[f"bound (nats, M = {known})" if known else "bound (nats)"] = [
        _plus_minus(row.measures["bound"], 3) for row in rows
    ]
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
            if name == "validation error" or name.startswith("updates to"):
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
    """What the numbers in the table mean."""
    named = " or ".join(f"{threshold:.0%}" for threshold in thresholds)
    return (
        "Mean and standard error over seeds at the end of the runs. Validation error, bound (per "
        "example, with M particles; higher is better) and effective sample size (ESS): on validation "
        "data. "
        "Updates/s: without evaluations, under the machine's load at the time. "
        f"Updates to {named}: the first logged update "
        f"at which the training error, as the mean of the last {window} logged minibatches, is at most "
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
    # A minus sign, not a hyphen.
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
