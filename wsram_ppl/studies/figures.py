"""Figures that compare the variants of a study, PNG and SVG: the same data, the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from wsram_ppl.errors import RunError
from wsram_ppl.files import make_folder
from wsram_ppl.runs.metrics import Numbers, Rows, read_rows
from wsram_ppl.studies.results import smoothed

__all__ = ["COLOURS", "Drawn", "Line", "draw"]

#: Distinguishable with any colour vision (Okabe and Ito); beyond these, dashes differ.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
_DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
#: The colours of scales, from fine to coarse.
_SHADES: Final = ("#08306b", "#2e7ebc", "#9ecae1", "#e3eef9", "#f0b27a", "#b9770e")
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
    """A variant and the directories of its finished runs, one per seed."""

    label: str
    runs: Sequence[Path]


@dataclass(frozen=True)
class Drawn:
    """A figure that was drawn, or why it was not.

    Attributes:
        title, caption: what it shows, with the definitions that readers need.
        files: the PNG and the SVG; empty where there was nothing to draw.
    """

    name: str
    title: str
    caption: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class _Curve:
    """Mean and standard error (None for one seed) over seeds, at the steps that all seeds have."""

    steps: Numbers
    mean: Numbers
    se: Numbers | None

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
    smooth: bool
    prepare: Callable[[Axes], None]


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0.0)


def _logarithmic(axes: Axes) -> None:
    axes.set_yscale("log")


def _plain(axes: Axes) -> None:
    pass


_LINES: Final[dict[str, _Kind]] = {
    "error": _Kind(
        "train",
        "error",
        "Training error",
        "training error",
        "Share of the current minibatch's examples that are predicted wrongly, using as many sampled "
        "glimpse sequences as the objective has particles",
        True,
        _percent,
    ),
    "validation_error": _Kind(
        "eval",
        "error",
        "Validation error",
        "validation error",
        "Share of validation examples that are predicted wrongly",
        False,
        _percent,
    ),
    "nll_per_word": _Kind(
        "train",
        "nll_per_word",
        "Training loss per word",
        "negative log-likelihood (nats per word)",
        "For the current minibatch's sentences: -log of the mean probability over as many sequences of "
        "looks as the objective has particles, drawn from the model whatever the guide; with dropout",
        True,
        _plain,
    ),
    "bound": _Kind(
        "eval",
        "bound",
        "Bound on validation data",
        "bound (nats per example)",
        "Importance bound with the run's own number of particles of its guide",
        False,
        _plain,
    ),
    "ess": _Kind(
        "train",
        "ess",
        "Effective sample size",
        "effective sample size (particles)",
        "1 / (sum of squared normalised importance weights) per example, from 1 to the number of "
        "particles; mean over the current minibatch",
        True,
        _plain,
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
        False,
        _logarithmic,
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
            else:
                drawn.append(_curves(name, _LINES[name], lines, folder, window))
    return drawn


def _curves(name: str, kind: _Kind, lines: Sequence[Line], folder: Path, window: int) -> Drawn:
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.add_subplot()
    kind.prepare(axes)
    absent, seeds, last = [], set(), 1.0
    for index, line in enumerate(lines):
        rows = [read_rows(run, kind.split) for run in line.runs]
        curve = _mean_curve(rows, kind.column, window if kind.smooth else 1)
        if curve is not None and axes.get_yscale() == "log":
            curve = curve.where(curve.mean > 0)
        if curve is None or not len(curve.steps):
            absent.append(line.label)
            continue
        seeds.add(len(rows))
        last = max(last, curve.steps[-1])
        colour = COLOURS[index % len(COLOURS)]
        dashes = _DASHES[index // len(COLOURS) % len(_DASHES)]
        marker = "o" if len(curve.steps) < 3 else ""
        axes.plot(
            curve.steps,
            curve.mean,
            color=colour,
            linestyle=dashes,
            marker=marker,
            markersize=4,
            linewidth=1.6,
            label=_text(line.label),
        )
        if curve.se is not None:
            low, high = curve.mean - curve.se, curve.mean + curve.se
            axes.fill_between(curve.steps, low, high, color=colour, alpha=0.18, linewidth=0)
    caption = _caption(kind.what, window if kind.smooth else 1, seeds, absent)
    if not seeds:
        return Drawn(name, kind.title, f"Not drawn: no finished run has measured it. {caption}", ())
    _updates(axes, last)
    axes.set_ylabel(kind.axis)
    figure.legend(loc="outside right upper")
    return Drawn(name, kind.title, caption, _save(figure, folder, name))


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
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(1.2 + 2.5 * across + 1.0, 0.7 + 2.2 * down), layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    handles: dict[str, Any] = {}
    for axes, (label, names, curves_) in zip(grid.flat, panels, strict=False):
        shades = [_SHADES[i % len(_SHADES)] for i in range(len(names))]
        areas = axes.stackplot(
            curves_[0].steps, [c.mean for c in curves_], colors=shades, edgecolor="white", linewidth=0.3
        )
        for scale, area in zip(names, areas, strict=True):
            handles.setdefault(f"scale {scale}", area)
        axes.set_title(_text(label), fontsize=10)
        axes.set_ylim(0.0, 1.0)
        axes.set_xlim(curves_[0].steps[0], max(curves_[0].steps[-1], curves_[0].steps[0] + 1))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(False)
        axes.tick_params(labelbottom=True)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel("updates", fontsize=10)
    figure.supylabel("share of glimpses", fontsize=10)
    # In the order of the stack: coarse on top.
    figure.legend(list(handles.values())[::-1], list(handles)[::-1], loc="outside right upper")
    return Drawn("scales", title, caption, _save(figure, folder, "scales"))


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
    if absent:
        parts.append(f"Not shown, for lack of such numbers from finished runs: {', '.join(absent)}.")
    return " ".join(parts)


def _text(label: str) -> str:
    """A label for matplotlib: dollar signs escaped; a leading underscore would hide it."""
    return label.replace("$", r"\$").replace("_", " _", 1 if label.startswith("_") else 0)


def _updates(axes: Axes, last: float) -> None:
    axes.set_xlabel("updates")
    axes.set_xlim(0, last)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _save(figure: Figure, folder: Path, name: str) -> tuple[Path, ...]:
    files = folder / f"{name}.png", folder / f"{name}.svg"
    # No dates or versions in the files.
    empty: tuple[Mapping[str, Any], ...] = {"Software": None}, {"Date": None, "Creator": None}
    for file, metadata in zip(files, empty, strict=True):
        try:
            figure.savefig(file, dpi=150, metadata=metadata)
        except OSError as error:
            raise RunError(f"cannot write {file}: {error.strerror or error}") from error
    return files
