"""A run that is stopped, however, ends as if it had not been."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.survive_kills import SETTINGS, equal, train_and_kill
from scripts.survive_kills import rows as metrics
from tests.training.test_loop import make_config
from wsram_ppl.config import Components, ExperimentConfig, build
from wsram_ppl.errors import InputError, Interrupted, RunError
from wsram_ppl.runs.checkpoints import load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.metrics import METRICS
from wsram_ppl.runs.signals import Signals
from wsram_ppl.training import trainer
from wsram_ppl.training.loop import train
from wsram_ppl.training.trainer import Trainer

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


def assert_same_run(one: RunDirectory, other: RunDirectory) -> None:
    assert_same_weights(one, other)
    assert metrics(one) == metrics(other)


def assert_same_weights(one: RunDirectory, other: RunDirectory) -> None:
    first, second = (load_checkpoint(run.checkpoint) for run in (one, other))
    a, b = first.tensors, second.tensors
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(name.startswith("optimizer.") for name in a)
    assert first.step == second.step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentConfig, RunDirectory]:
    config, run = make_config(*STATE), RunDirectory(tmp_path_factory.mktemp("whole") / "run")
    train(config, run)
    return config, run


@settings(max_examples=8, deadline=None)
@given(stops=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_stopped_anywhere_and_continued_is_bit_equal(
    whole: tuple[ExperimentConfig, RunDirectory],
    tmp_path_factory: pytest.TempPathFactory,
    stops: list[int],
) -> None:
    """Weights, momentum, running estimates and metrics rows; stopped once or several times."""
    config, reference = whole
    run = RunDirectory(tmp_path_factory.mktemp("stopped") / "run")
    for step in stops:
        try:
            train(config, run, stop_at(step))
        except Stopped:
            continue
    train(config, run)
    assert_same_run(reference, run)


def test_a_finished_run_is_left_as_it_is(
    whole: tuple[ExperimentConfig, RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And neither data nor model are built to find that out."""
    config, run = whole
    monkeypatch.setattr(Trainer, "start", None)
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir() if path.name != "config.toml"}
    assert train(config, run) == run.summary()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_spec_in_the_directory_is_refused(whole: tuple[ExperimentConfig, RunDirectory]) -> None:
    _, run = whole
    content = (run.path / "config.toml").read_bytes()
    with pytest.raises(
        InputError, match=r"belongs to another run \(model.hidden 8, not 9\): choose another"
    ):
        train(make_config(*STATE, "model.hidden=9"), run)
    assert (run.path / "config.toml").read_bytes() == content


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickle"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(
    whole: tuple[ExperimentConfig, RunDirectory], damage: str, tmp_path: Path
) -> None:
    """The reason is told, and the run ends as it would have."""
    config, reference = whole
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(Stopped):
        train(config, run, stop_at(8))
    content = bytearray(run.checkpoint.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[-5] ^= 4
    else:
        content = bytearray(b"\x80\x04cos\nsystem\n")
    run.checkpoint.write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"last.safetensors is .*; resuming from .*previous.safetensors"
    ):
        train(config, run)
    assert_same_run(reference, run)


def test_no_whole_checkpoint_is_an_error_and_nothing_is_lost(tmp_path: Path) -> None:
    config, run = make_config(*STATE), RunDirectory(tmp_path / "run")
    with pytest.raises(Stopped):
        train(config, run, stop_at(8))
    for path in run.path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    rows = metrics(run)
    with pytest.raises(
        InputError, match=r"last.safetensors is not an intact.*; .*previous.safetensors is not"
    ):
        train(config, run)
    assert metrics(run) == rows


def test_stopped_before_any_checkpoint_starts_again(
    whole: tuple[ExperimentConfig, RunDirectory], tmp_path: Path
) -> None:
    config, reference = whole
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(Stopped):
        train(config, run, stop_at(2))
    train(config, run)
    assert_same_run(reference, run)


