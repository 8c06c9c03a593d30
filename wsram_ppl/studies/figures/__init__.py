"""Figures that compare the variants of a study, PNG and SVG: the same data, the same bytes.

Each is drawn twice, for a wide page and for a phone's, with letters of the same size. ``pages`` is what
all share, ``axes`` chooses what an axis shows; ``curves`` (of ``quantities``), ``final_error`` and
``scales`` are the kinds of figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib import style

from wsram_ppl.files import make_folder
from wsram_ppl.studies.figures.curves import draw_curves
from wsram_ppl.studies.figures.final_error import draw_final_error
from wsram_ppl.studies.figures.pages import COLOURS, Drawn, Line
from wsram_ppl.studies.figures.quantities import QUANTITIES
from wsram_ppl.studies.figures.scales import draw_scales

__all__ = ["COLOURS", "Drawn", "Line", "draw"]

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
                drawn.append(draw_scales(lines, folder, window))
            elif name == "final_error":
                drawn.append(draw_final_error(lines, folder))
            else:
                drawn.append(draw_curves(name, QUANTITIES[name], lines, folder, window))
    return drawn
