"""Runs a guide and a model, and reads particles from their traces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import pyro.distributions as dist
from pyro import poutine
from pyro.poutine.trace_struct import Trace

from wsram_ppl.objectives.particles import TraceDraw
from wsram_ppl.objectives.sites import Program, values_of
from wsram_ppl.objectives.traces import read_draw
from wsram_ppl.primitives.distributions import innermost
from wsram_ppl.primitives.handlers import (
    DetachSamples,
    Memoize,
    ParticlePlate,
    Substitute,
    constant,
)

__all__ = ["Sampler", "carries_gradients", "is_reparameterized"]


def is_reparameterized(fn: Any) -> bool:
    """Whether the whole gradient of an expectation goes through the distribution's samples.

    Not that of a ``Rejector``, whose samples need a part of the score as well.
    """
    return bool(fn.has_rsample) and not isinstance(innermost(fn), dist.Rejector)


def carries_gradients(pathwise: bool | Sequence[str]) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a latent site's value is differentiated through.

    A ``Delta``'s always is: it has no score.

    Args:
        pathwise: patterns of names, or True for every site that has a reparameterised sample.
    """

    def keep(site: Mapping[str, Any]) -> bool:
        fn = site["fn"]
        if isinstance(innermost(fn), dist.Delta):
            return True
        if isinstance(pathwise, bool):
            return pathwise and is_reparameterized(fn)
        return any(fnmatchcase(site["name"], pattern) for pattern in pathwise)

    return keep


@dataclass(frozen=True)
class Sampler:
    """How one evaluation runs its programs.

    Args:
        model, guide: the programs.
        args, kwargs: their arguments.
        is_prior: whether the guide is the model's own prior, so that one run gives both densities.
        num_particles: in one run; 1 if they are drawn one after another.
        max_plate_nesting: including the particles' plate, if ``num_particles`` > 1.
        carries_gradients: whether the value of a site carries gradients.
        proposal: makes the context in which the guide samples.
        forms_weights: see :func:`~wsram_ppl.objectives.traces.read_draw`.
    """

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    is_prior: bool
    num_particles: int
    max_plate_nesting: int | float
    carries_gradients: Callable[[Mapping[str, Any]], bool]
    proposal: Callable[[], AbstractContextManager[Any]] = nullcontext
    forms_weights: bool = False

    def draw(self, *, shared: Collection[str] = (), given: Mapping[str, Any] | None = None) -> TraceDraw:
        """One run of both programs.

        Args:
            shared: latents shared by all particles of the run.
            given: values of latents that are not drawn.
        """
        known = Substitute(given, "guide", partial=True) if given else nullcontext()
        with Memoize():
            with DetachSamples(self.carries_gradients), self.proposal(), known:
                guide_trace = self._run(self.model if self.is_prior else self.guide, shared)
            return self._read(guide_trace, shared)

    def again(self, draw: TraceDraw, shared: Collection[str], held: Collection[str]) -> TraceDraw:
        """The same particles, with the values of some latents as constants."""
        values = values_of(draw.guide_trace)
        values |= {name: constant(values[name]) for name in held if name in values}
        with Memoize():
            with self.proposal(), Substitute(values, "guide"):
                guide_trace = self._run(self.guide, shared)
            return self._read(guide_trace, shared)

    def _read(self, guide_trace: Trace, shared: Collection[str]) -> TraceDraw:
        if self.is_prior:
            model_trace, guide_trace = guide_trace, _latents(guide_trace)
        else:
            with Substitute(values_of(guide_trace)):
                model_trace = self._run(self.model, shared)
        return read_draw(
            model_trace,
            guide_trace,
            self.num_particles,
            forms_weights=self.forms_weights,
            max_plate_nesting=self.max_plate_nesting,
        )

    def _run(self, program: Program, shared: Collection[str]) -> Trace:
        if self.num_particles > 1:
            program = ParticlePlate(self.num_particles, -int(self.max_plate_nesting), shared)(program)
        return poutine.trace(program).get_trace(*self.args, **self.kwargs)

    def one_by_one(self) -> Sampler:
        """The same for runs of a single particle."""
        return replace(self, num_particles=1)


def _latents(model_trace: Trace) -> Trace:
    """The prior's own trace, read from the model's."""
    guide_trace = Trace()
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"]:
            guide_trace.nodes[name] = site
    return guide_trace
