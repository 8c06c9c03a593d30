"""Held-out data that are not numbers are told as such, by every command that reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands.test_bad_input import call
from tests.commands.test_cli import TINY

SOURCE = '''
import numpy
import torch


class Images:
    """Images of a file, all for training and for evaluation."""

    def __init__(self):
        self.images = torch.from_numpy(numpy.load("images.npy"))

    def training_batch(self, step, size, seed):
        return self.images[:size], torch.zeros(size, dtype=torch.int64)

    def evaluation_batches(self, size, limit=None):
        for images in self.images[:limit].split(size):
            yield images, torch.zeros(len(images), dtype=torch.int64)

    def to(self, device):
        return self
'''


SOURCE_OF_FILE = ("--set", "data={source='images_of_a_file:Images'}")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """What ``run`` was trained on, in ``images.npy``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "images_of_a_file.py").write_text(SOURCE)
    (tmp_path / "tiny.toml").write_text(TINY)
    images = np.full((300, 32, 32), 0.5, np.float32)
    np.save("images.npy", images)
    result = call("train", "tiny.toml", "--out", "run", *SOURCE_OF_FILE)
    assert result.exit_code == 0, result.output
    return images


def test_evaluate_and_glimpses(images: np.ndarray) -> None:
    evaluation = ("evaluate", "run", "--samples", "2", "--particles", "2", "--json")
    for command in (evaluation, ("glimpses", "run", "--count", "4")):
        assert call(*command).exit_code == 0
    found = json.loads(call(*evaluation).stdout)
    assert np.isfinite(found["bound"]) and "split" not in found
    assert call(*evaluation, "--split", "test").stderr == (
        "error: data 'images_of_a_file:Images' has one held-out set: leave out --split, or give its "
        'evaluation_batches a keyword split, "validation" or "test"\n'
    )
    for place, batch in ((2, 1), (290, 2)):
        spoiled = images.copy()
        spoiled[place, 3, 4] = np.nan
        np.save("images.npy", spoiled)
        result = call(*evaluation, "--batch-size", "256")
        assert (result.exit_code, result.stdout) == (2, "")
        assert (
            result.stderr == f"error: part 0 of held-out batch {batch} is not finite: look at the data\n"
        )
    assert call("glimpses", "run", "--count", "4").exit_code == 0
    result = call("glimpses", "run", "--count", "300")
    assert result.exit_code == 2
    assert result.stderr == "error: part 0 of the held-out batch is not finite: look at the data\n"


@pytest.mark.parametrize(("place", "batch"), [(20, 1), (290, 2)])
def test_train_looks_at_all_of_them_first(
    place: int, batch: int, images: np.ndarray, tmp_path: Path
) -> None:
    """Whichever it is, nothing is trained and nothing written."""
    images[place, 3, 4] = np.inf
    np.save("images.npy", images)
    every = ("--set", "training.eval_examples=0")
    result = call("train", "tiny.toml", "--out", "other", *SOURCE_OF_FILE, *every)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: part 0 of held-out batch {batch} is not finite: look at the data\n"
    assert not (tmp_path / "other").exists()
