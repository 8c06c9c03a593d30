"""What can be shown of recorded updates without a GPU: when they are refused, and who makes room.

The recordings themselves are tested in ``test_cuda.py``.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from test_training import make_spec
from torch import nn

import guides  # noqa: F401
import models
from wsram_ppl.data.ahead import Minibatches
from wsram_ppl.errors import InputError
from wsram_ppl.optimization import Clipping, make_optimizer, set_rate
from wsram_ppl.recording import _host_randomness
from wsram_ppl.trainer import Trainer

CPU = torch.device("cpu")


def test_only_a_gpu_records() -> None:
    with pytest.raises(InputError, match="cuda_graph: device 'cpu' records nothing; use device"):
        Trainer.start(make_spec("training.cuda_graph=true"))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("training.compile=true", "set compile and validate false"),
        ("training.validate=true", "set compile and validate false"),
    ],
)
def test_what_excludes_recording_is_told(
    setting: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer.start(make_spec(setting))
    trainer.fabric = type("OnGpu", (), {"device": torch.device("cuda")})()
    with pytest.raises(InputError, match=f"training.cuda_graph: .*{reason}, or cuda_graph = false"):
        trainer._check_recordable()
    trainer.training = make_spec().training
    trainer._check_recordable()
    monkeypatch.setattr(trainer.share, "count", 2)
    with pytest.raises(InputError, match="use devices = 1, or cuda_graph = false"):
        trainer._check_recordable()


def test_sgd_cannot_be_recorded() -> None:
    training = make_spec("training.cuda_graph=true", "training.optimizer=sgd").training
    with pytest.raises(InputError, match="rate of 'sgd' cannot change in a recorded update; use opt"):
        make_optimizer(training, nn.Linear(2, 2), nn.Linear(2, 2), CPU)


def test_a_rate_in_a_tensor_is_set_in_its_place() -> None:
    held = torch.tensor(1.0)
    groups: list[dict[str, Any]] = [{"lr": held}, {"lr": 1.0}]
    for group in groups:
        set_rate(group, 0.25)
    assert groups[0]["lr"] is held and held == 0.25
    assert groups[1]["lr"] == 0.25


def test_host_randomness_is_noticed() -> None:
    """Of torch, numpy and Python, each."""
    import random

    import numpy as np

    for draw in (lambda: torch.rand(()), lambda: np.random.rand(), random.random):
        before = _host_randomness()
        assert _host_randomness() == before
        draw()
        assert _host_randomness() != before


def test_settling_waits_for_the_minibatch_in_the_making() -> None:
    going, made = threading.Event(), []

    def make(step: int) -> int:
        if step == 1:
            going.wait(5)
        made.append(step)
        return step

    minibatches = Minibatches(make, steps=3, ahead=True)
    minibatches.settle()  # nothing yet
    assert minibatches(0) == 0
    threading.Timer(0.1, going.set).start()
    minibatches.settle()
    assert made == [0, 1]
    assert minibatches(1) == 1


def test_clipping_tells_what_is_not_finite() -> None:
    """Parts without any gradient, and without any parameter, are no trouble."""
    model = models.GlimpseClassifier(hidden=8)
    plain = nn.Linear(3, 2)
    finite = torch.ones((), dtype=torch.bool)
    for program in (model, plain):
        Clipping(program, nn.Module(), list(program.parameters()), 5.0)(finite)
        assert finite
    plain.weight.grad = torch.full((2, 3), 7.0)
    clip = Clipping(plain, nn.Module(), list(plain.parameters()), 2.0)
    clip(finite)
    assert finite and plain.weight.grad.norm().item() == pytest.approx(2.0)
    plain.weight.grad[0, 0] = torch.inf
    clip(finite)
    assert not finite
