"""Classes by name or by import path."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from wsram_ppl.errors import InputError, nearest, one_line

__all__ = ["Registry"]


class Registry:
    """Classes of one kind, by the name that an experiment file uses.

    Args:
        kind: what the classes are, in words ("model"); used in messages.
        classes: by name, a class or the import path ``package.module:Name`` of one, which is imported
            when it is needed.
    """

    def __init__(self, kind: str, classes: Mapping[str, str | type[Any]]) -> None:
        self.kind = kind
        self.classes = dict(classes)

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self.classes)

    def describe(self) -> dict[str, str]:
        """Each name with the first line of its class's docstring ("" without one)."""
        return {name: _first_line(self.resolve(name)) for name in self.names()}

    def find(self, name: str) -> str | type[Any]:
        """What a name means: a class, or the import path of one; an import path means itself.

        Raises:
            InputError: no such name; the message lists what exists and suggests the nearest.
        """
        found = self.classes.get(name, name if ":" in name else None)
        if found is None:
            known = ", ".join(self.names()) or "there is none"
            hint = nearest(name, self.names())
            if not hint and "." in name:
                hint = f" an import path is written package.module:Name, such as {_with_colon(name)!r};"
            raise InputError(
                f"unknown {self.kind} {name!r};{hint} available: {known}, "
                "or an import path package.module:Name"
            )
        return found

    def resolve(self, name: str) -> type[Any]:
        """The class of a name or of an import path ``package.module:Name``.

        The module of an import path is searched in the current directory, then where Python looks. The
        current directory is appended to ``sys.path``, so that the module can import its
        neighbours.

        Raises:
            InputError: no such name, or the import path does not lead to a class.
        """
        found = self.find(name)
        return self._import(found) if isinstance(found, str) else found

    def _import(self, path: str) -> type[Any]:
        module_name, _, attribute = path.partition(":")
        if "/" in module_name or module_name.endswith(".py"):
            dotted = module_name.removesuffix(".py").replace("/", ".").strip(".")
            raise InputError(
                f"{self.kind} {path!r} names a file: write {dotted}:{attribute or 'Name'}, as seen from "
                "the current directory"
            )
        if not all(part.isidentifier() for part in (*module_name.split("."), attribute)):
            raise InputError(f"{self.kind} {path!r} is not an import path; write package.module:Name")
        module = self._import_module(module_name, path)
        try:
            found: object = getattr(module, attribute)
        except AttributeError:
            classes = [key for key, value in vars(module).items() if isinstance(value, type)]
            raise InputError(
                f"{self.kind} {path!r}: the module {module_name!r} has no {attribute!r};"
                f"{nearest(attribute, classes)} it has " + (", ".join(sorted(classes)) or "no classes")
            ) from None
        except Exception as error:
            raise InputError(f"{self.kind} {path!r}: {one_line(error)}") from error
        if not isinstance(found, type):
            raise InputError(f"{self.kind} {path!r} is a {type(found).__name__}, but a class is needed")
        return found

    def _import_module(self, module_name: str, path: str) -> ModuleType:
        try:
            return _import_here(module_name)
        except ModuleNotFoundError as error:
            # A module that the user's own module fails to import is handled below.
            if error.name and (module_name + ".").startswith(error.name + "."):
                # The folders of a checkout are the package's own (models/__init__.py).
                ours = f"wsram_ppl.{path}" if path.startswith(("models.", "guides.")) else ""
                raise InputError(
                    f"{self.kind} {path!r}: there is no module {error.name!r}, neither in the current "
                    "directory nor among Python's packages"
                    + (f"; for a file in a checkout of wsram_ppl write {ours}" if ours else "")
                ) from None
            raise self._broken(module_name, path, error) from error
        except (Exception, SystemExit) as error:
            raise self._broken(module_name, path, error) from error

    def _broken(self, module_name: str, path: str, error: BaseException) -> InputError:
        return InputError(f"{self.kind} {path!r}: importing {module_name!r} failed: {one_line(error)}")


def _import_here(module_name: str) -> ModuleType:
    """Imports a module, preferring the current directory's own over others of that name."""
    here = _current_directory()
    if here is None:
        return importlib.import_module(module_name)
    # The finder caches directory listings, and the file may be seconds old.
    importlib.invalidate_caches()
    top = module_name.partition(".")[0]
    theirs = Path(here, *module_name.split("."))
    is_theirs = theirs.with_suffix(".py").is_file() or (theirs / "__init__.py").is_file()
    if is_theirs and here not in sys.path:
        # At the end: a user's file must not replace a package that others import.
        sys.path.append(here)
    if is_theirs and top not in sys.modules and top not in sys.stdlib_module_names:
        # An installed package, or one beside the command, may also have this name.
        spec = PathFinder.find_spec(top, [here])
        assert spec is not None
        sys.modules[top] = importlib.util.module_from_spec(spec)
        try:
            if spec.loader is not None:
                spec.loader.exec_module(sys.modules[top])
        except BaseException:
            del sys.modules[top]
            raise
    return importlib.import_module(module_name)


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # the directory was deleted
        return None


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0].strip()


def _with_colon(name: str) -> str:
    module, _, attribute = name.rpartition(".")
    return f"{module}:{attribute}"
