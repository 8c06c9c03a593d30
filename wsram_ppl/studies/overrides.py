"""What a study changes in its experiment: layers of tables, and ``--set`` from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict

from wsram_ppl.config import check_table, read_value
from wsram_ppl.errors import InputError

_RESERVED: Final = {
    ("training", "steps"): "the study's own 'steps' sets it, the same for all runs",
    ("training", "seed"): "the study's own 'seeds' set it",
}


class Table(BaseModel):
    """A table of a study's file, which holds no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Overrides(Table):
    """Those tables of an experiment that are overridden."""

    data: dict[str, Any] = {}
    model: dict[str, Any] = {}
    guide: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    exploration: dict[str, Any] = {}
    training: dict[str, Any] = {}

    def tables(self) -> dict[str, dict[str, Any]]:
        """All of them, by name."""
        return {section: dict(getattr(self, section)) for section in Overrides.model_fields}


_Layer = TypeVar("_Layer", bound="Overrides")


def set_own_keys(tables: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Writes the overrides of the study's own keys into its tables; returns the others."""
    others = []
    for text in overrides:
        key, equals, value = text.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(path):
            raise InputError(
                f"--set {text!r}: write key=value, such as training.batch_size=32 or steps=1000"
            )
        if tuple(path[:2]) in _RESERVED:
            raise InputError(f"--set {text!r}: {_RESERVED[path[0], path[1]]}")
        if path[0] in Overrides.model_fields:
            others.append(text)
        elif len(path) == 1 or path[0] == "search":
            _put(tables, path, read_value(value.strip()))
        else:
            raise InputError(
                f"--set {text!r}: no such table; there are {', '.join(Overrides.model_fields)}, and "
                "the study's own keys (steps, seeds, search.steps, ...)"
            )
    return others


def read_layer(cls: type[_Layer], where: str, table: Mapping[str, Any]) -> _Layer:
    """A checked table of overrides: dotted keys split, and no key that the study itself sets."""
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
    merged = merge(tables, nested)
    tables.clear()
    tables.update(merged)


def merge(below: Any, above: Any) -> Any:
    """Table merges into table; anything else replaces."""
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return above
    merged = dict(below)
    for key, value in above.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def inline(value: Any) -> str:
    """A plain value in one line of TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{inline(k)} = {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, bool | str):
        # TOML's strings are JSON's, except for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)
