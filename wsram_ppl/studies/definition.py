"""Studies: the same experiment in several variants and with several seeds, described by a TOML file.

::

    base = "digits.toml"            # an experiment; its path is relative to this file
    seeds = [0, 1, 2]
    steps = 20000                   # updates of every run
    figures = ["error", "ess"]
    reference = "VAR"               # the variant that the others are compared with

    [set]                           # for all runs
    data.source = "mnist"

    [[variant]]
    name = "VAR"
    paper = 0.0162                  # a published error, for the table
    objective.name = "variational"
    guide.name = "prior"

    [search]                        # the same for every variant, which keeps its own best value
    key = "training.learning_rate.start"
    values = [1e-3, 3e-3]
    steps = 2000
    metric = "bound"

Overrides are merged into the base, key by key and table into table: ``[set]`` first, then the variant's,
then those of the search. A key may be dotted, quoted or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt

from wsram_ppl.config import (
    ExperimentConfig,
    check_config,
    check_table,
    experiment_path,
    parse_config,
    read_toml,
)
from wsram_ppl.errors import InputError, nearest
from wsram_ppl.studies.overrides import Overrides, Table, inline, merge, read_layer, set_own_keys

__all__ = ["Candidate", "Figure", "Search", "Study", "Variant", "load_study"]

#: The figures that a study may ask for (:mod:`wsram_ppl.studies.figures`).
Figure = Literal[
    "error", "validation_error", "test_error", "final_error", "nll_per_word", "bound", "ess", "variance",
    "scales",
]  # fmt: skip

#: The measure, on validation data, by which a search chooses its best value.
Metric = Literal["bound", "error"]


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}", name) or name.endswith("."):
        raise ValueError(
            "should be usable as a folder name: letters, digits and . _ + -, a letter or digit "
            "first, at most 64"
        )
    return name


def _line(text: str) -> str:
    if len(text.splitlines()) > 1:
        raise ValueError("should be one line")
    return text


def _fraction(value: float) -> float:
    if not 0.0 <= value <= 1.0:
        raise ValueError("should be a fraction in [0, 1], such as 0.0162 for 1.62%")
    return value


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ValueError(f"holds {twice[0]!r} twice")
    return values


_FileName = Annotated[str, AfterValidator(_file_name)]
_Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Variant(Overrides):
    """One row of the comparison."""

    name: _FileName
    """Also of its folder; unique."""
    label: Annotated[str, AfterValidator(_line)] = ""
    """Shown in tables and figures; the name by default."""
    paper: Annotated[float, AfterValidator(_fraction)] | None = None
    """A published error to show beside its own, as a fraction."""

    @property
    def title(self) -> str:
        """How tables and figures show it."""
        return self.label or self.name


class Candidate(Overrides):
    """One point of a search."""

    name: _FileName


class Search(Table):
    """A search that every variant goes through before its runs."""

    key: str = ""
    """The key that ``values`` are for; without it there are ``candidates``, each a table."""
    values: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    candidates: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)] | None = None
    steps: PositiveInt
    """Updates of each trial."""
    seed: _Seed = 0
    """The seed of each trial."""
    metric: Metric = "bound"
    """How candidates are compared: highest ``bound`` or lowest ``error``; the first wins a tie."""


class _Settings(Table):
    """The keys of a study's file that are used as they are."""

    base: str
    """The file of the experiment, relative to the study's, or the name of one that is shipped."""
    title: str = ""
    """The name of the study; by default that of its file."""
    about: str = ""
    """A description for the report."""
    seeds: Annotated[tuple[_Seed, ...], Field(min_length=1), AfterValidator(_distinct)] = (0,)
    """One run per variant and seed."""
    steps: PositiveInt
    """Updates of every run."""
    figures: Annotated[tuple[Figure, ...], AfterValidator(_distinct)] = (
        "error",
        "validation_error",
        "ess",
    )
    """What is drawn."""
    smoothing: PositiveInt = 10
    """How many rows of a run's metrics a smoothed value averages."""
    reference: str = ""
    """The name of the variant that the others are compared with, seed by seed; by default none is."""


class _File(_Settings):
    """All keys of a study's file."""

    set: dict[str, Any] = Field(default_factory=dict)
    variant: Annotated[list[dict[str, Any]], Field(min_length=1)]
    search: dict[str, Any] | None = None


