"""What all figures of a study share: pages, colours, captions and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from wsram_ppl.errors import RunError

#: Distinguishable with any colour vision (Okabe and Ito); beyond these, dashes differ.
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
DASHES: Final = ("-", (0, (5, 2)), (0, (1.5, 1.5)))


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
class Page:
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


WIDE: Final = Page(8.0, 4.2, "outside right upper", 6, 4)
NARROW: Final = Page(4.2, 3.4, "outside lower center", 4, 2)


def in_percent(axis: Axis, log: bool) -> None:
    """Labels an axis of fractions in percent."""
    if log:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))


def caption_of(
    what: str, window: int, seeds: set[int], absent: Sequence[str], *, shaded: bool = True
) -> str:
    """The caption of smoothed means over seeds.

    Args:
        what: is shown.
        window: of the smoothing.
        seeds: the numbers of seeds of the lines.
        absent: the labels of the lines that are not there.
        shaded: whether a band shows the standard error.
    """
    parts = [what + (f"; mean of the last {window} logged minibatches." if window > 1 else ".")]
    if seeds:
        count = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(max(seeds))
        band = "; shading: standard error" if shaded and max(seeds) > 1 else ""
        parts.append("One seed." if seeds == {1} else f"Mean over {count} seeds{band}.")
    return " ".join(parts) + missing(absent)


def missing(absent: Sequence[str]) -> str:
    """The end of a caption, on the lines that are not there."""
    named = ", ".join(absent)
    return f" Not shown, for lack of such numbers from finished runs: {named}." if absent else ""


def escaped(label: str) -> str:
    """A label for matplotlib: dollar signs escaped; a leading underscore would hide it."""
    return label.replace("$", r"\$").replace("_", " _", 1 if label.startswith("_") else 0)


def count_updates(axes: Axes, ticks: int) -> None:
    """Labels the axis of updates, with about so many whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def not_drawn(name: str, title: str, caption: str) -> Drawn:
    """A figure that lacks all its numbers."""
    return Drawn(name, title, f"Not drawn: no finished run has measured it. {caption}", ())


def write_figure(
    name: str,
    title: str,
    caption: str,
    folder: Path,
    paint: Callable[[Figure, Page], None],
    rows: int = 0,
) -> Drawn:
    """Paints a figure for both pages and writes the files.

    Args:
        rows: of the legend, which needs height on a narrow page.
    """
    wide, narrow = (Figure(figsize=(p.width, p.height), layout="constrained") for p in (WIDE, NARROW))
    narrow.set_figheight(NARROW.height + 0.2 * rows)
    paint(wide, WIDE)
    paint(narrow, NARROW)
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
