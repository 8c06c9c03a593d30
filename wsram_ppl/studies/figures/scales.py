"""Which scales a model looks at along the updates: a panel per variant, its shares stacked."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.figure import Figure

from wsram_ppl.runs.metrics import read_rows
from wsram_ppl.studies.figures.curves import Curve, mean_curve
from wsram_ppl.studies.figures.pages import (
    NARROW,
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

#: The colours of scales, from fine to coarse.
_SHADES: Final = ("#08306b", "#2e7ebc", "#9ecae1", "#e3eef9", "#f0b27a", "#b9770e")
#: Letters in a line of a small panel's title.
_TITLE: Final = 18


def draw_scales(lines: Sequence[Line], folder: Path, window: int) -> Drawn:
    """Draws the shares of the scales (see :func:`wsram_ppl.studies.figures.draw`)."""
    title = "Chosen scales"
    what = "Share of each scale among the glimpses sampled for the current minibatch; a scale is the "
    what += "number of image pixels per pixel of a glimpse"
    panels: list[tuple[str, list[str], list[Curve]]] = []
    absent, seeds = [], set()
    for line in lines:
        rows = [read_rows(run, "train") for run in line.runs]
        columns = sorted(
            (c for c in (rows[0].columns if rows else ()) if c.startswith("scale_")), key=_scale_of
        )
        curves = [mean_curve(rows, column, window) for column in columns]
        known = [curve for curve in curves if curve is not None]
        if not known or len(known) < len(columns):
            absent.append(line.label)
            continue
        seeds.add(len(rows))
        panels.append((line.label, [column.removeprefix("scale_") for column in columns], known))
    caption = caption_of(what, window, seeds, absent, shaded=False)
    if not panels:
        return not_drawn("scales", title, caption)

    def paint(figure: Figure, page: Page) -> None:
        across = min(page.panels, len(panels))
        down = -(-len(panels) // across)
        figure.set_size_inches(min(page.width, 2.2 + 2.5 * across), 0.7 + 2.2 * down + (page is NARROW))
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        handles: dict[str, Any] = {}
        for axes, (label, names, curves) in zip(grid.flat, panels, strict=False):
            shades = [_SHADES[i % len(_SHADES)] for i in range(len(names))]
            steps, means = curves[0].steps, [curve.mean for curve in curves]
            areas = axes.stackplot(steps, means, colors=shades, edgecolor="white", linewidth=0.3)
            for scale, area in zip(names, areas, strict=True):
                handles.setdefault(f"scale {scale}", area)
            axes.set_title(textwrap.fill(escaped(label), _TITLE), fontsize=10)
            axes.set_ylim(0.0, 1.0)
            axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
            in_percent(axes.yaxis, log=False)
            count_updates(axes, 2)
            axes.grid(False)
            axes.tick_params(labelbottom=True)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in list(grid.flat)[len(panels) - across : len(panels)]:  # the last of each column
            axes.set_xlabel("updates")
        figure.supylabel("share of glimpses", fontsize=10)
        # In the order of the stack: coarse on top.
        figure.legend(list(handles.values())[::-1], list(handles)[::-1], loc=page.legend)

    return write_figure("scales", title, caption, folder, paint)


def _scale_of(column: str) -> tuple[float, str]:
    try:
        return float(column.removeprefix("scale_")), column
    except ValueError:
        return float("inf"), column
