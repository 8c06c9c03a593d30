"""The scripts in ``examples/`` run, stay short, and show what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "gaussian_mixture.py"


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
