"""Finds which latents of a program depend on which, by running it once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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

from wsram_ppl.objectives.sites import Program, module_of, random_sites
from wsram_ppl.primitives.undoing import without_a_trace

__all__ = ["dependencies"]

#: Functions whose result, or the size of it, shows a tensor's values outside of tensors.
_READS = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__complex__", "is_nonzero"),
    "__format__",
    *("equal", "allclose", "__contains__"),
    *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount"),
    "repeat_interleave",
}
#: What a function may return about a tensor besides tensors.
_ABOUT = (torch.Size, int, bool, str, type(None), torch.dtype, torch.device, torch.layout)


class _Functions(TorchFunctionMode):
    """Notices functions that take tracked tensors and whose effects are not tracked."""

    missed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tracked = get_provenance(tensors)
        if not tracked or self.missed:
            return func(*args, **kwargs)
        before = [tensor._version for tensor in tensors]
        found = func(*args, **kwargs)
        self.missed = (
            getattr(func, "__name__", "") in _READS
            or _selects(func, args)
            or any(  # written in place
                tensor._version != version and not get_provenance(tensor) >= tracked
                for tensor, version in zip(tensors, before, strict=True)
            )
            or not all(isinstance(each, (ProvenanceTensor, *_ABOUT)) for each in tree_leaves(found))
        )
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


class _Operations(TorchDispatchMode):
    """Notices operations that did not come through :class:`_Functions`, which see the tracked tensor.

    Those of scripted functions and of ``vmap``.
    """

    missed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs or {}))
        self.missed = self.missed or any(isinstance(leaf, ProvenanceTensor) for leaf in leaves)
        return func(*args, **(kwargs or {}))


@contextmanager
def _unchanged(program: Program) -> Iterator[None]:
    """Puts back the buffers and attributes of a module that a run changes."""
    whole = module_of(program)
    modules = list(whole.modules()) if whole is not None else []
    attributes = [(module.__dict__, dict(module.__dict__)) for module in modules]
    try:
        with without_a_trace(whole):
            yield
    finally:
        for now, before in attributes:
            now.update(before)  # never empty: the model may prepare a minibatch in another thread
            for name in now.keys() - before.keys():
                del now[name]


def dependencies(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, frozenset[str]] | None:
    """For each latent, the latents that its distribution depends on, directly or indirectly.

    None if that cannot be determined: values of latents leave the tensors (to branch on them, for NumPy
    or in the size of a result), are written into other tensors, or go through functions that do not see
    a subclass of tensors (scripted ones, ``vmap``). The run leaves no trace.
    """
    functions = _Functions()
    operations = _Operations()  # type: ignore[no-untyped-call]
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # they come when the program is run otherwise
            pyro.validation_enabled(False),
            torch.no_grad(),
            _unchanged(program),
            operations,
            functions,
            TrackProvenance(),
        ):
            trace = poutine.trace(program).get_trace(*args, **kwargs)
            direct = {
                name: get_provenance(site["fn"].log_prob(detach_provenance(site["value"])))
                for name, site in random_sites(trace).items()
            }
    except Exception:  # any kind: the program has just worked on plain tensors
        return None
    if functions.missed or operations.missed:
        return None
    found: dict[str, frozenset[str]] = {}
    for name, parents in direct.items():  # in the order in which they are drawn
        known = (parents & found.keys()) - {name}
        found[name] = known.union(*(found[parent] for parent in known))
    return found
