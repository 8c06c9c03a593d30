"""One claim per run: processes share a study's folder, and take over what a dead one has left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from tests.studies.test_studies import MINIMAL, SEARCH, TWO, Bench, Recorder, bench, study
from tests.studies.tiny_study import killed_when_left
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.studies.comparison import compare
from wsram_ppl.studies.executors.claims import Claims
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.executors.local import LocalExecutor
from wsram_ppl.studies.executors.loop import run_jobs

__all__ = ["bench"]

NAME = "runs/a/seed-0"

# ---------------------------------------------------------------- claims


def test_one_of_two_gets_a_claim(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        assert ours.take(NAME) and not theirs.take(NAME)
        assert theirs.take("runs/a/seed-1")
        assert re.fullmatch(rf"\S+ \(process {os.getpid()}\)", theirs.owner(NAME))
        ours.give_back(NAME)
        assert theirs.take(NAME) and not ours.take(NAME)


def test_what_is_left_is_free(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours:
        assert ours.take(NAME)
    with Claims(tmp_path) as theirs:
        assert theirs.take(NAME)
    assert sorted(file.name for file in (tmp_path / "claims/runs/a").iterdir()) == [
        "seed-0.1",
        "seed-0.2",
    ]


def test_a_failure_is_told_to_those_who_waited(tmp_path: Path) -> None:
    with Claims(tmp_path) as ours, Claims(tmp_path) as theirs:
        theirs.watch([NAME])
        assert theirs.failed_elsewhere(NAME) is None
        assert ours.take(NAME) and theirs.failed_elsewhere(NAME) is None
        theirs.watch([NAME])  # it is at work already
        ours.give_back(NAME, "it is too small")
        assert theirs.failed_elsewhere(NAME) == "it is too small"
        theirs.watch([NAME])  # another call tries again
        assert theirs.failed_elsewhere(NAME) is None and theirs.take(NAME)


HOLDER = """
import subprocess, sys, time
from pathlib import Path
from wsram_ppl.studies.executors.claims import Claims
claims = Claims(Path(sys.argv[1]))
assert claims.take(sys.argv[2])
if sys.argv[3] == "run":
    child = subprocess.Popen(["sleep", "60"], pass_fds=[claims.file_of(sys.argv[2])])
    print(child.pid, flush=True)
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(folder: Path, run: str = "") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has the claim, and the id of the run that it has started, if it should."""
    command = [sys.executable, "-c", HOLDER, str(folder), NAME, run]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline()) if run else 0
        assert process.stdout.readline() == "held\n"
        try:
            yield process, child
        finally:
            process.kill()


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _), Claims(tmp_path) as claims:
        assert not claims.take(NAME)
        process.kill()
        process.wait()
        assert claims.take(NAME)


def test_a_run_that_a_killed_process_has_left_behind_keeps_the_claim(tmp_path: Path) -> None:
    with holder(tmp_path, "run") as (process, child), Claims(tmp_path) as claims:
        process.kill()
        process.wait()
        assert not claims.take(NAME)
        os.kill(child, signal.SIGKILL)
        end = time.monotonic() + 5
        while not claims.take(NAME):
            assert time.monotonic() < end
            time.sleep(0.02)


def elsewhere(folder: Path) -> Path:
    """The claim of a process on another machine, whose locks are not seen here."""
    path = folder / "claims" / f"{NAME}.1"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"machine": "another", "host": "node7", "process": 12}))
    return path


@pytest.mark.parametrize("sign", ["claim", "metrics"])
def test_a_process_on_another_machine_is_dead_when_it_gives_no_sign(tmp_path: Path, sign: str) -> None:
    claim = elsewhere(tmp_path)
    metrics = tmp_path / NAME / "metrics.csv"
    metrics.parent.mkdir(parents=True)
    moving = claim if sign == "claim" else metrics
    with Claims(tmp_path, patience=0.3) as claims:
        for second in range(5):
            metrics.touch()
            os.utime(moving, (second, second))  # its clock may be off
            assert not claims.take(NAME)
            time.sleep(0.2)
        assert claims.owner(NAME) == "node7 (process 12)"
        time.sleep(0.3)
        assert claims.take(NAME)


def test_a_claim_that_is_being_written_is_no_dead_one(tmp_path: Path) -> None:
    elsewhere(tmp_path).write_text("")
    with Claims(tmp_path) as claims:
        assert not claims.take(NAME)
        assert claims.owner(NAME) == "another machine (process unknown)"


def test_a_claim_that_was_taken_over_is_noticed(tmp_path: Path) -> None:
    """Of a process that was asleep, say with its laptop."""
    with Claims(tmp_path) as claims:
        assert claims.take(NAME) and claims.take("runs/b/seed-0")
        (tmp_path / "claims" / f"{NAME}.2").write_text("{}")
        assert claims.beat() == [NAME]
        claims.give_back("runs/b/seed-0")


def test_a_sign_of_life_is_given(tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        assert claims.take(NAME)
        file = tmp_path / "claims" / f"{NAME}.1"
        os.utime(file, (1, 1))
        assert claims.beat() == [] and file.stat().st_mtime > 1
        os.utime(file, (1, 1))
        assert claims.beat() == [] and file.stat().st_mtime == 1  # it is not time yet


def test_without_locks_the_signs_of_life_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems of clusters have none."""
    monkeypatch.setattr("wsram_ppl.studies.executors.claims.lock", lambda file, wait=False: None)
    with Claims(tmp_path) as ours, Claims(tmp_path, patience=0.2) as theirs:
        assert ours.take(NAME) and not theirs.take(NAME)
        time.sleep(0.3)
        ours.beat()
        assert not theirs.take(NAME)
        time.sleep(0.3)
        assert theirs.take(NAME)
        ours.beat()  # it is not time yet
        assert NAME in ours._held


