"""What every estimator reads: log-densities of M particles of each datum, ``[particle, *datum]``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from wsram_ppl.objectives.baselines import Baseline
from wsram_ppl.objectives.plates import PlateLayout, Term

__all__ = ["Latent", "Particles", "TraceDraw"]


@dataclass(frozen=True)
class Latent:
    """One latent site: log p(a_n | a_<n, I) and log q(a_n | a_<n, y, I).

    Args:
        name: the site's name.
        prior: its term in the model.
        proposal: its term in the guide.
        prefix_size: how many latents, in the model's order, make the smallest set that contains this
            one and comes first in both programs: the partial ratio up to here is a ratio of two
            normalised densities only over such a set. n + 1 for the n-th when the orders agree.
        last_parent: position, in the guide's order, of the last latent drawn before this one in the
            model; -1 for none.
        prior_baseline: the baseline declared on the model's site; known before a_n in the model.
        proposal_baseline: the same for the guide's site.
    """

    name: str
    prior: Term
    proposal: Term
    prefix_size: int
    last_parent: int
    prior_baseline: Baseline | None
    proposal_baseline: Baseline | None


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@dataclass(frozen=True)
class TraceDraw:
    """One run of guide and model: all particles at once, or one of them.

    Args:
        latents: the latent sites in the model's order.
        observations: log-densities of observed sites and factors.
        layout: how site dimensions map to ``[particle, *datum]``.
        size: the shape ``[particle, *datum]`` of this draw.
        model_trace, guide_trace: where it was read.
    """

    latents: tuple[Latent, ...]
    observations: tuple[Term, ...]
    layout: PlateLayout
    size: tuple[int, ...]
    model_trace: Trace
    guide_trace: Trace

    def _total(self, terms: Sequence[Term]) -> Tensor:
        if not terms:
            some = [*self.observations, *(site.prior for site in self.latents)]
            return some[0].elements.new_zeros(self.size)
        return _sum([term.total for term in terms]).expand(self.size)

    @cached_property
    def log_prior(self) -> Tensor:
        return self._total([site.prior for site in self.latents])

    @cached_property
    def log_proposal(self) -> Tensor:
        return self._total([site.proposal for site in self.latents])

    @cached_property
    def log_likelihood(self) -> Tensor:
        return self._total(self.observations)


@dataclass(frozen=True)
class Particles:
    """What every estimator reads: M particles a^m ~ q(a | y, I) of each datum.

    Args:
        draws: one vectorised draw, or one draw per particle (whose sites may then differ: stochastic
            control flow).
        shares_parameters: the guide's density is a function of the model's parameters (the prior
            as proposal), so that gradients of ``log_proposal`` go to theta.
    """

    draws: tuple[TraceDraw, ...]
    shares_parameters: bool

    def _stack(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    @property
    def scale(self) -> float:
        """The subsampling scale of the data plate, outside the logarithm."""
        return self.draws[0].layout.scale

    @property
    def num_particles(self) -> int:
        return sum(draw.size[0] for draw in self.draws)

    @cached_property
    def log_prior(self) -> Tensor:
        """log p(a | I), ``[particle, *datum]``."""
        return self._stack([draw.log_prior for draw in self.draws])

    @cached_property
    def log_proposal(self) -> Tensor:
        """log q(a | y, I), ``[particle, *datum]``."""
        return self._stack([draw.log_proposal for draw in self.draws])

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(y | a, I) of observed sites and factors, ``[particle, *datum]``."""
        return self._stack([draw.log_likelihood for draw in self.draws])

    @cached_property
    def log_ratio(self) -> Tensor:
        """log r = log p(a | I) - log q(a | y, I), a constant; ``[particle, *datum]``."""
        return (self.log_prior - self.log_proposal).detach()

    @cached_property
    def log_weights(self) -> Tensor:
        """log w~ = log r + log p(y | a, I), a constant; ``[particle, *datum]``."""
        return self.log_ratio + self.log_likelihood.detach()

    def rows(self) -> Iterator[tuple[TraceDraw, slice]]:
        """Each draw with the rows of ``[particle, *datum]`` that it fills."""
        start = 0
        for draw in self.draws:
            stop = start + draw.size[0]
            yield draw, slice(start, stop)
            start = stop
