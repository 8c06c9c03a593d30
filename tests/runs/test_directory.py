"""A run's directory: who may write there, which one is free, and what may change when a run goes on."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.tiny_run import tiny_config
from wsram_ppl.errors import InputError, Interrupted, RunError
from wsram_ppl.files import make_next_folder, to_json
from wsram_ppl.runs import events
from wsram_ppl.runs.directory import NewRunDirectory, RunDirectory
from wsram_ppl.runs.events import EventLog
from wsram_ppl.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from scripts.tiny_run import tiny_config
from wsram_ppl.runs.directory import RunDirectory
with RunDirectory(sys.argv[1]).claim(tiny_config()):
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_run_has_one_process_and_a_dead_ones_lock_does_not_count(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"claimed\n"
        for use in (run.check_free, run.claim(tiny_config()).__enter__):
            with pytest.raises(RunError, match=r"another process is training .*run: wait for its end"):
                use()
        process.kill()
    run.check_free()
    assert run.is_empty()  # but for the lock
    with run.claim(tiny_config()):
        assert run.path.is_dir()


def test_new_directories_are_free_ones_however_many_ask_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_next_folder(tmp_path / "runs" / "a"), range(20)))
    assert sorted(made) == sorted(
        tmp_path / "runs" / name for name in ("a", *(f"a-{n}" for n in range(2, 21)))
    )
    run = NewRunDirectory(tmp_path / "runs" / "a")
    assert run.finished(tiny_config()) is None
    with run.claim(tiny_config()):
        assert run.path == tmp_path / "runs" / "a-21"


def test_a_name_that_is_too_long_is_wrong_input(tmp_path: Path) -> None:
    for run in (RunDirectory, NewRunDirectory):
        with (
            pytest.raises(InputError, match=r"name is too long|File name too long"),
            run(tmp_path / ("a" * 300)).claim(tiny_config()),
        ):
            pass
    with pytest.raises(InputError, match=r"cannot read .*a: File name too long"):
        RunDirectory(tmp_path / ("a" * 300)).config()


def test_events_follow_each_other_though_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for after, now in ((0, 2_000), (2, 1_000), (4, 500)):
        monkeypatch.setattr(events.time, "time_ns", lambda now=now: now)
        log = EventLog(tmp_path, after)
        for step in range(after + 1, after + 4):  # the last one comes again
            log.add(step, {"x": float(10 * after + step)})
        log.close()
    (tmp_path / "events.out.tfevents.notes").touch()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(s.step, s.value) for s in found.Scalars("x")] == [
        (1, 1.0), (2, 2.0), (3, 23.0), (4, 24.0), (5, 45.0), (6, 46.0), (7, 47.0),
    ]  # fmt: skip


def test_json_is_strict_and_says_what_it_leaves_out() -> None:
    with pytest.warns(UserWarning, match=r"null in JSON: a.b \(nan\), c\[1\] \(-inf\)$"):
        text = to_json({"a": {"b": math.nan}, "c": [1.5, -math.inf]})
    assert json.loads(text, parse_constant=pytest.fail) == {"a": {"b": None}, "c": [1.5, None]}


def test_a_summary_with_a_number_that_is_not_finite(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.warns(UserWarning, match=r"null in JSON: bound \(-inf\)"):
        run.write_summary({"bound": -math.inf, "updates": 3})
    found = run.summary()
    assert found is not None and math.isnan(found["bound"]) and found["updates"] == 3


def test_the_lock_is_kept_for_the_whole_of_a_real_run(tmp_path: Path) -> None:
    """The same command twice at once, and --resume of a live run: the first one works on as if alone."""
    (tmp_path / "tiny.toml").write_text(tiny_config("training.steps=100000").to_toml())
    command = [sys.executable, str(ROOT / "cli.py"), "train"]
    first = subprocess.Popen(
        [*command, "tiny.toml", "--out", "run"], cwd=tmp_path, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / "run" / "metrics.csv").exists() and first.poll() is None:
        time.sleep(0.02)
    for args in (["tiny.toml", "--out", "run"], ["--resume", "run"]):
        done = subprocess.run([*command, *args], cwd=tmp_path, capture_output=True, text=True)
        assert first.poll() is None, "the first ended too early for this test"
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: another process is training run: wait for its end")
        assert len(done.stderr.splitlines()) == 1
    first.terminate()
    assert first.wait(timeout=60) == 128 + signal.SIGTERM
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == [1, *range(4, steps[-1] + 1, 4)]
    saved = RunDirectory(tmp_path / "run").saved(tiny_config("training.steps=100000"))
    assert saved is not None and 0 <= saved.step - steps[-1] < 4
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


def test_the_processes_of_one_run_do_not_lock_each_other_out(tmp_path: Path) -> None:
    """Two of them, which then go on for longer."""
    few = ("training.devices=2", "training.steps=2", "training.schedule_steps=2")
    (tmp_path / "tiny.toml").write_text(tiny_config(*few).to_toml())
    for args in (["tiny.toml", "--out", "run"], ["--resume", "run", "--set", "training.steps=4"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), "train", *args],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("run: 4 updates in")


def test_events_know_the_last_update_of_each_name(tmp_path: Path) -> None:
    """Without what came after the checkpoint that the run went on from, and with a file cut short."""
    log = EventLog(tmp_path)
    for step in (2, 4, 6):
        log.add(step, {"train": 1.0, **({"eval": 1.0} if step == 2 else {})})
    log.close()
    log = EventLog(tmp_path, after=4)
    assert [log.known(name) for name in ("train", "eval", "probe")] == [4, 2, 0]
    log.add(5, {"eval": 1.0})
    log.close()
    last = sorted(tmp_path.iterdir())[-1]
    last.write_bytes(last.read_bytes() + b"half an event")
    log = EventLog(tmp_path, after=8)
    assert [log.known(name) for name in ("train", "eval")] == [4, 5]
    log.close()


def test_a_folder_from_before_the_first_whole_file_is_empty(tmp_path: Path) -> None:
    """kill -9 while the config was written."""
    for name in ("lock", ".config.toml.partial"):
        (tmp_path / name).touch()
    run = RunDirectory(tmp_path)
    assert run.is_empty()
    train(tiny_config("training.steps=1"), run)
    assert not (tmp_path / ".config.toml.partial").exists()


def test_a_stopped_run_says_what_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --out the same command begins another run."""
    monkeypatch.chdir(tmp_path)
    again = {RunDirectory: "the same command, or wsram train", NewRunDirectory: "wsram train"}
    for kind, how in again.items():

        def stop(step: int, numbers: object) -> None:
            if step == 1:
                signal.raise_signal(signal.SIGTERM)

        run = kind(Path(kind.__name__))
        with pytest.raises(Interrupted, match=rf"is saved: {how} --resume {kind.__name__},? resumes fr"):
            train(tiny_config(), run, stop)
