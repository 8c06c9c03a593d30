"""The fixed tables of a config: ``[exploration]`` and ``[training]``."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, TypeVar

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

_IMMATERIAL: Final = "does not change what an update does"


def _none_if_unset(value: object) -> object:
    return None if value == "none" else value


def _none_if_off(value: object) -> object:
    return None if value == "none" or (value == 0 and not isinstance(value, bool)) else value


_Value = TypeVar("_Value")
_Immaterial = Annotated[_Value, _IMMATERIAL]
# TOML has no null: "none" stands for it, and 0 where a number cannot be 0.
_OrUnset = Annotated[_Value | None, BeforeValidator(_none_if_unset)]
_OrOff = Annotated[
    _Value | None, BeforeValidator(_none_if_off), PlainSerializer(lambda value: value or 0)
]


def check_device(value: str) -> str:
    """The name of a device, checked to be one that a run can use."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value, re.ASCII):
        raise ValueError("should be auto, cpu, cuda, cuda:N or mps")
    return value


#: The name of a tracker.
Tracker = Literal["tensorboard", "mlflow", "wandb"]


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("should name each tracker once")
    return names


class ExplorationSettings(BaseModel):
    """Heuristics that keep the proposal from collapsing (paper, section 4.5); all off by default."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    entropy: NonNegativeSchedule = Schedule.fixed(0.0)
    """Weight of the entropy bonus on the policy's conditional distributions."""
    temperature: PositiveSchedule = Schedule.fixed(1.0)
    """Temperature of the proposal: multiplies a Normal's variance, divides a Categorical's logits."""
    coverage: NonNegativeSchedule = Schedule.fixed(0.0)
    """Weight of the divergence of the minibatch's choices from uniform."""


class TrainingSettings(BaseModel):
    """How a run is trained, measured and saved."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    steps: _Immaterial[PositiveInt] = 20_000
    """Number of updates."""
    schedule_steps: _Immaterial[_OrOff[PositiveInt]] = None
    """Updates over which schedules run from start to end, after which they stay constant; None (in TOML
    0 or "none"): all ``steps``."""
    batch_size: PositiveInt = 64
    """Examples per update, over all processes."""
    learning_rate: NonNegativeSchedule = Schedule(start=3e-3, end=3e-5, shape="cosine")
    """Learning rate of the model's parameters."""
    guide_learning_rate: _OrUnset[NonNegativeSchedule] = None
    """Learning rate of the guide's own parameters; None (in TOML "none"): ``learning_rate``."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The optimizer, a class in ``torch.optim``."""
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    """Weight decay, as the optimizer defines it."""
    gradient_clip: _OrOff[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] = 5.0
    """Largest norm of the gradient, separately for baseline networks and all else; None (in TOML 0 or
    "none"): no limit."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of everything random in the run; 32 bits, NumPy's limit."""
    init: _OrUnset[Annotated[str, Field(min_length=1)]] = None
    """A run to take initial weights from, where they fit; None (in TOML "none"): none."""
    log_every: _Immaterial[PositiveInt] = 50
    """Updates between rows of the metrics."""
    eval_every: _Immaterial[NonNegativeInt] = 1000
    """Updates between evaluations on validation data; 0: never."""
    eval_examples: _Immaterial[_OrOff[PositiveInt]] = None
    """Validation examples in each evaluation; None (in TOML 0): all."""
    eval_samples: _Immaterial[PositiveInt] = 5
    """Particles per example in each evaluation."""
    checkpoint_every: _Immaterial[NonNegativeInt] = 1000
    """Updates between checkpoints; 0: only at the end."""
    probe_every: _Immaterial[NonNegativeInt] = 0
    """Updates between measurements of the gradient's variance on a fixed minibatch; 0: never."""
    probe_repeats: _Immaterial[Annotated[int, Field(ge=2)]] = 20
    """Gradients drawn in each measurement of their variance."""
    loggers: _Immaterial[Annotated[tuple[Tracker, ...], AfterValidator(_distinct)]] = ("tensorboard",)
    """Where the rows of the metrics, the config and pictures at evaluations are shown as well
    (:mod:`wsram_ppl.runs.trackers`); ``metrics.csv`` is always written."""
    device: _Immaterial[Annotated[str, AfterValidator(check_device)]] = "cpu"
    """auto, cpu, cuda, cuda:N or mps."""
    devices: _Immaterial[PositiveInt] = 1
    """Processes on this machine, one per GPU (or on the CPU); they share each minibatch."""
    num_nodes: _Immaterial[PositiveInt] = 1
    """Number of machines, each with ``devices`` processes."""
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    """Precision of the arithmetic, as in Lightning Fabric."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products, as in ``torch.set_float32_matmul_precision``: "medium"
    multiplies in bfloat16 if the processor can, "high" in TF32 on GPUs; all else stays in float32."""
    threads: _Immaterial[NonNegativeInt] = 0
    """Of one operation on the CPU; 0: one or all, whichever is faster in a short trial, less one for
    ``prefetch`` (:mod:`wsram_ppl.training.threads`)."""
    prefetch: _Immaterial[bool] = True
    """Whether a thread prepares the next minibatch during an update."""
    validate_sites: bool = Field(default=False, alias="validate")  # pydantic has a method of that name
    """Whether Pyro checks distributions and site shapes at every update (slow); ``validate`` in TOML."""
    compile: bool = False
    """Whether the gradient of an update is compiled (:mod:`wsram_ppl.training.compiled`)."""
    cuda_graph: bool = False
    """Whether updates on a GPU are recorded and replayed (:mod:`wsram_ppl.training.cuda_graph`)."""

    @property
    def records(self) -> bool:
        """Whether Python runs only for the first updates, so that all changes must be in tensors."""
        return self.compile or self.cuda_graph

    @property
    def horizon(self) -> int:
        """Updates over which schedules run."""
        return self.schedule_steps or self.steps


#: The keys of ``[training]`` that do not change what an update does. If anything is scheduled, ``steps``
#: and ``schedule_steps`` do change it, through the horizon that they define.
IMMATERIAL: Final = tuple(
    info.alias or name
    for name, info in TrainingSettings.model_fields.items()
    if _IMMATERIAL in info.metadata
)
