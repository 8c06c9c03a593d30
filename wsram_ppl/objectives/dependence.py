"""Finds which latents of a program depend on which, by running it once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from torch import Tensor
from torch.overrides import TorchFunctionMode

from wsram_ppl.objectives.sites import Program, random_sites

__all__ = ["dependencies"]

#: Functions that read a tensor's values, which may then decide what the program does next.
_READS = (
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
)


class _Read(Exception):
    """The program reads the value of a latent."""


class _NoReads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS and isinstance(args[0], ProvenanceTensor):
            raise _Read
        return func(*args, **(kwargs or {}))


def dependencies(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, frozenset[str]] | None:
    """For each latent, the latents that its distribution depends on, directly or indirectly.

    None if that cannot be determined: the program reads values of latents, to branch on them, or calls
    functions that do not accept a subclass of tensors. Uses the global random state.
    """
    try:
        with pyro.validation_enabled(False), _NoReads(), TrackProvenance():
            trace = poutine.trace(program).get_trace(*args, **kwargs)
            direct = {
                name: get_provenance(site["fn"].log_prob(detach_provenance(site["value"])))
                for name, site in random_sites(trace).items()
            }
    except (_Read, RuntimeError, TypeError, AttributeError, NotImplementedError):
        return None
    found: dict[str, frozenset[str]] = {}
    for name, parents in direct.items():  # in the order in which they are drawn
        known = (parents & found.keys()) - {name}
        found[name] = known.union(*(found[parent] for parent in known))
    return found
