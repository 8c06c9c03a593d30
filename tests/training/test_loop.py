"""Short real trainings on the digits that come with the package."""

from __future__ import annotations

import csv
import errno
import json
import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from scripts.tiny_run import tiny_config as make_config
from wsram_ppl import models
from wsram_ppl.config import load_config
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.data.digits.source import PlacedDigits
from wsram_ppl.distributed.devices import Stream, resolve_device, seed_for
from wsram_ppl.errors import Diverged, InputError, RunError
from wsram_ppl.models.classifier_network import GlimpseNetwork, Policy
from wsram_ppl.objectives import Exploration, ImportanceBound
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.checkpoints import load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.environment import environment
from wsram_ppl.runs.metrics import MetricsLog
from wsram_ppl.training import loop
from wsram_ppl.training import trainer as trainers
from wsram_ppl.training.evaluation import evaluate
from wsram_ppl.training.loop import train
from wsram_ppl.training.measurements import measure_held_out, measure_minibatch
from wsram_ppl.training.trainer import Trainer

STEPS = make_config().training.steps


def weights(run: RunDirectory) -> dict[str, Tensor]:
    _, parts, _ = run.load()
    return {
        f"{part}.{name}": value
        for part in ("model", "guide")
        for name, value in getattr(parts, part).state_dict().items()
    }