class Study(_Settings):
    """A comparison of variants, checked."""

    path: Path
    """The study's file."""
    text: bytes
    """What was in it when it was read."""
    variants: tuple[Variant, ...]
    """The rows, in order."""
    search: Search | None
    """What every variant runs first, if anything."""
    candidates: tuple[Candidate, ...]
    """The points that the search tries."""
    tables: dict[str, Any]
    """The tables of the base experiment."""
    common: Overrides
    """Overrides for all runs."""
    overrides: tuple[str, ...]
    """Further overrides, ``table.key=value``, which take precedence over all others."""

    def trial(self, variant: Variant, candidate: Candidate) -> ExperimentConfig:
        """The experiment of one trial of the search.

        Raises:
            InputError: as for :meth:`config`.
        """
        assert self.search is not None
        return self.config(variant, self.search.seed, candidate, self.search.steps)

    def check(self, variant: Variant, candidate: Candidate | None = None) -> None:
        """Checks the experiments of a variant, as far as that is fast.

        Raises:
            InputError: as for :func:`wsram_ppl.config.check_config`.
        """
        check_config(self.tables, self._overrides(variant, self.seeds[0], candidate, self.steps))

    def config(
        self,
        variant: Variant,
        seed: int,
        candidate: Candidate | None = None,
        steps: int | None = None,
    ) -> ExperimentConfig:
        """The experiment of one run, by default with the study's number of steps.

        Raises:
            InputError: the base with the overrides is not valid.
        """
        overrides = self._overrides(variant, seed, candidate, steps or self.steps)
        return parse_config(self.tables, overrides)

    def _overrides(
        self, variant: Variant, seed: int, candidate: Candidate | None, steps: int
    ) -> list[str]:
        layers = [self.common.tables(), variant.tables()]
        if candidate is not None:
            layers.append(candidate.tables())
        layers.append({"training": {"steps": steps, "seed": seed}})
        merged: Any = self.tables
        for layer in layers:
            merged = merge(merged, layer)
        # As overrides, so that a component that is replaced loses the base's options.
        paths = {(section, key): None for layer in layers for section in layer for key in layer[section]}
        chosen = [f"{section}.{key}={inline(merged[section][key])}" for section, key in paths]
        return [*chosen, *self.overrides]


def load_study(path: str | PathLike[str], overrides: Sequence[str] = ()) -> Study:
    """Reads and checks a study and the experiments of all its runs.

    Args:
        path: the file, or the name of a study that is shipped.
        overrides: each ``key=value``: a key of the study itself (``steps``, ``seeds``,
            ``search.steps``) or ``table.key`` of the experiment of every run.

    Raises:
        InputError: anything missing, unknown or out of range in the study, its base, or the base with
            the overrides; the message names the variant.
    """
    path = experiment_path(path)
    tables, text = read_toml(path), path.read_bytes()
    for_runs = set_own_keys(tables, overrides)
    file = check_table(_File, "", tables)
    base = read_toml(experiment_path(file.base, path.parent))
    with _told_of(f"base {file.base!r}"):
        check_config(base)
    common = read_layer(Overrides, "set", file.set)
    variants = []
    for index, table in enumerate(file.variant):
        where = f"variant {table['name']!r}" if "name" in table else f"variant[{index}]"
        variants.append(read_layer(Variant, where, table))
    _check_distinct("variant", variants)
    names = [variant.name for variant in variants]
    if file.reference and file.reference not in names:
        raise InputError(
            f"reference = {file.reference!r}: no such variant;{nearest(file.reference, names)} there are"
            f" {', '.join(names)}"
        )
    search = None if file.search is None else check_table(Search, "search", file.search)
    settings = file.model_dump(include=set(_Settings.model_fields))
    study = Study(
        **settings | {"title": file.title or path.stem},
        path=path,
        text=text,
        variants=tuple(variants),
        search=search,
        candidates=() if search is None else _candidates(search),
        tables=base,
        common=common,
        overrides=tuple(for_runs),
    )
    for variant in study.variants:  # all of them before the first import of torch
        with _told_of(f"variant {variant.name!r}"):
            for candidate in study.candidates or (None,):
                study.check(variant, candidate)
    with _told_of(f"base {file.base!r}"):
        parse_config(base)
    for variant in study.variants:
        with _told_of(f"variant {variant.name!r}"):
            if study.search is None:
                study.config(variant, study.seeds[0])
            for candidate in study.candidates:
                study.trial(variant, candidate)
    return study


@contextmanager
def _told_of(what: str) -> Iterator[None]:
    """A context whose errors name what they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _candidates(search: Search) -> tuple[Candidate, ...]:
    """The points of a search, whichever way they are written."""
    key, values, tables = search.key, search.values, search.candidates
    if (tables is None) == (not key) or (not key) != (values is None):
        raise InputError("search needs either 'key' and 'values', or 'candidates'")
    where = "search.candidates"
    if values is not None:
        where, parts = "search.values", key.split(".")
        if len(parts) < 2 or not all(parts):
            raise InputError(f"search.key = {key!r}: write table.key, such as training.weight_decay")
        tables = tuple({"name": _named(value, n), key: value} for n, value in enumerate(values, 1))
    named = [{"name": str(n), **table} for n, table in enumerate(tables or (), 1)]
    found = [read_layer(Candidate, f"{where}[{index}]", table) for index, table in enumerate(named)]
    _check_distinct(where, found)
    return tuple(found)


def _named(value: object, number: int) -> str:
    """The folder of a searched value: the value itself where possible."""
    text = json.dumps(value) if isinstance(value, bool) else str(value)
    try:
        return _file_name(text)
    except ValueError:
        return f"value-{number}"


def _check_distinct(what: str, named: Iterable[Variant | Candidate]) -> None:
    seen: dict[str, str] = {}
    for item in named:
        key = item.name.casefold()  # some file systems ignore case
        if key in seen:
            other = seen[key]
            raise InputError(
                f"{what} name {item.name!r} is taken"
                + ("" if other == item.name else f" (by {other!r}: case is ignored)")
            )
        seen[key] = item.name
