"""The tables ``[exploration]`` and ``[training]``."""

from __future__ import annotations

import pytest

from tests.config.components import config, tables
from wsram_ppl.config import parse_config
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.config.settings import IMMATERIAL


def test_what_zero_and_none_mean() -> None:
    off = config(
        "training.gradient_clip=0",
        "training.eval_examples=0",
        "training.guide_learning_rate=none",
        training={"guide_learning_rate": 0.5, "eval_examples": 10},
    ).training
    assert (off.gradient_clip, off.eval_examples, off.guide_learning_rate) == (None, None, None)
    assert config("training.gradient_clip=none").training.gradient_clip is None
    on = config(training={"gradient_clip": 2, "eval_examples": 7, "guide_learning_rate": 0}).training
    assert (on.gradient_clip, on.eval_examples) == (2.0, 7)
    assert on.guide_learning_rate == Schedule.fixed(0.0)
    assert config("training.validate=true", "training.compile=true").training.validate_sites


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices(device: str) -> None:
    assert parse_config(tables(), device=device).training.device == device


def test_what_does_not_change_the_weights() -> None:
    assert IMMATERIAL == (
        "steps", "schedule_steps", "log_every", "eval_every", "eval_examples", "eval_samples",
        "checkpoint_every", "probe_every", "probe_repeats", "loggers", "device", "devices", "num_nodes",
        "threads", "prefetch",
    )  # fmt: skip