def test_a_run_ends_whose_claim_was_taken_over(tmp_path: Path) -> None:
    job = Job(NAME, ["sleep", "60"], tmp_path / NAME, tmp_path / "log", 1)
    begun = time.monotonic()
    with Claims(tmp_path) as claims:

        def ready(job: Job) -> bool:
            successor = {"host": "node7", "process": 12}
            (tmp_path / "claims" / f"{NAME}.2").write_text(json.dumps(successor))
            return True

        found = run_jobs([job], LocalExecutor(), Recorder(), claims, ready, print)
    assert found == {NAME: "it was taken over by node7 (process 12)"}
    assert time.monotonic() < begun + 20


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("a file")
    with Claims(tmp_path) as claims, pytest.raises(RunError, match=r"^cannot create .*claims/runs/a: "):
        claims.take(NAME)


# ---------------------------------------------------------------- studies

#: One more process at work on the bench's study.
OTHER = """
import sys
from pathlib import Path
from tests.studies.test_studies import Bench
bench = Bench(Path(sys.argv[1]))
found = bench.run(Path(sys.argv[2]).read_text())
print(*(run.failure or "finished" for run in found.runs), sep="\\n")
"""


def another(bench: Bench, text: str) -> AbstractContextManager[subprocess.Popen[str]]:
    (bench.folder / "text").write_text(text)
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(bench.folder), str(bench.folder / "text")],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    return killed_when_left(process)


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_two_studies_in_one_folder_split_the_work(bench: Bench) -> None:
    """Every run, and every trial of the search, is trained once, and both report on all."""
    text = TWO.replace("16", "6").replace("[0, 1]", "[0, 1, 2, 3]") + SEARCH  # a run of b takes a second
    study(bench.folder, text)
    with another(bench, text) as process:
        wait_until(bench.trace.exists)
        found = bench.run(text)
        out, _ = process.communicate()
    trained = bench.trained()
    assert len(trained) == len(set(trained)) == 14
    assert all(run.finished for run in found.runs)
    assert out.splitlines() == ["finished"] * 8
    calls = json.loads((bench.out / "calls.json").read_text())
    assert sum(call["trained"] for call in calls) == 14 and len(calls) == 2
    assert min(call["trained"] for call in calls) > 0


