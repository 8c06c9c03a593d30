"""Figures that compare the variants of a study, PNG and SVG: the same data, the same bytes.

Each is drawn twice, for a wide page and for a phone's, with letters of the same size.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)
from numpy.typing import NDArray

from wsram_ppl.errors import RunError
from wsram_ppl.files import make_folder
from wsram_ppl.runs.metrics import Numbers, Rows, read_rows
from wsram_ppl.studies.axes import fit
from wsram_ppl.studies.results import read_summary, read_test, smoothed
from wsram_ppl.studies.statistics import LEVEL, Mean

__all__ = ["COLOURS", "Drawn", "Line", "draw"]

#: Distinguishable with any colour vision (Okabe and Ito); beyond these, dashes differ.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
_DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
#: The colours of scales, from fine to coarse.
_SHADES: Final = ("#08306b", "#2e7ebc", "#9ecae1", "#e3eef9", "#f0b27a", "#b9770e")
#: Letters in a line of a small panel's title.
_TITLE: Final = 18
_STYLE: Final[dict[str, Any]] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e6ea",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "wsram_ppl",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Line:
    """A variant and the directories of its finished runs, one per seed.

    Attributes:
        paper: a published error.
    """

    label: str
    runs: Sequence[Path]
    paper: float | None = None


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn, or why it was not.

    Attributes:
        title, caption: what it shows, with the definitions that readers need.
        files: the PNG, the SVG and an SVG for a phone; empty where there was nothing to draw.
    """

    name: str
    title: str
    caption: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Page:
    """What a figure is drawn for.

    Attributes:
        width, height: in inches.
        legend: where.
        ticks: on the axis of updates.
        panels: beside each other.
    """

    width: float
    height: float
    legend: Literal["outside right upper", "outside lower center"]
    ticks: int
    panels: int


_WIDE: Final = _Page(8.0, 4.2, "outside right upper", 6, 4)
_NARROW: Final = _Page(4.2, 3.4, "outside lower center", 4, 2)


@dataclass(frozen=True)
class _Curve:
    """Mean and standard error (None for one seed) over seeds, at the steps that all seeds have."""

    steps: Numbers
    mean: Numbers
    se: Numbers | None

    @property
    def spread(self) -> Numbers:
        """How far the band goes to either side."""
        return np.zeros_like(self.mean) if self.se is None else self.se

    def where(self, known: NDArray[np.bool_]) -> _Curve:
        """The curve at a subset of its steps."""
        se = None if self.se is None else self.se[known]
        return _Curve(self.steps[known], self.mean[known], se)


@dataclass(frozen=True)
class _Kind:
    """How one number is drawn, with one line per variant."""

    split: str
    column: str
    title: str
    axis: str
    what: str
    smooth: bool = True
    percent: bool = False
    log: bool | None = False
    """None: where it helps."""


_LINES: Final[dict[str, _Kind]] = {
    "error": _Kind(
        "train",
        "error",
        "Training error",
        "training error",
        "Share of the current minibatch's examples that are predicted wrongly, using as many sampled "
        "glimpse sequences as the objective has particles",
        percent=True,
        log=None,
    ),
    "validation_error": _Kind(
        "eval",
        "error",
        "Validation error",
        "validation error",
        "Share of validation examples that are predicted wrongly",
        smooth=False,
        percent=True,
        log=None,
    ),
    "nll_per_word": _Kind(
        "train",
        "nll_per_word",
        "Training loss per word",
        "negative log-likelihood (nats per word)",
        "For the current minibatch's sentences: -log of the mean probability over as many sequences of "
        "looks as the objective has particles, drawn from the model whatever the guide; with dropout",
    ),
    "bound": _Kind(
        "eval",
        "bound",
        "Bound on validation data",
        "bound (nats per example)",
        "Importance bound with the run's own number of particles of its guide",
        smooth=False,
    ),
    "ess": _Kind(
        "train",
        "ess",
        "Effective sample size",
        "effective sample size (particles)",
        "1 / (sum of squared normalised importance weights) per example, from 1 to the number of "
        "particles; mean over the current minibatch",
    ),
    "variance": _Kind(
        "probe",
        "variance",
        "Gradient variance",
        "total variance of the gradient (nats²)",
        "Variance, summed over the model's parameters (without those of the guide and the coefficient "
        "networks), of the gradient of the mean loss per example, exploration terms included, over "
        "repeated draws of particles (probe_repeats in the config) on one fixed minibatch. It is not "
        "used for training and, for one seed, the same in all variants. The weights are those of the "
        "run at that update: every variant is measured along its own path",
        smooth=False,
        log=True,
    ),
}
_LINES["test_error"] = _LINES["validation_error"]  # the name in earlier studies