def rows(run: RunDirectory) -> list[dict[str, str]]:
    with open(run.path / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, dict[str, Any]]:
    """One training that several tests look at, with everything measured on the way."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "deep" / "run")
    often = ("training.eval_every=4", "training.checkpoint_every=3", "training.probe_every=4")
    return run, train(make_config(*often, "training.probe_repeats=2"), run)


Finished = tuple[RunDirectory, dict[str, Any]]

# Deterministic.


def test_the_seed_fixes_every_bit_whatever_is_measured_on_the_way(
    finished: Finished, tmp_path: Path
) -> None:
    """Logged and evaluated at other times, and never: the same weights."""
    reference = weights(finished[0])
    quiet = RunDirectory(tmp_path / "quiet")
    train(make_config("training.log_every=1000"), quiet)
    assert same(reference, weights(quiet))
    other = RunDirectory(tmp_path / "other")
    train(make_config("training.seed=1"), other)
    assert not same(reference, weights(other))


def test_streams_of_random_numbers_are_apart() -> None:
    seeds = {
        seed_for(seed, stream, step) for seed in range(4) for stream in range(4) for step in range(50)
    }
    assert len(seeds) == 4 * 4 * 50
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_for(3, 1, 5) == seed_for(3, 1, 5)


def test_training_leaves_pyros_settings_and_store_alone(finished: Finished) -> None:
    assert pyro.settings.get("module_local_params") is False
    assert pyro.settings.get("validate_distributions_pyro") is True
    assert list(pyro.get_param_store().keys()) == []


# What a run leaves behind.


def test_metrics_rows_and_columns(finished: Finished) -> None:
    run, _ = finished
    found = [(row["step"], row["split"]) for row in rows(run)]
    assert found == [
        ("1", "train"),
        ("4", "train"),
        ("4", "eval"),
        ("4", "probe"),
        ("8", "train"),
        ("8", "probe"),
        ("8", "eval"),
    ]
    both = ["ess", "error", "mode_error", "distance", "scale_1", "scale_2"]
    filled = {
        "train": ["bound", "learning_rate", "entropy_weight", "updates_per_second", "seconds", *both],
        "eval": ["bound", "particles", "samples", "examples", *both],
        "probe": ["variance", "mean", "snr"],
    }
    for row in rows(run):
        here = {name for name, text in row.items() if text}
        assert here == {"step", "split", *filled[row["split"]]}
        assert all(math.isfinite(float(row[name])) for name in filled[row["split"]])
        if row["split"] != "probe":
            assert 1 <= float(row["ess"]) <= 3
            assert 0 <= float(row["error"]) <= 1
            assert float(row["scale_1"]) + float(row["scale_2"]) == pytest.approx(1, abs=1e-5)


def test_tensorboard_reads_the_same_numbers(finished: Finished) -> None:
    run, _ = finished
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for row in rows(run):
        for name in ("bound", "error", "variance"):
            if row[name]:
                scalars = {s.step: s.value for s in events.Scalars(f"{row['split']}/{name}")}
                assert scalars[int(row["step"])] == pytest.approx(float(row[name]), rel=1e-4)


def test_the_summary(finished: Finished) -> None:
    run, summary = finished
    assert json.loads((run.path / "summary.json").read_text()) == summary
    assert (summary["updates"], summary["examples"], summary["samples"]) == (STEPS, 20, 5)
    assert (summary["particles"], summary["device"], summary["threads"]) == (3, "cpu", 1)
    assert summary["torch"] == torch.__version__
    assert summary["environment"] == environment(torch.device("cpu"))
    assert summary["updates_per_second"] > 1
    last = rows(run)[-1]
    for name in ("error", "bound", "ess", "distance"):
        assert summary[name] == pytest.approx(float(last[name]), rel=1e-5)


def test_the_resolved_config_is_written(finished: Finished) -> None:
    run, _ = finished
    assert load_config(run.path / "config.toml") == run.config()
    assert run.config().training.seed == 0
    names = {
        "lock",
        "last.safetensors",
        "previous.safetensors",
        "metrics.csv",
        "config.toml",
        "data.json",
        "summary.json",
        "tensorboard",
    }
    assert {path.name for path in run.path.iterdir()} == names


def test_a_loaded_checkpoint_evaluates_as_at_the_end_of_training(finished: Finished) -> None:
    run, summary = finished
    with pyro_settings(validate=False):
        config, parts, step = run.load()
        torch.manual_seed(seed_for(config.training.seed, Stream.EVALUATION, step))
        batches = parts.data.evaluation_batches(256, 20)
        result = evaluate(parts.model, parts.guide, batches, samples=5, particles=3)
    assert result == {name: summary[name] for name in result}


def test_evaluation_does_not_depend_on_the_batches(finished: Finished) -> None:
    """Means over data, not over batches: with the mode alone, any split gives the same."""
    _, parts, _ = finished[0].load()
    found = []
    for size in (20, 6):
        batches = parts.data.evaluation_batches(size, 20)
        found.append(evaluate(parts.model, parts.guide, batches, samples=2, particles=2))
    assert found[0]["mode_error"] == pytest.approx(found[1]["mode_error"])
    assert found[0]["examples"] == found[1]["examples"] == 20
    with pytest.raises(InputError, match="there is no data to evaluate on"):
        evaluate(parts.model, parts.guide, [], samples=2, particles=2)


def test_evaluation_in_eval_mode_and_back(finished: Finished) -> None:
    _, parts, _ = finished[0].load()
    modes = []
    parts.model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    parts.model.train()
    parts.guide.eval()
    evaluate(parts.model, parts.guide, parts.data.evaluation_batches(4, 4), samples=2, particles=2)
    assert modes and not any(modes)
    assert (parts.model.training, parts.guide.training) == (True, False)


def test_progress_is_told_after_every_update(tmp_path: Path) -> None:
    told: list[tuple[int, bool]] = []
    train(
        make_config("training.steps=5", "training.log_every=2"),
        RunDirectory(tmp_path / "run"),
        lambda step, numbers: told.append((step, numbers is not None)),
    )
    assert told == [(1, True), (2, True), (3, False), (4, True), (5, True)]


# What changes during the run.


def test_schedules_start_and_end_where_they_should(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam, *args: Any) -> Any:
        rates = [group["lr"] for group in self.param_groups]
        seen.append((*rates, trainer.exploration.entropy, float(model.location_std)))
        return step(self, *args)

    trainer = Trainer.start(make_config("training.guide_learning_rate=0.5"))
    model: Any = trainer.components.model
    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    while trainer.step < STEPS:
        trainer.update()
    assert len(seen) == STEPS
    assert seen[0] == pytest.approx((1e-2, 0.5, 0.05, 0.3))
    assert seen[-1] == pytest.approx((1e-3, 0.5, 0.01, 0.1))
    middle = Schedule(start=0.3, end=0.1).value(3 / 7)
    assert seen[3][-1] == pytest.approx(middle)


def test_a_run_of_one_update(tmp_path: Path) -> None:
    summary = train(make_config("training.steps=1"), RunDirectory(tmp_path / "run"))
    assert summary["updates"] == 1


@pytest.mark.parametrize("frozen", ["model", "guide"])
def test_model_and_guide_have_learning_rates_of_their_own(frozen: str) -> None:
    rates = {"model": "learning_rate", "guide": "guide_learning_rate"}
    config = make_config("training.guide_learning_rate=0.01", f"training.{rates[frozen]}=0.0")
    trainer = Trainer.start(config)
    parts = {"model": trainer.components.model, "guide": trainer.components.guide}
    before = {k: [p.detach().clone() for p in part.parameters()] for k, part in parts.items()}
    trainer.update()
    for name, part in parts.items():
        changed = any(
            not torch.equal(a, b) for a, b in zip(before[name], part.parameters(), strict=True)
        )
        assert changed == (name != frozen)


@pytest.mark.parametrize("clip", [0.01, 0.5, 0.0])
def test_the_gradient_is_clipped_to_its_norm(clip: float) -> None:
    """With plain descent at rate 1 an update moves the weights by the gradient itself."""
    config = make_config(
        f"training.gradient_clip={clip}", "training.optimizer=sgd", "training.learning_rate=1.0"
    )
    trainer = Trainer.start(config)
    before = [p.detach().clone() for p in trainer.parameters]
    trainer.update()
    moved = torch.stack([(p - b).norm() for p, b in zip(trainer.parameters, before, strict=True)]).norm()
    if clip:
        assert moved.item() == pytest.approx(clip, rel=1e-3)
    else:
        assert moved > 0.6  # so that .5 did clip


def test_a_baselines_regression_is_clipped_apart() -> None:
    """However wrong a baseline is, the model's own step stays as long as it was."""
    config = make_config(
        "training.gradient_clip=0.01",
        "training.optimizer=sgd",
        "training.learning_rate=1.0",
        "objective.name=variational",
        "objective.baseline=site",
    )
    for wrong in (0.0, 1000.0):
        trainer = Trainer.start(config)
        parts: Any = trainer.components
        baselines = [*parts.model.baselines.parameters(), *parts.guide.baselines.parameters()]
        known = {id(p) for p in baselines}
        with torch.no_grad():
            parts.guide.baselines.out.bias.fill_(wrong)
        groups = [baselines, [p for p in trainer.parameters if id(p) not in known]]
        before = [[p.detach().clone() for p in group] for group in groups]
        trainer.update()
        for group, old in zip(groups, before, strict=True):
            moved = [(p.detach() - b).norm() for p, b in zip(group, old, strict=True)]
            assert torch.stack(moved).norm().item() == pytest.approx(0.01, rel=1e-2)


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [("adam", "64-true"), ("adam", "bf16-mixed"), ("adamw", "32-true"), ("sgd", "32-true")],
)
def test_optimisers_and_precisions(optimizer: str, precision: str, tmp_path: Path) -> None:
    config = make_config(
        f"training.optimizer={optimizer}",
        f"training.precision={precision}",
        "training.steps=2",
        "training.probe_every=2",
        "training.probe_repeats=2",
    )
    run = RunDirectory(tmp_path / "run")
    summary = train(config, run)
    assert math.isfinite(summary["bound"])
    double = precision == "64-true"
    trainer_dtype = torch.float64 if double else torch.float32
    assert Trainer.start(config).parameters[0].dtype == trainer_dtype
    assert all(torch.isfinite(value).all() for value in weights(run).values())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_prefetching_changes_no_bit(tmp_path: Path, precision: str) -> None:
    found = []
    for prefetch in ("true", "false"):
        settings = [f"training.prefetch={prefetch}", f"training.precision={precision}"]
        config = make_config(*settings, "training.probe_every=4")
        run = RunDirectory(tmp_path / prefetch)
        train(config, run)
        found.append(weights(run))
    assert all(value.equal(found[1][name]) for name, value in found[0].items())


