"""``training.threads = 0``: one thread or all of them, and a trial that leaves no trace."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.tiny_run import tiny_config
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training import threads
from wsram_ppl.training.loop import train
from wsram_ppl.training.threads import use_threads
from wsram_ppl.training.trainer import Trainer


@pytest.fixture(autouse=True)
def three_cores() -> Iterator[None]:
    torch.set_num_threads(3)
    with pyro_settings(validate=False):
        yield
    torch.set_num_threads(1)


@pytest.fixture
def no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a trial")

    monkeypatch.setattr(threads, "_trial", refuse)


def chosen(trainer: Trainer, before: int | None = None) -> int:
    with use_threads(trainer, before):
        return torch.get_num_threads()


@pytest.mark.parametrize("quick", [1, 2, 3])
def test_the_fastest_of_one_thread_and_all_with_and_without_one_for_minibatches(
    quick: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer.start(tiny_config())

    def slow(*batch: Any) -> torch.Tensor:
        if torch.get_num_threads() != quick:
            time.sleep(0.1)
        return trainer.parameters[0].sum()

    monkeypatch.setattr(trainer, "loss", slow)
    with caplog.at_level(logging.INFO, "wsram_ppl"):
        assert chosen(trainer) == quick
    (line,) = [m for m in caplog.messages if m.startswith("training")]
    assert line.startswith(f"training.threads: {quick} (of an update: ") and "ms with 1, " in line
    ahead = trainer.minibatches._ahead._thread is not None
    assert ahead == (quick < 3)


def test_what_is_about_as_fast_with_one_thread_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer.start(tiny_config())
    monkeypatch.setattr(threads, "_WORTHWHILE", 0.0)
    assert chosen(trainer) == 1


@pytest.mark.usefixtures("no_trial")
@pytest.mark.parametrize(
    ("own", "override", "found"),
    [
        (1, "training.prefetch=false", 1),
        (1, "training.prefetch=true", 1),
        (3, "training.threads=2", 2),
    ],
)
def test_what_needs_no_trial(
    own: int, override: str, found: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(own)
    trainer = Trainer.start(tiny_config(override))
    with caplog.at_level(logging.INFO, "wsram_ppl"):
        assert chosen(trainer) == found
    assert not caplog.messages


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return run.weights().tensors


def test_a_trial_changes_no_bit_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adaptive coefficients begin with the first update; at this size no sum is split."""
    trials = []

    def noted(*args: Any) -> Any:
        trials.append(trial(*args))
        return trials[-1]

    trial = threads._trial
    monkeypatch.setattr(threads, "_trial", noted)
    for name in ("0", "1"):
        train(tiny_config(f"training.threads={name}"), RunDirectory(tmp_path / name))
    free, fixed = weights(RunDirectory(tmp_path / "0")), weights(RunDirectory(tmp_path / "1"))
    assert len(trials) == 1 and trials[0][0] in (1, 2, 3)
    assert free.keys() == fixed.keys() and any("objective" in name for name in free)
    assert all(value.equal(fixed[name]) for name, value in free.items())


def test_a_trial_leaves_no_trace() -> None:
    trainer = Trainer.start(tiny_config())
    before = {name: value.clone() for name, value in trainer.state.tensors().items()}
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    chosen(trainer)
    after = trainer.state.tensors()
    assert before.keys() == after.keys()
    assert all(value.equal(after[name]) for name, value in before.items())
    assert all(parameter.grad is None for parameter in trainer.parameters)
    assert numbers[0].equal(torch.get_rng_state())
    assert numbers[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.get_num_threads() == 3


def test_a_gradient_that_fails_is_left_to_the_update(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, making = Trainer.start(tiny_config()), list[int]()
    make = trainer.minibatches.make

    def slow(step: int) -> Any:
        making.append(step)
        time.sleep(0.1)
        made = make(step)
        making.remove(step)
        return made

    def broken(*batch: Any) -> None:
        raise ValueError("not finite")

    monkeypatch.setattr(trainer.minibatches, "make", slow)
    monkeypatch.setattr(trainer, "loss", broken)
    with caplog.at_level(logging.INFO, "wsram_ppl"):
        assert chosen(trainer) == 1
    assert caplog.messages == ["training.threads: 1 (there was nothing to compare)"]
    assert not making  # the run's minibatches are made one at a time, too


def test_a_run_that_goes_on_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(threads, "_trial", lambda *args: (2, "as found"))
        assert train(tiny_config(), run)["threads"] == 2
    more = tiny_config("training.steps=10", "training.schedule_steps=8")
    monkeypatch.setattr(threads, "_trial", lambda *args: (1, "as found"))
    assert train(more, run)["threads"] == 2


@pytest.mark.usefixtures("no_trial")
def test_fewer_cores_than_before_are_respected() -> None:
    torch.set_num_threads(1)
    assert chosen(Trainer.start(tiny_config()), before=8) == 1


def test_the_process_has_its_number_back_after_a_run(tmp_path: Path) -> None:
    assert train(tiny_config("training.threads=2", "training.steps=1"), RunDirectory(tmp_path / "run"))
    assert torch.get_num_threads() == 3
