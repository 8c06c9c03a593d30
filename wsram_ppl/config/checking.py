"""Checks against pydantic models, and what is wrong in one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from wsram_ppl.config.schedules import Schedule
from wsram_ppl.errors import InputError, nearest

STEP_KEYS: Final = ("start", "end", "shape", "from", "until")
_DEEPEST: Final = 16


_Settings = TypeVar("_Settings", bound=BaseModel)


class Checker(BaseModel):
    """Base of the models, made for one option each, that check its ``value``."""

    model_config = ConfigDict(strict=True)

    value: Any


def check_table(cls: type[_Settings], section: str, table: dict[str, Any]) -> _Settings:
    """A table of fixed keys as an instance of a pydantic model.

    Args:
        section: the name of the table, in messages; "" for a file's top level.

    Raises:
        InputError: unknown keys, wrong or missing values; all that is wrong, in one line.
    """
    table = plain_tables(table, section or "the file")
    keys = [info.alias or name for name, info in cls.model_fields.items()]
    problems = [unknown_key(section, key, keys) for key in table if key not in keys]
    known = {key: value for key, value in table.items() if key in keys}
    settings = None
    try:
        settings = cls.model_validate_json(json.dumps(known))
    except ValidationError as error:
        problems += _explain(error, section, known, 0)
    if problems or settings is None:
        raise InputError("; ".join(problems))
    return settings


def checked_value(checker: type[Checker], key: str, value: Any) -> Any:
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
                path = f"{path}.{quoted_key(str(step))}" if path else quoted_key(str(step))
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
            lines.setdefault(unknown_key(above, str(location[-1]), STEP_KEYS), [])
            continue
        message = message.removeprefix("Value error, ").replace("Input should", "should")
        if item["type"] == "literal_error" and isinstance(here, str):
            hint = nearest(here, re.findall(r"'([^']*)'", item["ctx"]["expected"]))
        reasons = lines.setdefault(f"{path} = {show_value(here)}", [])
        if message not in reasons:
            reasons.append(f"{message};{hint}" if hint else message)
    return [": ".join(filter(None, (what, " or ".join(why)))) for what, why in lines.items()]


def unknown_key(above: str, key: str, valid: Iterable[str]) -> str:
    valid = list(valid)
    path = f"{above}.{quoted_key(key)}" if above else quoted_key(key)
    return f"unknown key {path};{nearest(key, valid)} valid keys: {', '.join(valid) or 'none'}"


def name_key(section: str) -> str:
    return "source" if section == "data" else "name"


def component_name(section: str, table: object) -> str | None:
    name = table.get(name_key(section)) if isinstance(table, dict) else None
    return name if isinstance(name, str) else None


def quoted_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else repr(key)


def show_value(value: Any) -> str:
    try:
        text = json.dumps(value) if isinstance(value, bool) else repr(value)
    except ValueError:  # an integer of more digits than Python likes to write
        text = "an integer beyond all bounds"
    return text if len(text) <= 60 else text[:57] + "..."


def plain_tables(value: Any, key: str, depth: int = 0) -> Any:
    """A copy of a value that holds nothing but what a config can; InputError where it cannot."""
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
            plain_tables(str(name), f"a key of {key}"): plain_tables(
                item, f"{above}{quoted_key(name)}", depth + 1
            )
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
        if not _encodable(value):
            raise InputError(f"{key} = {show_value(value)}: should be valid Unicode")
        return str(value)
    raise InputError(
        f"{key} = {show_value(value)}: should be a string, a 64-bit integer, a number (not nan), true, "
        "false, an array or a table"
    )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
