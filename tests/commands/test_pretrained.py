"""The weights that come with the project: measured, looked through and started from without training."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.test_cli import ROOT, TINY, call
from tests.data.images.pictures import half
from wsram_ppl.data.digits.files import read_sample
from wsram_ppl.runs.directory import RunDirectory

PRETRAINED = sorted(path for path in (ROOT / "pretrained").iterdir() if path.is_dir())
DIGITS = ROOT / "pretrained" / "digits"


@pytest.mark.parametrize("path", PRETRAINED, ids=lambda path: path.name)
def test_each_is_small_and_has_a_card(path: Path) -> None:
    largest = 4.5e6 if path.name == "digits-large" else 2.5e6
    assert sum(file.stat().st_size for file in path.iterdir()) < largest
    card = (path / "README.md").read_text(encoding="utf-8")
    for heading in ("## Data", "## Training", "## Error", "## Limits"):
        assert heading in card
    saved = RunDirectory(path).weights()
    assert saved.data["weights_only"] and not any(n.startswith("optimizer") for n in saved.tensors)
    assert saved.data["fingerprint"] == RunDirectory(path).config().fingerprint()


def test_the_digits_are_measured(tmp_path: Path) -> None:
    options = ("--split", "test", "--examples", "200", "--particles", "2", "--json")
    result = call("evaluate", DIGITS, *options)
    assert json.loads(result.stdout)["error"] < 0.05
    assert "trained on all 60,000 training digits" in result.stderr
    other = call("evaluate", DIGITS, *options, "--set", "data.test_seed=777")
    assert json.loads(other.stdout)["error"] < 0.05


@pytest.mark.parametrize(("name", "largest"), [("digits-large", 0.04), ("cluttered", 0.06)])
def test_the_others_are_measured(name: str, largest: float) -> None:
    options = ("--split", "test", "--examples", "200", "--particles", "2", "--json")
    result = call("evaluate", ROOT / "pretrained" / name, *options)
    assert json.loads(result.stdout)["error"] < largest
    assert "may be: measure with --split test" in result.stderr


def test_the_digits_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are, and as a photo may show them: large, dark on a paper that is not white."""
    monkeypatch.chdir(tmp_path)
    _, test = read_sample()
    for number in range(10):
        pixels = test.images[number].numpy()
        Image.fromarray(pixels).save(f"{number}.png")
        photo = Image.fromarray((210 - pixels * 0.7).astype(np.uint8)).resize((400, 400))
        photo.convert("RGB").save(f"photo{number}.jpg")
    names = [f"{number}.png" for number in range(10)] + [f"photo{number}.jpg" for number in range(10)]
    result = call("look", DIGITS, *names, "--out", "pictures", "--samples", "5")
    assert result.exit_code == 0, result.output
    said = [re.match(r".*: (\d) \(", line) for line in result.stdout.splitlines()[::2]]
    right = [
        bool(m) and int(m[1]) == label
        for m, label in zip(said, [*test.labels[:10].tolist()] * 2, strict=True)
    ]
    assert sum(right[:10]) >= 9 and sum(right[10:]) >= 9
    assert len(list((tmp_path / "pictures").iterdir())) == 20


def test_a_run_starts_from_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other classes, which are named."""
    monkeypatch.chdir(tmp_path)
    half(tmp_path / "photos")
    (tmp_path / "tiny.toml").write_text(TINY)
    model = ("hidden=256", "num_glimpses=4", "patch=12", "scales=[1,2,4]")
    sets = [part for text in model for part in ("--set", f"model.{text}")]
    data = "data={source='folder', root='photos', colour=false}"
    result = call("train", "tiny.toml", "--set", data, *sets, "--init", DIGITS, "--out", "run")
    assert result.exit_code == 0, result.output
    (note,) = (line for line in result.stderr.splitlines() if "newly drawn" in line)
    assert "model.network.label.weight [2, 256] (there [10, 256])" in note
    assert "model.network.encoder" not in note
    assert call("train", "--resume", "run").stderr.startswith("note: run is finished")
