"""Studies: the same experiment in several variants and with several seeds, described by a TOML file.

::

    base = "digits.toml"            # an experiment; its path is relative to this file
    seeds = [0, 1, 2]
    steps = 20000                   # updates of every run
    figures = ["error", "ess"]

    [set]                           # for all runs
    data.source = "mnist"

    [[variant]]
    name = "VAR"
    paper = 0.0162                  # a published error, for the table
    objective.name = "variational"
    guide.name = "prior"

    [search]                        # the same for every variant: the best value of its own
    key = "training.learning_rate.start"
    values = [1e-3, 3e-3]
    steps = 2000
    metric = "log_likelihood"

Overrides are merged into the base, key by key and table into table: ``[set]`` first, then the variant's,
then those of the search. A key may be written dotted, quoted or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

from wsram_ppl.config import ExperimentConfig, check_table, parse_config, read_toml, read_value
from wsram_ppl.errors import InputError

__all__ = ["FIGURES", "Candidate", "Search", "Study", "Variant", "load_study"]

#: What a study may ask to have drawn (:mod:`wsram_ppl.studies.figures`).
Figure = Literal["error", "test_error", "nll_per_word", "bound", "ess", "variance", "scales"]
FIGURES: Final = ("error", "test_error", "nll_per_word", "bound", "ess", "variance", "scales")

#: How the best value of a search is told, on held-out data.
Metric = Literal["log_likelihood", "error"]

_RESERVED: Final = {
    ("training", "steps"): "the study's own 'steps' sets it, equal for all",
    ("training", "seed"): "the study's own 'seeds' set it",
}


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", name) or name.endswith("."):
        raise ValueError(
            "should be usable as the name of a folder: letters, digits and . _ + -, a letter or digit "
            "first, at most 64"
        )
    return name


def _fraction(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError("should be a fraction in [0, 1], as 0.0162 for 1.62%")
    return value


def _distinct(values: list[Any]) -> list[Any]:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"holds {twice[0]!r} twice")
    return values


_FileName = Annotated[str, AfterValidator(_file_name)]
_Layer = TypeVar("_Layer", bound="_Overrides")
_Seed = Annotated[int, Field(ge=0, lt=2**32)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Overrides(_Table):
    """The tables of an experiment, as far as they are overridden."""

    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    guide: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    exploration: dict[str, Any] = {}
    training: dict[str, Any] = {}

    def tables(self) -> dict[str, dict[str, Any]]:
        return {section: dict(getattr(self, section)) for section in _Overrides.model_fields}


class Variant(_Overrides):
    """One row of the comparison.

    Attributes:
        name: of its folder; unique.
        label: in tables and figures; by default the name.
        paper: a published error to stand beside its own, as a fraction.
    """

    name: _FileName
    label: str = ""
    paper: Annotated[float, AfterValidator(_fraction)] | None = None

    @property
    def title(self) -> str:
        return self.label or self.name


class Candidate(_Overrides):
    """One point of a search."""

    name: _FileName


class _SearchTable(_Table):
    key: str = ""
    values: Annotated[list[Any], Field(min_length=1)] | None = None
    candidates: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    steps: PositiveInt
    seed: _Seed = 0
    metric: Metric = "log_likelihood"


class _File(_Table):
    """The keys of a study's file."""

    base: str
    title: str = ""
    about: str = ""
    seeds: Annotated[list[_Seed], Field(min_length=1), AfterValidator(_distinct)] = [0]
    steps: PositiveInt
    figures: Annotated[list[Figure], AfterValidator(_distinct)] = ["error", "ess"]
    smoothing: PositiveInt = 10
    set: dict[str, Any] = {}
    variant: Annotated[list[dict[str, Any]], Field(min_length=1)]
    search: dict[str, Any] | None = None


