"""The config as a whole: reading, checking, writing and comparing it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final

import tomli_w
from pydantic import BaseModel

from wsram_ppl.config.checking import check_table
from wsram_ppl.config.options import COMPONENTS, Component, check_names, name_key, read_component
from wsram_ppl.config.overrides import apply_overrides
from wsram_ppl.config.schedules import Schedule
from wsram_ppl.config.settings import IMMATERIAL, ExplorationSettings, TrainingSettings
from wsram_ppl.config.values import plain_tables, show_value, unknown_key
from wsram_ppl.errors import InputError, nearest
from wsram_ppl.files import read_text

_SETTINGS: Final[dict[str, type[BaseModel]]] = {
    "exploration": ExplorationSettings,
    "training": TrainingSettings,
}
_SECTIONS: Final = (*COMPONENTS, *_SETTINGS)


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole experiment, checked; every option has its value.

    Attributes:
        notes: lines for the user about the options left out of the file (:func:`parse_config`); not
            part of the config's identity.
    """

    data: Component
    model: Component
    guide: Component
    objective: Component
    exploration: ExplorationSettings
    training: TrainingSettings
    notes: tuple[str, ...] = field(default=(), compare=False)

    def tables(self) -> dict[str, dict[str, Any]]:
        """The config as the tables of a TOML file; reading them gives an equal config."""
        tables: dict[str, dict[str, Any]] = {}
        for section in COMPONENTS:
            component: Component = getattr(self, section)
            tables[section] = {name_key(section): component.name, **component.options}
        for section in _SETTINGS:
            values = getattr(self, section).model_dump(mode="json", by_alias=True)
            tables[section] = {key: value for key, value in values.items() if value is not None}
        return tables

    def keys(self) -> dict[str, Any]:
        """Every option by its dotted key, as in ``training.learning_rate.start``."""
        return _flat(self.tables())

    def to_toml(self) -> str:
        """The text of a TOML file with every option; reading it gives an equal config."""
        return tomli_w.dumps(self.tables())

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of everything that determines what an update does.

        Not included are the number of updates (but the horizon of schedules is), the device, the
        threads, how often to log, evaluate and save, and the location of the data; nor any option at
        its default, so that options added in a later version do not change the identity of old runs.
        """
        tables = self._material()
        for section in COMPONENTS:
            defaults = getattr(self, section).defaults
            tables[section] = {
                key: value
                for key, value in tables[section].items()
                if key not in defaults or json.dumps(value) != json.dumps(defaults[key])
            }
        for section in _SETTINGS:
            changed = getattr(self, section).model_dump(exclude_defaults=True, by_alias=True)
            # The horizon is not a setting of its own.
            kept = {**changed, "horizon": 0}
            tables[section] = {key: v for key, v in tables[section].items() if key in kept}
        return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()

    def _material(self) -> dict[str, dict[str, Any]]:
        """The tables without what does not change an update."""
        tables = self.tables()
        tables["data"] = {k: v for k, v in tables["data"].items() if k not in self.data.paths}
        tables["training"] = {k: v for k, v in tables["training"].items() if k not in IMMATERIAL}
        if self.scheduled():
            tables["training"]["horizon"] = self.training.horizon
        return tables

    def scheduled(self) -> list[str]:
        """The keys of everything that changes during the run."""
        found = [f"model.{key}" for key in self.model.schedules]
        found += [f"guide.{key}" for key in self.guide.schedules]
        for section in _SETTINGS:
            values = {key: value for key, value in getattr(self, section) if isinstance(value, Schedule)}
            found += [f"{section}.{key}" for key, value in values.items() if not value.constant]
        return found

    def difference(self, other: ExperimentConfig) -> str:
        """The keys that make the :meth:`fingerprint` differ, with both values, in one line, if any."""
        here, there = self._material(), other._material()
        steps, wanted = (each["training"].pop("horizon", None) for each in (here, there))
        differing = _differing(here, there)
        if steps and wanted and steps != wanted:
            scheduled = " and ".join(self.scheduled())
            differing.append(
                f"training.steps {steps}, not {wanted}, with {scheduled} scheduled over them: set "
                f"training.schedule_steps={steps} too, so that past updates are unchanged and "
                "schedules then stay at their last values"
            )
        return _joined(differing)

    def deviation(self, other: ExperimentConfig, ignored: Sequence[str] = ()) -> str:
        """The same for all keys, except some of ``[training]``."""
        tables = [config.tables() for config in (self, other)]
        for key in ignored:
            for table in tables:
                del table["training"][key]
        return _joined(_differing(*tables))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    here, there = _flat(one), _flat(other)
    return [
        f"{key} {here.get(key, 'unset')}, not {there.get(key, 'unset')}"
        for key in {**here, **there}
        if here.get(key) != there.get(key)
    ]


def _joined(lines: Sequence[str]) -> str:
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _flat(tables: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[above + key] = value
    return flat


def load_config(
    path: str | PathLike[str], overrides: Sequence[str] = (), **shorthands: str | int | None
) -> ExperimentConfig:
    """Reads a config from a TOML file; see :func:`parse_config` for the rest.

    Args:
        path: as for :func:`experiment_path`.

    Raises:
        InputError: also for a file that is missing, cannot be read or is not TOML (the message
            names the line).
    """
    return parse_config(read_toml(experiment_path(path)), overrides, **shorthands)


def experiment_path(name: str | PathLike[str], folder: str | PathLike[str] = "") -> Path:
    """The file of an experiment or a study.

    Args:
        name: a path, or the name of a shipped one, such as ``digits``. A file of that name comes first.
        folder: the base of a relative path.

    Raises:
        InputError: there is neither such a file nor such a name.
    """
    path, name = Path(folder, name), str(name)
    if not re.fullmatch(r"[\w-]+", name) or os.path.isfile(path):
        return path
    shipped = {file.stem: file for file in Path(__file__).parents[1].glob("experiments/*.toml")}
    if name not in shipped:
        raise InputError(
            f"there is no file {name!r}, and no experiment of that name is shipped;"
            f"{nearest(name, shipped)} there are {', '.join(sorted(shipped))}"
        )
    return shipped[name]


def read_toml(path: str | PathLike[str]) -> dict[str, Any]:
    """The tables of a TOML file, unchecked.

    Raises:
        InputError: missing, not readable or not TOML (the message names the line).
    """
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except ValueError as error:
        where = str(error).replace("end of document", f"line {len(text.splitlines())}, the last")
        raise InputError(f"{path}: not valid TOML: {where}") from None


def parse_config(
    tables: Mapping[str, Any], overrides: Sequence[str] = (), **shorthands: str | int | None
) -> ExperimentConfig:
    """Checks the tables of a config and fills in every default.

    If an override or a shorthand chooses a different component from the file's, the file's options
    that the new one does not have are left out, and ``notes`` lists them. Options set by overrides
    are never left out.

    Args:
        tables: the contents of a TOML file.
        overrides: each ``table.key=value``; a value that is not TOML is taken as a plain string.
        shorthands: ``objective``, ``guide``, ``model`` (names), ``control_variate``, ``device``,
            ``seed``, ``init``; None if not given.

    Raises:
        InputError: anything unknown, missing or out of range. The message lists all errors in one line,
            except values of components' options if :func:`check_config` finds something.
        TypeError: a shorthand that does not exist.
    """
    plain, by_hand, parts = _begin(tables, overrides, shorthands)
    problems: list[str] = []
    notes: list[str] = []
    for section in COMPONENTS:
        with _noted(problems):
            before = tables.get(section)
            parts[section] = read_component(section, plain.get(section, {}), before, by_hand, notes)
    _raise(problems)
    return ExperimentConfig(**parts, notes=tuple(notes))


def check_config(
    tables: Mapping[str, Any], overrides: Sequence[str] = (), **shorthands: str | int | None
) -> None:
    """The part of :func:`parse_config` that imports no component's class, and so is fast.

    Raises:
        InputError: wrong tables, ``[exploration]``, ``[training]`` or component names, or unknown
            keys of shipped components.
    """
    _begin(tables, overrides, shorthands)


def _begin(
    tables: Mapping[str, Any], overrides: Sequence[str], shorthands: Mapping[str, str | int | None]
) -> tuple[dict[str, Any], set[tuple[str, ...]], dict[str, Any]]:
    """The tables as overridden, the paths that were set, and the settings."""
    plain = plain_tables(tables, "the config")
    by_hand = apply_overrides(plain, overrides, shorthands)
    plain = plain_tables(plain, "the config")
    problems = [unknown_key("", key, _SECTIONS) for key in plain if key not in _SECTIONS]
    settings: dict[str, Any] = {}
    for section in (*_SETTINGS, *COMPONENTS):
        table = plain.get(section, {})
        with _noted(problems):
            if not isinstance(table, dict):
                raise InputError(f"{section} = {show_value(table)}: should be a table [{section}]")
            if section in COMPONENTS:
                check_names(section, table, tables.get(section), by_hand)
            else:
                settings[section] = check_table(_SETTINGS[section], section, table)
    _raise(problems)
    return plain, by_hand, settings


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """A context that collects errors, so that they are reported together."""
    try:
        yield
    except InputError as error:
        problems.append(str(error))


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise InputError(" ".join("; ".join(problems).split()))
