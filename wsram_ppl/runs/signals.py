"""Signals that end a run cleanly: recorded when received, acted on between two updates."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any


class Signals:
    """A context in which the first SIGINT, SIGTERM or SIGHUP is only recorded; a second acts at once.

    SIGHUP, which is sent when a terminal is closed, may then arrive twice (from the shell and from the
    system): a second one does nothing. If it was ignored before, as under ``nohup``, it still is.

    Does nothing outside the main thread, where Python does not allow handlers of signals.

    Attributes:
        received: the signal received, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in _numbers():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore(*self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        self._restore(signal.SIGINT, signal.SIGTERM)

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            if number in self._before:
                signal.signal(number, self._before.pop(number))


def _numbers() -> list[signal.Signals]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers
