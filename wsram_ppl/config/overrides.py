"""``--set`` and the shorthands, and the plain values that a TOML file can hold."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from datetime import date, time
from typing import Any, Final

from wsram_ppl.config.values import join, show_value
from wsram_ppl.errors import InputError

_SHORTHANDS: Final = {
    "objective": ("objective", "name"),
    "guide": ("guide", "name"),
    "model": ("model", "name"),
    "control_variate": ("objective", "control_variate"),
    "device": ("training", "device"),
    "seed": ("training", "seed"),
    "init": ("training", "init"),
}


def apply_overrides(
    tables: dict[str, Any], overrides: Sequence[str], shorthands: Mapping[str, str | int | None]
) -> set[tuple[str, ...]]:
    """Writes overrides, then shorthands, into the tables; returns the paths that were set."""
    chosen: dict[tuple[str, ...], Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise InputError(f"--set {text!r}: write table.key=value, such as training.steps=1000")
        chosen[path] = read_value(value.strip())
        _assign(tables, path, chosen[path])
    for name, short in shorthands.items():
        if name not in _SHORTHANDS:
            raise TypeError(f"unknown shorthand {name!r}; there are {', '.join(_SHORTHANDS)}")
        if short is None:
            continue
        path = _SHORTHANDS[name]
        if chosen.get(path, short) != short:
            twice = f"{show_value(chosen[path])} by --set, and {show_value(short)}"
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
            key, above = (functools.reduce(join, parts, "") for parts in (path, path[:depth]))
            raise InputError(f"{key} cannot be set: {above} is {show_value(below)}, not a table")
        here = below
    here[path[-1]] = value


def read_value(text: str) -> Any:
    """A value in TOML notation; anything else, and a date, is a plain string."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    # More keys: the text contains more lines.
    plain = parsed.keys() == {"value"} and not isinstance(parsed["value"], date | time)
    return parsed["value"] if plain else text
