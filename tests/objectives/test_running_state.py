"""The running estimates: read before they are updated, saved and restored, one value everywhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from wsram_ppl.objectives import VariationalBound, WakeSleep
from wsram_ppl.objectives.running import MinibatchMeans, RunningMeans, RunningRatio
from wsram_ppl.testing.enumeration import (
    StateNetwork,
    TableGuide,
    TableModel,
    Tuples,
    estimates,
    random_problem,
)


def test_the_first_value_is_taken_as_it_is_and_later_ones_are_mixed_in() -> None:
    """mean <- decay * mean + (1 - decay) * value."""
    means = RunningMeans()
    default = torch.tensor(7.0)
    assert means.get("a", default) is default
    means.update({"a": torch.tensor(2.0), "b": torch.tensor(-1.0)}, decay=0.9)
    means.update({"a": torch.tensor(3.0)}, decay=0.9)
    means.update({}, decay=0.9)
    assert means.get("a", default).item() == pytest.approx(2.1)
    assert means.get("b", default).item() == -1.0
    assert means.get("b", torch.zeros((), dtype=torch.float64)).dtype == torch.float64


def test_state_dict_is_a_copy() -> None:
    """Neither saving nor loading ties the estimates to the caller's tensors."""
    means = RunningMeans()
    means.update({"a": torch.tensor(2.0)}, decay=0.5)
    saved = means.state_dict()
    saved["a"] += 1
    assert means.get("a", torch.tensor(0.0)) == 2.0
    other = RunningMeans()
    other.load_state_dict(saved)
    saved["a"] += 1
    assert other.get("a", torch.tensor(0.0)) == 3.0


def test_means_keep_their_place() -> None:
    """A recorded update finds them there; what has another type or came from a file is replaced once."""
    means = RunningMeans()
    means.update({"a": torch.tensor(1.0)}, decay=0.5)
    place = means.get("a", torch.tensor(0.0))
    means.update({"a": torch.tensor(3.0)}, decay=0.5)
    assert place == 2.0 and means.get("a", torch.tensor(0.0)) is place
    means.load_state_dict({"a": torch.tensor(4.0, dtype=torch.float64)})
    means.update({"a": torch.tensor(2.0)}, decay=0.5)
    assert means.get("a", torch.tensor(0.0)) == 3.0 and place == 2.0


OBJECTIVES: dict[str, Any] = {
    "adaptive": lambda: WakeSleep("adaptive", num_particles=2, vectorize_particles=True),
    "learned": lambda: WakeSleep("learned", num_particles=2, vectorize_particles=True),
    "site": lambda: VariationalBound("site", num_particles=2, vectorize_particles=True),
}


def declare(name: str, state: Tensor) -> dict[str, Any]:
    infer = StateNetwork(["a0", "a1"], 5).declare(name, state)
    infer["baseline"]["use_decaying_avg_baseline"] = True
    return infer


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_checkpoint_carries_the_estimates(name: str) -> None:
    """``objective(model, guide).state_dict()`` holds them: a restored run goes on as the first one."""
    tuples = Tuples(random_problem([2, 2], share=0.5, seed=1), 2)
    model = TableModel(tuples.problem, tuples.rows)
    guide = TableGuide(tuples.problem, tuples.rows, declare)
    first = OBJECTIVES[name]()
    estimates(first, model, guide, tuples.values)
    assert first.state_dict()
    buffer = io.BytesIO()
    module: nn.Module = first(model, guide)
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)

    second = OBJECTIVES[name]()
    restored: nn.Module = second(model, guide)
    restored.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(second.state_dict(), first.state_dict())
    one = estimates(first, model, guide, tuples.values)
    other = estimates(second, model, guide, tuples.values)
    for which in ("theta", "eta"):
        assert torch.equal(one.flat(which), other.flat(which))
    torch.testing.assert_close(second.state_dict(), first.state_dict())
    fresh = estimates(OBJECTIVES[name](), model, guide, tuples.values)
    assert not (
        torch.equal(fresh.flat("theta"), one.flat("theta"))
        and torch.equal(fresh.flat("eta"), one.flat("eta"))
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_minibatch_does_not_see_its_own_estimate(name: str) -> None:
    """A gradient depends on earlier minibatches' estimates alone: its own would bias it."""
    problem = random_problem([2, 2], share=0.5, seed=1)
    objective = OBJECTIVES[name]()
    found = []
    for other in (0, 1, 2):  # what the second datum of the minibatch draws
        index = torch.tensor([[0, other], [3, other]])
        objective.load_state_dict({})
        model, guide = TableModel(problem, 2), TableGuide(problem, 2, declare)
        estimate = estimates(objective, model, guide, problem.values(index))
        found.append((estimate.flat("theta")[0], estimate.flat("eta")[0], objective.state_dict()))
    for theta, eta, state in found[1:]:
        assert torch.equal(theta, found[0][0]) and torch.equal(eta, found[0][1])
        assert any(not torch.equal(state[key], found[0][2][key]) for key in state)


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    means = RunningMeans()
    for step in range(3):
        values = {"a": torch.tensor(10.0 * rank + step), "b": torch.tensor(float(rank))}
        means.update(values, decay=0.5)
    torch.save(means.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_hold_the_same_values(tmp_path: Path) -> None:
    """Under ``torch.distributed`` every process holds the mean over processes."""
    torch.multiprocessing.spawn(_process, (str(tmp_path),), nprocs=2)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one == other
    assert one["a"].item() == 0.25 * 5 + 0.25 * 6 + 0.5 * 7
    assert one["b"].item() == 0.5


@given(st.lists(st.lists(st.floats(-3, 3), min_size=2, max_size=2), min_size=1, max_size=4))
def test_a_running_ratio_is_the_best_coefficient_of_earlier_minibatches(
    pairs: list[list[float]],
) -> None:
    """The least-squares fit of x by r, over minibatches that count less and less."""
    running, like = RunningMeans(), torch.zeros((), dtype=torch.float64)
    ratio = RunningRatio(running, "c")
    assert float(ratio.value(like)) == 0.0
    xr = like
    for number, (first, second) in enumerate(pairs):
        r = torch.tensor([1.0, 2.0], dtype=torch.float64)
        x = torch.tensor([first, second], dtype=torch.float64)
        means = MinibatchMeans()
        ratio.observe(x[:1], r[:1], means)  # from two draws, averaged
        ratio.observe(x[1:], r[1:], means)
        means.commit(running, 0.5)
        xr = (x * r).mean() if number == 0 else 0.5 * xr + 0.5 * (x * r).mean()
    assert float(ratio.value(like)) == pytest.approx(float(xr) / 2.5, abs=1e-12)
