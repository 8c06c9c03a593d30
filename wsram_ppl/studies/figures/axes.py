"""Which values an axis shows: curves are to be told apart, and not squeezed by how they begin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from wsram_ppl.runs.metrics import Numbers

__all__ = ["Range", "fit"]

#: An axis is logarithmic, if it may be, where what comes after the beginning spans such a factor.
_LOG_FROM: Final = 8.0
#: The part of a run that is its beginning.
_BEGINNING: Final = 0.1
#: The axis leaves out what only the beginning has, once all values span so much more than the others.
_TOO_WIDE: Final = 2.0


@dataclass(frozen=True)
class Range:
    """The ends of an axis.

    Attributes:
        low, high: None: as far as the values go.
        note: what a reader should know of it, "" for nothing.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    note: str = ""


def fit(
    steps: Numbers, means: Numbers, spread: Numbers, *, log: bool | None, percent: bool = False
) -> Range:
    """The range of an axis for values measured along a run, all curves' together.

    Args:
        steps: updates behind each value, ``[T]``.
        means: the values, ``[T]``.
        spread: how far the band around each goes to either side, ``[T]``.
        log: whether the axis is logarithmic, for values above zero; None: where it helps.
        percent: whether the values are fractions; a linear axis then begins at zero.
    """
    finite = np.isfinite(means) & np.isfinite(spread)
    if not finite.any():
        return Range()
    steps, means, spread = steps[finite], means[finite], spread[finite]
    later = steps > _BEGINNING * steps.max()
    if log or (log is None and means.min() > 0 and _factor(means[later]) > _LOG_FROM):
        low, high = means[means > 0].min(), means.max()
        return Range(0.8 * low, 1.25 * high, True, "" if log else "Logarithmic axis.")
    lows, highs = means - spread, means + spread
    low, high = (0.0 if percent else lows.min()), highs.max()
    least, most = (0.0 if percent else lows[later].min()), highs[later].max()
    if high - low <= _TOO_WIDE * (most - least) or most <= least:
        return Range(low=0.0 if percent else None)
    margin = 0.05 * (most - least)
    form = ".0%" if percent else ".3g"
    whole = " to ".join(f"{end:{form}}".replace("-", "−") for end in (low, high))
    return Range(
        least if percent else least - margin,
        most + margin,
        note=f"The axis leaves out a part of the beginning: all values lie from {whole}.",
    )


def _factor(values: Numbers) -> float:
    return float(values.max() / values.min())