def test_a_model_prepares_its_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model's ``prepare`` returns is what model and guide get; the numbers stay the same."""
    found = []
    for prepare in (models.GlimpseClassifier.prepare, lambda model, *batch: batch):
        monkeypatch.setattr(models.GlimpseClassifier, "prepare", prepare)
        run = RunDirectory(tmp_path / str(len(found)))
        train(make_config(), run)
        found.append(weights(run))
    assert all(value.equal(found[1][name]) for name, value in found[0].items())


def test_matrix_products_are_as_precise_as_asked_for() -> None:
    try:
        Trainer.start(make_config("training.matmul_precision=medium"))
        assert torch.get_float32_matmul_precision() == "medium"
        Trainer.start(make_config())
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_threads_are_as_asked_for() -> None:
    try:
        Trainer.start(make_config("training.threads=2"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# It learns.


def test_digits_are_learnt_in_seconds(tmp_path: Path) -> None:
    """From chance (90% error) to below 60% on 500 held-out digits, 22 standard errors from luck."""
    config = make_config(
        data={"canvas": 28, "scale": [1.0, 1.0]},
        model={"hidden": 48, "patch": 12, "scales": [2], "location_std": 0.15},
        objective={"control_variate": "self-normalized", "num_particles": 2},
        training={
            "steps": 220,
            "batch_size": 48,
            "learning_rate": {"start": 6e-3, "end": 5e-4, "shape": "cosine"},
            "log_every": 1000,
            "eval_examples": 500,
        },
    )
    with pyro_settings(validate=False):
        assert measure_held_out(Trainer.start(config))["error"] > 0.8
    summary = train(config, RunDirectory(tmp_path / "run"))
    assert summary["error"] < 0.6
    assert summary["bound"] > -math.log(10)


# Failures.


@pytest.mark.parametrize("taken", ["file", "directory"])
def test_a_directory_that_is_taken_is_refused(taken: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    if taken == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="exists and is not empty: choose another --out, or remove it"):
        train(make_config(), RunDirectory(path))
    assert (path if taken == "file" else path / "thesis.tex").read_text() == "mine"


def test_an_empty_directory_is_used(tmp_path: Path) -> None:
    train(make_config("training.steps=1"), RunDirectory(tmp_path))
    assert (tmp_path / "summary.json").exists()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot create .*file/run: Not a directory"):
        train(make_config(), RunDirectory(tmp_path / "file" / "run"))


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("rate", ["1e10", "1e38"])
def test_numbers_that_are_not_finite_stop_the_run(rate: str, validate: bool, tmp_path: Path) -> None:
    config = make_config(
        f"training.learning_rate={rate}",
        "training.gradient_clip=0",
        "training.log_every=2",
        f"training.validate={str(validate).lower()}",
    )
    with pytest.raises(RunError, match=r"update \d: .* not finite; lower the learning rate") as caught:
        train(config, RunDirectory(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_what_is_not_finite_is_named_and_dumped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step, the site, a dump; the last good checkpoint stays, and its weights are good."""
    settings = ["checkpoint_every=2", "log_every=100", "prefetch=false"]
    config = make_config(*(f"training.{setting}" for setting in settings))
    run = RunDirectory(tmp_path / "run")
    batch, classify = PlacedDigits.training_batch, GlimpseNetwork.classify
    steps: list[int] = []

    def counted(self: PlacedDigits, step: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
        steps.append(step)
        return batch(self, step, size, seed)

    def poisoned(self: GlimpseNetwork, r1: Tensor) -> Tensor:
        return classify(self, r1) * (math.nan if steps[-1] == 4 else 1.0)

    monkeypatch.setattr(PlacedDigits, "training_batch", counted)
    monkeypatch.setattr(GlimpseNetwork, "classify", poisoned)
    message = (
        r"^update 5: the parameter 'logits' of site 'label' in the model is not finite; lower the "
        r"learning rate \(weights, gradients and minibatch are in .*diverged.safetensors\)$"
    )
    with pytest.raises(RunError, match=message):
        train(config, run)
    dump = load_checkpoint(run.path / "diverged.safetensors")
    tensors, data = dump.tensors, dump.data
    assert data == {"step": 4, "what": "the parameter 'logits' of site 'label' in the model"}
    assert tensors["gradient.model.network.label.weight"].isnan().all()
    assert torch.equal(tensors["batch.0"], run.load()[1].data.training_batch(4, 8, 0)[0])
    good, data = (last := load_checkpoint(run.checkpoint)).tensors, last.data
    assert data["step"] == 4
    assert all(tensor.isfinite().all() for tensor in good.values())


@pytest.mark.parametrize("validate", ["false", "true"])
@pytest.mark.parametrize(
    ("whose", "guide"), [("guide", "inference"), ("model", "prior")], ids=["guide", "model"]
)
def test_a_site_that_cannot_be_sampled_is_named_and_dumped(
    validate: str, whose: str, guide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling fails before there is a gradient to look at; with Pyro's validation on, even earlier."""
    choices = f"training.checkpoint_every=1 training.validate={validate} guide.name={guide}".split()
    run = RunDirectory(tmp_path / "run")
    policy = Policy.forward

    def poisoned(self: Policy, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, logits = policy(self, state)
        return mean, logits * (math.nan if (run.path / "last.safetensors").exists() else 1.0)

    monkeypatch.setattr(Policy, "forward", poisoned)
    message = (
        rf"^update 2: the parameter 'logits' of site 'scale_1' in the {whose} is not finite; lower the "
        r"learning rate \(weights, gradients and minibatch are in .*diverged.safetensors\)$"
    )
    with pytest.raises(RunError, match=message):
        train(make_config(*choices), run)
    dump = load_checkpoint(run.path / "diverged.safetensors")
    tensors, data = dump.tensors, dump.data
    assert data == {"step": 1, "what": f"the parameter 'logits' of site 'scale_1' in the {whose}"}
    assert {"batch.0", "batch.1", "model.location_std"} <= tensors.keys()
    assert load_checkpoint(run.checkpoint).step == 1


def test_a_dump_that_cannot_be_written_does_not_hide_what_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried while no other process can train the run."""
    run = RunDirectory(tmp_path / "run")

    def full(path: Path, *args: Any) -> None:
        with pytest.raises(RunError, match="another process is training"):
            run.check_free()
        raise RunError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(loop, "save_checkpoint", full)
    message = (
        r"^update \d: .* not finite; lower the learning rate \(and weights, gradients and minibatch are "
        r"lost: cannot write .*diverged.safetensors: No space left on device\)$"
    )
    with pytest.raises(RunError, match=message):
        train(make_config("training.learning_rate=1e38", "training.gradient_clip=0"), run)


@pytest.mark.parametrize("check", [True, False], ids=["in the update", "at the log"])
def test_the_update_that_diverged_has_its_number_and_its_draws(
    check: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the check comes with the log, as on a GPU, the update is done by then."""
    seeds: list[int] = []

    def noted(*args: Any, **options: Any) -> Diverged:
        seeds.append(torch.initial_seed())
        return diverged(*args, **options)

    diverged = trainers.diverged
    monkeypatch.setattr(trainers, "diverged", noted)
    with pyro_settings(validate=False):
        trainer = Trainer.start(make_config("training.steps=5"))
        while trainer.step < 4:
            trainer.update()
        for parameter in trainer.parameters:
            parameter.register_hook(lambda gradient: gradient * math.nan)
        with pytest.raises(Diverged, match=r"^update 5: "):
            measure_minibatch(trainer, trainer.update(check=check))
    assert seeds == [seed_for(0, Stream.SAMPLES, 4)]


def test_a_full_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: MetricsLog, *args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsLog, "write", full)
    with pytest.raises(RunError, match=r"cannot write to .*run: No space left on device"):
        train(make_config(), RunDirectory(tmp_path / "run"))


def test_a_models_own_error_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: nn.Module, *args: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(models.GlimpseClassifier, "forward", broken)
    with pytest.raises(RuntimeError, match=r"^shapes do not fit"):
        train(make_config(), RunDirectory(tmp_path / "run"))


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_refused(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = make_config(f"training.device={device}")
    with pytest.raises(InputError, match=f"device '{device}' does not exist.*; use cpu"):
        train(config, RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(InputError, match="device 'cuda:2' does not exist: torch sees 2 CUDA devices"):
        resolve_device("cuda:2")
    for name in ("tpu", "xla", "cuda:", "cuda:-1", "", "cpu:0"):
        with pytest.raises(
            InputError, match=f"device '{name}': should be auto, cpu, cuda, cuda:N or mps"
        ):
            resolve_device(name)


class Regularized(ImportanceBound):
    """An objective of the user's own that comes with exploration terms."""

    def __init__(self) -> None:
        super().__init__(vectorize_particles=True, regularizer=Exploration(entropy=0.1))


def test_an_objectives_own_regularizer_is_refused_not_overwritten(tmp_path: Path) -> None:
    config = make_config(f"objective.name={__name__}:Regularized")
    with pytest.raises(InputError, match=r"brings a regularizer of its own, .*table \[exploration\]"):
        train(config, RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
