"""The probe of the gradient's variance during training: what it measures, and that it only measures."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from tests.studies.tiny_study import BASE
from wsram_ppl.config import ExperimentConfig, load_config
from wsram_ppl.distributed.devices import seed_for
from wsram_ppl.errors import InputError
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.checkpoints import load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.loop import train
from wsram_ppl.training.measurements import measure_variance
from wsram_ppl.training.trainer import Trainer

#: Objectives with state that a probe could disturb: running averages, coefficient networks.
VARIANTS = {
    "self-normalized": ["objective.control_variate=self-normalized"],
    "adaptive": ["objective.control_variate=adaptive"],
    "learned": ["objective.control_variate=learned"],
    "VAR+c": ["objective.name=variational", "objective.baseline=site", "guide.name=prior"],
}


def config_of(folder: Path, *overrides: str) -> ExperimentConfig:
    (folder / "base.toml").write_text(BASE)
    return load_config(folder / "base.toml", ["training.steps=6", *overrides])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_probe_changes_nothing_of_the_training(tmp_path: Path, variant: str) -> None:
    states, rows = [], []
    for every in (0, 2):
        run = RunDirectory(tmp_path / str(every))
        train(config_of(tmp_path, *VARIANTS[variant], f"training.probe_every={every}"), run)
        states.append(load_checkpoint(run.checkpoint).tensors)
        with open(run.path / "metrics.csv", newline="") as file:
            rows.append(list(csv.DictReader(file)))
    plain, probed = states
    assert plain.keys() == probed.keys()
    assert all(torch.equal(plain[name], probed[name]) for name in plain)
    clock = {"seconds", "updates_per_second", "variance", "mean", "snr"}
    kept = [
        [{k: v for k, v in row.items() if k not in clock} for row in run if row["split"] != "probe"]
        for run in rows
    ]
    assert kept[0] == kept[1]
    assert not {"variance", "mean", "snr"} & rows[0][0].keys()
    probes = [row for row in rows[1] if row["split"] == "probe"]
    assert [row["step"] for row in probes] == ["2", "4", "6"]
    assert all(float(row["variance"]) > 0 and float(row["snr"]) >= 0 for row in probes)
    assert all(row["error"] == "" for row in probes)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variance_is_that_of_the_models_gradient(tmp_path: Path, variant: str) -> None:
    """Recomputed from the gradients themselves, of the mean loss, coefficient networks left out."""
    config = config_of(
        tmp_path, *VARIANTS[variant], "training.probe_repeats=7", "exploration.entropy=0.1"
    )
    with pyro_settings(validate=False):
        trainer = Trainer.start(config)
        for _ in range(3):
            trainer.update()
        found = measure_variance(trainer)
        parts = trainer.components
        size = config.training.batch_size
        batch = parts.data.training_batch(2**40, size, config.training.seed)
        own = [p for name, p in parts.model.named_parameters() if not name.startswith("baselines.")]
        assert len(own) < len(list(parts.model.parameters()))
        torch.manual_seed(seed_for(config.training.seed, 4, 3))
        held = {name: value.clone() for name, value in parts.objective.state_dict().items()}
        gradients = []
        for _ in range(7):
            parts.objective.load_state_dict(held)
            loss = parts.objective.differentiable_loss(parts.model, parts.guide, *batch) / size
            pieces = torch.autograd.grad(loss, own, allow_unused=True, materialize_grads=True)
            gradients.append(torch.cat([piece.flatten() for piece in pieces]).double())
    stacked = torch.stack(gradients)
    variance = float(stacked.var(0).sum())
    mean = float(stacked.mean(0).square().sum()) - variance / 7
    assert found["variance"] == pytest.approx(variance, rel=1e-4)
    assert found["mean"] == pytest.approx(mean, rel=1e-3, abs=1e-6)
    assert found["snr"] == pytest.approx((max(mean, 0) / variance) ** 0.5, rel=1e-3, abs=1e-4)


def test_the_minibatch_hangs_on_the_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with pyro_settings(validate=False):
        for overrides in (VARIANTS["adaptive"], VARIANTS["VAR+c"], ["training.seed=1"]):
            settings = ("training.probe_repeats=2", "training.prefetch=false")
            trainer = Trainer.start(config_of(tmp_path, *overrides, *settings))
            data = trainer.components.data
            draw = data.training_batch
            batches: list[tuple[torch.Tensor, ...]] = []

            def spy(*arguments: int, draw=draw, batches=batches) -> tuple[torch.Tensor, ...]:  # type: ignore[no-untyped-def]
                batches.append(draw(*arguments))
                return batches[-1]

            monkeypatch.setattr(data, "training_batch", spy)
            measure_variance(trainer)
            trainer.update()
            measure_variance(trainer)
            first, trained, again = batches
            assert torch.equal(first[0], again[0]) and not torch.equal(first[0], trained[0])
            asked.append(first[0])
    assert torch.equal(asked[0], asked[1])
    assert not torch.equal(asked[0], asked[2])


def test_a_variance_needs_two_gradients(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"training.probe_repeats = 1: should be greater than or equal to 2"
    ):
        config_of(tmp_path, "training.probe_repeats=1")
    with pytest.raises(
        InputError, match=r"training.probe_every = -1: should be greater than or equal to 0"
    ):
        config_of(tmp_path, "training.probe_every=-1")


def test_probes_do_not_make_another_run(tmp_path: Path) -> None:
    """Finished runs stay finished when a study asks for probes."""
    plain, probed = config_of(tmp_path), config_of(tmp_path, "training.probe_every=2")
    assert plain != probed and plain.fingerprint() == probed.fingerprint()
