"""The random sites of a trace, and operations on their distributions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn
from torch.distributions import transform_to

from wsram_ppl.primitives.distributions import unwrapped
from wsram_ppl.primitives.handlers import has_density

Program = Callable[..., Any]
Site = Mapping[str, Any]


def module_of(program: object) -> nn.Module | None:
    """The module that a program is, or is a method of; None if there is none."""
    program = getattr(program, "__self__", program)
    return program if isinstance(program, nn.Module) else None


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


def plate_nesting(trace: Trace) -> int:
    """How many batch dimensions the plates of a trace use."""
    return max(
        (
            -(frame.dim or 0)
            for site in trace.nodes.values()
            if site["type"] == "sample"
            for frame in site["cond_indep_stack"]
            if frame.vectorized
        ),
        default=0,
    )


def log_density(site: Site) -> Tensor:
    """The log-density of the distribution, without mask and scale.

    Raises:
        ValueError: it cannot be evaluated, with the site's name.
    """
    try:
        value: Tensor = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"the log-density of site '{site['name']}' fails: {error}") from error
    except KeyError as error:
        raise ValueError(
            f"the log-density of site '{site['name']}' fails, since a transform without an inverse "
            "knows only the very sample that it made: use one that has an inverse, or name the site in "
            "pathwise (neither under WakeSleep nor doubly_reparameterized, which make copies)"
        ) from error
    return value


def without_masked(site: Site) -> Site:
    """The site with masked observations (they may be missing, NaN) replaced by values of the support.

    A masked log-density of NaN does not count, but its gradient, zero times NaN, would.
    """
    fn, value = site["fn"], site["value"]
    if not (site["is_observed"] and isinstance(value, Tensor) and value.is_floating_point()):
        return site
    inner = [(getattr(each, "_mask", None), each) for each in unwrapped(fn)]
    for mask, masked in ((site["mask"], fn), *inner):
        if isinstance(mask, Tensor):
            counted = mask.reshape(mask.shape + (1,) * masked.event_dim)
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
