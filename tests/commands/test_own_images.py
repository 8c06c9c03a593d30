"""From an empty folder with pictures to a trained model, by commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.test_cli import TINY, call
from tests.data.images.pictures import half, write
from tests.training.test_extension import assert_same_weights
from wsram_ppl.runs.directory import RunDirectory

SMALL = ("--examples", "4", "--particles", "2", "--samples", "2")
TRAIN = ("train", "tiny.toml", "--set", "training.steps=6", "--set", "training.checkpoint_every=1")


def refusal(*command: str) -> str:
    """What is wrong, below notes on the data."""
    result = call(*command)
    *notes, line = result.stderr.splitlines()
    assert (result.exit_code, result.stdout) == (2, "") and line.startswith("error: ")
    assert all(note.startswith("note: ") for note in notes)
    return line.removeprefix("error: ")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    half(tmp_path / "photos")
    return tmp_path


def photos(root: str = "photos") -> tuple[str, str]:
    return "--set", f"data={{source='folder', root='{root}', canvas=16}}"


def test_a_folder_in_colour(here: Path) -> None:
    """Trained, measured, drawn, by the names of its classes; what was done is told."""
    result = call(*TRAIN, *photos(), "--out", "run")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stderr.splitlines() if line.startswith("note: ")] == [
        "note: 40 pictures of 2 classes: dark, light",
        "note: pictures are resized to 16 x 16 pixels, with black beside those that are not "
        "square, in colour",
        "note: 32 pictures for training, 4 for validation, 4 for test: drawn from each class alike, "
        "with data.split_seed 0",
    ]
    assert json.loads(Path("run/data.json").read_text())["classes"] == ["dark", "light"]
    _, parts, _ = RunDirectory("run").load()
    assert (parts.model.classes, parts.model.class_names) == (2, ("dark", "light"))
    gaze = parts.model.gaze(*next(parts.data.evaluation_batches(4)))
    assert {caption.split(",")[0] for caption in gaze.captions} == {"a dark", "a light"}
    found = json.loads(call("evaluate", "run", *SMALL, "--split", "test", "--json").stdout)
    assert (found["split"], found["examples"]) == ("test", 4)
    assert call("glimpses", "run", "--count", "4").exit_code == 0
    with Image.open("run/glimpses.png") as picture:
        colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (colours.max(1) - colours.min(1) > 20).any()


def test_a_run_goes_on_as_if_never_stopped(here: Path) -> None:
    """Among pictures of which some are broken."""
    for number in (3, 4, 5, 6, 7):
        Path(f"photos/light/{number}.png").write_text("no picture")
    half_way = ("--set", "training.schedule_steps=6", "--set", "training.steps=3")
    whole = ("--set", "training.schedule_steps=6")
    assert call(*TRAIN, *photos(), *half_way, "--out", "run").exit_code == 0
    assert call("train", "--resume", "run", "--set", "training.steps=6").exit_code == 0
    result = call(*TRAIN, *photos(), *whole, "--out", "whole")
    assert result.exit_code == 0 and "cannot be read: left out (the first: light/" in result.stderr
    assert_same_weights(RunDirectory("run"), RunDirectory("whole"))


def test_the_same_photos_or_others(here: Path) -> None:
    assert call(*TRAIN, *photos(), "--out", "run").exit_code == 0
    shutil.copytree("photos", "moved")
    first = call("evaluate", "run", *SMALL, "--json")
    assert call("evaluate", "run", *SMALL, "--json", "--set", "data.root=moved").stdout == first.stdout
    write(here / "photos" / "dark" / "another.png")
    line = refusal("evaluate", "run", *SMALL)
    assert line.startswith("the data have changed since run began (training not as in run/data.json)")
    longer = (
        "train",
        "--resume",
        "run",
        "--set",
        "training.steps=7",
        "--set",
        "training.schedule_steps=6",
    )
    assert "(training not as in" in refusal(*longer)
    half(here / "test only" / "train", count=9)
    half(here / "test only" / "test", count=5)
    found = call(
        "evaluate", "run", "--set", "data.root=test only", "--split", "test", "--json", *SMALL[2:]
    )
    assert json.loads(found.stdout)["examples"] == 10
    half(here / "others", ("cats", "dogs"))
    line = refusal("evaluate", "run", "--set", "data.root=others")
    assert line.startswith("the data have changed since run began (classes not as in run/data.json)")


@pytest.mark.parametrize("shape", [(40, 24, 20), (40, 24, 20, 3), (40, 3, 24, 20)])
def test_arrays(shape: tuple[int, ...], here: Path) -> None:
    labels = np.arange(40) % 3
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez("data.npz", images=images, labels=labels)
    result = call(*TRAIN, "--set", "data={source='arrays', path='data.npz'}", "--out", "run")
    assert result.exit_code == 0, result.output
    assert "note: 40 images of 24 x 20 pixels" in result.stderr
    _, parts, _ = RunDirectory("run").load()
    assert parts.model.network.channels == (3 if len(shape) == 4 else 1)
    assert call("evaluate", "run", *SMALL, "--split", "test").exit_code == 0
    assert call("glimpses", "run", "--count", "2").exit_code == 0
