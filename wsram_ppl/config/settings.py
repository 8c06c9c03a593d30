"""The fixed tables of a config: ``[exploration]`` and ``[training]``."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
)

from wsram_ppl.config.schedules import NonNegativeSchedule, PositiveSchedule, Schedule

#: Keys of ``[training]`` that do not change the trained weights: where and how often to look.
IMMATERIAL: Final = (
    "device",
    "devices",
    "strategy",
    "num_nodes",
    "threads",
    "prefetch",
    "log_every",
    "eval_every",
    "eval_examples",
    "eval_samples",
    "checkpoint_every",
    "probe_every",
    "probe_repeats",
)


def _none_if_off(value: object) -> object:
    """TOML has no null: 0 and "none" stand for it."""
    return None if value == "none" or (value == 0 and not isinstance(value, bool)) else value


def _none_if_unset(value: object) -> object:
    return None if value == "none" else value


def check_device(value: str) -> str:
    """The name of a device, if it is one that a run can name."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value, re.ASCII):
        raise ValueError("should be auto, cpu, cuda, cuda:N or mps")
    return value


class ExplorationSettings(BaseModel):
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


class TrainingSettings(BaseModel):
    """How a run is trained, measured and saved.

    Attributes:
        steps: number of updates.
        batch_size: examples per update, of all processes together.
        learning_rate: of the model's parameters, >= 0.
        guide_learning_rate: of the guide's own parameters; None: as ``learning_rate``.
        optimizer: the class in ``torch.optim``.
        weight_decay: as that class understands it, >= 0.
        gradient_clip: largest norm of the gradient, of coefficient networks (``baselines``) and of all
            else each; None (in TOML 0 or "none"): no clipping.
        seed: of everything random in the run.
        log_every: updates between rows of the metrics.
        eval_every: updates between evaluations on held-out data; 0: never.
        eval_examples: held-out examples in each; None (in TOML 0): all.
        eval_samples: particles per example in each.
        checkpoint_every: updates between checkpoints; 0: only at the end.
        probe_every: updates between measurements of the gradient's variance on a fixed minibatch
            (:meth:`wsram_ppl.training.trainer.Trainer.probe`); 0: never.
        probe_repeats: gradients drawn in each, at least 2.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: processes on this machine, one for each GPU (or so many on the CPU); they share each
            minibatch.
        strategy: "ddp": gradients are summed over processes at every update; "auto": that, if there
            are several.
        num_nodes: machines, each with so many devices.
        precision: of the arithmetic, as in Lightning Fabric.
        matmul_precision: of products of float32 matrices, as in
            ``torch.set_float32_matmul_precision``: "medium" multiplies in bfloat16 where the processor
            can, "high" in TF32 on GPUs; sums and everything else stay in float32.
        threads: of one operation on the CPU; 0: torch's default.
        prefetch: whether a thread of its own prepares the next minibatch while one trains.
        validate_sites: whether Pyro checks distributions and site shapes at every update (slow);
            ``validate`` in TOML.
        compile: whether the plain networks are compiled.
        cuda_graph: whether an update on a GPU is recorded once and replayed
            (:mod:`wsram_ppl.training.cuda_graph`), which takes a tenth of the time where the networks are small.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: PositiveInt = 20_000
    batch_size: PositiveInt = 64
    learning_rate: NonNegativeSchedule = Schedule(start=3e-3, end=3e-5, shape="cosine")
    guide_learning_rate: Annotated[NonNegativeSchedule | None, BeforeValidator(_none_if_unset)] = None
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
    probe_every: NonNegativeInt = 0
    probe_repeats: Annotated[int, Field(ge=2)] = 20
    device: Annotated[str, AfterValidator(check_device)] = "cpu"
    devices: PositiveInt = 1
    strategy: Literal["auto", "ddp"] = "auto"
    num_nodes: PositiveInt = 1
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    threads: NonNegativeInt = 0
    prefetch: bool = True
    # Another name here, since pydantic's BaseModel has a method "validate".
    validate_sites: bool = Field(default=False, alias="validate")
    compile: bool = False
    cuda_graph: bool = False
