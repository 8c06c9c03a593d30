"""The random sites of a trace, and operations on their distributions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import transform_to

from wsram_ppl.primitives.distributions import kind, stack, unwrapped
from wsram_ppl.primitives.handlers import has_density

Program = Callable[..., Any]
Site = Mapping[str, Any]

#: The largest number of elements for which an operation takes longer to start than to run.
_SMALL = 2**12


def random_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites that have a density, without plate subsamples and ``pyro.deterministic``."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and has_density(site)
    }


def values_of(trace: Trace) -> dict[str, Any]:
    """The value of every latent site and plate subsample of a trace, to be proposed to a model."""
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site["is_observed"]
        and not (site["infer"] or {}).get("_deterministic")  # unconditioned, it looks latent
    }


def log_density(site: Site) -> Tensor:
    """The log-density of the distribution, without mask and scale."""
    value: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return value


def without_masked(site: Site) -> Site:
    """The site with masked observations (they may be missing, NaN) replaced by values of the support.

    A masked log-density of NaN does not count, but its gradient, zero times NaN, would.
    """
    fn, value = site["fn"], site["value"]
    if not (site["is_observed"] and isinstance(value, Tensor) and value.is_floating_point()):
        return site
    for mask in (site["mask"], *(getattr(each, "_mask", None) for each in unwrapped(fn))):
        if isinstance(mask, Tensor):
            counted = mask.reshape(mask.shape + (1,) * fn.event_dim)
            value = torch.where(counted, value, _supported(fn, value))
    return site if value is site["value"] else {**site, "value": value}


def _supported(fn: Any, value: Tensor) -> Tensor:
    """Values that the distribution can take: the image of 0, or 0 for counts and Booleans."""
    try:
        transform = transform_to(fn.support)
    except NotImplementedError:
        return value if fn.event_dim else torch.zeros_like(value)
    start = value.new_zeros(transform.inverse_shape(fn.shape()))
    found: Tensor = transform(start)
    return found


def evaluate(sites: Iterable[Site], quantity: Callable[[Site], Tensor]) -> dict[int, Tensor]:
    """A quantity in the batch dimensions of each site, by the ``id`` of the site.

    Small sites of one kind, such as the choices of a recurrent model, are evaluated together, as one
    site with an additional dimension on the left.
    """
    alike: dict[Hashable, dict[int, Site]] = {}
    for site in sites:
        alike.setdefault(_kind(site) or id(site), {})[id(site)] = site
    found: dict[int, Tensor] = {}
    for members in alike.values():
        if len(members) == 1:
            found |= {key: quantity(site) for key, site in members.items()}
            continue
        joined = {
            "fn": stack([site["fn"] for site in members.values()]),
            "value": torch.stack([site["value"] for site in members.values()]),
            "args": (),
            "kwargs": {},
        }
        found |= dict(zip(members, quantity(joined).unbind(), strict=True))
    return found


def _kind(site: Site) -> Hashable | None:
    """The same for sites that can be evaluated together; None for one that cannot."""
    fn, value = site["fn"], site["value"]
    if site["args"] or site["kwargs"] or not isinstance(value, Tensor):
        return None
    if value.shape != fn.shape():
        return None
    found = kind(fn, _SMALL)
    return found and (found, value.dtype)
