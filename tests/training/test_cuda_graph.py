"""What can be shown of recorded updates without a GPU: when they are refused, and who makes room.

The recordings themselves are tested in ``test_cuda.py``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.test_loop import make_config
from wsram_ppl import models
from wsram_ppl.config import Components
from wsram_ppl.errors import InputError
from wsram_ppl.objectives import WakeSleep
from wsram_ppl.objectives.exploration import in_place
from wsram_ppl.runs.checkpoints import TrainingState
from wsram_ppl.training.cuda_graph import USUAL_CALLS, CudaGraphStep, _host_randomness, check_recordable
from wsram_ppl.training.minibatches import Prefetcher
from wsram_ppl.training.optimizer import Clipping, make_optimizer
from wsram_ppl.training.trainer import Trainer

CPU = torch.device("cpu")


def test_only_a_gpu_records() -> None:
    with pytest.raises(InputError, match="cuda_graph: device 'cpu' cannot record; use device"):
        Trainer.start(make_config("training.cuda_graph=true"))


def test_what_excludes_recording_is_told() -> None:
    gpu = torch.device("cuda")
    with pytest.raises(InputError, match=r"cuda_graph: .*set validate = false, or cuda_graph = false"):
        check_recordable(make_config("training.validate=true").training, gpu, 1)
    check_recordable(make_config().training, gpu, 1)
    with pytest.raises(InputError, match="use devices = 1, or cuda_graph = false"):
        check_recordable(make_config().training, gpu, 2)


def test_sgd_cannot_be_recorded() -> None:
    training = make_config("training.cuda_graph=true", "training.optimizer=sgd").training
    with pytest.raises(InputError, match="rate of 'sgd' cannot change in a recorded update; use opt"):
        make_optimizer(training, nn.Linear(2, 2), nn.Linear(2, 2), CPU)


def test_a_rate_in_a_tensor_is_set_in_its_place() -> None:
    held = torch.tensor(1.0)
    groups: list[dict[str, Any]] = [{"lr": held}, {"lr": 1.0}]
    for group in groups:
        group["lr"] = in_place(group["lr"], 0.25)
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

    minibatches = Prefetcher(make, steps=3, ahead=True)
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


# The bookkeeping, on a device that only plays one.


class Played:
    """In the place of ``torch.cuda``: a graph holds what was done while it was open, to do it again."""

    def __init__(self) -> None:
        self.open: list[Callable[[], None]] | None = None
        self.mode: int | str = 0
        self.recordings = 0

    def get_sync_debug_mode(self) -> int | str:
        return self.mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        self.mode = mode

    def Stream(self) -> Any:
        return type("Stream", (), {"wait_stream": lambda self, other: None})()

    current_stream = Stream

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def graph_pool_handle(self) -> Any:
        return object()

    def CUDAGraph(self) -> Any:
        done: list[Callable[[], None]] = []
        return type("Graph", (), {"done": done, "replay": lambda self: [each() for each in done]})()

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any) -> Iterator[None]:
        self.open, self.recordings = graph.done, self.recordings + 1
        yield
        self.open = None

    def do(self, work: Callable[[], None]) -> None:
        """What a kernel is: done at once, or written down."""
        if self.open is None:
            work()
        else:
            self.open.append(work)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    device = Played()
    monkeypatch.setattr(torch, "cuda", device)
    return device


def state_of(model: nn.Module | None = None) -> TrainingState:
    return TrainingState(Components(model or nn.Module(), nn.Module(), WakeSleep(), Any, {}))


def test_a_shape_is_computed_a_few_times_then_recorded_once(played: Played) -> None:
    python, quiet = [], []

    def double(x: Tensor) -> Tensor:
        python.append(len(x))
        out = torch.zeros_like(x)
        played.do(lambda: out.copy_(2 * x))
        return out

    doubled = CudaGraphStep(double, state_of(), lambda: quiet.append(len(python)))
    for turn in range(USUAL_CALLS + 4):
        for size in (2, 3):
            x = torch.full((size,), float(turn))
            assert torch.equal(doubled(x), 2 * x)
    assert python.count(2) == python.count(3) == USUAL_CALLS + 1
    assert played.recordings == 2 and played.mode == 0
    assert len(quiet) == 4  # before each rehearsal and each recording
    assert torch.equal(doubled(torch.ones(2, dtype=torch.float64)), torch.full((2,), 2.0).double())
    assert played.recordings == 2  # another type starts anew


def test_a_rehearsal_refuses_what_waits(played: Played) -> None:
    """Before anything is recorded, and other errors are left alone."""

    def wait(x: Tensor) -> None:
        if played.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    waiting = CudaGraphStep(wait, state_of(), lambda: None)
    for _ in range(USUAL_CALLS - 1):
        waiting(torch.ones(2))
    with pytest.raises(InputError, match="cannot be recorded, since something in it waits"):
        waiting(torch.ones(2))
    assert played.recordings == 0 and played.mode == 0

    def fail(x: Tensor) -> None:
        raise RuntimeError("shapes do not fit")

    failing = CudaGraphStep(fail, state_of(), lambda: None)
    for _ in range(USUAL_CALLS):
        with pytest.raises(RuntimeError, match="shapes do not fit"):
            failing(torch.ones(2))


def test_a_rehearsal_refuses_random_numbers_on_the_host(played: Played) -> None:
    drawing = CudaGraphStep(lambda x: torch.rand(()), state_of(), lambda: None)
    for _ in range(USUAL_CALLS - 1):
        drawing(torch.ones(2))
    with pytest.raises(InputError, match=r"random numbers on the host .*; use cuda_graph = false"):
        drawing(torch.ones(2))
    assert played.recordings == 0


def test_a_rehearsal_refuses_to_replace_a_buffer(played: Played) -> None:
    """A replay would begin with the old one again and again; in its place it may change."""
    model = nn.Module()
    model.register_buffer("mean", torch.zeros(()))

    def replace(x: Tensor) -> None:
        model.mean = 0.5 * model.mean + x.mean()

    def change(x: Tensor) -> None:
        model.mean.copy_(0.5 * model.mean + x.mean())

    changing = CudaGraphStep(change, state_of(model), lambda: None)
    for _ in range(USUAL_CALLS):
        changing(torch.ones(2))
    replacing = CudaGraphStep(replace, state_of(model), lambda: None)
    for _ in range(USUAL_CALLS - 1):
        replacing(torch.ones(2))
    with pytest.raises(InputError, match=r"another tensor in the place of model\.mean.* by copy_, or"):
        replacing(torch.ones(2))
    assert played.recordings == 0


def test_what_fails_while_recorded_is_refused(played: Played) -> None:
    def fail(x: Tensor) -> None:
        if played.open is not None:
            raise RuntimeError("operation not permitted when stream is capturing")

    failing = CudaGraphStep(fail, state_of(), lambda: None)
    for _ in range(USUAL_CALLS):
        failing(torch.ones(2))
    with pytest.raises(InputError, match=r"cannot be part of a CUDA graph \(operation not permitted"):
        failing(torch.ones(2))