def draw(names: Sequence[str], lines: Sequence[Line], folder: Path, window: int) -> list[Drawn]:
    """Draws figures into ``folder`` as NAME.png and NAME.svg.

    Args:
        names: which (:data:`wsram_ppl.studies.definition.Figure`).
        lines: what to compare; a variant without finished runs is named in the caption.
        window: of the smoothing, in rows of the metrics.

    Raises:
        RunError: a file cannot be written.
    """
    make_folder(folder)
    drawn = []
    # In the library's own style: the user's matplotlib settings must not change the bytes.
    with style.context(["default", _STYLE]):
        for name in names:
            if name == "scales":
                drawn.append(_scales(lines, folder, window))
            elif name == "final_error":
                drawn.append(_final_error(lines, folder))
            else:
                drawn.append(_curves(name, _LINES[name], lines, folder, window))
    return drawn


def _curves(name: str, kind: _Kind, lines: Sequence[Line], folder: Path, window: int) -> Drawn:
    window = window if kind.smooth else 1
    curves: dict[int, _Curve] = {}
    for index, line in enumerate(lines):
        curve = _mean_curve([read_rows(run, kind.split) for run in line.runs], kind.column, window)
        if curve is not None and kind.log:
            curve = curve.where(curve.mean > 0)
        if curve is not None and len(curve.steps):
            curves[index] = curve
    seeds = {len(lines[index].runs) for index in curves}
    absent = [line.label for index, line in enumerate(lines) if index not in curves]
    caption = _caption(kind.what, window, seeds, absent)
    if not curves:
        return Drawn(name, kind.title, f"Not drawn: no finished run has measured it. {caption}", ())
    steps, means, spread = (
        np.concatenate([getattr(curve, part) for curve in curves.values()])
        for part in ("steps", "mean", "spread")
    )
    shown = fit(steps, means, spread, log=kind.log, percent=kind.percent)
    caption = f"{caption} {shown.note}".rstrip()

    def paint(figure: Figure, page: _Page) -> None:
        axes = figure.add_subplot()
        for index, curve in curves.items():
            colour = COLOURS[index % len(COLOURS)]
            dashes = _DASHES[index // len(COLOURS) % len(_DASHES)]
            axes.plot(
                curve.steps,
                curve.mean,
                color=colour,
                linestyle=dashes,
                marker="o" if len(curve.steps) < 3 else "",
                markersize=4,
                linewidth=1.6,
                label=_text(lines[index].label),
            )
            if curve.se is not None:
                low, high = curve.mean - curve.spread, curve.mean + curve.spread
                axes.fill_between(curve.steps, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_yscale("log" if shown.log else "linear")
        axes.set_ylim(shown.low, shown.high)
        if kind.percent:
            _in_percent(axes.yaxis, shown.log)
        axes.set_ylabel(kind.axis)
        axes.set_xlabel("updates")
        axes.set_xlim(0, max(1.0, steps.max()))
        _count_updates(axes, page.ticks)
        figure.legend(loc=page.legend)

    return _drawn(name, kind.title, caption, folder, paint, rows=len(curves))


def _in_percent(axis: Axis, log: bool) -> None:
    if log:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def _final_error(lines: Sequence[Line], folder: Path) -> Drawn:
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
    caption += _missing(absent)
    if not found:
        return Drawn("final_error", title, f"Not drawn: no finished run has measured it. {caption}", ())
    every = [value for _, errors in found for values in errors.values() for value in values]
    every += [line.paper for line, _ in found if line.paper is not None]
    marks = np.array(every)
    shown = fit(np.ones_like(marks), marks, np.zeros_like(marks), log=None, percent=True)
    caption = f"{caption} {shown.note}".rstrip()

    def paint(figure: Figure, page: _Page) -> None:
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
        axes.set_yticks(range(len(found)), [_text(line.label) for line, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_xscale("log" if shown.log else "linear")
        axes.set_xlim(shown.low, shown.high)
        _in_percent(axes.xaxis, shown.log)
        axes.set_xlabel("error")
        handles, labels = axes.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        figure.legend(list(once.values()), list(once), loc=page.legend)

    return _drawn("final_error", title, caption, folder, paint, rows=max(3, len(found) - 3))


def _scales(lines: Sequence[Line], folder: Path, window: int) -> Drawn:
    title = "Chosen scales"
    what = "Share of each scale among the glimpses sampled for the current minibatch; a scale is the "
    what += "number of image pixels per pixel of a glimpse"
    panels: list[tuple[str, list[str], list[_Curve]]] = []
    absent, seeds = [], set()
    for line in lines:
        rows = [read_rows(run, "train") for run in line.runs]
        columns = sorted(
            (c for c in (rows[0].columns if rows else ()) if c.startswith("scale_")), key=_scale_of
        )
        curves = [_mean_curve(rows, column, window) for column in columns]
        known = [curve for curve in curves if curve is not None]
        if not known or len(known) < len(columns):
            absent.append(line.label)
            continue
        seeds.add(len(rows))
        panels.append((line.label, [column.removeprefix("scale_") for column in columns], known))
    caption = _caption(what, window, seeds, absent, shaded=False)
    if not panels:
        return Drawn("scales", title, f"Not drawn: no finished run has measured it. {caption}", ())

    def paint(figure: Figure, page: _Page) -> None:
        across = min(page.panels, len(panels))
        down = -(-len(panels) // across)
        figure.set_size_inches(min(page.width, 2.2 + 2.5 * across), 0.7 + 2.2 * down + (page is _NARROW))
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        handles: dict[str, Any] = {}
        for axes, (label, names, curves) in zip(grid.flat, panels, strict=False):
            shades = [_SHADES[i % len(_SHADES)] for i in range(len(names))]
            steps, means = curves[0].steps, [curve.mean for curve in curves]
            areas = axes.stackplot(steps, means, colors=shades, edgecolor="white", linewidth=0.3)
            for scale, area in zip(names, areas, strict=True):
                handles.setdefault(f"scale {scale}", area)
            axes.set_title(textwrap.fill(_text(label), _TITLE), fontsize=10)
            axes.set_ylim(0.0, 1.0)
            axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
            _in_percent(axes.yaxis, log=False)
            _count_updates(axes, 2)
            axes.grid(False)
            axes.tick_params(labelbottom=True)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        for axes in list(grid.flat)[len(panels) - across : len(panels)]:  # the last of each column
            axes.set_xlabel("updates")
        figure.supylabel("share of glimpses", fontsize=10)
        # In the order of the stack: coarse on top.
        figure.legend(list(handles.values())[::-1], list(handles)[::-1], loc=page.legend)

    return _drawn("scales", title, caption, folder, paint)


def _scale_of(column: str) -> tuple[float, str]:
    try:
        return float(column.removeprefix("scale_")), column
    except ValueError:
        return float("inf"), column


def _mean_curve(rows: Sequence[Rows], column: str, window: int) -> _Curve | None:
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
    return _Curve(steps, values.mean(0), se)


def _caption(
    what: str, window: int, seeds: set[int], absent: Sequence[str], *, shaded: bool = True
) -> str:
    parts = [what + (f"; mean of the last {window} logged minibatches." if window > 1 else ".")]
    if seeds:
        count = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(max(seeds))
        band = "; shading: standard error" if shaded and max(seeds) > 1 else ""
        parts.append("One seed." if seeds == {1} else f"Mean over {count} seeds{band}.")
    return " ".join(parts) + _missing(absent)


def _missing(absent: Sequence[str]) -> str:
    named = ", ".join(absent)
    return f" Not shown, for lack of such numbers from finished runs: {named}." if absent else ""


def _text(label: str) -> str:
    """A label for matplotlib: dollar signs escaped; a leading underscore would hide it."""
    return label.replace("$", r"\$").replace("_", " _", 1 if label.startswith("_") else 0)


def _count_updates(axes: Axes, ticks: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _drawn(
    name: str,
    title: str,
    caption: str,
    folder: Path,
    paint: Callable[[Figure, _Page], None],
    rows: int = 0,
) -> Drawn:
    """Paints a figure for both pages and writes the files.

    Args:
        rows: of the legend, which needs height on a narrow page.
    """
    wide, narrow = (Figure(figsize=(p.width, p.height), layout="constrained") for p in (_WIDE, _NARROW))
    narrow.set_figheight(_NARROW.height + 0.2 * rows)
    paint(wide, _WIDE)
    paint(narrow, _NARROW)
    files = tuple(folder / f"{name}{end}" for end in (".png", ".svg", "-narrow.svg"))
    for figure, file in zip((wide, wide, narrow), files, strict=True):
        _save(figure, file)
    return Drawn(name, title, caption, files)


def _save(figure: Figure, file: Path) -> None:
    # No dates or versions in the files.
    metadata: Mapping[str, Any] = {"Software": None}
    if file.suffix == ".svg":
        metadata = {"Date": None, "Creator": None}
    try:
        figure.savefig(file, dpi=150, metadata=metadata)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror or error}") from error
