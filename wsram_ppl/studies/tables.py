"""The tables that compare the variants of a study: for programs and for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from wsram_ppl.config import ExperimentConfig
from wsram_ppl.studies.results import MEASURES, THRESHOLDS, Reached, Summary
from wsram_ppl.studies.statistics import (
    LEVEL,
    RANKING_SEEDS,
    Difference,
    Mean,
    clear_best,
    paired_difference,
)

__all__ = [
    "COMPARED",
    "Table",
    "differences_table",
    "duration",
    "results_table",
    "settings_table",
    "table_csv",
]

#: The measures that are compared with the reference's.
COMPARED: Final = ("error", "test_error", "bound", "ess")


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: what it shows.
        head: a title for each column.
        body: rows of as many cells.
        caption: what the numbers are.
        best: row and column of the cells that lie clear of all others in their column.
    """

    title: str
    head: list[str]
    body: list[list[str]]
    caption: str
    best: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> str:
        """In Markdown, with its caption below."""
        shown = [[_escaped(cell) for cell in row] for row in self.body]
        for row, column in self.best:
            shown[row][column] = f"**{shown[row][column]}**"
        lines = [[_escaped(cell) for cell in self.head], ["---"] * len(self.head), *shown]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{self.caption}\n"


# ---------------------------------------------------------------- for programs


def table_csv(rows: Sequence[Summary], reference: str = "") -> str:
    """Plain numbers, errors as fractions, empty where there is none.

    Args:
        rows: in the order of the file; those of one seed have it in the column ``seed``.
        reference: the name of the variant that differences are to, paired by seed.
    """
    file = io.StringIO()
    head = ["variant", "label", "seed", "finished", "failed", "missing"]
    parts = ("mean", "se", "low", "high")
    head += [f"{measure}_{part}" for measure in MEASURES for part in parts]
    head += ["particles", "paper_error"]
    for threshold in THRESHOLDS:
        start = f"updates_to_{threshold:.0%}".replace("%", "")
        head += [f"{start}_{part}" for part in (*parts, "reached")]
    head.append("reference")
    ends = ("", "_low", "_high", "_agreeing", "_pairs")
    head += [f"{measure}_difference{end}" for measure in COMPARED for end in ends]
    whole = {row.name: row for row in rows if row.seed is None}
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        cells: list[object] = [row.name, row.label, row.seed, row.finished, row.failed, row.missing]
        for measure in MEASURES:
            cells += _parts(row.mean(measure))
        cells += [row.particles, row.paper]
        for threshold in THRESHOLDS:
            reached = row.reached[threshold]
            cells += [*_parts(reached.updates), reached.reached]
        cells.append(reference)
        for measure in COMPARED:
            found = _compared(row, whole.get(reference), measure)
            if found is None:
                cells += [None] * len(ends)
            else:
                mean, _, low, high = _parts(found.mean)
                cells += [mean, low, high, found.agreeing, found.mean.count]
        writer.writerow(["" if c is None else f"{c:.6g}" if isinstance(c, float) else c for c in cells])
    return file.getvalue()


def _parts(mean: Mean | None) -> list[float | None]:
    if mean is None:
        return [None] * 4
    return [mean.value, mean.se, *(mean.interval or (None, None))]


def _compared(row: Summary, reference: Summary | None, measure: str) -> Difference | None:
    """None for the reference itself, and where there is nothing to compare."""
    if reference is None or row.name == reference.name:
        return None
    return paired_difference(row.values[measure], reference.values[measure])


# ---------------------------------------------------------------- for people


def results_table(rows: Sequence[Summary], window: int) -> Table:
    """What the variants have come to. Columns without any number are left out.

    Args:
        window: of the smoothing of training errors, in rows of the metrics.
    """
    columns: dict[str, list[str]] = {"variant": [row.label for row in rows]}
    best: dict[str, int | None] = {}
    has_error = any(row.values["error"] for row in rows)
    for name, measure in (("validation error", "error"), ("test error", "test_error")):
        columns[name] = [_percent(row.mean(measure)) + _some(row, measure) for row in rows]
        best[name] = clear_best([row.mean(measure) for row in rows], lowest=True)
    columns["paper's error"] = ["" if row.paper is None else f"{row.paper:.2%}" for row in rows]
    particles = {row.particles for row in rows if row.finished}
    known = next(iter(particles)) if len(particles) == 1 else None
    name = f"bound (nats, M = {known})" if known else "bound (nats)"
    columns[name] = [_number(row.mean("bound"), 3) for row in rows]
    if known:  # bounds of different numbers of particles say nothing of each other
        best[name] = clear_best([row.mean("bound") for row in rows], lowest=False)
    each = ["" if known or not row.particles else f" of {row.particles}" for row in rows]
    columns[f"ESS (of {known})" if known else "ESS"] = [
        _number(row.mean("ess"), 2) + of for row, of in zip(rows, each, strict=True)
    ]
    columns["updates/s"] = [_number(row.mean("updates_per_second"), 1) for row in rows]
    if has_error:
        for threshold in THRESHOLDS:
            columns[f"updates to {threshold:.0%}"] = [_reached(row.reached[threshold]) for row in rows]
    columns["runs"] = [_runs(row) for row in rows]
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    head = list(shown)
    marked = {(row, head.index(name)) for name, row in best.items() if row is not None}
    body = [list(cells) for cells in zip(*shown.values(), strict=True)]
    return Table("Results", head, body, _caption(head, window, bool(marked)), frozenset(marked))


def _caption(head: Sequence[str], window: int, marked: bool) -> str:
    parts = [
        f"Mean over seeds, and in brackets its {LEVEL:.0%} bootstrap interval over seeds: with three "
        "seeds that is no more than from the least to the greatest.",
        "Validation error, bound (per example, with M particles; higher is better) and effective sample "
        "size (ESS): on validation data, at the end of the runs.",
    ]
    if "test error" in head:
        parts.append("Test error: as evaluated after the runs.")
    if marked:
        parts.append(
            "Bold: better than all others, with at least "
            f"{RANKING_SEEDS} seeds each and an interval that overlaps no other."
        )
    parts.append("Updates/s: without evaluations, as the machine was then loaded.")
    if any(name.startswith("updates to") for name in head):
        named = " or ".join(f"{threshold:.0%}" for threshold in THRESHOLDS)
        parts.append(
            f"Updates to {named}: the first logged update at which the training error, as the mean of "
            f"the last {window} logged minibatches, is at most that; given only if every finished seed "
            "reached it."
        )
    return " ".join(parts)


#: How a difference is shown: its title, a factor and digits.
_DIFFERENCES: Final = {
    "error": ("validation error (points)", 100.0, 2),
    "test_error": ("test error (points)", 100.0, 2),
    "bound": ("bound (nats)", 1.0, 3),
    "ess": ("ESS", 1.0, 2),
}


def differences_table(rows: Sequence[Summary], reference: str) -> Table | None:
    """How much more each variant has than the reference, seed by seed; None with nothing to compare.

    Args:
        reference: the name of a variant.
    """
    base = next(row for row in rows if row.name == reference)
    others = [row for row in rows if row.name != reference]
    columns: dict[str, list[str]] = {"variant": [row.label for row in others]}
    unpaired: list[set[int]] = [set() for _ in others]
    for measure, (title, factor, digits) in _DIFFERENCES.items():
        found = [_compared(row, base, measure) for row in others]
        columns[title] = [_difference(each, factor, digits) for each in found]
        for seeds, each in zip(unpaired, found, strict=True):
            seeds.update(each.unpaired if each is not None else ())
    columns["left out"] = [
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}" if seeds else ""
        for seeds in unpaired
    ]
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    if not shown.keys() - {"variant", "left out"}:
        return None
    caption = (
        f"Each variant minus {base.label}, seed by seed: the mean of the differences, in brackets its "
        f"{LEVEL:.0%} bootstrap interval over seeds, and in how many seeds the difference has the sign "
        "of the mean. An error below zero and a bound above it are better than the reference's."
    )
    if "left out" in shown:
        caption += " Left out: seeds that only one of the two has."
    body = [list(cells) for cells in zip(*shown.values(), strict=True)]
    return Table(f"Differences to {base.label}", list(shown), body, caption)


def settings_table(configs: Sequence[tuple[str, ExperimentConfig]]) -> Table | None:
    """The keys of resolved configs that are not equal in all; None where all are.

    Args:
        configs: each with the title of its variant.
    """
    options = [config.keys() for _, config in configs]
    body = []
    for key in dict.fromkeys(key for each in options for key in each):
        values = [each.get(key) for each in options]
        if any(value != values[0] for value in values):
            body.append([key, *("" if value is None else _plain(value) for value in values)])
    if not body:
        return None
    caption = "Every key of the resolved configs that is not equal in all variants (first seed)."
    return Table(
        "What differs between the variants", ["key", *(title for title, _ in configs)], body, caption
    )


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


# ---------------------------------------------------------------- cells


def duration(seconds: float) -> str:
    """As one says it, with two units: ``3 h 20 min``."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _percent(mean: Mean | None) -> str:
    if mean is None:
        return ""
    return f"{mean.value:.2%}" + _bracket(mean, lambda value: f"{100 * value:.2f}")


def _number(mean: Mean | None, digits: int) -> str:
    if mean is None:
        return ""
    form = f".{digits}f" if abs(mean.value) < 1e5 else ".3g"
    return _minus(f"{mean.value:{form}}" + _bracket(mean, lambda value: f"{value:{form}}"))


def _difference(found: Difference | None, factor: float, digits: int) -> str:
    if found is None:
        return ""

    def signed(value: float) -> str:
        return f"{factor * value:+.{digits}f}"

    mean = found.mean
    return _minus(
        f"{signed(mean.value)}{_bracket(mean, signed)}, {found.agreeing} of {mean.count} seed"
        + "s" * (mean.count > 1)
    )


def _bracket(mean: Mean, shown: Callable[[float], str]) -> str:
    """The interval after a mean, if it has one."""
    return "" if mean.interval is None else f" [{', '.join(map(shown, mean.interval))}]"


def _minus(text: str) -> str:
    """No hyphens for minus signs."""
    return text.replace("-", "−")


def _reached(reached: Reached) -> str:
    if reached.count == 0:
        return ""
    if reached.updates is None:
        some = f" ({reached.reached} of {reached.count} seeds did)" if reached.reached else ""
        return f"not reached{some}"
    return _number(reached.updates, 0)


def _some(row: Summary, measure: str) -> str:
    """Where only some of the seeds have been measured: how many."""
    count = len(row.values[measure])
    return f" ({count} of {row.finished} seeds)" if 0 < count < row.finished else ""


def _runs(row: Summary) -> str:
    parts = [str(row.finished)] if row.finished else []
    parts += [f"{row.failed} failed"] if row.failed else []
    parts += [f"{row.missing} not run"] if row.missing else []
    return ", ".join(parts)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|")
