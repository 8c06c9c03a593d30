"""How long a study will take: of earlier runs, of a few updates that are timed, and as it is said."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.studies.test_studies import MINIMAL, TRAINER, TWO, Bench, bench
from wsram_ppl.errors import Interrupted
from wsram_ppl.runs.metrics import METRICS
from wsram_ppl.studies import forecast as module
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.forecast import forecast

__all__ = ["bench"]


def make_jobs(folder: Path, count: int, steps: int = 20_000) -> list[Job]:
    return [Job(f"run-{n}", [], folder / f"run-{n}", folder / "log", steps) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "workers", "pace", "said"),
    [
        (18, 2, 0.0667, "18 runs of 20,000 updates, 2 at a time: about 3 h 20 min on this machine"),
        (18, 1, 0.0667, "18 runs of 20,000 updates, one at a time: about 6 h 40 min on this machine"),
        (1, 2, 0.001, "1 run of 20,000 updates: about 20 s on this machine"),
        (3, 2, 0.01, "3 runs of 20,000 updates, 2 at a time: about 7 min on this machine"),
        (3, 12, 0.01, "3 runs of 20,000 updates, 12 at a time: about 3 min on this machine"),
        (2, 1, 1e-9, "2 runs of 20,000 updates, one at a time: about 1 s on this machine"),
    ],
)
def test_the_line(tmp_path: Path, count: int, workers: int, pace: float, said: str) -> None:
    jobs = make_jobs(tmp_path, count)
    assert forecast(jobs, workers, {job.name: pace for job in jobs}) == said


def test_without_a_pace_there_is_no_forecast(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 2, 12)
    assert forecast(jobs, 2, {}, "trials") == "2 trials of 12 updates, 2 at a time"


def test_each_run_has_its_pace_and_those_without_the_mean(tmp_path: Path) -> None:
    jobs = make_jobs(tmp_path, 3, 1000)
    said = forecast(jobs, 1, {"run-0": 0.1, "run-1": 0.3})
    assert said.endswith("about 10 min on this machine")  # 100 s, 300 s and 200 s


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    job, other = make_jobs(tmp_path, 2, 1000)
    job.run.mkdir()
    (job.run / METRICS).write_text("step,split,error\n900,train,0.5\n")
    said = forecast([job, replace(other, steps=500)], 1, {job.name: 0.1})
    assert said == "2 runs of 500 to 1,000 updates, one at a time: about 60 s on this machine"


# ---------------------------------------------------------------- in a study


#: As the other, but its rows say when they were written: the first ten updates take a second each, then
#: a tenth. An evaluation takes three seconds.
TIMED = TRAINER.replace('["step", "split", "error", "ess"]', '["step", "split", "error", "seconds"]')
TIMED = TIMED.replace(
    "for step in range(1, steps + 1):\n",
    "every = training['log_every']\n    for step in sorted({1, *range(every, steps + 1, every)}):\n",
).replace("1 / step, 2.5", "1 / step, min(step, 10) + max(0, step - 10) / 10")
TIMED = TIMED.replace('"seconds": 1.0', '"seconds": min(steps, 10) + max(0, steps - 10) / 10 + 3.0')
LONG = TWO.replace("steps = 5", "steps = 10000") + "[set]\ntraining.eval_every = 1000\n"


@pytest.fixture
def timed(bench: Bench) -> Bench:
    (bench.folder / "trainer.py").write_text(TIMED)
    return bench


def test_a_long_study_is_timed_first(timed: Bench) -> None:
    """As many at once as there will be, spread over the runs; nothing of it is kept."""
    timed.run(LONG)
    # Each update takes a tenth of a second, and 3 ms of an evaluation: 2 x 10,000 of them.
    assert timed.watcher.forecasts == [
        "timing 30 updates, for a forecast",
        "4 runs of 10,000 updates, 2 at a time: about 34 min on this machine",
    ]
    trained = timed.trained()
    assert len([name for name in trained if name.startswith("timing-")]) == 2
    assert [name for name in trained if not name.startswith("timing-")] == [
        "a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1",
    ]  # fmt: skip
    assert not list(timed.out.glob("timing-*"))
    assert not timed.watcher.notes
    # The next call knows the pace of those that have been.
    timed.run(LONG.replace("[0, 1]", "[0, 1, 2]"), jobs=1)
    assert timed.watcher.forecasts == [
        "2 runs of 10,000 updates, one at a time: about 34 min on this machine"
    ]
    assert timed.trained() == ["a/seed-2", "b/seed-2"]


def test_probes_count_as_the_gradients_that_they_are(timed: Bench) -> None:
    probes = "training.probe_every = 50\ntraining.probe_repeats = 25\n"
    timed.run(LONG.replace("[0, 1]", "[0]") + probes, jobs=1)
    assert timed.watcher.forecasts[-1] == (
        "2 runs of 10,000 updates, one at a time: about 51 min on this machine"
    )


def test_a_short_study_is_not_timed(bench: Bench) -> None:
    bench.run(TWO)
    assert bench.watcher.forecasts == ["4 runs of 5 updates, 2 at a time"]
    assert len(bench.trained()) == 4


def test_the_search_tells_the_pace_of_the_runs(timed: Bench) -> None:
    text = LONG.replace("[0, 1]", "[0]")
    text += "[search]\nkey = 'training.learning_rate.start'\nvalues = [1e-3, 2e-3]\nsteps = 1000\n"
    timed.run(text)
    assert timed.watcher.forecasts == [
        "4 trials of 1,000 updates, 2 at a time",
        # A trial of 1,000 updates took 10 + 99 + 3 seconds.
        "2 runs of 10,000 updates, 2 at a time: about 19 min on this machine",
    ]


def test_a_timing_that_fails_is_told_and_the_study_goes_on(timed: Bench) -> None:
    found = timed.run(MINIMAL.replace("= 5", "= 10000") + '[[variant]]\nname = "a"\nmodel.hidden = 1\n')
    assert timed.watcher.forecasts[-1] == (
        "1 run of 10,000 updates (no forecast: a timing failed: it is too small)"
    )
    assert [run.failure for run in found.runs] == ["it is too small"]


def test_a_timing_can_be_stopped(timed: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise Interrupted("stopped by SIGINT", 2)

    monkeypatch.setattr("wsram_ppl.studies.comparison.run_jobs", stopped)
    with pytest.raises(Interrupted, match="stopped by SIGINT: 0 of 4 runs are finished; the same"):
        timed.run(LONG)
    assert not list(timed.out.glob("timing-*")) and not timed.trained()


def test_a_real_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command, and what it writes."""
    monkeypatch.setattr(module, "_WORTH", 10)
    bench = Bench(tmp_path)
    bench.command = lambda config, run: [  # type: ignore[method-assign]
        sys.executable, "-m", "wsram_ppl", "train", str(config), "--out", str(run),
    ]  # fmt: skip
    found = bench.run(MINIMAL.replace("= 5", "= 12") + '[[variant]]\nname = "a"\n', jobs=1)
    assert [run.failure for run in found.runs] == [None]
    asked, said = bench.watcher.forecasts
    assert asked.startswith("timing 30 updates")
    assert said.startswith("1 run of 12 updates: about ")