@pytest.mark.parametrize("stop", [8, 12])
def test_rows_after_the_metrics_were_removed_are_whole(
    whole: tuple[ExperimentConfig, RunDirectory], stop: int, tmp_path: Path
) -> None:
    """From the checkpoint on, with every column; also where only the last evaluation is missing."""
    config, reference = whole[0], RunDirectory(tmp_path / "whole")
    shutil.copytree(whole[1].path, reference.path)
    run = RunDirectory(tmp_path / "run")
    if stop < config.training.steps:
        with pytest.raises(Stopped):
            train(config, run, stop_at(stop))
    else:
        shutil.copytree(reference.path, run.path)
        (run.path / "summary.json").unlink()
    (run.path / METRICS).unlink()
    begun = load_checkpoint(run.checkpoint).step
    train(config, run)
    expected = [row for row in metrics(reference) if int(row["step"]) > begun]
    if stop == config.training.steps:
        (row,), last = metrics(run), metrics(reference)[-1]
        assert row["split"] == last["split"] == "eval"
        assert {name: row[name] for name, value in last.items() if value}.items() <= row.items()
        # Longer, it gets the columns of training, too.
        run_on = make_config(*STATE, "training.steps=16", "training.schedule_steps=12")
        train(run_on, run)
        train(run_on, reference)
        expected = [row for row in metrics(reference) if int(row["step"]) > begun]
    found = metrics(run)
    columns = expected[0].keys()
    same = [{name: row[name] for name in columns} for row in found]
    assert [row for row in same if row in expected] == expected
    # The first row opens the file, and is one more where none was due.
    more = [int(row["step"]) for row in same if row not in expected]
    assert more == ([begun + 1] if stop == 8 else [begun])
    assert_same_weights(reference, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_stops(
    whole: tuple[ExperimentConfig, RunDirectory], number: signal.Signals, tmp_path: Path
) -> None:
    """Between two checkpoints, too; afterwards the signal's handler is the one from before."""
    config, reference = whole
    run, before = RunDirectory(tmp_path / "run"), signal.getsignal(number)

    def progress(done: int, numbers: Mapping[str, float] | None) -> None:
        if done == 7:
            os.kill(os.getpid(), number)

    with pytest.raises(
        Interrupted, match=rf"stopped by {number.name} after update 7, which is saved"
    ) as info:
        train(config, run, progress)
    assert info.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert load_checkpoint(run.checkpoint).step == 7
    train(config, run)
    assert_same_run(reference, run)


def test_a_second_hangup_does_nothing_and_under_nohup_not_even_the_first() -> None:
    """A closed terminal sends it twice: from the shell, and from the system."""
    before, terminated = signal.getsignal(signal.SIGHUP), signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with Signals() as signals:
            for number in (signal.SIGHUP, signal.SIGHUP):
                signal.raise_signal(number)
            assert signals.received == signal.SIGHUP
            assert signal.getsignal(signal.SIGTERM) is terminated
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, about threads
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """kill -9 on real processes, several times in one run, as scripts/survive_kills.py does it."""
    config = make_config(*SETTINGS, "training.steps=120", "training.eval_every=50")
    reference, run = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "killed")
    train(config, reference)
    kills = train_and_kill(config, run, random.Random(0), kills=6, seconds=0.2)
    assert kills == 6
    assert_same_run(reference, run)
    assert equal(reference, run)


# A full disk: a real one, by the system's limit on the size of a file.


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.filterwarnings("ignore:tensorboard gets nothing more from here on")
@pytest.mark.parametrize("size", [0, 100, 500, 1500, 4000, 20_000])
def test_a_full_disk_stops_the_run_and_costs_nothing(
    whole: tuple[ExperimentConfig, RunDirectory],
    size: int,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whichever file does not fit: config, metrics, events, checkpoint. With room again it goes on."""
    config, reference = whole
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(Stopped):
        train(config, run, stop_at(8))
    saved = run.checkpoint.read_bytes()
    with (
        no_file_beyond(size),
        pytest.raises(RunError, match=r"^cannot write .*File too large$") as caught,
    ):
        train(config, run)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert run.checkpoint.read_bytes() == saved
    train(config, run)
    assert_same_run(reference, run)


def test_a_signal_before_the_first_update_and_before_the_last_evaluation(
    whole: tuple[ExperimentConfig, RunDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the parts are being built; and after the last update."""
    config, reference = whole
    run = RunDirectory(tmp_path / "run")

    def building(settings: ExperimentConfig) -> Components:
        signal.raise_signal(signal.SIGTERM)
        return build(settings)

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "build", building)
        with pytest.raises(Interrupted, match="stopped by SIGTERM before the first update: nothing is"):
            train(config, run)
    assert not run.has_checkpoint()

    def progress(done: int, numbers: Mapping[str, float] | None) -> None:
        if done == config.training.steps:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="stopped by SIGTERM after update 12, which is saved"):
        train(config, run, progress)
    assert run.summary() is None
    train(config, run)
    assert_same_run(reference, run)