@dataclass(frozen=True)
class Search:
    """A search that every variant goes through before its runs.

    Attributes:
        key: what the candidates are values of; "" where each is a table.
        candidates: the points to be tried.
        steps: updates of each trial.
        seed: of each trial.
        metric: the candidate best by this on held-out data is taken (most ``log_likelihood``, least
            ``error``); the first of equals.
    """

    key: str
    candidates: tuple[Candidate, ...]
    steps: int
    seed: int
    metric: Metric


@dataclass(frozen=True)
class Study:
    """A comparison of variants, checked.

    Attributes:
        path: the file.
        title, about: what it is, for the report.
        variants: the rows, in order.
        seeds: one run per variant and seed.
        steps: updates of every run.
        figures: names out of :data:`FIGURES`.
        smoothing: how many rows of a run's metrics a smoothed value is the mean of.
        search: what every variant goes through first.
        base: the tables of the base experiment.
        common: overrides for all runs.
        overrides: further ones, ``table.key=value``, which have the last word.
    """

    path: Path
    title: str
    about: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    steps: int
    figures: tuple[Figure, ...]
    smoothing: int
    search: Search | None
    base: Mapping[str, Any]
    common: _Overrides
    overrides: tuple[str, ...]

    def config(
        self, variant: Variant, seed: int, candidate: Candidate | None = None
    ) -> ExperimentConfig:
        """The experiment of one run.

        Raises:
            InputError: what the overrides make of the base is not valid.
        """
        return self._spec(variant, candidate, self.steps, seed)

    def trial(self, variant: Variant, candidate: Candidate) -> ExperimentConfig:
        """The experiment of one trial of the search.

        Raises:
            InputError: as :meth:`config`.
        """
        assert self.search is not None
        return self._spec(variant, candidate, self.search.steps, self.search.seed)

    def _spec(
        self, variant: Variant, candidate: Candidate | None, steps: int, seed: int
    ) -> ExperimentConfig:
        layers = [self.common.tables(), variant.tables()]
        if candidate is not None:
            layers.append(candidate.tables())
        layers.append({"training": {"steps": steps, "seed": seed}})
        merged: Any = self.base
        for layer in layers:
            merged = _merged(merged, layer)
        # As overrides, so that the base's options of a component that is exchanged are left out.
        paths = {(section, key): None for layer in layers for section in layer for key in layer[section]}
        chosen = [f"{section}.{key}={_inline(merged[section][key])}" for section, key in paths]
        return parse_config(self.base, [*chosen, *self.overrides])


