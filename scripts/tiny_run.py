"""The settings of a tiny run on the digits, used by other scripts and the tests."""

from __future__ import annotations

from typing import Any

from wsram_ppl.config import ExperimentConfig, parse_config


def tiny_config(*overrides: str, **tables: dict[str, Any]) -> ExperimentConfig:
    """Tiny networks on a small canvas, eight updates, measured and saved at the end.

    Args:
        overrides: single keys, as on the command line: ``"model.hidden=4"``.
        tables: keys of a table to change, such as ``model={"hidden": 4}``.

    Raises:
        InputError: an invalid key or value.
    """
    base: dict[str, dict[str, Any]] = {
        "data": {"source": "sample", "canvas": 32, "scale": [0.8, 1.0]},
        "model": {
            "name": "glimpse-classifier",
            "hidden": 8,
            "num_glimpses": 2,
            "patch": 4,
            "scales": [1, 2],
            "location_std": {"start": 0.3, "end": 0.1},
        },
        "guide": {"name": "inference"},
        "objective": {"name": "wake-sleep", "control_variate": "adaptive", "num_particles": 3},
        "exploration": {"entropy": {"start": 0.05, "end": 0.01}},
        "training": {
            "steps": 8,
            "batch_size": 8,
            "learning_rate": {"start": 1e-2, "end": 1e-3},
            "log_every": 4,
            "eval_every": 0,
            "eval_examples": 20,
            "checkpoint_every": 0,
        },
    }
    for name, table in tables.items():
        base[name] = base.get(name, {}) | table
    return parse_config(base, overrides)
