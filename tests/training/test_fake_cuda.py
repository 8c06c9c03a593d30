"""Everything that runs in a training step, with modules and data on a CUDA device that is not there.

Fake tensors carry a shape, a type and a device but no values, so no GPU is needed, and whatever would
have to wait for one fails: reading a number (``.item()``, ``float``, ``if tensor``), and shapes that
depend on values. :class:`NoCopiesToHost` adds the waits that fake tensors let through. An operation on
tensors of two devices fails as it would on a GPU.

The engine of ``backward`` asks the driver for a device, so backward runs on fake *CPU* tensors, which
still proves that it waits for no value.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsram_ppl.config import Components, parse_config
from wsram_ppl.data.digits.source import SampleDigits
from wsram_ppl.distributed.processes import Processes
from wsram_ppl.guides import InferenceNetwork
from wsram_ppl.models import GlimpseClassifier
from wsram_ppl.objectives import ImportanceBound, Objective, Prior, VariationalBound, WakeSleep
from wsram_ppl.objectives.exploration import Exploration
from wsram_ppl.objectives.wake_sleep import ControlVariate
from wsram_ppl.runs.checkpoints import TrainingState
from wsram_ppl.training.trainer import Trainer

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


class NoCopiesToHost(TorchDispatchMode):
    """Refuses to copy from a CUDA device to the host: that waits for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "copy" in func.name():
            before = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            after = {x.device.type for x in tree_leaves(result) if isinstance(x, Tensor)}
            if func.name() == "aten::copy_":
                before, after = {args[1].device.type}, {args[0].device.type}
            if "cuda" in before and "cpu" in after:
                raise AssertionError(f"{func.name()} waits for the device")
        return result


#: One for all tests, so that they can share tensors.
FAKE = FakeTensorMode()


@pytest.fixture(autouse=True)
def fake() -> Iterator[None]:
    with pyro.validation_enabled(False), FAKE, NoCopiesToHost():
        yield


Parts = tuple[GlimpseClassifier, nn.Module, tuple[Tensor, ...]]


@functools.cache
def make_batch(device: torch.device) -> tuple[Tensor, Tensor]:
    return SampleDigits(canvas=64).to(device).training_batch(3, 6, 0)


def make_parts(guide_name: str, device: torch.device) -> Parts:
    """Model, guide and a minibatch as a run has them on that device."""
    with torch.device(device):
        model = GlimpseClassifier(hidden=16, num_glimpses=2, patch=8)
        guide = InferenceNetwork(model) if guide_name == "inference" else Prior(model)
    return model, guide, make_batch(device)


def cases() -> Iterator[tuple[str, Callable[..., Objective], bool]]:
    """Name, objective and whether it trains with the prior as guide."""
    yield "importance", ImportanceBound, True
    for baseline in ("none", "leave-one-out", "site"):
        yield f"variational-{baseline}", lambda b=baseline, **o: VariationalBound(b, **o), True
    for choice in get_args(ControlVariate):
        yield f"wake-sleep-{choice}", lambda c=choice, **o: WakeSleep(c, **o), True
    yield "sleep", lambda **o: WakeSleep(insomnia=0.5, **o), False


COMBINATIONS = [
    pytest.param(make, guide, id=f"{name}-{guide}")
    for name, make, with_prior in cases()
    for guide in (("inference", "prior") if with_prior else ("inference",))
]


def test_these_tests_notice_what_they_are_for() -> None:
    on_gpu, on_host = torch.ones(3, device=CUDA), torch.ones(3)
    for wait in (on_gpu.sum().item, on_gpu.tolist, lambda: bool(on_gpu.any())):
        with pytest.raises(DataDependentOutputException):
            wait()
    with pytest.raises(DynamicOutputShapeException):
        on_gpu[on_gpu > 0]
    with pytest.raises(RuntimeError, match="devices"):
        on_gpu + on_host
    for wait in (on_gpu.cpu, lambda: on_gpu.to("cpu"), lambda: on_host.copy_(on_gpu)):
        with pytest.raises(AssertionError, match="waits for the device"):
            wait()
    assert (on_gpu + on_host.to(CUDA)).device == CUDA


