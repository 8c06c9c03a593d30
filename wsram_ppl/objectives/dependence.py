"""Finds which latents of a program depend on which, by running it once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.inspect import TrackProvenance
from pyro.ops.provenance import ProvenanceTensor, detach_provenance, get_provenance
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wsram_ppl.objectives.sites import Program, random_sites

__all__ = ["dependencies"]

#: Functions whose result, or the size of it, shows a tensor's values outside of tensors.
_READS = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__complex__", "is_nonzero"),
    *("equal", "allclose", "__contains__"),
    *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount"),
    "repeat_interleave",
}
#: What a function may return about a tensor besides tensors.
_ABOUT = (torch.Size, int, bool, str, type(None), torch.dtype, torch.device, torch.layout)


class _Read(Exception):
    """A value of a latent goes where it is not followed."""


class _NoReads(TorchFunctionMode):
    """Refuses functions that take tracked tensors and whose effects are not tracked."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tracked = get_provenance(tensors)
        if not tracked:
            return func(*args, **kwargs)
        if getattr(func, "__name__", "") in _READS or _selects(func, args):
            raise _Read
        before = [tensor._version for tensor in tensors]
        found = func(*args, **kwargs)
        for tensor, version in zip(tensors, before, strict=True):
            if tensor._version != version and not get_provenance(tensor) >= tracked:
                raise _Read  # written in place
        results = tree_leaves(found)
        if not all(isinstance(each, (ProvenanceTensor, *_ABOUT)) for each in results):
            raise _Read
        return found


def _selects(func: Any, args: Any) -> bool:
    """Whether the size of the result is the number of true elements of a tracked tensor."""
    if func is torch.where:
        return len(args) == 1
    index = args[1] if func is Tensor.__getitem__ else ()
    return any(
        isinstance(each, ProvenanceTensor) and each.dtype in (torch.bool, torch.uint8)
        for each in tree_leaves(index)
    )


class _NoBypass(TorchDispatchMode):
    """Refuses operations that did not come through :class:`_NoReads`, which see the tracked tensor.

    Those of scripted functions and of ``vmap``.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(leaf, ProvenanceTensor) for leaf in tree_leaves((args, kwargs or {}))):
            raise _Read
        return func(*args, **(kwargs or {}))


def dependencies(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, frozenset[str]] | None:
    """For each latent, the latents that its distribution depends on, directly or indirectly.

    None if that cannot be determined: values of latents leave the tensors (to branch on them, for NumPy
    or in the size of a result), are written into other tensors, or go through functions that do not see
    a subclass of tensors (scripted ones, ``vmap``). Uses the global random state.
    """
    try:
        strict = _NoBypass()  # type: ignore[no-untyped-call]
        with pyro.validation_enabled(False), strict, _NoReads(), TrackProvenance():
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
