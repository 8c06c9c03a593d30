"""Statistics over seeds: means with bootstrap intervals, and differences paired by seed.

Pure functions of numbers: the same numbers, in whatever order, give the same results.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

__all__ = [
    "LEVEL",
    "RANKING_SEEDS",
    "Difference",
    "Interval",
    "Mean",
    "bootstrap_interval",
    "clear_best",
    "paired_difference",
]

#: Of every interval here.
LEVEL: Final = 0.95
#: With fewer seeds no variant is called the best.
RANKING_SEEDS: Final = 3
_RESAMPLES: Final = 10_000


class Interval(NamedTuple):
    """From ``low`` to ``high``, both included."""

    low: float
    high: float

    def overlaps(self, other: Interval) -> bool:
        """Whether any number is in both."""
        return self.low <= other.high and other.low <= self.high


def bootstrap_interval(
    values: Collection[float], level: float = LEVEL, resamples: int = _RESAMPLES, seed: int = 0
) -> Interval | None:
    """The percentile bootstrap interval of the mean (Efron 1979).

    As many values are drawn with replacement, again and again; the interval leaves out equal shares of
    the least and of the greatest of their means.

    Args:
        level: the share of the means in the interval.
        seed: of the draws.

    Returns:
        None for fewer than two values, or for values that are not finite.
    """
    count = len(values)
    if count < 2 or not all(map(math.isfinite, values)):
        return None
    ordered = np.sort(np.fromiter(values, np.float64, count))
    # Measured from the least: the mean of equal values is then exactly theirs.
    above = ordered - ordered[0]
    drawn = above[np.random.default_rng(seed).integers(count, size=(resamples, count))].mean(1)
    tail = (1.0 - level) / 2.0
    low, high = ordered[0] + np.quantile(drawn, [tail, 1.0 - tail])
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        se: standard error (the sample's standard deviation over sqrt(count)); None for one seed.
        interval: by bootstrap; None for one seed, and where a value is not finite.
    """

    value: float
    se: float | None
    interval: Interval | None
    count: int

    @classmethod
    def of(cls, values: Collection[float]) -> Mean | None:
        """None without values."""
        if not values:
            return None
        count = len(values)
        if not all(map(math.isfinite, values)):
            return cls(sum(values) / count, None, None, count)
        least = min(values)
        value = least + math.fsum(v - least for v in values) / count
        if count == 1:
            return cls(value, None, None, 1)
        variance = math.fsum((v - value) ** 2 for v in values) / (count - 1)
        return cls(value, math.sqrt(variance / count), bootstrap_interval(values), count)


@dataclass(frozen=True)
class Difference:
    """How much more one variant has than another, seed by seed.

    Attributes:
        mean: over the seeds that both have.
        agreeing: in how many of them the difference has the sign of the mean.
        unpaired: the seeds that only one of the two has, in order; they do not count.
    """

    mean: Mean
    agreeing: int
    unpaired: tuple[int, ...]


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """``values`` minus ``reference``, paired by seed; None where no seed has both."""
    differences = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    mean = Mean.of(differences)
    if mean is None:
        return None
    sign = _sign(mean.value)
    agreeing = sum(d == d and _sign(d) == sign for d in differences)  # not a number: no sign
    return Difference(mean, agreeing, tuple(sorted(values.keys() ^ reference.keys())))


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def clear_best(means: Sequence[Mean | None], *, lowest: bool) -> int | None:
    """The place of the best mean, if its interval lies clear of all others.

    Args:
        means: None where nothing was measured, which takes no part.
        lowest: whether the lowest is the best.

    Returns:
        None without such a one, with fewer than two means, or if any has fewer than
        :data:`RANKING_SEEDS` seeds.
    """
    measured = {place: mean for place, mean in enumerate(means) if mean is not None}
    intervals = {
        place: mean.interval
        for place, mean in measured.items()
        if mean.interval is not None and mean.count >= RANKING_SEEDS
    }
    if len(intervals) < 2 or len(intervals) < len(measured):
        return None
    best = (min if lowest else max)(intervals, key=lambda place: measured[place].value)
    others = (interval for place, interval in intervals.items() if place != best)
    return None if any(intervals[best].overlaps(other) for other in others) else best
