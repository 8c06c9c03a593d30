"""Runs that start from the weights of another one, and weights that are handed on alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from scripts.export_run import export
from tests.training.test_extension import assert_same_weights
from tests.training.test_loop import make_config
from wsram_ppl.config import ExperimentConfig
from wsram_ppl.errors import InputError
from wsram_ppl.runs.checkpoints import load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.loop import train

#: Updates that change nothing.
STILL = ("training.learning_rate=0.0",)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A trained run, not to be changed."""
    run = RunDirectory(tmp_path_factory.mktemp("init") / "first")
    train(make_config(), run)
    return run


def starting(first: RunDirectory, *overrides: str) -> ExperimentConfig:
    return make_config(f"training.init={first.path}", *overrides)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """By this library."""
    return [each.getMessage() for each in caplog.records if each.name.startswith("wsram_ppl")]


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    tensors = load_checkpoint(run.checkpoint).tensors
    return {name: t for name, t in tensors.items() if name.startswith(("model.", "guide."))}


def test_all_weights_are_taken_but_no_option(
    first: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path / "run")
    with caplog.at_level("INFO", logger="wsram_ppl"):
        train(starting(first, *STILL, "model.location_std=0.07", "training.seed=5"), run)
    there, here = weights(first), weights(run)
    assert here.pop("model.location_std") == pytest.approx(0.07) != there.pop("model.location_std")
    assert here.keys() == there.keys()
    assert all(tensor.equal(there[name]) for name, tensor in here.items())
    assert said(caplog) == [f"{first}: {len(here)} tensors taken, 0 newly drawn"]
    assert run.config().training.init == str(first.path)


def test_what_does_not_fit_is_named_and_drawn_anew(
    first: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a run without a start would have it."""
    run, fresh = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "fresh")
    other = (*STILL, "model.classes=12", "guide.hidden=9")
    with caplog.at_level("INFO", logger="wsram_ppl"):
        train(starting(first, *other), run)
    train(make_config(*other), fresh)
    there, here, new = weights(first), weights(run), weights(fresh)
    anew = {name for name, tensor in here.items() if tensor.shape != there[name].shape}
    assert {
        "model.network.label.weight",
        "model.baselines.label.weight",
        "guide.network.label.weight",
    } < anew
    for name, tensor in here.items():
        assert name == "model.location_std" or tensor.equal((new if name in anew else there)[name])
    (line,) = said(caplog)
    assert f"{len(here) - 1 - len(anew)} tensors taken, {len(anew)} newly drawn: " in line
    assert "model.network.label.weight [12, 8] (there [10, 8])" in line
    assert all(f"{name} [" in line for name in anew)


def test_another_guide_is_drawn_anew(
    first: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = RunDirectory(tmp_path / "prior")
    train(make_config("guide={name='prior'}"), source)
    caplog.clear()
    with caplog.at_level("INFO", logger="wsram_ppl"):
        train(starting(source), RunDirectory(tmp_path / "run"))
    (line,) = said(caplog)
    assert "guide.network.label.weight [10, 8] (not there)" in line


def test_going_on_is_exact_and_needs_the_first_run_no_more(first: RunDirectory, tmp_path: Path) -> None:
    source = RunDirectory(tmp_path / "source")
    shutil.copytree(first.path, source.path)
    config = starting(source, "training.schedule_steps=8")
    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    train(config, whole)
    train(starting(source, "training.schedule_steps=8", "training.steps=4"), run)
    shutil.rmtree(source.path)
    train(run.config(["training.steps=8"]), run)
    assert_same_weights(run, whole)
    other = RunDirectory(tmp_path / "other")
    with pytest.raises(
        InputError, match=r"training.init = '.*source': there is no checkpoint .*source/last"
    ):
        train(config, other)
    assert not other.path.exists()


def test_a_start_is_part_of_what_a_run_is(first: RunDirectory, tmp_path: Path) -> None:
    assert make_config().fingerprint() == make_config("training.init=none").fingerprint()
    assert starting(first).fingerprint() != make_config().fingerprint()
    with pytest.raises(InputError, match=r"run with other settings \(training.init unset, not"):
        first.config([f"training.init={first.path}"])


def test_a_start_of_which_nothing_fits(first: RunDirectory, tmp_path: Path) -> None:
    other = ("model.hidden=5", "guide={name='prior'}", "model.num_glimpses=3")
    with pytest.raises(InputError, match=r"nothing there fits \(model\..* \[.*\] \(there \[.*\]\); "):
        train(starting(first, *other, "model.scales=[1]", "model.patch=3", "model.classes=9"),
              RunDirectory(tmp_path / "run"))  # fmt: skip


@pytest.mark.parametrize("half", [True, False])
def test_weights_alone(
    half: bool, first: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are measured and started from, with their note, but not gone on from."""
    config, record = first.config(), json.loads((first.path / "data.json").read_bytes())
    saved = first.weights()
    out = tmp_path / "handed on"
    path = export(out, config, saved.tensors, record, saved.step, "for tests", half=half)
    assert path.stat().st_size < (0.4 if half else 0.6) * first.checkpoint.stat().st_size
    caplog.clear()
    with caplog.at_level("INFO", logger="wsram_ppl"):
        _, parts, step = RunDirectory(out).load()
    assert step == 8 and said(caplog) == [f"{out}: for tests"]
    _, same, _ = first.load()
    for name, tensor in same.model.state_dict().items():
        found = parts.model.state_dict()[name]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, tensor, rtol=1e-3 if half else 0, atol=1e-6 if half else 0)
    longer = config_of(out, "training.steps=9", "training.schedule_steps=8")
    with pytest.raises(
        InputError, match=r"handed on holds only weights, which a run cannot resume from: st"
    ):
        train(longer, RunDirectory(out))
    assert not (out / "lock").exists()
    train(starting(RunDirectory(out)), RunDirectory(tmp_path / "run"))


def config_of(path: Path, *overrides: str) -> ExperimentConfig:
    return RunDirectory(path).config(overrides)


def test_a_damaged_checkpoint_there_falls_back_to_the_one_before(
    first: RunDirectory, tmp_path: Path
) -> None:
    source = RunDirectory(shutil.copytree(first.path, tmp_path / "source"))
    shutil.copy(source.checkpoint, source.path / "previous.safetensors")
    source.checkpoint.write_bytes(source.checkpoint.read_bytes()[:-5])
    with pytest.warns(UserWarning, match=r"last.safetensors is not .*; these are the weights of .*prev"):
        train(starting(source), RunDirectory(tmp_path / "run"))
