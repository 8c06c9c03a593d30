"""Components: a class by name, and the parameters of its constructor as a table of options."""

from __future__ import annotations

import functools
import inspect
import json
import operator
import pkgutil
import sys
import types
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from inspect import Parameter
from pathlib import PurePath
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    create_model,
)

from wsram_ppl.config.catalogue import DATA_SOURCES, GUIDES, MODELS, OBJECTIVES
from wsram_ppl.config.checking import check_table, table_keys
from wsram_ppl.config.keys import written_keys
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.config.values import join, plain_tables, show_value, unknown_key
from wsram_ppl.errors import InputError, one_line

COMPONENTS: Final = {"data": DATA_SOURCES, "model": MODELS, "guide": GUIDES, "objective": OBJECTIVES}
# By name: a missing file is reported without waiting for torch.
_KINDS: Final = {
    "data": "wsram_ppl.interfaces:DataSource",
    "model": "torch.nn:Module",
    "guide": "torch.nn:Module",
    "objective": "wsram_ppl.objectives:Objective",
}


@dataclass(frozen=True)
class Component:
    """A part of an experiment that is chosen by name, checked and ready to be built.

    Attributes:
        name: a registered name or an import path.
        options: of the constructor, including defaults, as plain TOML values (a schedule is a
            table). Defaults that TOML cannot express, such as None, are left out.
        cls: the class.
        parameters: all names that its constructor takes, except ``**kwargs``.
        arguments: the options that differ from their defaults, as the constructor takes them.
        schedules: for the options that change during the run; their first values are in arguments.
        paths: the options that name a file or a folder: those whose annotation has a ``Path``.
        defaults: the options' defaults, as plain values.
    """

    name: str
    options: dict[str, Any]
    cls: type[Any] = field(repr=False, compare=False)
    parameters: frozenset[str] = field(repr=False, compare=False)
    arguments: dict[str, Any] = field(repr=False, compare=False)
    schedules: dict[str, Schedule] = field(repr=False, compare=False)
    paths: frozenset[str] = field(repr=False, compare=False)
    defaults: dict[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Constructor:
    """The parameters that the constructor of a component takes.

    Attributes:
        parameters: their names; the model has no field for those whose type TOML cannot express.
        model: reads a table of options; its fields have the keys as aliases.
        defaults: as plain values, if TOML can express them and the annotation allows them.
        schedulable: the options that may be schedules.
        paths: the options that name a file or a folder.
    """

    parameters: frozenset[str]
    model: type[BaseModel]
    defaults: dict[str, Any]
    schedulable: frozenset[str]
    paths: frozenset[str]


def name_key(section: str) -> str:
    """The key that chooses a component."""
    return "source" if section == "data" else "name"


def read_component(
    section: str,
    table: dict[str, Any],
    in_file: object,
    by_hand: set[tuple[str, ...]],
    notes: list[str],
) -> Component:
    """A component from its table of plain values.

    Args:
        in_file: the table before any override. If it chose another component, options that this one
            does not have are left out, and ``notes`` gets a line for each.
        by_hand: paths of options that are never left out.

    Raises:
        InputError: all that is wrong, in one line.
    """
    chooser, name = name_key(section), _name(section, table)
    cls = component_class(section, name)
    takes = constructor(section, cls)  # type: ignore[arg-type]  # mypy considers type[Any] unhashable
    keys = table_keys(takes.model)
    left_out = _left_out(section, table, in_file, by_hand, keys)
    given, problems = dict(takes.defaults), []
    if section == "objective" and "vectorize_particles" in keys:
        # Pyro's own default is one particle after another, for models that cannot be vectorised.
        given["vectorize_particles"] = True
    for key, value in table.items():
        if key == chooser:
            continue
        path = join(section, key)
        if key in left_out:
            notes.append(f"{path} of {left_out[key]!r} is left out: {name!r} has no such key")
        elif key in takes.parameters and key not in keys:
            problems.append(f"{path} cannot be set: TOML cannot express its type")
        else:
            given[key] = value
    # In the order of the constructor, and a copy of the defaults.
    options = plain_tables({key: given[key] for key in (*keys, *given) if key in given}, section)
    try:
        checked = check_table(takes.model, section, options)
    except InputError as error:
        raise InputError("; ".join([*problems, str(error)])) from None
    if problems:
        raise InputError("; ".join(problems))

    arguments = dict(checked.model_extra or {})
    schedules: dict[str, Schedule] = {}
    for key, attribute in zip(keys, takes.model.model_fields, strict=True):
        if key not in options:
            continue
        value = getattr(checked, attribute)
        if isinstance(value, Schedule):
            options[key] = value.model_dump()  # a number if it never changes
        else:
            options[key] = _like(value, options[key])
        if isinstance(value, Schedule) and key in takes.schedulable:
            arguments[key] = value.initial
            if not value.constant:
                schedules[key] = value
        # As text, since 1 == True. A default is left to the constructor.
        elif json.dumps(options[key]) != json.dumps(takes.defaults.get(key)):
            arguments[key] = value
    known = (takes.parameters, arguments, schedules, takes.paths, takes.defaults)
    return Component(name, options, cls, *known)


def _like(checked: Any, given: Any) -> Any:
    """A given value with whole numbers as floats where the checked value has floats."""
    if isinstance(checked, float) and isinstance(given, int):
        return float(given)
    if isinstance(checked, list | tuple) and isinstance(given, list) and len(checked) == len(given):
        return [_like(*pair) for pair in zip(checked, given, strict=True)]
    if isinstance(checked, dict | BaseModel) and isinstance(given, dict):
        fields = checked if isinstance(checked, dict) else vars(checked)
        return {key: _like(fields.get(key), value) for key, value in given.items()}
    return given


def check_names(
    section: str, table: dict[str, Any], in_file: object, by_hand: set[tuple[str, ...]]
) -> None:
    """Checks the names in a component's table, its own and its keys, without importing its class.

    Args:
        table, in_file, by_hand: as for :func:`read_component`.

    Raises:
        InputError: one is unknown, with the message of :func:`read_component`. Keys of classes that are
            not shipped are not checked.
    """
    name = _name(section, table)
    with _named(section):
        path = COMPONENTS[section].find(name)
    if not isinstance(path, str) or path == name:
        return
    written = written_keys(path, leading=1 if section == "guide" else 0)
    if written is None:
        return
    known = {name_key(section), *written.parameters}
    known |= _left_out(section, table, in_file, by_hand, written.keys).keys()
    problems = [unknown_key(section, key, written.keys) for key in table if key not in known]
    if problems:
        raise InputError("; ".join(problems))


def _name(section: str, table: dict[str, Any]) -> str:
    """The name that a component's table chooses."""
    key = join(section, name_key(section))
    if name_key(section) not in table:
        available = ", ".join(COMPONENTS[section].names())
        raise InputError(
            f"{key} is missing; available: {available}, or an import path package.module:Name"
        )
    name = table[name_key(section)]
    if not isinstance(name, str):
        raise InputError(f"{key} = {show_value(name)}: should be a string")
    return name


def _left_out(
    section: str,
    table: dict[str, Any],
    in_file: object,
    by_hand: set[tuple[str, ...]],
    keys: Collection[str],
) -> dict[str, Any]:
    """The keys of the component that this one has replaced, each with that component's name."""
    chooser = name_key(section)
    name = table[chooser]
    before = in_file.get(chooser, name) if isinstance(in_file, Mapping) else name
    if before == name:
        return {}
    theirs = (key for key in table if key != chooser and key not in keys)
    return {key: before for key in theirs if (section, key) not in by_hand}


@contextmanager
def _named(section: str) -> Iterator[None]:
    """A context for looking up the name of a component."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{section}.{name_key(section)}: {error}") from error


def component_class(section: str, name: str) -> type[Any]:
    """The class of a component, checked to be of the kind that its table needs."""
    key = f"{section}.{name_key(section)}"
    with _named(section):
        cls = COMPONENTS[section].resolve(name)
    needed = pkgutil.resolve_name(_KINDS[section])
    if issubclass(cls, needed):
        return cls
    base = f"{needed.__module__}.{needed.__name__}"
    if section == "data":
        methods = "training_batch, evaluation_batches, to"
        raise InputError(f"{key}: {name!r} lacks methods of {base} ({methods})")
    raise InputError(f"{key}: {name!r} is not a {base}")


@functools.cache
def constructor(section: str, cls: type[Any]) -> Constructor:
    """What the constructor takes, from its signature; the first parameter of a guide is left out.

    Raises:
        InputError: it needs an argument that no config can set.
    """
    what = f"{section} '{cls.__module__}:{cls.__qualname__}'"
    try:
        signature = inspect.signature(cls)
    except (ValueError, TypeError) as error:
        raise InputError(f"{what}: its constructor cannot be read: {one_line(error)}") from error
    first = ["the model"] if section == "guide" else []
    try:
        leading = signature.bind_partial(*first).arguments
    except TypeError:
        raise InputError(f"{what}: its constructor should take the model as first argument") from None
    fields: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    parameters, schedulable, paths = set(), set(), set()
    settings = ConfigDict(strict=True, extra="forbid")
    for name, parameter in signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            settings["extra"] = "allow"
        if name in leading or parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD):
            continue
        required = parameter.default is Parameter.empty
        if parameter.kind is Parameter.POSITIONAL_ONLY or name == name_key(section):
            if required:
                raise InputError(f"{what}: a config cannot set its parameter {name!r}")
            continue
        parameters.add(name)
        try:
            annotation = _annotation(cls, parameter)
            if _takes_path(annotation):
                paths.add(name)
            if section in ("model", "guide") and _takes_float(annotation):
                annotation = _or_schedule(annotation)
                schedulable.add(name)
            create_model("Option", option=(annotation, ...)).model_rebuild()
        except Exception:  # of any kind, for a type that the libraries cannot resolve or check
            if required:
                raise InputError(
                    f"{section}.{name} is required, but TOML cannot express its type; give the "
                    "constructor's parameter a default"
                ) from None
            continue
        # Not under its own name, which may be that of a pydantic method.
        fields[f"option_{name}"] = (annotation, Field(... if required else None, alias=name))
        with suppress(InputError):
            defaults[name] = plain_tables(parameter.default, name)
    model = create_model("Options", __config__=settings, **fields)
    try:
        model.model_validate_json(json.dumps(defaults))
    except ValidationError as error:  # they contradict their annotations: left to the constructor
        for item in error.errors():
            defaults.pop(str(item["loc"][0]), None)
    return Constructor(frozenset(parameters), model, defaults, frozenset(schedulable), frozenset(paths))


def _annotation(cls: type[Any], parameter: Parameter) -> Any:
    if parameter.annotation is Parameter.empty:
        return Any
    written = cls.__init__ if cls.__init__ is not object.__init__ else cls.__new__
    names = getattr(inspect.unwrap(written), "__globals__", {})
    for base in cls.__mro__:  # a dataclass's constructor has annotations from bases in other modules
        if inspect.get_annotations(base).get(parameter.name) is parameter.annotation:
            names = vars(sys.modules[base.__module__])
            break

    # One at a time: a name known only to type checkers must not spoil the others.
    def holder() -> None: ...

    holder.__annotations__ = {"value": parameter.annotation}
    return get_type_hints(holder, globalns=names, include_extras=True)["value"]


def _takes_float(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        return _takes_float(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_takes_float(member) for member in get_args(annotation))
    return annotation is float


def _takes_path(annotation: Any) -> bool:
    if get_origin(annotation) is not None:
        return any(_takes_path(member) for member in get_args(annotation))
    return isinstance(annotation, type) and issubclass(annotation, PurePath)


def _or_schedule(number: Any) -> Any:
    """A number as annotated, or a table that is a schedule of such numbers."""
    if get_origin(number) in (Union, types.UnionType):
        # ``Schedule | float`` says that it may be scheduled; the constructor gets a float.
        members = [member for member in get_args(number) if member is not Schedule]
        number = functools.reduce(operator.or_, members)
    return Annotated[
        Annotated[number, Tag("number")]
        | Annotated[number, WrapValidator(_read_schedule), Tag("schedule")],
        Discriminator(lambda value: "schedule" if isinstance(value, dict) else "number"),
    ]


def _read_schedule(value: Any, number: ValidatorFunctionWrapHandler) -> Schedule:
    schedule = Schedule.model_validate(value)
    # Both ends must be within the option's bounds; all values in between then are, too.
    number(schedule.start, "start")
    number(schedule.end, "end")
    return schedule
