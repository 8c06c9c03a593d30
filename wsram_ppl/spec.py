"""Experiment specs: what to train, on what, how; read from TOML, checked, written and built.

A spec has six tables. Four choose a component by ``name`` (``source`` in ``[data]``), a registered
name or an import path ``package.module:Name``, with the component's own options beside it::

    [model]
    name = "glimpse-classifier"
    hidden = 128
    location_std = { start = 0.25, end = 0.06 }

The options are the parameters of the component's constructor, and its annotations say what they
may be (pydantic's constrained types included), so a user's own class needs no entry here. A
constructor that takes ``**kwargs`` gets any option, unchecked. A guide's first parameter is the
model. A float option of a model or guide may be a schedule (:class:`~wsram_ppl.schedules.Schedule`)
if the component keeps the number in a 0-dim buffer of the same name: the constructor then gets the
first value, and the training loop writes the later ones into the buffer.

``[exploration]`` and ``[training]`` are :class:`Exploration` and :class:`Training`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from os import PathLike
from pathlib import Path, PurePath
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as resolve_hints

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
    ValidationError,
    create_model,
)
from pydantic.errors import PydanticUserError
from pyro.infer import ELBO
from torch import Tensor, nn

import wsram_ppl.data
import wsram_ppl.objectives  # noqa: F401  (importing them registers what they define)
from wsram_ppl.data import DataSource
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.registry import (
    DATA_SOURCES,
    GUIDES,
    MODELS,
    OBJECTIVES,
    Registry,
    nearest,
    one_line,
)
from wsram_ppl.schedules import NonNegativeSchedule, PositiveSchedule, Schedule

__all__ = [
    "Component",
    "Experiment",
    "Exploration",
    "Spec",
    "Training",
    "build",
    "load_spec",
    "parse_spec",
]

_COMPONENTS: Final[dict[str, Registry]] = {
    "data": DATA_SOURCES,
    "model": MODELS,
    "guide": GUIDES,
    "objective": OBJECTIVES,
}
_SECTIONS: Final = (*_COMPONENTS, "exploration", "training")
_SCHEDULED: Final = ("model", "guide")
_SHORTHANDS: Final = {
    "objective": ("objective", "name"),
    "guide": ("guide", "name"),
    "model": ("model", "name"),
    "control_variate": ("objective", "control_variate"),
    "device": ("training", "device"),
    "seed": ("training", "seed"),
}
# What does not change the trained weights: where and how often to look.
_IMMATERIAL: Final = (
    "device",
    "threads",
    "log_every",
    "eval_every",
    "eval_examples",
    "eval_samples",
    "checkpoint_every",
)
_STEP_KEYS: Final = ("start", "end", "shape", "from", "until")
_DEEPEST: Final = 16

_Settings = TypeVar("_Settings", bound=BaseModel)


# ---------------------------------------------------------------- the fixed tables


def _none_if_off(value: object) -> object:
    """TOML has no null: 0 and "none" stand for it."""
    return None if value == "none" or (value == 0 and not isinstance(value, bool)) else value


def _none_if_unset(value: object) -> object:
    return None if value == "none" else value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value, re.ASCII):
        raise ValueError("should be auto, cpu, cuda, cuda:N or mps")
    return value


class Exploration(BaseModel):
    """Heuristics that keep the proposal from collapsing (paper, section 4.5); all off by default.

    Attributes:
        entropy: weight of the entropy bonus on the policy's conditional distributions, >= 0.
        temperature: of the proposal, > 0; a Normal's variance is multiplied by it, a Categorical's
            logits are divided by it.
        coverage: weight of the divergence of the minibatch's choices from uniform, >= 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    entropy: NonNegativeSchedule = Schedule.fixed(0.0)
    temperature: PositiveSchedule = Schedule.fixed(1.0)
    coverage: NonNegativeSchedule = Schedule.fixed(0.0)


class Training(BaseModel):
    """How a run is trained, measured and saved.

    Attributes:
        steps: number of updates.
        batch_size: examples per update.
        learning_rate: of the model's parameters, >= 0.
        guide_learning_rate: of the guide's own parameters; None: as ``learning_rate``.
        optimizer: the class in ``torch.optim``.
        weight_decay: as that class understands it, >= 0.
        gradient_clip: largest norm of the whole gradient; None (in TOML 0 or "none"): no clipping.
        seed: of everything random in the run.
        log_every: updates between rows of the metrics.
        eval_every: updates between evaluations on held-out data; 0: never.
        eval_examples: held-out examples in each; None (in TOML 0): all.
        eval_samples: particles per example in each.
        checkpoint_every: updates between checkpoints; 0: only at the end.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: of the arithmetic, as in Lightning Fabric.
        threads: of one operation on the CPU; 0: torch's default.
        validate_sites: whether Pyro checks distributions and site shapes at every update (slow);
            ``validate`` in TOML.
        compile_networks: whether the plain networks are compiled; ``compile`` in TOML.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: PositiveInt = 20_000
    batch_size: PositiveInt = 64
    learning_rate: NonNegativeSchedule = Schedule(start=3e-3, end=3e-5, shape="cosine")
    guide_learning_rate: Annotated[
        NonNegativeSchedule | None, BeforeValidator(_none_if_unset)
    ] = None
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    gradient_clip: Annotated[
        Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None,
        BeforeValidator(_none_if_off),
        PlainSerializer(lambda value: value or 0.0),
    ] = 5.0
    # NumPy takes no seed beyond 32 bits.
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    log_every: PositiveInt = 50
    eval_every: NonNegativeInt = 1000
    eval_examples: Annotated[
        PositiveInt | None,
        BeforeValidator(_none_if_off),
        PlainSerializer(lambda value: value or 0),
    ] = None
    eval_samples: PositiveInt = 5
    checkpoint_every: NonNegativeInt = 1000
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    threads: NonNegativeInt = 0
    # BaseModel has a method (deprecated) of the plain name.
    validate_sites: bool = Field(default=False, alias="validate")
    compile_networks: bool = Field(default=False, alias="compile")
