"""The input of every estimator: log-densities of M particles of each datum, ``[particle, *datum]``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from wsram_ppl.objectives.baselines import Baseline
from wsram_ppl.objectives.plates import PlateLayout, Plates, Term

__all__ = ["Latent", "Particles", "TraceDraw"]


@dataclass(frozen=True)
class Latent:
    """One latent site: log p(a_n | a_<n, I) and log q(a_n | a_<n, y, I).

    Args:
        name: the site's name.
        prior: its term in the model; None for an auxiliary site, which only the guide has.
        proposal: its term in the guide.
        prefix_size: the size of the smallest set of latents, in the model's order, that contains this
            one and comes first in both programs: only over such a set is the partial ratio a ratio of
            two normalised densities. n + 1 for the n-th if the orders agree.
        last_parent: position, in the guide's order, of the last latent drawn before this one in the
            model; -1 for none.
        prior_baseline: the baseline declared on the model's site; known before a_n in the model.
        proposal_baseline: the same for the guide's site.
        pathwise: whether its value carries gradients; otherwise its score trains the guide.
    """

    name: str
    prior: Term | None
    proposal: Term
    prefix_size: int
    last_parent: int
    prior_baseline: Baseline | None
    proposal_baseline: Baseline | None
    pathwise: bool


@dataclass(frozen=True)
class TraceDraw:
    """One run of guide and model: all particles at once, or one of them.

    Args:
        latents: the local latent sites in the model's order.
        globals: the sites outside the data plates, ``[particle]`` (size 1 if they were drawn once).
        observations: log-densities of observed sites and factors.
        plates: which are the data plates, and how dimensions map to ``[particle, *datum]``.
        size: the shape ``[particle, *datum]`` of this draw.
        model_trace, guide_trace: the traces that it was read from.
    """

    latents: tuple[Latent, ...]
    globals: tuple[Latent, ...]
    observations: tuple[Term, ...]
    plates: Plates
    size: tuple[int, ...]
    model_trace: Trace
    guide_trace: Trace

    @property
    def layout(self) -> PlateLayout:
        """How a local site's dimensions map to ``[particle, *datum]``."""
        return self.plates.layout

    def total(self, terms: Sequence[Tensor]) -> Tensor:
        """The sum over local sites, ``[particle, *datum]``."""
        return add(terms, self._some.new_zeros(()) if not terms else None).expand(self.size)

    @cached_property
    def _some(self) -> Tensor:
        terms = [*self.observations, *(site.proposal for site in (*self.latents, *self.globals))]
        return terms[0].log_prob

    @cached_property
    def log_prior(self) -> Tensor:
        """log p(a | I) of the local sites, ``[particle, *datum]``."""
        return self.total([site.prior.scaled for site in self.latents if site.prior is not None])

    @cached_property
    def log_proposal(self) -> Tensor:
        """log q(a | y, I) of the local sites, ``[particle, *datum]``."""
        return self.total([site.proposal.scaled for site in self.latents])

    @cached_property
    def log_score(self) -> Tensor:
        """log q of the local sites whose values are constants, not scaled."""
        if not any(site.pathwise or site.proposal.is_scaled for site in self.latents):
            return self.log_proposal
        return self.total([site.proposal.total for site in self.latents if not site.pathwise])

    @cached_property
    def log_pathwise(self) -> Tensor | None:
        """log q of the local sites whose values carry gradients; None without any."""
        terms = [site.proposal.scaled for site in self.latents if site.pathwise]
        return self.total(terms) if terms else None

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(y | a, I) of observed sites and factors, ``[particle, *datum]``."""
        return self.total([term.scaled for term in self.observations])

    @cached_property
    def global_bound(self) -> Tensor | None:
        """log p(g) - log q(g) of the global sites, ``[particle]``; None without any."""
        terms = [site.prior.scaled for site in self.globals if site.prior is not None]
        terms += [-site.proposal.scaled for site in self.globals]
        return add(terms) if terms else None


def add(terms: Sequence[Tensor], start: Tensor | None = None) -> Tensor:
    """The sum; ``start`` if there is nothing to sum."""
    if not terms:
        assert start is not None
        return start
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@dataclass(frozen=True)
class Particles:
    """The input of every estimator: M particles a^m ~ q(a | y, I) of each datum.

    Log-densities are in units of the data plates' scale: a site with another scale
    (:func:`pyro.poutine.scale`) counts as often as its scale says.

    Args:
        draws: one vectorised draw, or one draw per particle (whose sites may then differ: stochastic
            control flow).
        shares_parameters: whether the guide's density is a function of the model's parameters (the
            prior as proposal), so that gradients of ``log_proposal`` go to theta.
        constant: the same particles with values without gradients, if the estimator needs both.
    """

    draws: tuple[TraceDraw, ...]
    shares_parameters: bool
    constant: Particles | None = None

    def _stack(self, parts: Sequence[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(list(parts))

    @property
    def scale(self) -> float:
        """The subsampling scale of the data plates, outside the logarithm."""
        return self.draws[0].plates.scale

    @property
    def num_particles(self) -> int:
        """M."""
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
    def log_score(self) -> Tensor:
        """log q of the sites whose values are constants, not scaled; ``[particle, *datum]``."""
        return self._stack([draw.log_score for draw in self.draws])

    @cached_property
    def log_pathwise(self) -> Tensor | None:
        """log q of the sites whose values carry gradients, ``[particle, *datum]``; None without any."""
        parts = [draw.log_pathwise for draw in self.draws]
        if all(part is None for part in parts):
            return None
        zeros = self.draws[0].log_proposal.new_zeros
        return self._stack(
            [zeros(d.size) if part is None else part for d, part in zip(self.draws, parts, strict=True)]
        )

    @cached_property
    def log_likelihood(self) -> Tensor:
        """log p(y | a, I) of observed sites and factors, ``[particle, *datum]``."""
        return self._stack([draw.log_likelihood for draw in self.draws])

    @cached_property
    def global_bound(self) -> Tensor | None:
        """log p(g) - log q(g) of the global sites, the mean over particles; None without any."""
        parts = [draw.global_bound for draw in self.draws]
        if self.draws[0].plates.global_names and parts[0] is not None:
            return self._stack([part for part in parts if part is not None]).mean(0)
        return None

    @cached_property
    def log_ratio(self) -> Tensor:
        """log r = log p(a | I) - log q(a | y, I), a constant; ``[particle, *datum]``."""
        return (self.log_prior - self.log_proposal).detach()

    @cached_property
    def log_weights(self) -> Tensor:
        """log w~ = log r + log p(y | a, I), a constant; ``[particle, *datum]``."""
        return self.log_ratio + self.log_likelihood.detach()

    @cached_property
    def log_weights_with_gradient(self) -> Tensor:
        """log w~ as a function of parameters and of values that carry gradients."""
        return self.log_prior + self.log_likelihood - self.log_proposal

    def rows(self) -> Iterator[tuple[TraceDraw, slice]]:
        """Each draw, with the rows of ``[particle, *datum]`` that it fills."""
        start = 0
        for draw in self.draws:
            stop = start + draw.size[0]
            yield draw, slice(start, stop)
            start = stop
