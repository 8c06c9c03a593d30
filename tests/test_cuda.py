"""On a real GPU: no update waits for it, it computes what a CPU does, and a run there can be resumed.

Skipped without one; what can be shown then is in ``test_fake_cuda.py``.
"""

from __future__ import annotations

import csv
import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from tests.training.test_cuda_graph import state_of
from wsram_ppl import models
from wsram_ppl.config import ExperimentConfig, build, load_config
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.objectives import ImportanceBound, Objective, VariationalBound, WakeSleep
from wsram_ppl.primitives.distributions import Categorical
from wsram_ppl.primitives.handlers import ParticlePlate, pyro_settings
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.testing import ForceSamples
from wsram_ppl.training import cuda_graph as recording
from wsram_ppl.training.cuda_graph import CudaGraphStep
from wsram_ppl.training.loop import save, train
from wsram_ppl.training.trainer import Trainer

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
    # Modules of the compiler, as they are imported, with some versions of Python.
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]

ROOT = Path(__file__).resolve().parent.parent
DIGITS, SCENES = ROOT / "experiments" / "digits.toml", ROOT / "experiments" / "scenes.toml"
SMALL = ["model.hidden=16", "data.canvas=64", "training.batch_size=8", "training.device=cuda"]
BRIEF = [
    "training.steps=12",
    "training.eval_every=0",
    "training.eval_examples=64",
    "training.log_every=4",
]


@pytest.fixture(autouse=True)
def as_in_a_run() -> Iterator[None]:
    with pyro_settings(validate=False):
        yield
    torch.cuda.set_sync_debug_mode("default")


# No update waits for the device.

OBJECTIVES = {
    **{f"wake-sleep {choice}": ("wake-sleep", f"objective.control_variate={choice}") for choice in
       ("none", "self-normalized", "unnormalized", "adaptive", "learned")},
    "sleep": ("wake-sleep", "objective.insomnia=0.5"),
    "importance": ("importance", None),
    **{f"variational {choice}": ("variational", f"objective.baseline={choice}") for choice in
       ("none", "leave-one-out", "site")},
}  # fmt: skip


def check_updates(trainer: Trainer, first: int = 2) -> None:
    for _ in range(first):  # compiles kernels, makes handles and the state of the optimiser
        trainer.update()
    before = [p.detach().clone() for p in trainer.components.model.parameters()]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        trainer.update()
    torch.cuda.set_sync_debug_mode("default")
    after = list(trainer.components.model.parameters())
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))
    assert bool(trainer._finite)


