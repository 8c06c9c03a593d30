"""From an empty folder with pictures to a trained model, by commands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.commands.test_cli import TINY, call
from tests.data.images.pictures import half, write
from tests.training.test_extension import assert_same_weights
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.reading import some_of_each_class

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
        "note: pictures are resized to 16 x 16 pixels, padded with black if they are not square, "
        "in colour",
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
    assert line.startswith("the data have changed since run was started (training not as in run/")
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
    assert line.startswith("the data have changed since run was started (classes not as in run/")


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


# Looking at pictures of one's own.


def test_look_at_pictures_without_the_data(here: Path) -> None:
    """Of any size and of the same names in other folders; what is sampled is drawn by the seed."""
    assert call(*TRAIN, *photos(), "--out", "run").exit_code == 0
    shutil.rmtree("photos")
    write(here / "a" / "cat.png", (200, 10, 10), (70, 31))
    write(here / "b" / "cat.jpg", (10, 10, 200), (9, 40))
    Image.new("RGBA", (5, 5), (0, 0, 0, 0)).save("clear.png")
    result = call("look", "run", "a/cat.png", "b/cat.jpg", "clear.png")
    assert result.exit_code == 0, result.output
    assert result.stderr == "note: clear.png: its transparent parts are shown on white\n"
    said = result.stdout.splitlines()
    for line, name in zip(said[::2], ("a/cat.png", "b/cat.jpg", "clear.png"), strict=True):
        assert re.fullmatch(rf"{name}: (dark|light) \(\d+%\); or (dark|light) \(\d+%\)", line)
    files = ["run/look/cat.png", "run/look/cat-2.png", "run/look/clear.png"]
    assert [line.strip() for line in said[1::2]] == files
    with Image.open(files[0]) as one:
        sampled = ("look", "run", "a/cat.png", "--samples", "20", "--out", "other")
        first = call(*sampled, "--json")
        assert call(*sampled, "--json").stdout == first.stdout
        assert call(*sampled, "--json", "--seed", "1").stdout != first.stdout
        with Image.open("other/cat.png") as two:
            assert two.width > 1.9 * one.width and two.height == one.height
    (found,) = json.loads(first.stdout)
    assert found["image"] == "a/cat.png" and found["picture"] == "other/cat.png"
    assert set(found["probabilities"]) == {"dark", "light"}
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_look_at_digits(here: Path) -> None:
    """A picture of one is put on the canvas light on dark; one of the canvas's size stays as it is."""
    assert call(*TRAIN, "--set", "data.canvas=40", "--out", "run").exit_code == 0
    pixels = np.zeros((28, 28), np.uint8)
    pixels[6:22, 12:16] = 255
    Image.fromarray(pixels).save("one.png")
    Image.fromarray(255 - pixels // 2).resize((300, 300)).save("photo.png")
    canvas = np.pad(pixels, 6)
    Image.fromarray(canvas).save("canvas.png")
    result = call("look", "run", "one.png", "photo.png", "canvas.png", "--json")
    assert result.stderr == "note: photo.png: dark on light: inverted\n"
    one, photo, whole = (each["probabilities"] for each in json.loads(result.stdout))
    assert one == pytest.approx(whole) and list(one) == [str(n) for n in range(10)]
    assert one == pytest.approx(photo, abs=0.05)


def test_what_cannot_be_looked_at(here: Path) -> None:
    assert call(*TRAIN, *photos(), "--out", "run").exit_code == 0
    Path("text.png").write_text("no picture")
    for file, why in (
        ("text.png", "cannot read the picture 'text.png': not a picture"),
        ("nowhere.png", "cannot read the picture 'nowhere.png': No such file or directory"),
        ("photos", "cannot read the picture 'photos': Is a directory"),
    ):
        assert refusal("look", "run", file) == why
    assert not Path("run/look").exists()
    Path("run/data.json").unlink()
    assert refusal("look", "run", "text.png").startswith("there is no run/data.json, which a model is b")
    assert "run is not a run" in refusal("look", "nowhere", "text.png").replace("nowhere", "run")


def test_glimpses_of_each_class_alike_and_of_sampled_sequences(here: Path) -> None:
    assert call(*TRAIN, *photos(), "--set", "data.held_out=0.3", "--out", "run").exit_code == 0
    assert call("glimpses", "run", "--count", "4").exit_code == 0
    with Image.open("run/glimpses.png") as four:
        assert (
            call("glimpses", "run", "--count", "4", "--samples", "3", "--out", "some.png").exit_code == 0
        )
        with Image.open("some.png") as some:
            assert some.width < four.width and some.height > 3 * four.height
    _, parts, _ = RunDirectory("run").load()
    for count in (2, 4, 6):
        _, labels = some_of_each_class(parts.data, "folder", count)
        assert labels.bincount().tolist() == [count // 2, count // 2]
    (batch,) = parts.data.evaluation_batches(12)

    unlabelled: Any = SimpleNamespace(evaluation_batches=lambda size, limit: iter([(batch[0],)]))
    (images,) = some_of_each_class(unlabelled, "own", 3)
    assert images.equal(batch[0][:3])
