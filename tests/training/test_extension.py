"""A run that goes on for longer: what was trained stays as it was."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.training.test_loop import make_config, rows
from wsram_ppl.errors import InputError, Interrupted
from wsram_ppl.runs.checkpoints import load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.loop import train

#: Nothing changes along the run.
CONSTANT = ("training.learning_rate=0.01", "exploration.entropy=0.05", "model.location_std=0.2")


def assert_same_weights(one: RunDirectory, other: RunDirectory) -> None:
    a, b = (load_checkpoint(run.checkpoint) for run in (one, other))
    assert a.step == b.step
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())


@pytest.mark.parametrize(
    ("settings", "more"),
    [(CONSTANT, ()), ((), ("training.schedule_steps=8",)), (("training.schedule_steps=6",), ())],
    ids=["nothing is scheduled", "held at the end", "held before"],
)
def test_a_finished_run_goes_on_as_if_it_had_been_planned_so(
    settings: tuple[str, ...], more: tuple[str, ...], tmp_path: Path
) -> None:
    """To the bit; the summary is that of the new end, and rows of before are kept."""
    run, planned = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "planned")
    train(make_config(*settings), run)
    before = rows(run)
    longer = run.config(["training.steps=12", *more])
    assert longer == make_config(*settings, *more, "training.steps=12")
    assert run.finished(longer) is None
    assert train(longer, run)["updates"] == 12
    train(longer, planned)
    assert_same_weights(run, planned)
    assert rows(run)[: len(before)] == before
    assert rows(run)[-1]["step"] == "12" and run.finished(longer) == run.summary()


def test_a_run_that_was_stopped_can_be_made_longer_and_shorter(tmp_path: Path) -> None:
    def stop(step: int, numbers: Mapping[str, float] | None) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    run = RunDirectory(tmp_path / "run")
    with pytest.raises(Interrupted):
        train(make_config(), run, stop)
    with pytest.raises(InputError, match=r"has done 4 updates already, more than training.steps = 3"):
        train(run.config(["training.steps=3", "training.schedule_steps=8"]), run)
    assert run.config() == make_config()
    assert train(run.config(["training.steps=6", "training.schedule_steps=8"]), run)["updates"] == 6
    with pytest.raises(InputError, match=r"has done 6 updates already, more than training.steps = 5"):
        train(run.config(["training.steps=5"]), run)


def test_where_schedules_would_change_the_past_there_is_a_choice_to_make(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(make_config(), run)
    message = (
        r"training.steps 8, not 12, with model.location_std and exploration.entropy and "
        r"training.learning_rate scheduled over them: set training.schedule_steps=8 too, so that past"
    )
    with pytest.raises(InputError, match=message):
        run.config(["training.steps=12"])
    with pytest.raises(InputError, match=message):
        train(make_config("training.steps=12"), run)
    with pytest.raises(
        InputError, match=r"\(model.hidden 8, not 9\); those that may change are training"
    ):
        run.config(["model.hidden=9"])


def test_an_extension_that_is_stopped_is_not_finished(tmp_path: Path) -> None:
    def stop(step: int, numbers: Mapping[str, float] | None) -> None:
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    run = RunDirectory(tmp_path / "run")
    train(make_config(*CONSTANT), run)
    longer = run.config(["training.steps=12"])
    with pytest.raises(Interrupted):
        train(longer, run, stop)
    assert run.summary() is None and run.config() == longer
    assert train(run.config(), run)["updates"] == 12
