"""No objective waits for the device or leaves a tensor on the wrong one, shown without a GPU.

Under ``FakeTensorMode`` tensors have a device and a shape but no content: reading a number off one
(``.item()``, ``bool(...)``, a shape that depends on data) raises, and so does mixing devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from wsram_ppl.objectives import Objective, Prior, WakeSleep

from .test_plates import OBJECTIVES

MAKERS = {
    **OBJECTIVES,
    "insomnia": lambda **options: WakeSleep("learned", insomnia=0.5, **options),
}


class Programs(nn.Module):
    """A recurrent chain of a categorical and a normal latent, with baseline networks."""

    def __init__(self, is_guide: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.label, self.baseline = nn.Linear(2, 5), nn.Linear(4, 1)
        self.is_guide = is_guide

    def infer(self, state: Tensor) -> dict[str, Any]:
        network = lambda state: self.baseline(state).squeeze(-1)  # noqa: E731
        options = {"nn_baseline": network, "nn_baseline_input": state, "use_decaying_avg_baseline": True}
        return {"baseline": options}

    def forward(self, x: Tensor, y: Tensor, observations: Any = None) -> None:
        mask = torch.ones(x.shape[0], dtype=torch.bool)
        with pyro.plate("data", x.shape[0]), poutine.mask(mask=mask):
            logits = self.first(x)
            a = pyro.sample("a", dist.Categorical(logits=logits), infer=self.infer(logits))
            state = logits + nn.functional.one_hot(a, 4)
            where = dist.Normal(self.second(state), 0.5).to_event(1)
            b = pyro.sample("b", where, infer=self.infer(state))
            if not self.is_guide:
                pyro.sample("y", dist.Categorical(logits=self.label(b)), obs=y)


#: The engine that runs ``backward`` asks a CUDA driver for streams, also for fake tensors. Where there
#: is no driver, backward runs on fake "cpu" tensors alone, which are as strict about reading.
DEVICES = ["cuda", "cpu"]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Everything created is on the device, and validation (which reads values) is off."""
    with pyro.validation_enabled(False), FakeTensorMode(), torch.device(request.param):
        yield request.param


def test_the_fake_device_refuses_to_be_read(device: str) -> None:
    """What makes the tests below mean anything."""
    x = torch.ones(3)
    assert isinstance(x, FakeTensor) and x.device.type == device
    with pytest.raises(DataDependentOutputException):
        x.sum().item()
    with pytest.raises(DataDependentOutputException):
        bool(x.sum() > 0)
    with pytest.raises(DynamicOutputShapeException):
        x.nonzero()
    if device == "cuda":
        with pytest.raises(RuntimeError, match="device"):
            x + torch.ones(3, device="cpu")


@pytest.mark.parametrize(
    ("name", "proposal"),
    [(name, proposal) for name in MAKERS for proposal in ("guide", "prior")][:-1],
)
@pytest.mark.parametrize("vectorized", [True, False], ids=["vectorized", "sequential"])
def test_two_training_steps(name: str, proposal: str, vectorized: bool, device: str) -> None:
    """Loss, backward and the running estimates of two steps (the second reads the first's)."""
    objective: Objective = MAKERS[name](
        num_particles=2, vectorize_particles=vectorized, max_plate_nesting=1
    )
    model = Programs(False)
    guide = Prior(model) if proposal == "prior" else Programs(True)
    x, y = torch.randn(6, 3), torch.zeros(6, dtype=torch.long)
    for _ in range(2):
        loss = objective(model, guide)(x, y)
        assert loss.device.type == device and loss.shape == ()
        if device != "cuda" or torch.cuda.is_available():
            loss.backward()
            for program in (model, guide):
                for part in ("first", "second"):
                    weight = getattr(program, part).weight if isinstance(program, Programs) else None
                    assert weight is None or weight.grad.device.type == device
    for tensor in [*objective.statistics.values(), *objective.state_dict().values()]:
        assert tensor.device.type == device and tensor.shape == ()
