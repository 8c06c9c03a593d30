"""The variational bound F and its score-function gradient."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.base import Objective
from wsram_ppl.objectives.baselines import Baseline
from wsram_ppl.objectives.estimators import weighted
from wsram_ppl.objectives.particles import Latent, Particles, TraceDraw
from wsram_ppl.objectives.running import MinibatchMeans

__all__ = ["VariationalBaseline", "VariationalBound", "downstream_signals"]

#: What may be subtracted from the learning signal.
VariationalBaseline = Literal["none", "leave-one-out", "site"]

#: Why a baseline is valid: it may use anything that is known before a_n is drawn.
_TOO_LATE = (
    "the baseline of site '{}' is declared in the model, but there it may depend on latents that "
    "the guide draws later: declare it on the guide's site"
)


@dataclass(eq=False)
class VariationalBound(Objective):
    r"""Variational bound F = E_q[log w~] by score functions (VAR; NVIL for the guide).

    With particles a^m ~ q and F_m = log p(a^m, y) - log q(a^m), averaged over m:

    * theta (model): d log p(y, a^m); with the prior as proposal this is eq. 5 of Ba et al. (2015),
      d log p(y|a) + log p(y|a) d log p(a);
    * eta (guide): (signal - baseline) d log q(a^m). The term -d log q has mean zero and is left out.

    Exactly unbiased for the gradient of E[F] with every baseline.

    Args:
        baseline: what is subtracted from the learning signal.
            ``"none"``: nothing.
            ``"leave-one-out"``: the mean F of the other particles (needs ``num_particles`` >= 2).
            ``"site"``: per site, what Pyro's ``infer={"baseline": {...}}`` declares on it (nothing
            where nothing is declared), fitted by least squares within this objective; and the signal of
            a site leaves out every term that is known before the site is drawn.
        num_particles, max_plate_nesting, vectorize_particles, retain_graph, regularizer: see
            :class:`~wsram_ppl.objectives.base.Objective`.

    Raises:
        ValueError: an unknown baseline; leave-one-out with a single particle.

    Example::

        svi = SVI(model, guide, Adam({"lr": 1e-3}), VariationalBound("leave-one-out", num_particles=5))
    """

    baseline: VariationalBaseline = "none"
    _: KW_ONLY
    num_particles: int = 1

    def __post_init__(self) -> None:
        if self.baseline not in get_args(VariationalBaseline):
            raise ValueError(
                f"unknown baseline '{self.baseline}': choose 'none', 'leave-one-out' or 'site'"
            )
        if self.baseline == "leave-one-out" and self.num_particles < 2:
            raise ValueError("baseline 'leave-one-out' needs num_particles of at least 2")
        super().__post_init__()

    def bound(self, log_weights: Tensor) -> Tensor:
        return estimators.variational_bound(log_weights)

    def surrogate(self, particles: Particles) -> Tensor:
        each = torch.ones_like(particles.log_weights)
        direct = weighted(each, particles.log_likelihood) + weighted(each, particles.log_prior)
        if particles.shares_parameters:
            direct = direct - weighted(each, particles.log_proposal)
        if self.baseline == "site":
            score = self._score_per_site(particles)
        else:
            signal = particles.log_weights
            if self.baseline == "leave-one-out":
                signal = signal - estimators.leave_one_out_mean(signal)
            score = weighted(estimators.finite(signal), particles.log_proposal)
        return (direct + score) / particles.num_particles

    def _score_per_site(self, particles: Particles) -> Tensor:
        total, means = particles.log_weights.new_zeros(()), MinibatchMeans()
        decays: dict[str, float] = {}
        for draw in particles.draws:
            signals = downstream_signals(draw)
            for site in draw.latents:
                signal = signals[site.proposal.last_dependency].unsqueeze(-1)
                declared = _declared(site)
                if declared is None:
                    total = total + weighted(signal, site.proposal.elements)
                    continue
                baseline = signal.new_zeros(())
                if declared.use_decaying_avg_baseline:
                    name = f"baseline/{site.name}"
                    baseline = self.running.get(name, baseline)
                    means.add(name, signal)
                    decays[name] = declared.baseline_beta
                predicted = declared.predict(site.proposal.log_prob.shape, draw.layout.arrange)
                if predicted is not None:
                    baseline = baseline + predicted
                    error = (signal - baseline).expand(site.proposal.elements.shape)
                    total = total - estimators.squared_error(error, site.proposal.mask)
                total = total + weighted(signal - baseline, site.proposal.elements)
        means.commit(self.running, decays)
        return total


def _declared(site: Latent) -> Baseline | None:
    """The baseline of a site: the guide's, or the model's where that is known soon enough."""
    if site.proposal_baseline is not None or site.prior_baseline is None:
        return site.proposal_baseline
    if site.last_parent >= site.proposal.last_dependency:
        raise ValueError(_TOO_LATE.format(site.name))
    return site.prior_baseline


def downstream_signals(draw: TraceDraw) -> list[Tensor]:
    """For each latent in the guide's order, the part of log w~ that it can still influence.

    A term is left out of the signal of site n when everything that it may depend on is drawn before
    n in the guide: its product with d log q(a_n) has mean zero. ``[particle, *datum]`` each, constants.
    """
    buckets: list[list[Tensor]] = [[] for _ in draw.latents]
    for site in draw.latents:
        buckets[site.prior.last_dependency].append(site.prior.total.detach())
        buckets[site.proposal.last_dependency].append(-site.proposal.total.detach())
    for term in draw.observations:
        if term.last_dependency >= 0:  # otherwise it depends on no latent at all
            buckets[term.last_dependency].append(term.total.detach())
    signals, later = [], torch.zeros_like(draw.log_prior)
    for bucket in reversed(buckets):
        later = sum(bucket, start=later)
        signals.append(estimators.finite(later))
    return signals[::-1]
