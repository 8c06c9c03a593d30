"""The random sites of a trace, and what is asked of their distributions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from wsram_ppl.primitives.distributions import kind, stack
from wsram_ppl.primitives.handlers import has_density

Program = Callable[..., Any]
Site = Mapping[str, Any]

#: Elements of a distribution's parameter up to which its operations take longer to start than to run.
_SMALL = 2**12


def random_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites that have a density: no plate subsamples, no ``pyro.deterministic``."""
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
    """As the distribution gives it: without mask and scale."""
    value: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return value


def evaluate(sites: Iterable[Site], quantity: Callable[[Site], Tensor]) -> dict[int, Tensor]:
    """A quantity in the batch dimensions of each site, by the ``id`` of the site.

    Small sites of one kind, such as the choices of a recurrent model, are evaluated together, as one
    site with a further dimension on the left.
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
