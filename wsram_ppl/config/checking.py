"""Checks tables against pydantic models; every error is one line."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from wsram_ppl.config.schedules import Schedule
from wsram_ppl.config.values import join, plain_tables, show_value, unknown_key
from wsram_ppl.errors import InputError, nearest

_Model = TypeVar("_Model", bound=BaseModel)


def check_table(cls: type[_Model], section: str, table: dict[str, Any]) -> _Model:
    """A table as an instance of a pydantic model.

    Args:
        cls: strict, and with ``extra="forbid"`` if unknown keys should be refused.
        section: the name of the table, in messages; "" for a file's top level.

    Raises:
        InputError: unknown keys, wrong or missing values; all that is wrong, in one line.
    """
    table = plain_tables(table, section or "the file")
    # As JSON: pydantic is then strict on numbers and strings, but accepts a list for a tuple and a
    # string for a path, which TOML cannot write in another way.
    try:
        return cls.model_validate_json(json.dumps(table))
    except ValidationError as error:
        raise InputError("; ".join(_explain(error, cls, section, table))) from None


def table_keys(cls: type[BaseModel]) -> list[str]:
    """The keys of the table that a model reads."""
    return [info.alias or name for name, info in cls.model_fields.items()]


def _explain(
    error: ValidationError, cls: type[BaseModel], section: str, table: dict[str, Any]
) -> list[str]:
    """One line per wrong key."""
    lines: dict[str, list[str]] = {}
    for item in error.errors(include_url=False, include_input=False):
        path, here, message, location = section, table, item["msg"], list(item["loc"])
        last = str(location.pop()) if item["type"] in ("missing", "extra_forbidden") else ""
        for step in location:  # those that do not exist name members of unions
            if isinstance(here, dict) and step in here:
                path, here = join(path, str(step)), here[step]
            elif isinstance(here, list) and isinstance(step, int) and step < len(here):
                path, here = f"{path}[{step}]", here[step]
        if item["type"] == "missing":
            lines.setdefault(f"{join(path, last)} is missing", [])
            continue
        if item["type"] == "extra_forbidden":
            table_of = _table_of(cls, location)
            line = unknown_key(path, last, table_keys(table_of)) if table_of else ""
            lines.setdefault(line or f"unknown key {join(path, last)}", [])
            continue
        message = message.removeprefix("Value error, ").replace("Input should", "should")
        if item["type"] == "literal_error" and isinstance(here, str):
            hint = nearest(here, re.findall(r"'([^']*)'", item["ctx"]["expected"]))
            message += f";{hint}" if hint else ""
        if item["type"] in ("string_type", "path_type") and isinstance(here, int | float):
            message += f": put it in quotes, as in --set '{path}=\"{show_value(here)}\"'"
        reasons = lines.setdefault(f"{path} = {show_value(here)}", [])
        if message not in reasons:
            reasons.append(message)
    return [": ".join(filter(None, (what, " or ".join(why)))) for what, why in lines.items()]


def _table_of(cls: type[BaseModel], location: list[int | str]) -> type[BaseModel] | None:
    """The model of the table at a location; None for one of the component's own."""
    if not location:
        return cls
    kinds = {info.alias or name: repr(info.annotation) for name, info in cls.model_fields.items()}
    # As written, or as the member of a union that options.py makes of a number.
    scheduled = "Schedule" in kinds.get(str(location[0]), "") or "schedule" in location[1:]
    return Schedule if scheduled else None
