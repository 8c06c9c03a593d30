"""Models of one's own with buffers of every kind: what is measured leaves them alone."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scripts.tiny_run import tiny_config
from tests.training.test_resume import Stopped, assert_same_run, assert_same_weights, stop_at
from wsram_ppl.config import ExperimentConfig
from wsram_ppl.errors import RunError
from wsram_ppl.objectives import ImportanceBound, Prior
from wsram_ppl.primitives.undoing import without_a_trace
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.loop import train


class Net(nn.Module):
    """A small classifier; with a measure that only evaluations have."""

    def __init__(self, *, norm: bool = False, mask: bool = False) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(36) if norm else nn.Identity()
        self.choose, self.read = nn.Linear(36, 3), nn.Linear(36, 30)
        if mask:
            self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.norm(F.adaptive_avg_pool2d(images.unsqueeze(1), 6).flatten(1))
        each = torch.arange(len(images))
        with pyro.plate("images", len(images), dim=-1):
            w = pyro.sample("w", dist.Categorical(logits=self.choose(x)))
            logits = self.read(x).reshape(-1, 3, 10)[each, w]
            pyro.sample("label", dist.Categorical(logits=logits), obs=labels)
        return logits

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor, samples: int) -> dict[str, Tensor]:
        with pyro.plate("samples", samples, dim=-2):
            found = {"error": (self(images).softmax(-1).mean(0).argmax(-1) != labels).float()}
        return found if self.training else found | {"held_out_only": torch.ones(len(images))}


def config(*overrides: str, options: str = "") -> ExperimentConfig:
    return tiny_config(
        f"model={{name='{__name__}:Net'{options}}}",
        "guide={name='prior'}",
        "objective.control_variate=self-normalized",
        *overrides,
    )


def test_runs_with_batch_normalisation_do_not_depend_on_what_is_measured_nor_on_stops(
    tmp_path: Path,
) -> None:
    """Training mode changes its running means at every run of the model: in updates alone."""
    settings = ("training.checkpoint_every=4", "training.steps=12")
    run, stopped = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "stopped")
    train(config(*settings, options=", norm=true"), run)
    norm = run.load()[1].model.norm
    assert int(norm.num_batches_tracked) == 12
    for name, more in (
        ("logged less", ["training.log_every=100"]),
        ("probed", ["training.probe_every=4", "training.probe_repeats=2"]),
    ):
        other = RunDirectory(tmp_path / name)
        train(config(*settings, *more, options=", norm=true"), other)
        assert_same_weights(run, other)
    with pytest.raises(Stopped):
        train(config(*settings, options=", norm=true"), stopped, stop_at(7))
    train(config(*settings, options=", norm=true"), stopped)
    assert_same_run(run, stopped)


def test_an_objective_looks_ahead_without_a_trace() -> None:
    """A run that finds the plates' dimensions, before the one that counts, through a method too."""
    counts = []
    for known in (dict[str, Any](), {"max_plate_nesting": 1}):
        model = Net(norm=True)
        objective = ImportanceBound(2, vectorize_particles=True, **known)
        batch = torch.rand(4, 12, 12), torch.zeros(4, dtype=torch.int64)
        objective.loss(model.forward, Prior(model.forward), *batch)
        counts.append(int(model.norm.num_batches_tracked))
    assert counts[0] == counts[1] > 0


def test_what_leaves_no_trace_and_what_is_kept() -> None:
    """Values, the tensors that hold them, and every kind of random number; gradients still flow."""
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("table", torch.zeros(1).expand(4))
    norm.register_buffer("nothing", None)
    place, table = norm.running_mean, norm.table
    assert place is not None

    def numbers() -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = numbers()
    with without_a_trace(norm, None):
        found = norm(torch.rand(5, 3)).square().sum() + random.random() + np.random.rand()
        norm.running_mean, norm.nothing = torch.ones(3), torch.ones(1)
    found.backward()
    assert norm.running_mean is place and norm.table is table and norm.nothing is None
    assert place.eq(0).all() and norm.num_batches_tracked == 0
    assert numbers() == before
    with without_a_trace(norm) as keep:
        norm(torch.rand(5, 3))
        keep()
    assert place.ne(0).all() and numbers() == before


def test_a_constant_that_is_not_finite_is_saved_and_never_the_fault(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(config(options=", mask=true"), run)
    assert run.load()[1].model.mask.isinf().any()
    bad = ("training.learning_rate=1e38", "training.gradient_clip=0", "training.log_every=2")
    with pytest.raises(RunError, match=r"update \d: .* not finite; lower the learning rate") as caught:
        train(config(*bad, options=", mask=true"), RunDirectory(tmp_path / "bad"))
    assert "mask" not in str(caught.value)


def test_what_only_evaluations_measure_has_columns_too(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(config("training.eval_every=4"), run)
    with open(run.path / "metrics.csv", newline="") as file:
        found = [(row["split"], row["held_out_only"], row["examples"]) for row in csv.DictReader(file)]
    training, held_out = ("train", "", ""), ("eval", "1", "20")
    assert found == [training, training, held_out, training, held_out]