def test_a_study_takes_over_from_a_killed_one(bench: Bench) -> None:
    """What it has begun, too, once that has ended: the children of a killed process go on."""
    text = TWO.replace("16", "6")
    study(bench.folder, text)
    with another(bench, text) as process:
        wait_until(lambda: (bench.out / "runs/b/seed-0/metrics.csv").exists())
        process.kill()
        process.wait()
        found = bench.run(text)
    assert all(run.finished for run in found.runs)
    trained = bench.trained()
    assert len(trained) == len(set(trained)) == 4
    (note,) = bench.watcher.notes
    assert re.fullmatch(
        r"runs/b/seed-0( and 1 more)?: at work on \S+ \(process \d+\), and waited for", note
    )


def test_a_failure_in_another_process_is_one_here(bench: Bench) -> None:
    """Not tried again by everyone who waits."""
    text = MINIMAL + '[[variant]]\nname = "a"\nmodel.hidden = 9\n'
    study(bench.folder, text)
    waits = threading.Thread(
        target=lambda: (wait_until(lambda: bool(bench.watcher.notes)), (bench.folder / "go").touch())
    )
    with another(bench, text) as process:
        wait_until(bench.trace.exists)
        waits.start()
        found = bench.run(text)
        out, _ = process.communicate()
        waits.join()
    assert out == "it is too slow\n"
    assert [run.failure for run in found.runs] == ["it is too slow"]
    assert bench.trained() == ["a/seed-0"]
    assert ("ended", "runs/a/seed-0") in bench.watcher.events
    assert ("started", "runs/a/seed-0") not in bench.watcher.events


def only(bench: Bench, text: str, *names: str) -> list[str]:
    loaded = study(bench.folder, text)
    found = compare(
        loaded, bench.out, bench.command, bench.watcher, executor=LocalExecutor(2), only=names
    )
    assert not found.failed
    return [run.name for run in found.runs if run.finished]


def test_only_some_runs(bench: Bench) -> None:
    assert only(bench, TWO, "b/1") == ["runs/b/seed-1"]
    assert bench.trained() == ["b/seed-1"]
    assert only(bench, TWO, "a/0", "a/1") == ["runs/a/seed-0", "runs/a/seed-1", "runs/b/seed-1"]
    assert bench.trained() == ["a/seed-0", "a/seed-1"]


def test_only_some_runs_and_the_search_of_their_variants(bench: Bench) -> None:
    assert only(bench, TWO + SEARCH, "b/1") == ["runs/b/seed-1"]
    assert bench.trained() == ["b/0.001", "b/0.003", "b/0.008", "b/seed-1"]


def test_only_what_the_study_has(bench: Bench) -> None:
    with pytest.raises(
        InputError, match=r"^--only b/2: the study has no such run; did you mean 'b/1'\?$"
    ):
        only(bench, TWO, "b/2")
    with pytest.raises(InputError, match=r"no such run; its runs are a/0, a/1, b/0, b/1$"):
        only(bench, TWO, "everything")
    assert not bench.out.exists()


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ray-address", "head:6379"], "error: --ray-address is for --executor ray\n"),
        (["--only", "a/7"], "error: --only a/7: the study has no such run; did you mean 'a/1'?\n"),
    ],
)
def test_wrong_options(tmp_path: Path, arguments: list[str], message: str) -> None:
    study(tmp_path, TWO)
    out = ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, ["compare", str(tmp_path / "study.toml"), *out, *arguments])
    assert (done.exit_code, done.stderr) == (2, message)


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    study(tmp_path, TWO)
    done = CliRunner().invoke(main, ["compare", str(tmp_path / "study.toml"), "--executor", "ray"])
    assert done.exit_code == 2
    assert done.stderr == "error: --executor ray needs Ray: pip install 'wsram_ppl[cluster]'\n"
