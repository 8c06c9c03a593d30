"""Plain values, which a TOML file can contain, and how messages show values and keys."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Final

from wsram_ppl.config.schedules import Schedule
from wsram_ppl.errors import InputError, nearest

_DEEPEST: Final = 16


def plain_tables(value: Any, key: str, depth: int = 0) -> Any:
    """A copy of a value that TOML can express: enums by value, paths as strings, tuples as lists.

    Args:
        key: the path of the value in messages; at the top level, the name of the whole.

    Raises:
        InputError: it contains something that TOML cannot express.
    """
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
        above = key if depth else ""
        return {
            plain_tables(str(name), f"a key of {key}"): plain_tables(item, join(above, name), depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain_tables(item, f"{key}[{place}]", depth + 1) for place, item in enumerate(value)]
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    if isinstance(value, float) and not math.isnan(value):
        return float(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{key} = {show_value(value)}: should be valid Unicode") from None
        return str(value)
    raise InputError(
        f"{key} = {show_value(value)}: should be a string, a 64-bit integer, a number (not nan), true, "
        "false, an array or a table"
    )


def show_value(value: Any) -> str:
    """A value in a message: as Python writes it (Booleans as in TOML), shortened if it is long."""
    try:
        text = json.dumps(value) if isinstance(value, bool) else repr(value)
    except ValueError:  # an integer with more digits than Python converts
        text = "an enormous integer"
    return text if len(text) <= 60 else text[:57] + "..."


def join(above: str, key: str) -> str:
    """The dotted path of a key in a table; ``above`` is the path of the table, "" at the top level."""
    key = key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else repr(key)
    return f"{above}.{key}" if above else key


def unknown_key(above: str, key: str, valid: Iterable[str]) -> str:
    """The message about a key that is not among the valid ones."""
    valid = list(valid)
    return (
        f"unknown key {join(above, key)};{nearest(key, valid)} valid keys: {', '.join(valid) or 'none'}"
    )
