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

import functools
import hashlib
import inspect
import json
import math
import operator
import re
import tomllib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
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
from torch import Tensor, nn

from wsram_ppl.data import DataSource
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.objectives import Objective
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
    "IMMATERIAL",
    "Component",
    "Experiment",
    "Exploration",
    "Spec",
    "Training",
    "build",
    "check_table",
    "load_spec",
    "parse_spec",
    "read_toml",
    "read_value",
]

_COMPONENTS: Final[dict[str, Registry]] = {
    "data": DATA_SOURCES,
    "model": MODELS,
    "guide": GUIDES,
    "objective": OBJECTIVES,
}
_KINDS: Final[dict[str, type[Any]]] = {
    "data": DataSource,
    "model": nn.Module,
    "guide": nn.Module,
    "objective": Objective,
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
#: Keys of ``[training]`` that do not change the trained weights: where and how often to look.
IMMATERIAL: Final = (
    "device",
    "threads",
    "log_every",
    "eval_every",
    "eval_examples",
    "eval_samples",
    "checkpoint_every",
    "probe_every",
    "probe_repeats",
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
        probe_every: updates between measurements of the gradient's variance on a fixed minibatch
            (:meth:`wsram_ppl.training.Trainer.probe`); 0: never.
        probe_repeats: gradients drawn in each, at least 2.
        device: auto, cpu, cuda, cuda:N or mps.
        precision: of the arithmetic, as in Lightning Fabric.
        threads: of one operation on the CPU; 0: torch's default.
        validate_sites: whether Pyro checks distributions and site shapes at every update (slow);
            ``validate`` in TOML.
        compile: whether the plain networks are compiled.
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
    device: Annotated[str, AfterValidator(_device)] = "cpu"
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    threads: NonNegativeInt = 0
    # Another name here, since pydantic's BaseModel has a method "validate".
    validate_sites: bool = Field(default=False, alias="validate")
    compile: bool = False


# ---------------------------------------------------------------- the spec


@dataclass(frozen=True)
class Component:
    """A part of an experiment that is chosen by name.

    Attributes:
        name: a registered name or an import path.
        options: of the constructor, defaults included, as plain TOML values (a schedule is a
            table). Defaults that TOML cannot express, like None, are not in it.
    """

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """A whole experiment, checked; every option has its value.

    Attributes:
        notes: lines for the user on what was left out of the file (see :func:`parse_spec`); not
            part of the spec's identity.
    """

    data: Component
    model: Component
    guide: Component
    objective: Component
    exploration: Exploration
    training: Training
    notes: tuple[str, ...] = field(default=(), compare=False)

    def tables(self) -> dict[str, dict[str, Any]]:
        """The spec as the tables of a TOML file; :func:`parse_spec` reads them to an equal spec."""
        tables: dict[str, dict[str, Any]] = {}
        for section in _COMPONENTS:
            component: Component = getattr(self, section)
            tables[section] = {_name_key(section): component.name, **component.options}
        for section, settings in ("exploration", self.exploration), ("training", self.training):
            values = settings.model_dump(mode="json", by_alias=True)
            tables[section] = {key: value for key, value in values.items() if value is not None}
        return tables

    def to_toml(self) -> str:
        """The text of a TOML file with every option, from which an equal spec is read."""
        return tomli_w.dumps(self.tables())

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of everything that determines the trained weights.

        Left out are the device, the threads, and how often to log, evaluate and save.
        """
        tables = self.tables()
        for key in IMMATERIAL:
            tables["training"].pop(key, None)
        return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()

    def difference(self, other: Spec, ignored: Sequence[str] = IMMATERIAL) -> str:
        """The keys in which the specs differ, with both values, in one line; "" without any.

        Args:
            ignored: keys of ``[training]`` to leave out, by default those that the fingerprint does.
        """
        here, there = (_flat(spec.tables()) for spec in (self, other))
        skipped = {f"training.{key}" for key in ignored}
        keys = [key for key in {**here, **there} if here.get(key) != there.get(key)]
        lines = [
            f"{key} {here.get(key, 'unset')}, not {there.get(key, 'unset')}"
            for key in keys
            if key not in skipped
        ]
        return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _flat(tables: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[above + key] = value
    return flat


def load_spec(
    path: str | PathLike[str], overrides: Sequence[str] = (), **shorthands: str | int | None
) -> Spec:
    """Reads a spec from a TOML file; see :func:`parse_spec` for the rest.

    Raises:
        InputError: also for a file that is not there, cannot be read or is not TOML (the message
            names the line).
    """
    return parse_spec(read_toml(path), overrides, **shorthands)


def read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    """The tables of a TOML file, unchecked.

    Raises:
        InputError: not there, not readable or not TOML (the message names the line).
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or a path that no file can have
        raise InputError(f"cannot read {str(path)!r}: {one_line(error)}") from None
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except ValueError as error:
        where = str(error).replace("end of document", f"line {len(text.splitlines())}, the last")
        raise InputError(f"{path}: not valid TOML: {where}") from None


def parse_spec(
    tables: Mapping[str, Any], overrides: Sequence[str] = (), **shorthands: str | int | None
) -> Spec:
    """Checks the tables of a spec and fills in every default.

    If an override or a shorthand chooses another component than the file does, the file's options
    that the new one does not have are left out, and ``notes`` says which. What overrides set is
    never left out.

    Args:
        tables: what a TOML file holds.
        overrides: each ``table.key=value``, the value in TOML, or else taken as a plain string.
        shorthands: ``objective``, ``guide``, ``model`` (names), ``control_variate``, ``device``,
            ``seed``; None: not given.

    Raises:
        InputError: anything unknown, missing or out of range; all that is wrong, in one line.
        TypeError: a shorthand that does not exist.
    """
    plain = _plain(tables, "the spec")
    names = {section: _name_of(section, plain.get(section)) for section in _COMPONENTS}
    explicit = _override(plain, overrides, shorthands)
    plain = _plain(plain, "the spec")

    problems = [_unknown("", key, _SECTIONS) for key in plain if key not in _SECTIONS]
    notes: list[str] = []
    parts: dict[str, Any] = {}
    for section in _SECTIONS:
        table = plain.get(section, {})
        try:
            if not isinstance(table, dict):
                raise InputError(f"{section} = {_show(table)}: should be a table [{section}]")
            if section in _COMPONENTS:
                set_by_hand = {path[1] for path in explicit if path[0] == section and path[1:]}
                parts[section] = _component(section, table, names[section], set_by_hand, notes)
            else:
                settings = Exploration if section == "exploration" else Training
                parts[section] = check_table(settings, section, table)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError(" ".join("; ".join(problems).split()))
    return Spec(**parts, notes=tuple(notes))


# ---------------------------------------------------------------- building


@dataclass
class Experiment:
    """The built components of a spec.

    Attributes:
        scheduled: for each option of the model or guide that changes during the run, its schedule;
            the value belongs into the 0-dim buffer of that name.
    """

    model: nn.Module
    guide: nn.Module
    objective: Objective
    data: DataSource
    scheduled: dict[tuple[Literal["model", "guide"], str], Schedule]


def build(spec: Spec) -> Experiment:
    """Constructs the components; seed torch before, since the parameters are drawn here.

    Raises:
        InputError: a component does not accept its options, is not of the right kind, or cannot be
            scheduled as asked.
        RunError: a component failed otherwise.
    """
    data = _construct("data", spec.data)
    model = _construct("model", spec.model)
    guide = _construct("guide", spec.guide, model)
    objective = _construct("objective", spec.objective)
    scheduled: dict[tuple[Literal["model", "guide"], str], Schedule] = {}
    for section, component, module in ("model", spec.model, model), ("guide", spec.guide, guide):
        for option, schedule in _schedules(section, component).items():
            buffer = dict(module.named_buffers(remove_duplicate=False)).get(option)
            if not isinstance(buffer, Tensor) or buffer.ndim or not buffer.is_floating_point():
                raise InputError(
                    f"{section}.{option} cannot be scheduled: {component.name!r} does not keep it "
                    "in a 0-dim buffer of that name; give a number"
                )
            scheduled["model" if section == "model" else "guide", option] = schedule
    return Experiment(model, guide, objective, data, scheduled)


def _construct(section: str, component: Component, *leading: object) -> Any:
    cls = _class(section, component.name)
    known = _constructor_options(section, cls).known
    schedules = _schedules(section, component)
    arguments: dict[str, Any] = {}
    for name, value in component.options.items():
        if name in schedules:
            arguments[name] = schedules[name].initial
        elif name not in known:  # by **kwargs
            arguments[name] = value
        elif not known[name].is_default(value):
            arguments[name] = known[name].read(value)
    what = f"{section} {component.name!r}"
    try:
        built = cls(*leading, **arguments)
    except InputError as error:
        raise InputError(f"{what}: {' '.join(str(error).split())}") from error
    except RunError:
        raise
    except (RuntimeError, MemoryError) as error:
        raise RunError(f"{what}: {one_line(error)}") from error
    except Exception as error:
        text = " ".join(str(error).split()) if type(error) is ValueError else one_line(error)
        raise InputError(f"{what}: {text}") from error
    return built


def _schedules(section: str, component: Component) -> dict[str, Schedule]:
    if section not in _SCHEDULED:
        return {}
    known = _constructor_options(section, _class(section, component.name)).known
    return {
        name: Schedule.model_validate(value)
        for name, value in component.options.items()
        if isinstance(value, dict) and name in known and known[name].schedulable
    }


# ---------------------------------------------------------------- constructors and their options


class _Checker(BaseModel):
    """Base of the models, made for one option each, that check its ``value``."""

    model_config = ConfigDict(strict=True)

    value: Any


@dataclass(frozen=True)
class _Option:
    """A parameter of a constructor."""

    key: str  # dotted
    checker: type[_Checker] | None  # None: its type has no form in TOML
    default: Any  # inspect.Parameter.empty: none
    schedulable: bool

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def is_default(self, value: Any) -> bool:
        try:
            # Compared as text, since 1 equals true.
            return json.dumps(_plain(self.default, self.key)) == json.dumps(value)
        except InputError:
            return False

    def read(self, value: Any) -> Any:
        """What the constructor is to get for a plain value."""
        assert self.checker is not None
        if self.schedulable and isinstance(value, dict):
            schedule: Schedule = _check(_ScheduleOption, self.key, value)
            # Both ends must be within the option's bounds; all between are then, too.
            for end in ("start", "end"):
                _check(self.checker, f"{self.key}.{end}", getattr(schedule, end))
            return schedule
        return _check(self.checker, self.key, value)

    def canonical(self, value: Any) -> Any:
        """A plain value in the one form that is written: 3 becomes 3.0 for a float."""
        read = self.read(value)
        if isinstance(read, Schedule):
            return read.model_dump()
        return float(value) if isinstance(read, float) and isinstance(value, int) else value


@dataclass(frozen=True)
class _Options:
    known: dict[str, _Option]
    any_other: bool  # the constructor takes **kwargs

    @property
    def keys(self) -> list[str]:
        return [name for name, option in self.known.items() if option.checker is not None]


def _component(
    section: str,
    table: dict[str, Any],
    name_in_file: str | None,
    by_hand: set[str],
    notes: list[str],
) -> Component:
    name_key = _name_key(section)
    given = {key: value for key, value in table.items() if key != name_key}
    if name_key not in table:
        available = ", ".join(_COMPONENTS[section].names()) or "none is registered"
        raise InputError(
            f"{section}.{name_key} is missing; available: {available}, or an import path "
            "package.module:Name"
        )
    name = table[name_key]
    if not isinstance(name, str):
        raise InputError(f"{section}.{name_key} = {_show(name)}: should be a string")
    options = _constructor_options(section, _class(section, name))
    if name_in_file not in (None, name):
        for key in [key for key in given if key not in options.keys and key not in by_hand]:
            del given[key]
            notes.append(
                f"{section}.{_key(key)} of {name_in_file!r} is left out: {name!r} has no such key"
            )
    return Component(name, _fill(section, options, given))


def _fill(section: str, options: _Options, given: dict[str, Any]) -> dict[str, Any]:
    """The given options in canonical form, and the defaults of the others."""
    problems: list[str] = []
    filled: dict[str, Any] = {}
    if section == "objective" and "vectorize_particles" in options.keys:
        # Pyro's own default is one particle after the other, for models that cannot do otherwise.
        given = {"vectorize_particles": True, **given}
    for name, option in options.known.items():
        try:
            if option.checker is None:
                if name in given:
                    raise InputError(f"{option.key} cannot be set: its type has no form in TOML")
                if option.required:
                    raise InputError(
                        f"{option.key} is required, but its type has no form in TOML; give the "
                        "constructor's parameter a default"
                    )
            elif name in given:
                filled[name] = option.canonical(given[name])
            elif option.required:
                raise InputError(f"{option.key} is missing")
            else:
                filled |= _default(name, option)
        except InputError as error:
            problems.append(str(error))
    for name in given:
        if name not in options.known:
            if options.any_other:
                filled[name] = given[name]
            else:
                problems.append(_unknown(section, name, options.keys))
    if problems:
        raise InputError("; ".join(problems))
    return filled


def _default(name: str, option: _Option) -> dict[str, Any]:
    try:
        return {name: option.canonical(_plain(option.default, option.key))}
    except InputError:
        return {}  # no form in TOML, or at odds with its own annotation: the constructor has it


def _class(section: str, name: str) -> type[Any]:
    """The class of a component, of the kind that its place needs."""
    try:
        cls = _COMPONENTS[section].resolve(name)
    except InputError as error:
        raise InputError(f"{section}.{_name_key(section)}: {error}") from error
    needed = _KINDS[section]
    if not issubclass(cls, needed):
        base = f"{needed.__module__}.{needed.__name__}"
        key = f"{section}.{_name_key(section)}"
        if section == "data":
            methods = "training_batch, evaluation_batches, to"
            raise InputError(f"{key}: {name!r} lacks methods of {base} ({methods})")
        raise InputError(f"{key}: {name!r} is not a {base}")
    return cls


def _constructor_options(section: str, cls: type[Any]) -> _Options:
    """What the constructor takes, from its signature; the first parameter of a guide is skipped."""
    what = f"{section} '{cls.__module__}:{cls.__qualname__}'"
    try:
        parameters = list(inspect.signature(cls).parameters.values())
    except (ValueError, TypeError) as error:
        raise InputError(f"{what}: its constructor cannot be read: {one_line(error)}") from error
    if section == "guide":
        positional = (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.VAR_POSITIONAL,
        )
        if not parameters or parameters[0].kind not in positional:
            raise InputError(f"{what}: its constructor should take the model as first argument")
        if parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            del parameters[0]
    known: dict[str, _Option] = {}
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            continue
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (parameter.name == _name_key(section)):
            if parameter.default is inspect.Parameter.empty:
                raise InputError(f"{what}: a spec cannot set its parameter {parameter.name!r}")
            continue
        known[parameter.name] = _option(section, cls, parameter)
    any_other = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return _Options(known, any_other)


def _option(section: str, cls: type[Any], parameter: inspect.Parameter) -> _Option:
    key = f"{section}.{parameter.name}"
    try:
        annotation = _annotation(cls, parameter)
        schedulable = section in _SCHEDULED and _takes_float(annotation)
        if schedulable:
            annotation = _without_schedule(annotation)
        checker = _checker(annotation)
    except Exception:  # whatever the libraries raise for a type that they cannot resolve or check
        checker, schedulable = None, False
    return _Option(key, checker, parameter.default, schedulable)


def _annotation(cls: type[Any], parameter: inspect.Parameter) -> Any:
    if parameter.annotation is inspect.Parameter.empty:
        return Any
    constructor = cls.__init__ if cls.__init__ is not object.__init__ else cls.__new__

    # One at a time: a name known to type checkers only must not spoil the others.
    def holder() -> None: ...

    holder.__annotations__ = {"value": parameter.annotation}
    names = getattr(inspect.unwrap(constructor), "__globals__", {})
    return resolve_hints(holder, globalns=names, include_extras=True)["value"]


def _takes_float(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _takes_float(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_takes_float(member) for member in get_args(annotation))
    return annotation is float


def _without_schedule(annotation: Any) -> Any:
    """``Schedule | float`` says that it may be scheduled; the constructor gets a float."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    members = [member for member in get_args(annotation) if member is not Schedule]
    return functools.reduce(operator.or_, members)


def _checker(annotation: Any) -> type[_Checker]:
    return create_model("Option", __base__=_Checker, value=(annotation, ...))


_ScheduleOption = _checker(Schedule)


# ---------------------------------------------------------------- checks and their messages


def check_table(cls: type[_Settings], section: str, table: dict[str, Any]) -> _Settings:
    """A table of fixed keys as an instance of a pydantic model.

    Args:
        section: the name of the table, in messages; "" for a file's top level.

    Raises:
        InputError: unknown keys, wrong or missing values; all that is wrong, in one line.
    """
    table = _plain(table, section or "the file")
    keys = [info.alias or name for name, info in cls.model_fields.items()]
    problems = [_unknown(section, key, keys) for key in table if key not in keys]
    known = {key: value for key, value in table.items() if key in keys}
    settings = None
    try:
        settings = cls.model_validate_json(json.dumps(known))
    except ValidationError as error:
        problems += _explain(error, section, known, 0)
    if problems or settings is None:
        raise InputError("; ".join(problems))
    return settings


def _check(checker: type[_Checker], key: str, value: Any) -> Any:
    # As JSON: pydantic is then strict on numbers and strings, yet takes a list for a tuple and a
    # string for a path, which TOML has no other way to write.
    try:
        return checker.model_validate_json(json.dumps({"value": value})).value
    except ValidationError as error:
        raise InputError("; ".join(_explain(error, key, value, 1))) from None


def _explain(error: ValidationError, key: str, value: Any, skip: int) -> list[str]:
    """One line per wrong key; ``skip`` parts of pydantic's locations come before ``value``."""
    lines: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_input=False):
        path, here, message, hint = key, value, item["msg"], ""
        location = item["loc"][skip:]
        for step in location:
            if isinstance(here, dict) and step in here:
                path = f"{path}.{_key(str(step))}" if path else _key(str(step))
                here = here[step]
            elif isinstance(here, list) and isinstance(step, int) and step < len(here):
                path, here = f"{path}[{step}]", here[step]
            else:
                break  # the rest names members of a union, or a key that is missing
        if item["type"] == "missing":
            lines.setdefault(f"{path}.{location[-1]} is missing".lstrip("."), [])
            continue
        if item["type"] == "extra_forbidden":
            above = path.rpartition(".")[0]
            lines.setdefault(_unknown(above, str(location[-1]), _STEP_KEYS), [])
            continue
        message = message.removeprefix("Value error, ").replace("Input should", "should")
        if item["type"] == "literal_error" and isinstance(here, str):
            hint = nearest(here, re.findall(r"'([^']*)'", item["ctx"]["expected"]))
        reasons = lines.setdefault(f"{path} = {_show(here)}", [])
        if message not in reasons:
            reasons.append(f"{message};{hint}" if hint else message)
    return [": ".join(filter(None, (what, " or ".join(why)))) for what, why in lines.items()]


def _unknown(above: str, key: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    path = f"{above}.{_key(key)}" if above else _key(key)
    return f"unknown key {path};{nearest(key, valid)} valid keys: {', '.join(valid) or 'none'}"


def _name_key(section: str) -> str:
    return "source" if section == "data" else "name"


def _name_of(section: str, table: object) -> str | None:
    name = table.get(_name_key(section)) if isinstance(table, dict) else None
    return name if isinstance(name, str) else None


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else repr(key)


def _show(value: Any) -> str:
    try:
        text = json.dumps(value) if isinstance(value, bool) else repr(value)
    except ValueError:  # an integer of more digits than Python likes to write
        text = "an integer beyond all bounds"
    return text if len(text) <= 60 else text[:57] + "..."


# ---------------------------------------------------------------- overrides and plain values


def _override(
    tables: dict[str, Any], overrides: Sequence[str], shorthands: Mapping[str, str | int | None]
) -> set[tuple[str, ...]]:
    """Writes overrides, then shorthands, into the tables; returns the paths that were set."""
    chosen: dict[tuple[str, ...], Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise InputError(f"--set {text!r}: write table.key=value, as in training.steps=1000")
        chosen[path] = read_value(value.strip())
        _assign(tables, path, chosen[path])
    for name, short in shorthands.items():
        if name not in _SHORTHANDS:
            raise TypeError(f"unknown shorthand {name!r}; there are {', '.join(_SHORTHANDS)}")
        if short is None:
            continue
        path = _SHORTHANDS[name]
        if chosen.get(path, short) != short:
            twice = f"{_show(chosen[path])} by --set, and {_show(short)}"
            raise InputError(f"{'.'.join(path)} is given twice: {twice}")
        chosen[path] = short
        _assign(tables, path, short)
    whole = {(*path, key) for path, v in chosen.items() if isinstance(v, dict) for key in v}
    return {path[:2] for path in {*chosen, *whole}}


def _assign(tables: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    here = tables
    for depth, part in enumerate(path[:-1], start=1):
        below = here.setdefault(part, {})
        if not isinstance(below, dict):
            key, above = (".".join(map(_key, part)) for part in (path, path[:depth]))
            raise InputError(f"{key} cannot be set: {above} is {_show(below)}, not a table")
        here = below
    here[path[-1]] = value


def read_value(text: str) -> Any:
    """A value in TOML's notation; what is none (and a date) is a plain string."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    # More keys: the text holds further lines.
    plain = parsed.keys() == {"value"} and not isinstance(parsed["value"], date | time)
    return parsed["value"] if plain else text


def _plain(value: Any, key: str, depth: int = 0) -> Any:
    """A copy of a value that holds nothing but what a spec can; InputError where it cannot."""
    if depth > _DEEPEST:
        raise InputError(f"{key}: nested too deeply")
    if isinstance(value, Schedule):
        return value.model_dump()
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise InputError(f"{key}: keys should be strings")
        above = f"{key}." if depth else ""
        return {
            _plain(str(name), f"a key of {key}"): _plain(item, f"{above}{_key(name)}", depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, f"{key}[{place}]", depth + 1) for place, item in enumerate(value)]
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, float) and not math.isnan(value):
        return float(value)
    if isinstance(value, str):
        if not _encodable(value):
            raise InputError(f"{key} = {_show(value)}: should be valid Unicode")
        return str(value)
    raise InputError(
        f"{key} = {_show(value)}: should be a string, a 64-bit integer, a number (not nan), true, "
        "false, an array or a table"
    )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
