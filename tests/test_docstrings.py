"""Every public name says what it is."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import wsram_ppl

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(wsram_ppl.__path__, "wsram_ppl.")
    if not info.name.endswith("__main__")
)


def public_names(module: ModuleType) -> dict[str, object]:
    """Those of ``__all__``; where there is none, the classes and functions that the module defines."""
    if hasattr(module, "__all__"):
        return {name: getattr(module, name) for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value)))
        and value.__module__ == module.__name__
    }


def read_source(module: ModuleType) -> str:
    return Path(str(module.__file__)).read_text()


def described_data(source: str) -> set[str]:
    """Names that a module gives a value, where a comment ``#:`` stands above."""
    lines = source.splitlines()
    found = set()
    for number, line in enumerate(lines):
        given = re.match(r"([A-Za-z]\w*(?:, [A-Za-z]\w*)*)(?:: .*?)? = ", line)
        above = number - 1
        while given and above >= 0 and lines[above].startswith("#"):
            if lines[above].startswith("#:"):
                found |= set(given[1].split(", "))
            above -= 1
    return found


def imported(source: str) -> dict[str, str]:
    """The module that each name is imported from, of this package."""
    found = {}
    statement = r"^from (wsram_ppl[\w.]*) import (\([^)]*\)|[^\n(]+)$"
    for module, names in re.findall(statement, source, re.MULTILINE):
        for name in re.findall(r"\w+", names):
            found[name] = module
    return found


def undocumented(module: ModuleType) -> Iterator[str]:
    """Public names without a docstring; methods and properties of public classes among them."""
    source = read_source(module)
    for name, value in public_names(module).items():
        path = f"{module.__name__}:{name}"
        if isinstance(value, click.Command):
            if not value.help:
                yield path
        elif inspect.isclass(value):
            if value.__module__.startswith("wsram_ppl"):
                yield from undocumented_parts(value, path)
        elif inspect.isfunction(inspect.unwrap(value)):  # type: ignore[arg-type]
            if not inspect.getdoc(value):
                yield path
        else:
            home, text = module, source
            while name in (names := imported(text)):
                home = importlib.import_module(names[name])
                text = read_source(home)
            if name not in described_data(text):
                yield f"{home.__name__}:{name}"


def undocumented_parts(cls: type, path: str) -> Iterator[str]:
    # Dataclasses and named tuples make a docstring of their fields.
    if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):
        yield path
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)
        if isinstance(value, property | functools.cached_property):
            function = value.fget if isinstance(value, property) else value.func
        ours = inspect.isfunction(function) and function.__module__ == cls.__module__
        # An inherited docstring holds for what takes its place.
        if ours and not name.startswith("_") and not inspect.getdoc(inspect.getattr_static(cls, name)):
            yield f"{path}.{name}"


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert list(undocumented(importlib.import_module(name))) == []
