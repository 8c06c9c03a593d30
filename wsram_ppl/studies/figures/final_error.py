"""The errors that the runs ended with: a mark per seed, their mean and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from wsram_ppl.studies.figures.axes import fit
from wsram_ppl.studies.figures.pages import (
    COLOURS,
    Drawn,
    Line,
    Page,
    escaped,
    in_percent,
    missing,
    not_drawn,
    write_figure,
)
from wsram_ppl.studies.results import read_summary, read_test
from wsram_ppl.studies.statistics import LEVEL, Mean


def draw_final_error(lines: Sequence[Line], folder: Path) -> Drawn:
    """Draws the errors at the end (see :func:`wsram_ppl.studies.figures.draw`)."""
    title, kinds = "Errors at the end", ("validation", "test")
    found: list[tuple[Line, dict[str, list[float]]]] = []
    for line in lines:
        errors: dict[str, list[float]] = {kind: [] for kind in kinds}
        for run in line.runs:
            summary = read_summary(run)
            scored = read_test(run, summary["updates"])
            for kind, values, key in zip(kinds, (summary, scored), ("error", "test_error"), strict=True):
                errors[kind] += [float(values[key])] if key in values else []
        if errors["validation"]:
            found.append((line, errors))
    absent = [line.label for line in lines if line not in [each for each, _ in found]]
    caption = (
        "Each small mark is a seed; the larger one is their mean, on its "
        f"{LEVEL:.0%} bootstrap interval. Test errors are of runs that were evaluated on the test split."
    )
    caption += missing(absent)
    if not found:
        return not_drawn("final_error", title, caption)
    every = [value for _, errors in found for values in errors.values() for value in values]
    every += [line.paper for line, _ in found if line.paper is not None]
    marks = np.array(every)
    shown = fit(np.ones_like(marks), marks, np.zeros_like(marks), log=None, percent=True)
    caption = f"{caption} {shown.note}".rstrip()

    def paint(figure: Figure, page: Page) -> None:
        axes = figure.add_subplot()
        for place, (line, errors) in enumerate(found):
            for kind, colour, marker, aside in zip(kinds, COLOURS, "os", (-0.14, 0.14), strict=False):
                if mean := Mean.of(errors[kind]):
                    at = place + aside
                    axes.plot(errors[kind], [at] * mean.count, marker, color=colour, ms=4, alpha=0.45)
                    axes.plot(mean.interval or [mean.value] * 2, [at] * 2, color=colour, linewidth=1.6)
                    axes.plot(mean.value, at, marker, color=colour, ms=7, label=f"{kind} error")
            if line.paper is not None:
                axes.plot(line.paper, place, "|", color=COLOURS[6], ms=16, mew=2, label="paper's error")
        axes.set_yticks(range(len(found)), [escaped(line.label) for line, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xscale("log" if shown.log else "linear")
        axes.set_xlim(shown.low, shown.high)
        in_percent(axes.xaxis, shown.log)
        axes.set_xlabel("error")
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(list(once.values()), list(once), loc=page.legend)

    return write_figure("final_error", title, caption, folder, paint, rows=max(3, len(found) - 3))
