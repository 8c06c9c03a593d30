"""Trackers: where a run is shown as it goes (``training.loggers``), beside its own ``metrics.csv``.

A tracker gets every row of ``metrics.csv`` once. When a run goes on, each is asked what it has, and gets
what it lacks: rows that were lost with a process, or written before it was named, or while it was not
there. Rows after the last checkpoint, which are computed again, come to it once.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from wsram_ppl.config import ExperimentConfig
from wsram_ppl.errors import InputError, exit_code, one_line
from wsram_ppl.runs.metrics import METRICS, rows_until
from wsram_ppl.runs.tracked import tracked_run

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Tracker", "Trackers", "check_loggers"]

#: The extra of the distribution that brings a tracker's package, which has the tracker's name.
_EXTRAS: Final = {"tensorboard": "cli", "mlflow": "mlflow", "wandb": "wandb"}


class Tracker(Protocol):
    """What a tracker does. Whatever its methods raise ends the tracker, not the run."""

    def known(self, name: str) -> int:
        """The update of the last value that it has of a number or picture; 0 without any."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of an update, all of them finite."""

    def show(self, step: int, name: str, picture: Image.Image) -> None:
        """Takes a picture of an update, before its numbers."""

    def close(self, code: int) -> None:
        """The run ends here, with this exit code; it may go on later."""


def check_loggers(config: ExperimentConfig) -> None:
    """Makes sure that the packages of ``training.loggers`` are installed.

    Raises:
        InputError: one is not; the message says what to install.
    """
    for name in config.training.loggers:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise InputError(
                f"training.loggers: {name!r} is not installed: pip install 'wsram_ppl[{_EXTRAS[name]}]'"
            ) from error


class Trackers:
    """The trackers of a run at work. One that fails is told of once, and left out from then on.

    Entered while the run is trained.

    Args:
        run: the run's directory.
        names: of the trackers.
        after: the number of updates behind the checkpoint that the run goes on from.

    Raises:
        InputError: ``metrics.csv`` is damaged.
    """

    def __init__(
        self, run: Path, config: ExperimentConfig, names: Sequence[str] = (), after: int = 0
    ) -> None:
        self._trackers: dict[str, Tracker] = {}
        self._drawing = True
        rows = rows_until(run, after) if names and after else ()
        for name in names:
            with self._surviving(name):
                self._trackers[name] = _OPEN[name](run, config, after)
        for step, split, numbers in rows:
            self.add(step, split, numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                tracker.close(exit_code(error) if error else 0)

    def add(self, step: int, split: str, numbers: Mapping[str, float]) -> None:
        """Hands on a row of the metrics, as ``SPLIT/NAME``."""
        finite = {f"{split}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
        for name, tracker in list(self._trackers.items()):
            with self._surviving(name):
                lacking = {key: value for key, value in finite.items() if tracker.known(key) < step}
                if lacking:
                    tracker.add(step, lacking)

    def show(self, step: int, name: str, draw: Callable[[], Image.Image]) -> None:
        """Hands on a picture of an update, before its row; it is drawn only where somebody lacks it.

        Where it cannot be drawn a warning says so, and no more are tried.
        """
        lacking = [each for each, tracker in self._trackers.items() if tracker.known(name) < step]
        if not lacking or not self._drawing:
            return
        try:
            picture = draw()
        except Exception as error:
            self._drawing = False
            warnings.warn(f"no more pictures ({one_line(error)}): training goes on", stacklevel=2)
            return
        for each in lacking:
            with self._surviving(each):
                self._trackers[each].show(step, name, picture)

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._trackers.pop(name, None)
            warnings.warn(
                f"{name} gets nothing more from here on ({one_line(error)}): training goes on, and all "
                f"numbers are in {METRICS}",
                stacklevel=2,
            )


def _tensorboard(run: Path, config: ExperimentConfig, after: int) -> Tracker:
    from wsram_ppl.runs.events import EventLog

    return EventLog(run / "tensorboard", after)


def _mlflow(run: Path, config: ExperimentConfig, after: int) -> Tracker:
    from wsram_ppl.runs.mlflow_log import MlflowLog

    return MlflowLog(tracked_run(run), config)


def _wandb(run: Path, config: ExperimentConfig, after: int) -> Tracker:
    from wsram_ppl.runs.wandb_log import WandbLog

    return WandbLog(tracked_run(run), config, run)


#: What opens a tracker, by its name. Each needs its package, which to read a run does not.
_OPEN: Final[Mapping[str, Callable[[Path, ExperimentConfig, int], Tracker]]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
