"""The keys of a shipped component's table, read from its source.

So a misspelt key is reported at once, without importing the class, which needs torch. The class itself
is authoritative: anything unclear here is left to it (:func:`wsram_ppl.config.options.constructor`).
"""

from __future__ import annotations

import ast
import builtins
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Keys", "written_keys"]

_PACKAGE: Final = Path(__file__).parents[1]
#: Modules whose types TOML can express; it cannot express classes of any others.
_PLAIN: Final = ("typing", "pathlib", "pydantic", "collections.abc")


class Keys(NamedTuple):
    """The options of a constructor.

    Attributes:
        keys: those that a table may contain, in order.
        parameters: the keys, and parameters whose type TOML cannot express.
    """

    keys: tuple[str, ...]
    parameters: frozenset[str]


class _Parameter(NamedTuple):
    name: str
    module: str  # the one that contains its annotation
    annotation: ast.expr | None
    keyword_only: bool


@functools.cache
def written_keys(path: str, leading: int = 0) -> Keys | None:
    """The options of a class of this package; None if the source is not clear.

    Args:
        path: ``package.module:Name``.
        leading: how many of the first parameters are not options.
    """
    module, _, name = path.partition(":")
    found = _parameters(module, name)
    if found is None:
        return None
    found = found[leading:]
    keys = (each.name for each in found if _has_form(each.module, each.annotation))
    return Keys(tuple(keys), frozenset(each.name for each in found))


def _parameters(module: str, name: str) -> list[_Parameter] | None:
    """The parameters of a class's constructor after ``self``."""
    module, cls = _look_up(module, name)
    if not isinstance(cls, ast.ClassDef):
        return None
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given = node.args
            if given.posonlyargs or given.vararg or given.kwarg:
                return None
            keyword_only = len(given.args)
            every = enumerate((*given.args, *given.kwonlyargs))
            return [_Parameter(a.arg, module, a.annotation, n >= keyword_only) for n, a in every][1:]
    bases = [_parameters(module, base.id) for base in cls.bases if isinstance(base, ast.Name)]
    decorators = " ".join(map(ast.unparse, cls.decorator_list))
    if not decorators.startswith("dataclass"):
        return bases[0] if len(bases) == 1 else None
    fields = {each.name: each for base in bases for each in base or ()}
    fields |= {each.name: each for each in _fields(module, cls, "kw_only=True" in decorators)}
    return sorted(fields.values(), key=lambda each: each.keyword_only)  # in the order of a dataclass


def _fields(module: str, cls: ast.ClassDef, keyword_only: bool) -> Iterator[_Parameter]:
    """The fields that a dataclass adds to those of its bases."""
    for node in cls.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        annotation = ast.unparse(node.annotation)
        if annotation == "KW_ONLY":
            keyword_only = True
        elif not annotation.startswith("ClassVar"):
            own = keyword_only
            if isinstance(node.value, ast.Call):  # field(...), which may set it itself
                said = {
                    each.arg: ast.literal_eval(each.value)
                    for each in node.value.keywords
                    if each.arg == "kw_only"
                }
                own = said.get("kw_only", keyword_only)
            yield _Parameter(node.target.id, module, node.annotation, own)


def _has_form(module: str, annotation: ast.expr | None) -> bool:
    """Whether TOML can express values of a type."""
    for node in ast.walk(annotation) if annotation else ():
        if isinstance(node, ast.Name):
            where, found = _look_up(module, node.id)
            if isinstance(found, ast.expr):  # an alias of a type
                plain = _has_form(where, found)
            else:
                plain = where in _PLAIN or (where == module and hasattr(builtins, node.id))
            if not plain:
                return False
    return True


def _look_up(module: str, name: str) -> tuple[str, ast.stmt | ast.expr | None]:
    """Where a name is defined and as what; None outside this package."""
    while isinstance(found := _names(module).get(name), str):
        module, name = found.split(":")
    return module, found


@functools.cache
def _names(module: str) -> dict[str, str | ast.stmt | ast.expr]:
    """What a module binds: definitions, and the import paths of what it imports."""
    package, *rest = module.split(".")
    file = _PACKAGE.joinpath(*rest, "__init__.py")
    if not file.is_file():
        file = _PACKAGE.joinpath(*rest).with_suffix(".py")
    if package != _PACKAGE.name or not file.is_file():
        return {}
    found: dict[str, str | ast.stmt | ast.expr] = {}
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {each.id: node.value for each in node.targets if isinstance(each, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            found |= {each.asname or each.name: f"{node.module}:{each.name}" for each in node.names}
    return found
