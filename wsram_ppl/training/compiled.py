"""Compiled networks: what ``training.compile`` does."""

from __future__ import annotations

from pyro.nn import PyroModule
from torch import nn

from wsram_ppl.errors import InputError

__all__ = ["compile_networks"]


def compile_networks(*programs: nn.Module) -> None:
    """Compiles, in place, the plain networks of Pyro programs.

    These are the outermost modules inside them with a ``forward`` of their own that are no PyroModules:
    effects stay outside compiled code.

    Raises:
        InputError: there are none.
    """
    if not sum(map(_compile, programs)):
        raise InputError(
            "training.compile: neither model nor guide has a plain torch.nn network to compile"
        )


def _compile(program: nn.Module) -> int:
    """How many networks were compiled."""
    count = 0
    for child in program.children():
        plain = not isinstance(child, PyroModule)
        if plain and type(child).forward is not nn.Module.forward:
            child.compile()
            count += 1
        else:
            count += _compile(child)
    return count
