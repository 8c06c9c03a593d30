"""The benchmarks measure what they say: processes that take turns, forms that compute the same."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
TINY = (
    *("data.canvas=32", "data.scale=[0.8, 1.0]", "model.hidden=8", "model.patch=4"),
    *("model.scales=[1, 2]", "training.batch_size=8"),
)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As from a script beside them."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_contestants_take_turns(benchmarks: Any, tmp_path: Path) -> None:
    turns = benchmarks("turns")
    contestants = {
        "ours": turns.Contestant("ours", 0, TINY),
        "plain": turns.Contestant("plain"),
        "pyro": turns.Contestant("JitTrace_ELBO", 1, TINY),
    }
    workers = {name: turns.Worker(each, tmp_path) for name, each in contestants.items()}
    try:
        times = turns.take_turns(workers, rounds=2, block=2)
        memory = workers["ours"].memory()
    finally:
        for worker in workers.values():
            worker.close()
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys(workers, 2)
    assert all(0 < milliseconds < 60_000 for found in times.values() for milliseconds in found)
    assert [worker.batch_size for worker in workers.values()] == [8, 64, 8]
    assert memory > 100


def test_a_contestant_that_cannot_run_is_a_row_that_says_why(
    benchmarks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits, turns = benchmarks("digits"), benchmarks("turns")
    bench = digits.Bench(1, [1], "cpu", tmp_path)
    recorded = turns.Contestant("ours", 1, (*TINY, "training.cuda_graph=true"))
    found = bench.measure("two", {"usual": turns.Contestant("ours", 1, TINY), "recorded": recorded})
    digits.compare(found, ("usual", "usual"), ("recorded", "usual"))
    printed = capsys.readouterr().out
    assert list(found) == ["usual"]
    assert (
        "| recorded | cannot run: InputError: training.cuda_graph: device 'cpu' cannot record" in printed
    )
    assert "| usual | usual | **1.00** | 1.00 to 1.00 |" in printed
    assert printed.count("recorded |") == 1


def test_a_ratio_is_of_each_round(benchmarks: Any) -> None:
    assert benchmarks("turns").ratio([2.0, 40.0, 600.0], [1.0, 20.0, 300.0]) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize(
    "name",
    ["particle-plate", "shared-features", "memoize", "pyramid"],
)
def test_a_simple_form_computes_the_same(name: str, benchmarks: Any) -> None:
    """(Pyro's categorical draws other choices from the same numbers.)"""
    speedups = benchmarks("speedups")
    simple, keys = speedups.SPEEDUPS[name]
    gradients = []
    with speedups.pyro_settings(validate=False):
        for form in (speedups.nullcontext, simple):
            trainer = speedups.started(*TINY, "training.precision=64-true", *keys)
            with form():
                trainer.update()
            gradients.append([p.grad for p in trainer.parameters])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_every_family_of_an_update_is_told_apart(benchmarks: Any) -> None:
    family = benchmarks("breakdown").family
    assert family("aten::mm") == "matrix products"
    assert family("graph_0_cpp_fused_add_relu_3") == "other fused kernels"
    assert family("cpp_fused_index_select_lerp_7").startswith("fused kernels that read glimpses")
    assert family("Optimizer.step#Adam.step") == "optimiser"
    assert family("aten::exponential_") == "random numbers"
    assert family("aten::add") == "other operations on tensors"
