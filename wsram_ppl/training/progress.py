"""Progress of long work, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Self

from tqdm import tqdm

__all__ = ["Lines", "Meter", "RunMeter"]

#: Seconds between lines where there is no terminal, unless a tenth of the work is done earlier.
_QUIET: Final = 60.0


class Meter:
    """A bar at a terminal; elsewhere one plain line for every tenth of the work, or every minute.

    The end has no line, since the result is printed then. Nothing is shown before the first call, so
    that neither the wait for it nor the work of an earlier run counts as speed.

    Args:
        unit: what is counted, in the singular.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: tqdm[Any] | None = None
        self._lines: Lines | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int, shown: Mapping[str, str] | None = None) -> None:
        """Reports how far the work is.

        Args:
            shown: other values to show, by name.
        """
        if self._bar is None and self._lines is None:
            if sys.stderr is not None and sys.stderr.isatty():
                self._bar = tqdm(total=total, initial=done, unit=self._unit, dynamic_ncols=True)
            else:
                self._lines = Lines(self._unit, done, total)
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done - self._bar.n)
        if self._lines is not None:
            self._lines.update(done, shown or {})


class Lines:
    """One plain line on standard error for every tenth of the work, or every minute; none for its end.

    Args:
        unit: what is counted, in the singular.
        begun: how much was done before, which does not count as speed.
    """

    def __init__(self, unit: str, begun: int, total: int) -> None:
        self._unit, self._begun, self._total = unit, begun, total
        self._tenth = 10 * begun // total
        self._started = self._told = time.monotonic()

    def skip(self, count: int) -> None:
        """Marks some of the work as already done: it is counted, but not as speed."""
        self._begun += count

    def update(self, done: int, shown: Mapping[str, str]) -> None:
        """Reports how far the work is, and ``shown``, if a line is due; may be called at any time."""
        now, tenth = time.monotonic(), 10 * done // self._total
        if done >= self._total or (tenth == self._tenth and now - self._told < _QUIET):
            return
        self._tenth, self._told = tenth, now
        parts = [f"{name} {value}" for name, value in shown.items()]
        if done > self._begun:
            rest = (now - self._started) * (self._total - done) / (done - self._begun)
            parts.append(f"{tqdm.format_interval(rest)} left")
        print(f"{self._unit} {done} of {self._total}: {', '.join(parts)}", file=sys.stderr, flush=True)


class RunMeter(Meter):
    """The same for a run, with its last measurements.

    Args:
        steps: updates of the whole run.
    """

    def __init__(self, steps: int) -> None:
        super().__init__("update")
        self._steps = steps
        self._shown: dict[str, str] = {}

    def update(self, step: int, numbers: Mapping[str, float] | None) -> None:
        """Called after every update, with its numbers if it was measured."""
        if numbers is not None:
            forms = {"error": ".0%", "bound": ".3f", "ess": ".2f"}
            self._shown = {k: format(numbers[k], form) for k, form in forms.items() if k in numbers}
        self(step, self._steps, self._shown)
