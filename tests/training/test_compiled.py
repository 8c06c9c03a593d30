"""Compiled updates: the same numbers as uncompiled, and what is refused.

But for the last test the traced graph is run as it is, which takes seconds: what the compiler makes of
a graph is its own affair, what is in the graph ours.
"""

from __future__ import annotations

import os
import random
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from scripts.tiny_run import tiny_config
from wsram_ppl.config import Components, ExperimentConfig, load_config, parse_config
from wsram_ppl.data.digits.source import SampleDigits
from wsram_ppl.errors import Diverged, InputError, Interrupted
from wsram_ppl.interfaces import Composes
from wsram_ppl.objectives import VariationalBound
from wsram_ppl.objectives.running import RunningMeans
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.checkpoints import TrainingState, load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training import compiled
from wsram_ppl.training.compiled import CompiledStep, check_compilable
from wsram_ppl.training.loop import train
from wsram_ppl.training.trainer import Trainer

COMPILED = "training.compile=true"


@pytest.fixture(autouse=True)
def as_in_a_run() -> Iterator[None]:
    with pyro_settings(validate=False):
        yield


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """Graphs that would be compiled, and are run as they are."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(compiled, "compile_graph", keep)
    return graphs


def make_config(*overrides: str) -> ExperimentConfig:
    """In double precision, and with an optimiser that makes nothing of rounding."""
    own = ["training.optimizer=sgd", "training.precision=64-true", "training.learning_rate=0.05"]
    return tiny_config(*own, *overrides)


def found(trainer: Trainer) -> dict[str, Tensor]:
    """All that an update has computed: weights, running means, statistics and gradients."""
    tensors = trainer.state.tensors() | trainer.components.objective.statistics
    grads = {f"gradient.{i}": p.grad for i, p in enumerate(trainer.parameters) if p.grad is not None}
    return {name: value.detach().clone() for name, value in (tensors | grads).items()}


def check_same(one: Trainer, other: Trainer, tolerance: float, updates: int = 3) -> None:
    for _ in range(updates):
        tensors = []
        for trainer in (one, other):
            trainer.update(check=True)
            tensors.append(found(trainer))
        a, b = tensors
        assert a.keys() == b.keys() and any(name.startswith("gradient.") for name in a)
        for name, value in a.items():
            assert type(b[name]) is Tensor, name
            torch.testing.assert_close(b[name], value, rtol=tolerance, atol=tolerance, msg=name)


def check_traced(traced: list[Any], *overrides: str, tolerance: float = 1e-12) -> Trainer:
    usual = Trainer.start(make_config(*overrides))
    other = Trainer.start(make_config(COMPILED, *overrides))
    check_same(usual, other, tolerance)
    assert len(traced) == 1
    assert not [node for node in traced[0].graph.nodes if node.op == "get_attr"]
    assert not [*traced[0].parameters(), *traced[0].buffers()]
    return other


# The same draws, gradients, running means and statistics.

WAKE_SLEEP = ("none", "self-normalized", "unnormalized", "adaptive", "learned")
PRIOR = "guide.name=prior"
OBJECTIVES = {
    **{f"wake-sleep {choice}": [f"objective.control_variate={choice}"] for choice in WAKE_SLEEP},
    "wake-sleep learned, prior": ["objective.control_variate=learned", PRIOR],
    "sleep": ["objective.insomnia=0.5"],
    "importance": ["objective.name=importance"],
    "importance, prior": ["objective.name=importance", PRIOR],
    "ovis": ["objective.name=importance", "objective.guide_gradient=ovis"],
    "pathwise": ["objective.name=importance", 'objective.pathwise=["location_*"]', PRIOR],
    "thermodynamic": ["objective.name=thermodynamic"],
    **{f"variational {choice}": ["objective.name=variational", f"objective.baseline={choice}"]
       for choice in ("none", "leave-one-out", "site")},
    "variational site, prior": ["objective.name=variational", "objective.baseline=site", PRIOR],
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_computes_the_same(name: str, traced: list[Any]) -> None:
    """With the width of places and the weight of the entropy scheduled."""
    trainer = check_traced(traced, *OBJECTIVES[name])
    means = trainer.components.objective.state_dict()
    assert bool(means) == (name == "sleep" or "adaptive" in name or "learned" in name)


@pytest.mark.parametrize(
    "override",
    [
        "exploration.temperature={ start = 3.0, end = 1.0 }",
        "exploration.coverage={ start = 0.1, end = 0.0 }",
        "exploration.entropy=0",
        "objective.vectorize_particles=false",
        "training.gradient_clip=0.01",
        "training.prefetch=false",
    ],
)
def test_every_option_computes_the_same(override: str, traced: list[Any]) -> None:
    check_traced(traced, override)


def test_mixed_precision_computes_the_same(traced: list[Any]) -> None:
    check_traced(traced, "training.precision=bf16-mixed", tolerance=0.05)


class Latent(nn.Module):
    """A number behind each image; with a slope that all share, or for a random part of the minibatch."""

    max_plate_nesting = 1

    def __init__(self, slope: bool = False, part: bool = False) -> None:
        super().__init__()
        self.slope, self.part = slope, part
        self.mean, self.weight = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.8))

    def rows(self, images: Tensor) -> Any:
        return pyro.plate("images", len(images), subsample_size=len(images) // 2 if self.part else None)

    def forward(self, images: Tensor, labels: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(self.weight, 1.0)) if self.slope else self.weight
        with self.rows(images) as rows:
            z = pyro.sample("z", dist.Normal(self.mean, 1.0))
            pyro.sample("x", dist.Normal(slope * z, 0.5), obs=images.mean((1, 2))[rows])


class LatentGuide(nn.Module):
    """What a line through the brightness says of it."""

    def __init__(self, model: Latent) -> None:
        super().__init__()
        self.rows, self.slope = model.rows, model.slope
        self.line = nn.Linear(1, 2)
        self.place = nn.Parameter(torch.tensor([0.1, 0.4]))

    def forward(self, images: Tensor, labels: Tensor) -> None:
        if self.slope:
            pyro.sample("slope", dist.Normal(self.place[0], self.place[1].exp()))
        with self.rows(images) as rows:
            mean, width = self.line(images.mean((1, 2))[rows].unsqueeze(-1)).unbind(-1)
            pyro.sample("z", dist.Normal(mean, width.exp()))


def own_config(compiling: bool, objective: dict[str, Any], **options: bool) -> ExperimentConfig:
    """Of the two programs above."""
    tables: dict[str, Any] = {
        "data": {"source": "sample", "canvas": 48},
        "model": {"name": f"{__name__}:Latent", **options},
        "guide": {"name": f"{__name__}:LatentGuide"},
        "objective": {"num_particles": 3, **objective},
        "training": {"batch_size": 8, "optimizer": "sgd", "precision": "64-true", "compile": compiling},
    }
    return parse_config(tables)


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ({"name": "importance", "pathwise": ["z"], "doubly_reparameterized": True}, {}),
        ({"name": "wake-sleep", "pathwise": ["z"], "doubly_reparameterized": True}, {}),
        ({"name": "importance"}, {"slope": True}),
        ({"name": "importance", "pathwise": True, "num_global_particles": 2}, {"slope": True}),
        ({"name": "importance"}, {"part": True}),
    ],
)
def test_programs_of_ones_own_compute_the_same(
    objective: dict[str, Any], options: dict[str, bool], traced: list[Any]
) -> None:
    """Samples that are differentiated through, sites outside of the plate, a part of the minibatch."""
    usual, other = (Trainer.start(own_config(c, objective, **options)) for c in (False, True))
    check_same(usual, other, tolerance=1e-12, updates=4)
    assert len(traced) == 1


def test_the_captioner_has_a_graph_for_each_length(traced: list[Any]) -> None:
    overrides = ["training.batch_size=2", "training.precision=64-true", "training.optimizer=sgd",
                 "model.hidden=8", "objective.num_particles=2"]  # fmt: skip
    usual, other = (
        Trainer.start(load_config("scenes", [*overrides, f"training.compile={compiling}"]))
        for compiling in ("false", "true")
    )
    check_same(usual, other, tolerance=1e-12, updates=2)
    assert isinstance(other._compute, CompiledStep)
    assert len(other._compute._compiled) == len(traced)


# What is in the graph, and what is not.


def make_step(function: Callable[..., Any], model: nn.Module | None = None) -> CompiledStep[Any]:
    """Of a function that changes the buffers of a model and ``step.means``."""
    means: Any = RunningMeans()
    parts = Components(model or nn.Module(), nn.Module(), means, data=Any, scheduled={})
    step = CompiledStep(function, TrainingState(parts), lambda: None)
    step.means = means  # type: ignore[attr-defined]
    return step


def test_a_latent_that_sees_a_whole_plate(traced: list[Any]) -> None:
    """What it depends on is found by a run that is not part of the program."""
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    objective = VariationalBound(num_particles=2, vectorize_particles=True, max_plate_nesting=1)

    def program(is_guide: bool) -> Callable[[Tensor], None]:
        def run(y: Tensor) -> None:
            with pyro.plate("data", 3):
                z = pyro.sample("z", dist.Bernoulli(logits=logits if is_guide else 0 * logits))
            seen = z.sum(-1, keepdim=True) if is_guide else 0 * y[:1]
            g = pyro.sample("g", dist.Bernoulli(logits=seen))
            if not is_guide:
                with pyro.plate("again", 3):
                    pyro.sample("y", dist.Normal(z + g, 1.0), obs=y)

        return run

    def gradient(y: Tensor) -> Tensor:
        loss = objective.differentiable_loss(program(False), program(True), y)
        return torch.autograd.grad(loss, logits)[0]

    step = make_step(gradient)
    for _ in range(3):
        y = torch.randn(3, dtype=torch.float64)
        state = torch.get_rng_state()
        expected = gradient(y)
        torch.set_rng_state(state)
        torch.testing.assert_close(step(y), expected)
    assert len(traced) == 1


def test_what_is_read_is_read_anew(traced: list[Any]) -> None:
    """Arguments, parameters, buffers and other tensors; the result keeps its form."""
    model = nn.Linear(2, 1)
    model.register_buffer("width", torch.tensor(2.0))
    other = torch.ones(3, 1)

    def function(x: Tensor) -> Any:
        return {"y": (model(x) * model.width + other).tanh(), "rest": (None, [x.sum()])}

    step = make_step(function, model)
    for turn in range(3):
        with torch.no_grad():
            model.weight.add_(turn)
            model.width.fill_(turn - 1.0)
            other.mul_(1.5)
        x = torch.randn(3, 2)
        result, expected = step(x), function(x)
        assert result["rest"][0] is None
        torch.testing.assert_close(result["y"], expected["y"])
        torch.testing.assert_close(result["rest"][1][0], x.sum())
    assert len(traced) == 1


@pytest.mark.parametrize("clutter", [None, {"pieces": 2, "size": 6}])
def test_minibatches_are_composed_of_what_is_chosen(clutter: Any, traced: list[Any]) -> None:
    """As a recorded update composes its own: neither choices nor digits are in the graph."""
    source = SampleDigits(canvas=50, clutter=clutter)
    assert isinstance(source, Composes)
    composed = make_step(source.compose)
    for step in range(3):
        batch = composed(*source.training_choices(step, 8, 5, slice(2, 5)))
        expected = [part[2:5] for part in source.training_batch(step, 8, 5)]
        assert all(map(torch.equal, batch, expected))
    assert len(traced) == 1


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"scale_grad_by_freq": True}])
def test_gradients_of_an_embedding_add_up_in_one_order(
    options: dict[str, Any], traced: list[Any]
) -> None:
    """Not by threads that take turns by chance (but for weights by frequency, which nobody uses)."""
    table = nn.Embedding(4, 3, **options).double()
    indices = torch.tensor([[0, 2, 3], [2, 2, 0]])

    def gradient(x: Tensor) -> Tensor:
        loss = (table(indices) * x).square().sum()
        return torch.autograd.grad(loss, table.weight)[0]

    x = torch.randn(2, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(make_step(gradient, table)(x), gradient(x))
    scattered = [n for n in traced[0].graph.nodes if "embedding_dense_backward" in str(n.target)]
    assert bool(scattered) == ("scale_grad_by_freq" in options)


def test_each_shape_and_type_has_its_graph(traced: list[Any]) -> None:
    doubled = make_step(lambda x: 2 * x)
    for _ in range(2):
        for x in (torch.ones(2), torch.ones(3), torch.ones(2).double(), torch.ones(4)[::2]):
            assert torch.equal(doubled(x), 2 * x)
    assert len(traced) == 3


def test_draws_are_the_functions_own(traced: list[Any]) -> None:
    """At the first call, whose rehearsal is not noticed, and at later ones."""

    def draw(x: Tensor) -> Tensor:
        return torch.randn_like(x) + torch.empty_like(x).exponential_()

    step, x = make_step(draw), torch.zeros(5)
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        expected, after = draw(x), torch.rand(())
        torch.manual_seed(seed)
        assert torch.equal(step(x), expected)
        assert torch.equal(torch.rand(()), after)


def test_the_first_call_leaves_no_trace_of_its_rehearsal(traced: list[Any]) -> None:
    """What changes in its place changes once a call; a running mean that begins does so once."""
    model = nn.BatchNorm1d(2)
    counted = make_step(lambda x: model(x).sum(), model)
    for calls in range(1, 4):
        counted(torch.randn(4, 2))
        assert model.num_batches_tracked == calls

    def average(x: Tensor) -> Tensor:
        means.update({"m": x}, decay=0.5)
        return means.get("m", x).clone()

    step: Any = make_step(average)
    means = step.means
    for x, mean in ((4.0, 4.0), (2.0, 3.0), (1.0, 2.0)):
        assert step(torch.tensor(x)) == mean == means.get("m", torch.zeros(()))
    means.load_state_dict({"m": torch.tensor(8.0)})  # in its place
    assert step(torch.tensor(2.0)) == 5.0


# What is refused, before a weight has changed.


@pytest.mark.parametrize(
    "does",
    [
        lambda x, width: float(x.sum()),
        lambda x, width: float(width),
        lambda x, width: bool((x > 0).any()),
        lambda x, width: 1 if width > 0 else 2,
        lambda x, width: x[x > 0],
        lambda x, width: width.expand(2)[x[:2] > 0],
        lambda x, width: x.nonzero(),
        lambda x, width: width.tolist(),
        lambda x, width: width.numpy(),
        lambda x, width: np.asarray(x),
    ],
)
def test_reading_a_value_is_refused(does: Callable[..., object], traced: list[Any]) -> None:
    width = torch.tensor(1.0)

    def function(x: Tensor) -> Tensor:
        does(x, width)
        return 2 * x

    with pytest.raises(
        InputError, match=r"compile: the update cannot be compiled, since it asks for a tensor's value"
    ):
        make_step(function)(torch.randn(3))
    assert not traced


def test_to_replace_a_buffer_is_refused(traced: list[Any]) -> None:
    """The program would begin with the old one again and again."""
    model = nn.Module()
    model.register_buffer("mean", torch.zeros(()))

    def replace(x: Tensor) -> Tensor:
        model.mean = 0.5 * model.mean + x.mean()
        return x - model.mean

    with pytest.raises(InputError, match=r"the place of model\.mean: .* by copy_; use"):
        make_step(replace, model)(torch.ones(2))


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_random_numbers_that_are_not_torchs_are_refused(
    draw: Callable[[], float], traced: list[Any]
) -> None:
    with pytest.raises(InputError, match=r"random numbers from outside torch.*; use compile = false"):
        make_step(lambda x: x * draw())(torch.ones(3))


def test_whatever_else_cannot_be_traced_is_refused(traced: list[Any]) -> None:
    """With the reason; an error that has nothing to do with compiling is left alone."""
    generator = torch.Generator()
    with pytest.raises(InputError, match=r"cannot be compiled, since \w+: .*; use compile = false"):
        make_step(lambda x: x * torch.rand(3, generator=generator))(torch.ones(3))
    with pytest.raises(ZeroDivisionError):
        make_step(lambda x: x * (1 / 0))(torch.ones(3))


def test_what_a_compiler_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(graph: object, inputs: object) -> None:
        raise RuntimeError("C++ compile\nerror")

    monkeypatch.setattr(compiled, "compile_graph", fail)
    with pytest.raises(
        InputError, match=r"since RuntimeError: C\+\+ compile error; use compile = false"
    ):
        make_step(lambda x: 2 * x)(torch.ones(3))


def test_what_excludes_compiling_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_config(COMPILED).training
    check_compilable(training, torch.device("cpu"), 1)
    with pytest.raises(InputError, match=r"compile: .*; use devices = 1, or compile = false"):
        check_compilable(training, torch.device("cpu"), 2)
    monkeypatch.setattr("torch.utils._triton.has_triton_package", lambda: False)
    check_compilable(training, torch.device("cpu"), 1)
    with pytest.raises(InputError, match=r"needs Triton, .*; pip install triton, or compile = false"):
        check_compilable(training, torch.device("cuda"), 1)
    with pytest.raises(InputError, match=r"compile: .*; set validate = false, or compile = false"):
        Trainer.start(make_config(COMPILED, "training.validate=true"))
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(InputError, match=r"needs a C\+\+ compiler, and there is none; install g\+\+"),
    ):
        Trainer.start(make_config(COMPILED))


class Branching(nn.Module):
    """Looks at a value before it goes on."""

    max_plate_nesting = 1

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, labels: Tensor) -> None:
        with pyro.plate("images", len(images)):
            heads = pyro.sample("heads", dist.Bernoulli(logits=self.logit))
            if heads.sum() > 2:
                pyro.sample("brightness", dist.Normal(heads, 1.0), obs=images.mean((1, 2)))


def test_a_program_that_branches_on_values_is_refused(tmp_path: Path, traced: list[Any]) -> None:
    """In one line, before the first update is done; nothing is saved."""
    overrides = [COMPILED, f"model.name={__name__}:Branching", PRIOR, "training.precision=32-true"]
    config = tiny_config(*overrides)
    for key in ("hidden", "num_glimpses", "patch", "scales", "location_std"):
        config.model.options.pop(key, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"compile: .* since it asks [^\n]*; use compile = false$"):
            train(config, RunDirectory(tmp_path / "run"))
    assert not [*tmp_path.rglob("*.safetensors")]


# A run.


class Stopped(Exception):
    pass


def check_resume(folder: Path, *overrides: str) -> RunDirectory:
    """Stopped and gone on with, saved or measured at other times: the same weights."""

    def stop(step: int, numbers: object) -> None:
        if step == 3:
            raise Stopped

    whole, parts = RunDirectory(folder / "whole"), RunDirectory(folder / "parts")
    train(tiny_config(*overrides), whole)
    every = [f"training.{key}={value}" for key, value in (("checkpoint_every", 1), ("eval_every", 2),
             ("probe_every", 2), ("probe_repeats", 2))]  # fmt: skip
    with pytest.raises(Stopped):
        train(tiny_config(*overrides, *every), parts, stop)
    train(tiny_config(*overrides, *every), parts)
    one, other = (load_checkpoint(run.checkpoint).tensors for run in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return whole


def test_a_run_goes_on_bit_by_bit(tmp_path: Path, traced: list[Any]) -> None:
    """And as what it is: compiled."""
    run = check_resume(tmp_path, COMPILED)
    with pytest.raises(InputError, match=r"training\.compile True, not False"):
        train(tiny_config(), run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_compiler_that_dies_of_the_same_signal(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a terminal reaches it too: the run says that it was stopped, and goes on later."""

    def killed(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        os.kill(os.getpid(), number)
        raise RuntimeError("C++ compile error")

    run = RunDirectory(tmp_path / "run")
    monkeypatch.setattr(compiled, "compile_graph", killed)
    with pytest.raises(Interrupted, match=f"^stopped by {number.name} before the first update"):
        train(tiny_config(COMPILED), run)
    monkeypatch.setattr(compiled, "compile_graph", lambda graph, inputs: graph)
    train(tiny_config(COMPILED), run)
    train(tiny_config(COMPILED), RunDirectory(tmp_path / "whole"))
    one, other = (load_checkpoint(tmp_path / r / "last.safetensors").tensors for r in ("run", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_divergence_is_noticed(traced: list[Any]) -> None:
    trainer = Trainer.start(make_config(COMPILED))
    trainer.update(check=True)
    with torch.no_grad():
        trainer.parameters[0].fill_(torch.nan)
    with pytest.raises(Diverged, match="update 2: weight model"):
        trainer.update(check=True)


# By the compiler.


def test_a_compiled_update_computes_the_same_and_goes_on_bit_by_bit() -> None:
    """With the same draws, in single precision; there is one compilation, which is what takes the time.

    It has draws whose order matters, a running mean, schedules and both programs.
    """
    least = ["model.num_glimpses=2", "training.optimizer=sgd"]
    usual, other = Trainer.start(tiny_config(*least)), Trainer.start(tiny_config(*least, COMPILED))
    check_same(usual, other, tolerance=1e-5, updates=4)
    saved = {name: tensor.clone() for name, tensor in other.state.tensors().items()}
    ends = []
    for _ in range(2):
        other.state.load(saved)
        other.step = 4
        for _ in range(3):
            other.update(check=True)
        ends.append(found(other))
    one, again = ends
    assert all(torch.equal(again[name], value) for name, value in one.items())
    assert not all(torch.equal(saved[name], one[name]) for name in saved)


def test_the_gradient_of_an_embedding_has_the_same_bits_every_time() -> None:
    """With two threads, which the compiler would let add to the same row as they come."""
    table, indices = nn.Embedding(3, 128), torch.randint(0, 3, (2000,))

    def gradient(x: Tensor) -> Tensor:
        return torch.autograd.grad((table(indices).tanh() * x).sum(), table.weight)[0]

    step, x, threads = make_step(gradient, table), torch.randn(2000, 128), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = (step(x).clone() for _ in range(100))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(first, gradient(x), rtol=1e-3, atol=1e-3)
    assert all(torch.equal(first, other) for other in others)