def test_the_minibatch_is_made_on_the_device() -> None:
    source = SampleDigits(canvas=64).to(CUDA)
    for images, labels in (source.training_batch(0, 6, 0), next(iter(source.evaluation_batches(6)))):
        assert (images.device, labels.device) == (CUDA, CUDA)
        assert images.shape == (6, 64, 64)


@pytest.mark.parametrize(("make", "guide_name"), COMBINATIONS)
def test_the_loss_waits_for_nothing(make: Any, guide_name: str) -> None:
    check_loss(make(num_particles=3, vectorize_particles=True, max_plate_nesting=1), guide_name)


def test_guessing_the_plates_waits_for_nothing() -> None:
    check_loss(ImportanceBound(3, vectorize_particles=True), "inference")


@pytest.mark.parametrize("make", [ImportanceBound, WakeSleep], ids=["importance", "wake-sleep"])
def test_particles_one_after_the_other_wait_for_nothing(make: Any) -> None:
    check_loss(make(num_particles=2), "inference")


def check_loss(objective: Objective, guide_name: str) -> None:
    model, guide, batch = make_parts(guide_name, CUDA)
    for _ in range(2):  # running estimates are there from the second on
        loss = objective.differentiable_loss(model, guide, *batch)
        assert isinstance(loss, FakeTensor)
        assert (loss.device, loss.shape, loss.requires_grad) == (CUDA, (), True)
    for state in (objective.statistics, objective.state_dict()):
        assert all(value.device == CUDA for value in state.values())


@pytest.mark.parametrize("guide_name", ["inference", "prior"])
def test_exploration_waits_for_nothing(guide_name: str) -> None:
    model, guide, batch = make_parts(guide_name, CUDA)
    exploration = Exploration(entropy=0.1, temperature=2.0, coverage=0.1)
    objective = WakeSleep(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    objective.regularizer = exploration
    assert objective.differentiable_loss(model, guide, *batch).device == CUDA


@pytest.mark.parametrize(
    ("make", "guide_name"), [case for case in COMBINATIONS if case.values[1] == "inference"]
)
def test_backward_waits_for_no_value(make: Any, guide_name: str) -> None:
    model, guide, batch = make_parts(guide_name, CPU)
    objective = make(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    objective(model, guide)(*batch).backward()
    trained = [*model.network.parameters(), *guide.network.parameters()]
    assert all(isinstance(p.grad, FakeTensor) and p.grad.shape == p.shape for p in trained)


def test_what_a_checkpoint_holds_goes_to_the_device() -> None:
    """Running means too: a program that is compiled or recorded reads them there ever after."""
    model, guide, batch = make_parts("inference", CUDA)
    objective = WakeSleep("adaptive", num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    state = TrainingState(Components(model, guide, objective, SampleDigits(canvas=64), {}))
    objective.differentiable_loss(model, guide, *batch)
    saved = {name: torch.empty(tensor.shape, device=CPU) for name, tensor in state.tensors().items()}
    objective.load_state_dict({})
    state.load(saved)
    assert len(objective.state_dict()) > 0
    assert all(mean.device == CUDA for mean in objective.state_dict().values())


def test_look_and_metrics_stay_on_the_device() -> None:
    model, _, batch = make_parts("prior", CUDA)
    assert all(x.device == CUDA for x in model.look(batch[0], 4))
    assert all(x.device == CUDA for x in model.metrics(*batch, 4).values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_whole_update_waits_for_no_value(
    optimizer: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch, loss, backward, clipping and optimiser, as the training loop calls them."""
    # Fake parameters cannot change places with others; these are where they belong.
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **kwargs: self)
    config = parse_config(
        {
            "data": {"source": "sample", "canvas": 64},
            "model": {"name": "glimpse-classifier", "hidden": 16, "patch": 8},
            "guide": {"name": "inference"},
            "objective": {"name": "wake-sleep"},
            "exploration": {"entropy": {"start": 0.1, "end": 0.0}},
            # Fake tensors are a thread's own.
            "training": {
                "batch_size": 6,
                "optimizer": optimizer,
                "precision": precision,
                "prefetch": False,
            },
        }
    )
    model, guide, _ = make_parts("inference", CPU)
    objective = WakeSleep(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    parts = Components(model, guide, objective, SampleDigits(canvas=64), {})
    trainer = Trainer(config, parts, Processes.launch(config.training))
    for _ in range(2):
        trainer.update()
    assert trainer.step == 2
