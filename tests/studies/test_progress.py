"""What is told of a study at work where there is no terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_progress import Clock, clock, told
from wsram_ppl.runs.metrics import METRICS
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.progress import StudyBars

__all__ = ["clock"]


def make_job(folder: Path, name: str, done: int = 0) -> Job:
    """A run of 10,000 updates, some of which are done."""
    run = folder / name
    run.mkdir()
    if done:
        (run / METRICS).write_text(f"step,split,error\n{done},train,0.5\n")
    return Job(name, [], run, folder / "log", 10_000)


def test_a_line_every_minute(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However often it is asked, and before any run has told of an update."""
    jobs = [make_job(tmp_path, name) for name in "abc"]
    with StudyBars() as bars:
        bars.planned(jobs)
        bars.started(jobs[0])
        bars.started(jobs[1])
        for second in range(1, 301):
            clock.now += 1.0
            if second == 100:
                bars.progressed(jobs[0], 1000, {"error": 0.5})
            bars.waited()
    assert told(capsys) == [
        "update 0 of 30000: runs 0 of 3 ended, running 2",
        *(
            f"update 1000 of 30000: runs 0 of 3 ended, running 2, {left} left"
            for left in ("58:00", "1:27:00", "1:56:00", "2:25:00")
        ),
    ]


def test_a_line_every_tenth(clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What an earlier call has trained, and what a failed run leaves out, counts as no speed."""
    jobs = [make_job(tmp_path, "a", done=8000), make_job(tmp_path, "b"), make_job(tmp_path, "c")]
    with StudyBars() as bars:
        bars.planned(jobs)
        bars.waited()
        bars.started(jobs[0])
        clock.now += 10.0
        bars.progressed(jobs[0], 9500, {})
        bars.waited()
        bars.ended(jobs[0], None)
        bars.started(jobs[1])
        clock.now += 10.0
        bars.waited()
        bars.ended(jobs[1], "it is broken")
        bars.started(jobs[2])
        bars.waited()
        bars.ended(jobs[2], None)
        bars.waited()
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        "update 9500 of 30000: runs 0 of 3 ended, running 1, 02:16 left",
        "update 20000 of 30000: runs 2 of 3 ended, running 1, 01:40 left",
    ]
    assert [line.partition(" finished")[0] for line in out.splitlines()] == [
        "[1/3] a", "[2/3] b failed: it is broken", "[3/3] c",
    ]  # fmt: skip


def test_what_has_ended_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of another process at work on the study, this one sees only the end."""
    jobs = [make_job(tmp_path, "a"), make_job(tmp_path, "b")]
    with StudyBars() as bars:
        bars.planned(jobs)
        bars.ended(jobs[0], None)
        bars.ended(jobs[1], "it is broken")
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] a finished elsewhere", "[2/2] b failed: it is broken",
    ]  # fmt: skip
