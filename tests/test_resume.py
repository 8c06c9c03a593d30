"""A run that is stopped, however, ends as if it had not been."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_training import make_spec

from wsram_ppl.checkpoints import load_checkpoint
from wsram_ppl.errors import InputError, Interrupted
from wsram_ppl.runs import RunDirectory
from wsram_ppl.spec import Spec
from wsram_ppl.training import train

ROOT = Path(__file__).resolve().parent.parent

#: Columns that tell the time.
TIMES = {"seconds", "updates_per_second"}
#: Every kind of state: running estimates of the objective, momentum, schedules, probes, evaluations.
STATE = (
    "training.steps=12",
    "training.log_every=2",
    "training.eval_every=4",
    "training.probe_every=5",
    "training.probe_repeats=2",
    "training.checkpoint_every=3",
    "objective.control_variate=learned",
)


class Stopped(Exception):
    pass


def stop_at(step: int):  # type: ignore[no-untyped-def]
    def progress(done: int, numbers: Mapping[str, float] | None) -> None:
        if done == step:
            raise Stopped

    return progress


def metrics(run: RunDirectory) -> list[dict[str, str]]:
    with open(run.path / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


def assert_same_run(one: RunDirectory, other: RunDirectory) -> None:
    (a, a_data), (b, b_data) = (load_checkpoint(run.checkpoint) for run in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(name.startswith("optimizer.") for name in a)
    assert a_data["step"] == b_data["step"]
    assert metrics(one) == metrics(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, RunDirectory]:
    spec, run = make_spec(*STATE), RunDirectory(tmp_path_factory.mktemp("whole") / "run")
    train(spec, run)
    return spec, run


@settings(max_examples=8, deadline=None)
@given(stops=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_stopped_anywhere_and_continued_is_bit_equal(
    whole: tuple[Spec, RunDirectory], tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    """Weights, momentum, running estimates and metrics rows; stopped once or several times."""
    spec, reference = whole
    run = RunDirectory(tmp_path_factory.mktemp("stopped") / "run")
    for step in stops:
        try:
            train(spec, run, stop_at(step))
        except Stopped:
            continue
    train(spec, run)
    assert_same_run(reference, run)


def test_a_finished_run_is_left_as_it_is(whole: tuple[Spec, RunDirectory]) -> None:
    spec, run = whole
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir() if path.name != "spec.toml"}
    assert train(spec, run) == run.summary()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_spec_in_the_directory_is_refused(whole: tuple[Spec, RunDirectory]) -> None:
    _, run = whole
    content = (run.path / "spec.toml").read_bytes()
    with pytest.raises(
        InputError, match=r"belongs to another run \(model.hidden 8, not 9\): choose another"
    ):
        train(make_spec(*STATE, "model.hidden=9"), run)
    assert (run.path / "spec.toml").read_bytes() == content


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickle"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(
    whole: tuple[Spec, RunDirectory], damage: str, tmp_path: Path
) -> None:
    """The reason is told, and the run ends as it would have."""
    spec, reference = whole
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(Stopped):
        train(spec, run, stop_at(8))
    content = bytearray(run.checkpoint.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-5] ^= 4
    else:
        content = bytearray(b"\x80\x04cos\nsystem\n")
    run.checkpoint.write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"last.safetensors is .*; going on from .*previous.safetensors"
    ):
        train(spec, run)
    assert_same_run(reference, run)


def test_no_whole_checkpoint_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    spec, run = make_spec(*STATE), RunDirectory(tmp_path / "run")
    with pytest.raises(Stopped):
        train(spec, run, stop_at(8))
    for path in run.path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    rows = metrics(run)
    with pytest.raises(
        InputError, match=r"last.safetensors is not a whole.*; .*previous.safetensors is not"
    ):
        train(spec, run)
    assert metrics(run) == rows


def test_stopped_before_any_checkpoint_starts_again(
    whole: tuple[Spec, RunDirectory], tmp_path: Path
) -> None:
    spec, reference = whole
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(Stopped):
        train(spec, run, stop_at(2))
    train(spec, run)
    assert_same_run(reference, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(
    whole: tuple[Spec, RunDirectory], number: signal.Signals, tmp_path: Path
) -> None:
    """Between two checkpoints, too; afterwards the signal's handler is the one from before."""
    spec, reference = whole
    run, before = RunDirectory(tmp_path / "run"), signal.getsignal(number)

    def progress(done: int, numbers: Mapping[str, float] | None) -> None:
        if done == 7:
            os.kill(os.getpid(), number)

    with pytest.raises(
        Interrupted, match=rf"stopped by {number.name} after update 7, which is saved"
    ) as info:
        train(spec, run, progress)
    assert info.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert load_checkpoint(run.checkpoint)[1]["step"] == 7
    train(spec, run)
    assert_same_run(reference, run)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """kill -9 on a real process, several times: the same weights and rows as undisturbed."""
    spec = make_spec(*STATE, "training.steps=200", "training.eval_every=50", "training.probe_every=0")
    (tmp_path / "spec.toml").write_text(spec.to_toml())
    reference, run = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    train(spec, reference)
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "train",
        str(tmp_path / "spec.toml"),
        "--out",
        str(run),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    chance = random.Random(0)
    kills = 0
    for part in (0.1, 0.6):
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while process.poll() is None and _updates(run) < 200 * part:
            time.sleep(0.01)
        time.sleep(0.1 * chance.random())
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1  # a fast machine may have finished before the last
    train(spec, run)
    assert_same_run(reference, run)


def _updates(run: RunDirectory) -> int:
    try:
        last = (run.path / "metrics.csv").read_text().rsplit("\n", 2)[-2]
        return int(last.split(",")[0])
    except (OSError, IndexError, ValueError):
        return 0
