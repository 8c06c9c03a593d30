"""The scripts in ``examples/`` run, stay short, and show what they say."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
from pathlib import Path

import pyro
import pytest
import torch

from wsram_ppl.objectives import WakeSleep

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SCRIPT = EXAMPLES / "gaussian_mixture.py"


def test_the_mixture_is_learned_better_with_weights_per_datum(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an equal budget, and nobody does better than the true distribution."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--steps", "250", "--batch", "50"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    found = {line[:40].strip(): float(re.split(r"\s{2,}| nats", line[40:].strip())[0]) for line in lines}
    none, adaptive, pyro, truth = found.values()
    assert list(found)[2:] == ["pyro.infer.ReweightedWakeSleep", "the true distribution"]
    assert min(none, adaptive) > pyro + 0.05
    assert max(none, adaptive, pyro) < truth + 0.02  # held-out data of another seed


def test_the_script_is_short() -> None:
    assert len(SCRIPT.read_text().splitlines()) < 100


PROGRAMS = ["discrete_vae", "sigmoid_belief_network", "hmm", "lda", "air"]


@pytest.fixture(autouse=True)
def examples_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a script beside them."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.syspath_prepend(str(EXAMPLES.parent / "benchmarks"))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_as_a_script(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = EXAMPLES / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--steps", "2"])
    runpy.run_path(str(script), run_name="__main__")
    assert re.search(r"-?\d+\.\d+ nats per (held-out )?\w+", capsys.readouterr().out)
    assert len(script.read_text().splitlines()) < 170


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_is_trained_by_every_objective(name: str) -> None:
    """Those of the table, Pyro's among them: every parameter of model and guide moves."""
    program, programs = importlib.import_module(name), importlib.import_module("programs")
    for objective, make in programs.objectives(program).items():
        begun = program.train(make(), 0, seed=0)
        trained = program.train(make(), 3, seed=0)
        for before, after in zip(begun, trained, strict=True):
            found = dict(after.named_parameters())
            for key, value in before.named_parameters():
                if not key.startswith("baselines"):
                    assert not torch.equal(value, found[key]), f"{objective} leaves {key} as it was"


def test_the_bound_of_the_hmm_is_one() -> None:
    """L_200 lies below the log-likelihood with every path summed out, and near it."""
    hmm = importlib.import_module("hmm")
    model, guide = hmm.train(
        WakeSleep("adaptive", num_particles=5, vectorize_particles=True), 30, seed=0
    )
    found = hmm.held_out(model, guide)
    pyro.set_rng_seed(1000)
    exact = model.log_likelihood(hmm.sequences(500)).mean().item()
    assert exact - 0.2 < found < exact + 0.02


def test_a_digit_is_drawn_where_it_is_looked_for() -> None:
    """AIR's two uses of attention: what is drawn is what is then seen, for any place between pixels."""
    air = importlib.import_module("air")
    where = torch.tensor([[0.0, 0.0], [4.0, -4.0], [-30.0, 30.0]])
    digit = torch.rand(3, air.SIDE, air.SIDE)
    canvas = air.draw(digit, where)
    assert canvas.shape == (3, air.CANVAS, air.CANVAS)
    torch.testing.assert_close(canvas.sum((1, 2)), digit.sum((1, 2)))
    torch.testing.assert_close(air.look(canvas, where)[2], digit[2])  # on whole pixels
    torch.testing.assert_close(canvas[2, : air.SIDE, -air.SIDE :], digit[2])
