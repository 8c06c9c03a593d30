"""A component's constructor as a table of options: what it may hold, and how it is read."""

from __future__ import annotations

import functools
import inspect
import json
import operator
import types
from dataclasses import dataclass
from typing import Annotated, Any, Final, Union, get_args, get_origin
from typing import get_type_hints as resolve_hints

from pydantic import create_model
from torch import nn

from wsram_ppl.config.catalogue import DATA_SOURCES, GUIDES, MODELS, OBJECTIVES
from wsram_ppl.config.checking import (
    Checker,
    checked_value,
    name_key,
    plain_tables,
    quoted_key,
    show_value,
    unknown_key,
)
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.interfaces import DataSource
from wsram_ppl.errors import InputError, one_line
from wsram_ppl.objectives import Objective
from wsram_ppl.registry import Registry

COMPONENTS: Final[dict[str, Registry]] = {
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


SCHEDULED: Final = ("model", "guide")


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
class _Option:
    """A parameter of a constructor."""

    key: str  # dotted
    checker: type[Checker] | None  # None: its type has no form in TOML
    default: Any  # inspect.Parameter.empty: none
    schedulable: bool

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def is_default(self, value: Any) -> bool:
        try:
            # Compared as text, since 1 equals true.
            return json.dumps(plain_tables(self.default, self.key)) == json.dumps(value)
        except InputError:
            return False

    def read(self, value: Any) -> Any:
        """What the constructor is to get for a plain value."""
        assert self.checker is not None
        if self.schedulable and isinstance(value, dict):
            schedule: Schedule = checked_value(_ScheduleOption, self.key, value)
            # Both ends must be within the option's bounds; all between are then, too.
            for end in ("start", "end"):
                checked_value(self.checker, f"{self.key}.{end}", getattr(schedule, end))
            return schedule
        return checked_value(self.checker, self.key, value)

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


def read_component(
    section: str,
    table: dict[str, Any],
    name_in_file: str | None,
    by_hand: set[str],
    notes: list[str],
) -> Component:
    chooser = name_key(section)
    given = {key: value for key, value in table.items() if key != chooser}
    if chooser not in table:
        available = ", ".join(COMPONENTS[section].names()) or "none is registered"
        raise InputError(
            f"{section}.{chooser} is missing; available: {available}, or an import path "
            "package.module:Name"
        )
    name = table[chooser]
    if not isinstance(name, str):
        raise InputError(f"{section}.{chooser} = {show_value(name)}: should be a string")
    options = constructor_options(section, component_class(section, name))
    if name_in_file not in (None, name):
        for key in [key for key in given if key not in options.keys and key not in by_hand]:
            del given[key]
            notes.append(
                f"{section}.{quoted_key(key)} of {name_in_file!r} is left out: {name!r} has no such key"
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
                problems.append(unknown_key(section, name, options.keys))
    if problems:
        raise InputError("; ".join(problems))
    return filled


def _default(name: str, option: _Option) -> dict[str, Any]:
    try:
        return {name: option.canonical(plain_tables(option.default, option.key))}
    except InputError:
        return {}  # no form in TOML, or at odds with its own annotation: the constructor has it


def component_class(section: str, name: str) -> type[Any]:
    """The class of a component, of the kind that its place needs."""
    try:
        cls = COMPONENTS[section].resolve(name)
    except InputError as error:
        raise InputError(f"{section}.{name_key(section)}: {error}") from error
    needed = _KINDS[section]
    if not issubclass(cls, needed):
        base = f"{needed.__module__}.{needed.__name__}"
        key = f"{section}.{name_key(section)}"
        if section == "data":
            methods = "training_batch, evaluation_batches, to"
            raise InputError(f"{key}: {name!r} lacks methods of {base} ({methods})")
        raise InputError(f"{key}: {name!r} is not a {base}")
    return cls


def constructor_options(section: str, cls: type[Any]) -> _Options:
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
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY or (parameter.name == name_key(section)):
            if parameter.default is inspect.Parameter.empty:
                raise InputError(f"{what}: a config cannot set its parameter {parameter.name!r}")
            continue
        known[parameter.name] = _option(section, cls, parameter)
    any_other = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return _Options(known, any_other)


def _option(section: str, cls: type[Any], parameter: inspect.Parameter) -> _Option:
    key = f"{section}.{parameter.name}"
    try:
        annotation = _annotation(cls, parameter)
        schedulable = section in SCHEDULED and _takes_float(annotation)
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


def _checker(annotation: Any) -> type[Checker]:
    return create_model("Option", __base__=Checker, value=(annotation, ...))


_ScheduleOption = _checker(Schedule)
