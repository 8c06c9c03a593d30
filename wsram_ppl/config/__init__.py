"""Experiment configs: what to train, on which data and how; read from TOML, checked and built.

A config has six tables. Four choose a component by ``name`` (``source`` in ``[data]``), a registered
name or an import path ``package.module:Name``, with the component's own options beside it::

    [model]
    name = "glimpse-classifier"
    hidden = 128
    location_std = { start = 0.25, end = 0.06 }

The options are the parameters of the component's constructor, and its annotations define their
valid values (pydantic's constrained types included), so a user's own class needs no entry here. A
constructor that takes ``**kwargs`` gets any option, unchecked. A guide's first parameter is the
model. A float option of a model or guide may be a schedule
(:class:`~wsram_ppl.config.schedules.Schedule`) if the component keeps the number in a 0-dim buffer
of the same name: the constructor then gets the first value, and the training loop writes the later
ones into the buffer.

``[exploration]`` and ``[training]`` are :class:`ExplorationSettings` and :class:`TrainingSettings`.
"""

from wsram_ppl.config.build import Components, build, build_data, build_model
from wsram_ppl.config.checking import check_table
from wsram_ppl.config.overrides import read_value
from wsram_ppl.config.parsing import (
    ExperimentConfig,
    check_config,
    experiment_path,
    load_config,
    parse_config,
    read_toml,
)
from wsram_ppl.config.settings import ExplorationSettings, TrainingSettings

__all__ = [
    "Components",
    "ExperimentConfig",
    "ExplorationSettings",
    "TrainingSettings",
    "build",
    "build_data",
    "build_model",
    "check_config",
    "check_table",
    "experiment_path",
    "load_config",
    "parse_config",
    "read_toml",
    "read_value",
]
