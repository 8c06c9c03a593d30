"""What is told of long work where there is no terminal; a bar at a terminal is in tests/commands."""

from __future__ import annotations

import re
import sys

import pytest

from wsram_ppl.training import progress
from wsram_ppl.training.progress import Meter, RunMeter


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_every_tenth(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with RunMeter(1000) as meter:
        for step in range(1, 1001):
            clock.now += 0.01
            meter.update(step, {"bound": -step, "ess": 2.0} if step % 50 == 0 or step == 1 else None)
    lines = told(capsys)
    assert lines[0] == "update 100 of 1000: bound -100.000, ess 2.00, 00:09 left"
    assert [int(line.split()[1]) for line in lines] == list(range(100, 1000, 100))


def test_every_minute_where_a_tenth_takes_longer(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The speed is that of this call, which goes on where another was stopped."""
    with RunMeter(10_000) as meter:
        for step in range(4001, 4020):
            meter.update(step, {"error": 0.256, "bound": -1.0, "ess": 1.5})
            clock.now += 25.0
    lines = told(capsys)
    assert [int(line.split()[1]) for line in lines] == list(range(4004, 4020, 3))
    assert lines[0] == "update 4004 of 10000: error 26%, bound -1.000, ess 1.50, 41:38:20 left"


def test_it_is_silent_where_standard_error_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Meter("photo") as meter:
        for done in range(21):
            meter(done, 20)


def test_nothing_is_told_of_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Meter("photo") as meter:
        for done in range(3):
            meter(done, 2)
    (line,) = told(capsys)
    assert re.fullmatch(r"photo 1 of 2: [\d:]+ left", line)
