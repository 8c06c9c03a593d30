"""A measure along the updates: a line per variant, its mean over seeds and a band around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wsram_ppl.runs.metrics import Numbers, Rows, read_rows
from wsram_ppl.studies.figures.axes import fit
from wsram_ppl.studies.figures.pages import (
    COLOURS,
    DASHES,
    Drawn,
    Line,
    Page,
    caption_of,
    count_updates,
    escaped,
    in_percent,
    not_drawn,
    write_figure,
)
from wsram_ppl.studies.figures.quantities import Quantity
from wsram_ppl.studies.results import smoothed


@dataclass(frozen=True)
class Curve:
    """Mean and standard error (None for one seed) over seeds, at the steps that all seeds have."""

    steps: Numbers
    mean: Numbers
    se: Numbers | None

    @property
    def spread(self) -> Numbers:
        """How far the band goes to either side."""
        return np.zeros_like(self.mean) if self.se is None else self.se

    def where(self, known: NDArray[np.bool_]) -> Curve:
        """The curve at a subset of its steps."""
        se = None if self.se is None else self.se[known]
        return Curve(self.steps[known], self.mean[known], se)


def draw_curves(name: str, kind: Quantity, lines: Sequence[Line], folder: Path, window: int) -> Drawn:
    """Draws a measure along the updates (see :func:`wsram_ppl.studies.figures.draw`)."""
    window = window if kind.smooth else 1
    curves: dict[int, Curve] = {}
    for index, line in enumerate(lines):
        curve = mean_curve([read_rows(run, kind.split) for run in line.runs], kind.column, window)
        if curve is not None and kind.log:
            curve = curve.where(curve.mean > 0)
        if curve is not None and len(curve.steps):
            curves[index] = curve
    seeds = {len(lines[index].runs) for index in curves}
    absent = [line.label for index, line in enumerate(lines) if index not in curves]
    caption = caption_of(kind.what, window, seeds, absent)
    if not curves:
        return not_drawn(name, kind.title, caption)
    steps, means, spread = (
        np.concatenate([getattr(curve, part) for curve in curves.values()])
        for part in ("steps", "mean", "spread")
    )
    shown = fit(steps, means, spread, log=kind.log, percent=kind.percent)
    caption = f"{caption} {shown.note}".rstrip()

    def paint(figure: Figure, page: Page) -> None:
        axes = figure.add_subplot()
        for index, curve in curves.items():
            colour = COLOURS[index % len(COLOURS)]
            dashes = DASHES[index // len(COLOURS) % len(DASHES)]
            axes.plot(
                curve.steps,
                curve.mean,
                color=colour,
                linestyle=dashes,
                marker="o" if len(curve.steps) < 3 else "",
                markersize=4,
                linewidth=1.6,
                label=escaped(lines[index].label),
            )
            if curve.se is not None:
                low, high = curve.mean - curve.spread, curve.mean + curve.spread
                axes.fill_between(curve.steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_yscale("log" if shown.log else "linear")
        axes.set_ylim(shown.low, shown.high)
        if kind.percent:
            in_percent(axes.yaxis, shown.log)
        axes.set_ylabel(kind.axis)
        axes.set_xlabel("updates")
        axes.set_xlim(0, max(1.0, steps.max()))
        count_updates(axes, page.ticks)
        figure.legend(loc=page.legend)

    return write_figure(name, kind.title, caption, folder, paint, rows=len(curves))


def mean_curve(rows: Sequence[Rows], column: str, window: int) -> Curve | None:
    """The mean and standard error over the smoothed runs; None if a run lacks the number."""
    measured = [run.measured(column) for run in rows]
    known = [found for found in measured if found is not None]
    if not known or len(known) < len(rows):
        return None
    steps: Numbers = reduce(np.intersect1d, [steps for steps, _ in known])
    if not len(steps):
        return None
    values = np.stack([smoothed(v, window)[np.isin(s, steps)] for s, v in known])
    se = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return Curve(steps, values.mean(0), se)
