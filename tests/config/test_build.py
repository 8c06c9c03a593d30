"""From a config to its components."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
import torch

from tests.config.components import ROOT, config, message
from wsram_ppl.config import build, load_config, parse_config
from wsram_ppl.errors import InputError, RunError


def test_build_passes_every_option() -> None:
    found = config(
        model={"hidden": 3, "width": 2, "scales": [5], "mode": "soft", "folder": "somewhere"},
        guide={"layers": 4},
        objective={"num_particles": 6, "control_variate": "self-normalized"},
        data={"count": 9},
    )
    experiment = build(found)
    assert experiment.model.arguments.items() >= {
        "hidden": 3, "location_std": 0.25, "width": 2.0, "scales": (5,), "mode": "soft",
        "folder": Path("somewhere"), "activation": torch.relu, "layer": None, "anything": (1, 2),
    }.items()  # fmt: skip
    assert type(experiment.model.arguments["width"]) is float
    assert experiment.guide.model is experiment.model
    assert (experiment.guide.layers, experiment.guide.tau) == (4, 0.5)
    assert (experiment.objective.num_particles, experiment.objective.vectorize_particles) == (6, 1)
    assert experiment.objective.control_variate == "self-normalized"
    assert experiment.data.count == 9
    assert experiment.scheduled == {}


def test_a_constructor_with_kwargs_gets_anything() -> None:
    found = config(model={"name": "test-anything", "some": {"deep": [1, "a"]}, "depth": 2})
    assert build(found).model.arguments == {"depth": 2, "some": {"deep": [1, "a"]}}


def test_true_is_not_taken_for_the_default_one() -> None:
    (first, _) = build(config("model.anything=[true, 2]")).model.arguments["anything"]
    assert first is True


@pytest.mark.parametrize(
    ("hidden", "kind", "expected"),
    [
        (13, InputError, "model 'test-net': hidden must not be 13"),
        (14, InputError, "model 'test-net': hidden must not be 14"),
        (15, RunError, "model 'test-net': RuntimeError: no memory"),
        (16, InputError, "model 'test-net': KeyError: 'sixteen'"),
    ],
)
def test_a_constructor_that_raises(hidden: int, kind: type[Exception], expected: str) -> None:
    with pytest.raises(kind) as caught:
        build(config(f"model.hidden={hidden}"))
    assert str(caught.value) == expected


THEIRS = '''
from __future__ import annotations
from typing import Annotated
import torch
from pydantic import Field
from torch import nn

class Model(nn.Module):
    """Theirs."""
    def __init__(self, *, size: Annotated[int, Field(ge=2)] = 2, noise: float = 0.5) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("noise", torch.tensor(noise))

class Guide(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
'''


def test_a_users_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_config_classes.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "their_config_classes", None)
    monkeypatch.delitem(sys.modules, "their_config_classes")
    path = tmp_path / "experiment.toml"
    path.write_text(
        '[data]\nsource = "test-ones"\n[model]\nname = "their_config_classes:Model"\nsize = 3\n'
        'noise = { start = 1.0, end = 0.1 }\n[guide]\nname = "their_config_classes:Guide"\n'
        '[objective]\nname = "test-bound"\n'
    )
    experiment = build(load_config(path))
    assert (experiment.model.size, float(experiment.model.noise)) == (3, 1.0)
    assert experiment.guide.model is experiment.model
    assert list(experiment.scheduled) == [("model", "noise")]
    assert "model.size = 1: should be greater than or equal to 2" in message(
        load_config, path, ["model.size=1"]
    )


def test_the_shipped_experiment() -> None:
    import wsram_ppl.guides
    import wsram_ppl.models  # noqa: F401

    found = load_config(ROOT / "experiments" / "digits.toml")
    assert found.notes == ()
    assert parse_config(tomllib.loads(found.to_toml())) == found
    experiment = build(found)
    assert ("model", "location_std") in experiment.scheduled
    images, labels = experiment.data.training_batch(0, 2, 0)
    assert (images.shape, labels.shape) == ((2, 100, 100), (2,))
