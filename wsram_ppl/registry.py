"""Finding models, guides, objectives and data sources by name or by import path."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, TypeVar

from wsram_ppl.errors import InputError

__all__ = ["DATA_SOURCES", "GUIDES", "MODELS", "OBJECTIVES", "Registry", "nearest", "one_line"]

C = TypeVar("C", bound=type)


class Registry:
    """Classes of one kind, by the name that an experiment file uses.

    Modules register their own classes when they are imported::

        @MODELS.register("glimpse-classifier")
        class GlimpseClassifier(PyroModule):
            '''Classifies an image from a few glimpses.'''

    The first line of the docstring is what :meth:`describe` shows for the class.

    Args:
        kind: what the classes are, in words ("model"); used in messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """A class decorator that makes the class available as ``name``.

        Raises:
            InputError: the name is empty, holds a colon (that would make it an import path), or is
                taken by another class. The same class may be registered again (a reloaded module).
        """
        if not name.strip() or ":" in name:
            raise InputError(f"{name!r} cannot be the name of a {self.kind}")

        def decorate(cls: C) -> C:
            known = self._classes.get(name)
            if known is not None and _path(known) != _path(cls):
                raise InputError(
                    f"the {self.kind} name {name!r} is taken by {_path(known)}; "
                    f"choose another for {_path(cls)}"
                )
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._classes)

    def describe(self) -> dict[str, str]:
        """Each registered name with the first line of its class's docstring ("" without one)."""
        return {name: _first_line(self._classes[name]) for name in self.names()}

    def resolve(self, name: str) -> type[Any]:
        """The class of a registered name or of an import path ``package.module:Name``.

        The module of an import path is looked for where Python looks, then in the current directory
        (which is then added to the end of ``sys.path``, so that the module can import its
        neighbours).

        Raises:
            InputError: no such name (the message lists what exists and suggests the nearest), or
                the import path does not lead to a class.
        """
        if ":" in name:
            return self._import(name)
        if name in self._classes:
            return self._classes[name]
        known = ", ".join(self.names()) or "none is registered"
        hint = nearest(name, self.names())
        if not hint and "." in name:
            hint = f" an import path is written package.module:Name, as in {_with_colon(name)!r};"
        raise InputError(
            f"unknown {self.kind} {name!r};{hint} available: {known}, "
            "or an import path package.module:Name"
        )

    def _import(self, path: str) -> type[Any]:
        module_name, _, attribute = path.partition(":")
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
            # A module that the user's own module fails to import is another matter: see below.
            if error.name and (module_name + ".").startswith(error.name + "."):
                raise InputError(
                    f"{self.kind} {path!r}: there is no module {error.name!r}, neither among "
                    "Python's packages nor in the current directory"
                ) from None
            raise InputError(
                f"{self.kind} {path!r}: importing {module_name!r} failed: {one_line(error)}"
            ) from error
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{self.kind} {path!r}: importing {module_name!r} failed: {one_line(error)}"
            ) from error


def nearest(word: str, options: Iterable[str]) -> str:
    """``" did you mean 'x'?"`` with the nearest of ``options``, or "" where none is near."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" did you mean {by_lower[found[0]]!r}?" if found else ""


def one_line(error: BaseException) -> str:
    """An exception's type and text in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _import_here(module_name: str) -> ModuleType:
    """Imports a module; one that Python does not find is looked for in the current directory."""
    top = module_name.partition(".")[0]
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        here = _current_directory()
        if error.name != top or here is None or here in sys.path:
            raise
    # At the end: a file of the user's must not take the place of an installed package.
    sys.path.append(here)
    # The finder remembers directory listings, and the file may be seconds old.
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == top:
            sys.path.remove(here)
        raise


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # the directory was deleted
        return None


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().partition("\n")[0].strip()


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _with_colon(name: str) -> str:
    module, _, attribute = name.rpartition(".")
    return f"{module}:{attribute}"


MODELS = Registry("model")
GUIDES = Registry("guide")
OBJECTIVES = Registry("objective")
DATA_SOURCES = Registry("data source")
