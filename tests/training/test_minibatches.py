"""Minibatches made ahead of their use, and those that an update composes."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scripts.tiny_run import tiny_config
from wsram_ppl.config import build
from wsram_ppl.distributed.sharding import BatchShard
from wsram_ppl.errors import InputError
from wsram_ppl.training.minibatches import Minibatches, Prefetcher

STEPS = 6


class Maker:
    """Notes what was made and where; steps of ``broken`` fail."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken, self.made, self.threads = broken, list[int](), set[int]()
        self.busy = threading.Lock()

    def __call__(self, step: int) -> int:
        assert self.busy.acquire(blocking=False), "two at once"
        try:
            time.sleep(0.001)
            self.made.append(step)
            self.threads.add(threading.get_ident())
            if step == self.broken:
                raise ValueError(f"no minibatch {step}")
            return 10 * step
        finally:
            self.busy.release()


@given(st.booleans(), st.lists(st.tuples(st.integers(0, STEPS - 1), st.booleans()), max_size=8))
def test_any_order_of_steps_gives_each_its_own(ahead: bool, asked: list[tuple[int, bool]]) -> None:
    minibatches = Prefetcher(Maker(), STEPS, ahead=ahead)
    for step, out_of_turn in asked:
        assert (minibatches.extra if out_of_turn else minibatches)(step) == 10 * step


@pytest.mark.parametrize("ahead", [True, False])
def test_each_is_made_once_and_none_beyond_the_last(ahead: bool) -> None:
    maker = Maker()
    minibatches = Prefetcher(maker, STEPS, ahead=ahead)
    for step in range(STEPS):
        minibatches(step)
        minibatches.extra(100)
    assert [step for step in maker.made if step != 100] == list(range(STEPS))
    assert maker.threads.isdisjoint({threading.get_ident()}) is ahead
    assert len(maker.threads) == 1


def test_the_next_is_made_while_this_one_is_in_use() -> None:
    maker = Maker()
    Prefetcher(maker, STEPS, ahead=True)(0)
    deadline = time.monotonic() + 10
    while maker.made != [0, 1] and time.monotonic() < deadline:
        time.sleep(0.001)
    assert maker.made == [0, 1]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_failure_comes_when_its_step_is_asked_for(ahead: bool) -> None:
    minibatches = Prefetcher(Maker(broken=2), STEPS, ahead=ahead)
    assert [minibatches(step) for step in (0, 1)] == [0, 10]
    with pytest.raises(ValueError, match="no minibatch 2"):
        minibatches(2)
    assert minibatches(3) == 30


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_recorded_update_gets_choices_and_composes_them(precision: str) -> None:
    """All else sees whole batches, as the source makes them."""
    config = tiny_config(f"training.precision={precision}")
    training = config.training.model_copy(update={"cuda_graph": True})
    parts = build(config)
    minibatches = Minibatches(parts, "sample", training, BatchShard(0, 1, torch.device("cpu")))
    minibatches.check(0)
    for step in range(3):
        choices = minibatches(step).batch
        images, labels = parts.data.training_batch(step, training.batch_size, training.seed)
        expected = images.to(torch.float64 if precision == "64-true" else torch.float32), labels
        assert sum(part.numel() for part in choices) < images.numel()
        for batch in (minibatches.composed(*choices), *minibatches.extra(step)):
            assert all(map(torch.equal, batch, expected))
            assert batch[0].dtype == expected[0].dtype


@pytest.mark.parametrize("count", [1, 2])
def test_a_source_that_gives_fewer_than_asked_for_is_refused(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it makes only the rows of one of several processes."""
    config = tiny_config()
    parts = build(config)
    draw = parts.data.training_rows  # which its training_batch uses
    monkeypatch.setattr(parts.data, "training_rows", lambda *args: tuple(x[:-1] for x in draw(*args)))
    shard = BatchShard(0, count, torch.device("cpu"))
    minibatches = Minibatches(parts, "mine", config.training, shard)
    size = 8 // count
    message = f"data 'mine' yields {size - 1} rows of a minibatch where {size} were"
    with pytest.raises(InputError, match=message):
        minibatches.check(0)