def test_these_tests_notice_a_wait() -> None:
    x = torch.ones(3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


@pytest.mark.parametrize("guide", ["inference", "prior"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_waits(name: str, guide: str) -> None:
    objective, option = OBJECTIVES[name]
    if name == "sleep" and guide == "prior":
        pytest.skip("the prior has nothing to learn in sleep")
    overrides = [*SMALL, *([option] if option else [])]
    check_updates(Trainer.start(load_config(DIGITS, overrides, objective=objective, guide=guide)))


@pytest.mark.parametrize(
    "override",
    [
        "training.prefetch=false",
        "training.precision=bf16-mixed",
        "training.matmul_precision=high",
        "training.optimizer=sgd",
        "exploration.temperature=2",
        "exploration.coverage=0.1",
        "objective.vectorize_particles=false",
    ],
)
def test_no_option_makes_an_update_wait(override: str) -> None:
    check_updates(Trainer.start(load_config(DIGITS, [*SMALL, override])))


@pytest.mark.parametrize("location", ["grid", "gaussian"])
def test_the_captioner_does_not_wait(location: str) -> None:
    overrides = ["training.device=cuda", "training.batch_size=8", f"model.location={location}"]
    check_updates(Trainer.start(load_config(SCENES, overrides)))


# Recorded and replayed.

RECORDED = "training.cuda_graph=true"


def state_after(trainer: Trainer, updates: int) -> dict[str, Tensor]:
    for _ in range(updates):
        trainer.update()
    parts = trainer.components
    tensors = {f"model.{k}": v for k, v in parts.model.state_dict().items()}
    tensors |= {f"guide.{k}": v for k, v in parts.guide.state_dict().items()}
    tensors |= parts.objective.state_dict() | parts.objective.statistics
    tensors |= {f"gradient.{i}": p.grad for i, p in enumerate(trainer.parameters) if p.grad is not None}
    return {name: value.clone() for name, value in tensors.items()}


def check_replay(
    config: ExperimentConfig, monkeypatch: pytest.MonkeyPatch, updates: int = 10
) -> Trainer:
    """Weights, gradients, running means and statistics, against the same calls never recorded.

    (A run without ``cuda_graph`` is the same to rounding only: cuBLAS chooses its sums by the stream.)
    """
    found = []
    for usual in (10**9, recording.USUAL_CALLS):
        monkeypatch.setattr(recording, "USUAL_CALLS", usual)
        trainer = Trainer.start(config)
        found.append(state_after(trainer, updates))
        recorded = trainer._recorded
        assert recorded is not None and bool(recorded._recordings) == (usual < 10**9)
    one, other = found
    assert one.keys() == other.keys()
    differences = {
        name: (value - other[name]).abs().max().item()
        for name, value in one.items()
        if not torch.equal(value, other[name])
    }
    assert not differences
    return trainer


@pytest.mark.parametrize("guide", ["inference", "prior"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_replayed_update_is_bit_equal_and_does_not_wait(
    name: str, guide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With learning rate, width of places and entropy scheduled."""
    objective, option = OBJECTIVES[name]
    if name == "sleep" and guide == "prior":
        pytest.skip("the prior has nothing to learn in sleep")
    overrides = [*SMALL, RECORDED, "training.steps=20", *([option] if option else [])]
    config = load_config(DIGITS, overrides, objective=objective, guide=guide)
    check_updates(check_replay(config, monkeypatch))


@pytest.mark.parametrize(
    "override",
    [
        "exploration.temperature={ start = 3.0, end = 1.0 }",
        "exploration.coverage={ start = 0.1, end = 0.0 }",
        "exploration.entropy=0",
        "training.optimizer=adamw",
        "training.precision=bf16-mixed",
        "training.matmul_precision=high",
        "training.prefetch=false",
        "training.gradient_clip=0.01",
        "training.guide_learning_rate={ start = 0.01, end = 0.0 }",
        "objective.vectorize_particles=false",
    ],
)
def test_with_every_option_a_replayed_update_is_bit_equal(
    override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_replay(load_config(DIGITS, [*SMALL, RECORDED, "training.steps=10", override]), monkeypatch)


@pytest.mark.parametrize("location", ["grid", "gaussian"])
def test_a_replayed_captioner_is_bit_equal(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["training.device=cuda", "training.batch_size=8", f"model.location={location}"]
    check_replay(load_config(SCENES, [*overrides, RECORDED]), monkeypatch)


COMPILED = "training.compile=true"
#: Few operations, since each is compiled.
BRIEFLY = ["model.num_glimpses=1", "model.hidden=16", "training.steps=20"]


@pytest.mark.parametrize("name", ["wake-sleep adaptive", "wake-sleep learned", "importance"])
def test_a_compiled_update_is_the_usual_one_to_rounding(name: str) -> None:
    """In double precision: the same draws, weights, running means and statistics.

    Digits are placed in single precision, by a recorded update in its own order of sums.
    """
    objective, option = OBJECTIVES[name]
    exact = ["training.precision=64-true", *([option] if option else [])]
    gently = [RECORDED, "training.learning_rate=1e-6"]  # Adam makes much of small differences
    for how, tolerance in ((["training.optimizer=sgd"], 1e-8), (gently, 1e-4)):
        found = []
        for more in ([], [COMPILED]):
            config = load_config(DIGITS, [*SMALL, *BRIEFLY, *exact, *how, *more], objective=objective)
            found.append(state_after(Trainer.start(config), 7))
        usual, other = found
        assert other.keys() == usual.keys()
        for key, value in usual.items():
            difference = (other[key] - value).abs().max().item()
            allowed = tolerance * max(value.abs().max().item(), 1e-3)
            assert difference <= allowed, f"{how} {key}: {difference}"


@pytest.mark.parametrize("name", ["wake-sleep adaptive", "variational site"])
def test_a_replayed_compiled_update_is_bit_equal_and_does_not_wait(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, option = OBJECTIVES[name]
    overrides = [*SMALL, *BRIEFLY, COMPILED, RECORDED, *([option] if option else [])]
    check_updates(check_replay(load_config(DIGITS, overrides, objective=objective), monkeypatch))


def test_a_recorded_update_composes_its_own_minibatch() -> None:
    clutter = ["data.canvas=64", "data.clutter={ pieces = 3, size = 8 }"]
    trainer = Trainer.start(load_config(DIGITS, [*SMALL, *clutter, RECORDED]))
    for step in range(6):
        for found, expected in zip(
            trainer.update(), trainer.components.data.training_batch(step, 8, 0), strict=True
        ):
            torch.testing.assert_close(found, expected)
    assert trainer._recorded is not None and trainer._recorded._recordings


def test_each_shape_has_a_recording() -> None:
    """They share memory, and take turns without disturbing each other."""
    weight = torch.ones(3, device="cuda")
    double = CudaGraphStep(lambda x: (x * weight).sum() * 2, state_of(), lambda: None)
    for turn in range(12):
        for rows in (2, 5):
            x = torch.full((rows, 3), float(turn), device="cuda")
            assert double(x).item() == 6 * rows * turn
    assert len(double._recordings) == 2
    weight.fill_(10.0)  # in its place: the recording sees it
    assert double(torch.ones(2, 3, device="cuda")).item() == 120


def test_a_recorded_run_is_a_usual_run_to_rounding(tmp_path: Path) -> None:
    """Rows of metrics, evaluations and probes, in double precision, all written on the way."""
    often = [f"training.{key}" for key in ("eval_every=5", "probe_every=4", "checkpoint_every=6",
                                           "precision=64-true", "learning_rate=1e-4")]  # fmt: skip
    tables = []
    for name, more in (("usual", []), ("recorded", [RECORDED])):
        run = RunDirectory(tmp_path / name)
        train(load_config(DIGITS, [*SMALL, *BRIEF, *often, *more]), run)
        with open(run.path / "metrics.csv", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    for one, other in zip(*tables, strict=True):
        assert (one["step"], one["split"]) == (other["step"], other["split"])
        for column in one.keys() - {"step", "split", "seconds", "updates_per_second"}:
            if one[column] or other[column]:
                assert float(one[column]) == pytest.approx(float(other[column]), rel=1e-4), column


class OnTheHost(models.GlimpseClassifier):
    """Draws a number on the host at every update."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.luck = torch.rand(())
        return super().forward(*args, **kwargs)


class Waiting(models.GlimpseClassifier):
    """Reads a number from the device at every update."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.width = float(self.location_std)
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(("model", "reason"), [(OnTheHost, "random numbers on the host"),
                                               (Waiting, "waits for the device")])  # fmt: skip
def test_what_cannot_be_recorded_is_refused(model: type, reason: str) -> None:
    name = f"{__name__}:{model.__name__}"
    trainer = Trainer.start(load_config(DIGITS, [*SMALL, RECORDED], model=name))
    with pytest.raises(InputError, match=f"cuda_graph: .*{reason}.*use cuda_graph = false"):
        for _ in range(6):
            trainer.update()


# It computes what a CPU does.


def draws_of(objective: Objective, parts: Any, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The values of all latent sites, as the guide draws them for all particles."""
    plate = ParticlePlate(objective.num_particles, -int(objective.max_plate_nesting))
    nodes: Any = poutine.trace(plate(parts.guide)).get_trace(*batch).nodes
    return {
        name: site["value"]
        for name, site in nodes.items()
        if site["type"] == "sample" and name.split("_")[0] in ("location", "scale", "layer")
    }


@pytest.mark.parametrize("experiment", [DIGITS, SCENES], ids=["digits", "scenes"])
@pytest.mark.parametrize(
    "make",
    [
        lambda **o: WakeSleep("adaptive", **o),
        lambda **o: WakeSleep("learned", **o),
        lambda **o: VariationalBound("site", **o),
        ImportanceBound,
    ],
    ids=["adaptive", "learned", "site", "importance"],
)
def test_gradients_are_those_of_a_cpu(experiment: Path, make: Any) -> None:
    """In double precision, on the same draws."""
    torch.manual_seed(0)
    parts = build(load_config(experiment, ["training.batch_size=6", "model.hidden=16"]))
    batch = parts.data.training_batch(0, 6, 0)
    batch = tuple(x.double() if x.is_floating_point() else x for x in batch)
    programs = nn.ModuleList([parts.model, parts.guide]).double()
    objective = make(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    values = draws_of(objective, parts, batch)
    found: list[dict[str, Tensor]] = []
    for device in ("cpu", "cuda"):
        programs.to(device).zero_grad()
        objective.load_state_dict({})
        moved = tuple(x.to(device) for x in batch)
        with ForceSamples({name: value.to(device) for name, value in values.items()}):
            loss = objective.differentiable_loss(parts.model, parts.guide, *moved)
        loss.backward()
        gradients = {
            name: p.grad.cpu().clone() for name, p in programs.named_parameters() if p.grad is not None
        }
        found.append({"loss": loss.detach().cpu(), **gradients})
    here, there = found
    assert len(here) > 10 and here.keys() == there.keys()
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-8, atol=1e-10, msg=name)


def test_choices_are_drawn_with_their_probabilities() -> None:
    fn = Categorical(torch.tensor([0.0, -1.0, -torch.inf, 1.0], device="cuda"))
    counts = fn.sample((200_000,)).bincount(minlength=4).double() / 200_000
    torch.testing.assert_close(counts, fn.probs.double(), atol=0.005, rtol=0)
    assert counts[2] == 0


# A run there.


@pytest.mark.parametrize(
    "how", [[], [RECORDED], [RECORDED, COMPILED, *BRIEFLY]], ids=["usual", "recorded", "compiled"]
)
def test_a_run_can_be_resumed_bit_by_bit(tmp_path: Path, how: list[str]) -> None:
    """Also a thread's minibatches, and cuBLAS, give the same numbers each time."""
    config = load_config(DIGITS, [*SMALL, *BRIEF, *how])
    whole, run = Trainer.start(config), RunDirectory(tmp_path / "run")
    for _ in range(12):
        whole.update()
    half = Trainer.start(config)
    for _ in range(6):
        half.update()
    with run.claim(config):
        run.begin(config, half.components.data)
        save(half, run)
    saved = run.saved(config)
    assert saved is not None and saved.step == 6
    rest = Trainer.start(config)
    rest.state.load(saved.tensors)
    rest.step = saved.step
    for _ in range(6):
        rest.update()
    for one, other in ((whole.components.model, rest.components.model),
                       (whole.components.guide, rest.components.guide)):  # fmt: skip
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_the_command_line_trains_and_evaluates_there(tmp_path: Path) -> None:
    overrides = [word for setting in (*SMALL, *BRIEF) for word in ("--set", setting)]
    out = str(tmp_path / "run")
    for command in (["train", str(DIGITS), "--out", out, *overrides], ["evaluate", out]):
        done = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *command], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert RunDirectory(tmp_path / "run").summary()["device"].startswith("cuda")


def test_divergence_is_told_and_the_process_lives(tmp_path: Path) -> None:
    """torch's own sampler would end the process at probabilities that are no numbers."""
    config = load_config(DIGITS, [*SMALL, *BRIEF, "training.learning_rate=1e30", "training.log_every=1"])
    with pytest.raises(RunError, match="not finite"):
        train(config, RunDirectory(tmp_path / "run"))
    assert torch.ones(2, device="cuda").sum().item() == 2.0


@pytest.mark.parametrize(
    "how", [[], [RECORDED], [RECORDED, COMPILED, *BRIEFLY]], ids=["usual", "recorded", "compiled"]
)
def test_memory_stays_constant(how: list[str]) -> None:
    trainer = Trainer.start(load_config(DIGITS, [*SMALL, *how]))
    gc.collect()  # recordings of other tests
    used = []
    for _ in range(4):
        for _ in range(10):
            trainer.update()
        trainer.minibatches.settle()  # what is made ahead is there, each time
        torch.cuda.synchronize()
        gc.collect()
        used.append(torch.cuda.memory_allocated())
    assert used[1] == used[2] == used[3]