def load_study(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """Reads and checks a study and the experiments of all its runs.

    Args:
        overrides: each ``key=value``: a key of the study itself (``steps``, ``seeds``,
            ``search.steps``) or ``table.key`` of the experiment of every run.

    Raises:
        InputError: anything missing, unknown or out of range, in the study, its base, or what the
            overrides make of it; the message names the variant.
    """
    path = Path(path)
    tables = read_toml(path)
    for_runs = _set_own_keys(tables, overrides)
    file = check_table(_File, "", tables)
    base = read_toml(path.parent / file.base)
    try:
        parse_config(base)
    except InputError as error:
        raise InputError(f"base {file.base!r}: {error}") from error
    common = _layer(_Overrides, "set", file.set)
    variants = []
    for place, table in enumerate(file.variant):
        where = f"variant {table['name']!r}" if "name" in table else f"variant[{place}]"
        variants.append(_layer(Variant, where, table))
    _check_distinct("variant", variants)
    study = Study(
        path=path,
        title=file.title or path.stem,
        about=file.about,
        variants=tuple(variants),
        seeds=tuple(file.seeds),
        steps=file.steps,
        figures=tuple(file.figures),
        smoothing=file.smoothing,
        search=None if file.search is None else _search(file.search),
        base=base,
        common=common,
        overrides=tuple(for_runs),
    )
    _check_specs(study)
    return study


def _check_specs(study: Study) -> None:
    for variant in study.variants:
        try:
            if study.search is None:
                study.config(variant, study.seeds[0])
            for candidate in study.search.candidates if study.search else ():
                study.trial(variant, candidate)
        except InputError as error:
            raise InputError(f"variant {variant.name!r}: {error}") from error


def _search(table: dict[str, Any]) -> Search:
    read = check_table(_SearchTable, "search", table)
    if (read.candidates is None) == (not read.key) or (not read.key) != (read.values is None):
        raise InputError("search needs either 'key' and 'values', or 'candidates'")
    if read.candidates is None:
        assert read.values is not None
        parts = read.key.split(".")
        if len(parts) < 2 or not all(parts):
            raise InputError(f"search.key = {read.key!r}: write table.key, as in training.weight_decay")
        tables = [
            {"name": _named(value, place), read.key: value} for place, value in enumerate(read.values)
        ]
        where = "search.values"
    else:
        tables = [{"name": str(place), **table} for place, table in enumerate(read.candidates, 1)]
        where = "search.candidates"
    candidates = [_layer(Candidate, f"{where}[{place}]", table) for place, table in enumerate(tables)]
    _check_distinct(where, candidates)
    return Search(read.key, tuple(candidates), read.steps, read.seed, read.metric)


def _named(value: object, place: int) -> str:
    """The folder of a searched value: the value itself where that can be."""
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    try:
        return _file_name(text)
    except ValueError:
        return str(place + 1)


def _check_distinct(what: str, named: Iterable[Variant | Candidate]) -> None:
    seen: dict[str, str] = {}
    for item in named:
        key = item.name.casefold()  # some file systems tell no case
        if key in seen:
            other = seen[key]
            raise InputError(
                f"{what} name {item.name!r} is taken"
                + ("" if other == item.name else f" (by {other!r}: case does not count)")
            )
        seen[key] = item.name


# ---------------------------------------------------------------- overrides


def _set_own_keys(tables: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Writes what overrides set of the study itself into its tables; returns the others."""
    others = []
    for text in overrides:
        key, equals, value = text.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(path):
            raise InputError(
                f"--set {text!r}: write key=value, as in training.batch_size=32 or steps=1000"
            )
        if tuple(path[:2]) in _RESERVED:
            raise InputError(f"--set {text!r}: {_RESERVED[path[0], path[1]]}")
        if path[0] in _Overrides.model_fields:
            others.append(text)
        elif len(path) == 1 or path[0] == "search":
            _put(tables, path, read_value(value.strip()))
        else:
            raise InputError(
                f"--set {text!r}: no such table; there are {', '.join(_Overrides.model_fields)}, and "
                "the study's own keys (steps, seeds, search.steps, ...)"
            )
    return others


def _layer(cls: type[_Layer], where: str, table: Mapping[str, Any]) -> _Layer:
    """A checked table of overrides: dotted keys taken apart, and nothing in it that the study sets."""
    plain: dict[str, Any] = {}
    for key, value in table.items():
        _put(plain, key.split("."), value)
    layer = check_table(cls, where, plain)
    for section, inner in layer.tables().items():
        for key in inner:
            if (section, key) in _RESERVED:
                raise InputError(f"{where}.{section}.{key}: {_RESERVED[section, key]}")
            if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
                raise InputError(f"{where}.{section}.{key!r} cannot be set: not a plain key")
    return layer


def _put(tables: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Merges a value into nested tables at a path."""
    nested = value
    for part in reversed(path):
        nested = {part: nested}
    merged = _merged(tables, nested)
    tables.clear()
    tables.update(merged)


def _merged(below: Any, above: Any) -> Any:
    """Table merges into table; anything else replaces."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    merged = dict(below)
    for key, value in above.items():
        merged[key] = _merged(merged[key], value) if key in merged else value
    return merged


def _inline(value: Any) -> str:
    """A plain value in one line of TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_inline(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, bool | str):
        # TOML's strings are JSON's, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
