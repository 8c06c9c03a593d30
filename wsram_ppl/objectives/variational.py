"""The variational bound F and its score-function gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.base import Objective, Regularizer
from wsram_ppl.objectives.estimators import weighted
from wsram_ppl.objectives.particles import Draw, Latent, Particles

#: Why a baseline is valid: it may use anything that is known before a_n is drawn.
_TOO_LATE = (
    "the baseline of site '{}' is declared in the model, but there it may depend on latents that "
    "the guide draws later: declare it on the guide's site"
)


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
        num_particles, max_plate_nesting, vectorize_particles, strict_enumeration_warning,
            retain_graph, regularizer: see :class:`~wsram_ppl.objectives.base.Objective`.

    Raises:
        ValueError: an unknown baseline; leave-one-out with a single particle.

    Example::

        svi = SVI(model, guide, Adam({"lr": 1e-3}), VariationalBound("leave-one-out", num_particles=5))
    """

    def __init__(
        self,
        baseline: Literal["none", "leave-one-out", "site"] = "none",
        num_particles: int = 1,
        max_plate_nesting: int | float = float("inf"),
        vectorize_particles: bool = False,
        strict_enumeration_warning: bool = True,
        retain_graph: bool | None = None,
        regularizer: Regularizer | None = None,
    ) -> None:
        if baseline not in ("none", "leave-one-out", "site"):
            raise ValueError(f"unknown baseline '{baseline}': choose 'none', 'leave-one-out' or 'site'")
        if baseline == "leave-one-out" and num_particles < 2:
            raise ValueError("baseline 'leave-one-out' needs num_particles of at least 2")
        super().__init__(
            num_particles,
            max_plate_nesting,
            vectorize_particles,
            strict_enumeration_warning,
            retain_graph,
            regularizer,
        )
        self.baseline = baseline

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
        total, averages = particles.log_weights.new_zeros(()), _Averages()
        for draw in particles.draws:
            signals = downstream_signals(draw)
            for site in draw.latents:
                signal = signals[site.proposal.frontier].unsqueeze(-1)
                baseline, loss = self._baseline(site, draw, signal, averages)
                total = total + weighted(signal - baseline, site.proposal.elements) - loss
        averages.commit(self)
        return total

    def _baseline(
        self, site: Latent, draw: Draw, signal: Tensor, averages: _Averages
    ) -> tuple[Tensor, Tensor]:
        """The prediction of ``signal`` ``[particle, *datum, 1]`` and its squared error, summed."""
        zero = signal.new_zeros(())
        declared = site.proposal_baseline
        if declared is None:
            declared = site.prior_baseline
            if declared is not None and site.parents >= site.proposal.frontier:
                raise ValueError(_TOO_LATE.format(site.name))
        if declared is None:
            return zero, zero
        baseline, loss = zero, zero
        if declared.use_decaying_avg_baseline:
            name = f"baseline/{site.name}"
            baseline = self.running.get(name, zero)
            averages.add(name, signal.mean(), declared.baseline_beta)
        predicted = declared.predict(site.proposal.log_prob.shape, draw.layout.arrange)
        if predicted is not None:
            baseline = baseline + predicted
            error = (signal - baseline).expand(site.proposal.elements.shape)
            loss = estimators.squared_error(error, site.proposal.mask)
        return baseline, loss


class _Averages:
    """Collects the signals of one minibatch, to be averaged over its draws and mixed in once."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[list[Tensor], float]] = {}

    def add(self, name: str, value: Tensor, decay: float) -> None:
        self._seen.setdefault(name, ([], decay))[0].append(value)

    def commit(self, objective: Objective) -> None:
        means = {name: torch.stack(values).mean() for name, (values, _) in self._seen.items()}
        objective.running.update(means, {name: decay for name, (_, decay) in self._seen.items()})


def downstream_signals(draw: Draw) -> list[Tensor]:
    """For each latent in the guide's order, the part of log w~ that it can still influence.

    A term is left out of the signal of site n when everything that it may depend on is drawn before
    n in the guide: its product with d log q(a_n) has mean zero. ``[particle, *datum]`` each, constants.
    """
    buckets: list[list[Tensor]] = [[] for _ in draw.latents]
    for site in draw.latents:
        buckets[site.prior.frontier].append(site.prior.total.detach())
        buckets[site.proposal.frontier].append(-site.proposal.total.detach())
    for term in draw.observations:
        if term.frontier >= 0:  # otherwise it depends on no latent at all
            buckets[term.frontier].append(term.total.detach())
    signals, later = [], torch.zeros_like(draw.log_prior)
    for bucket in reversed(buckets):
        later = sum(bucket, start=later)
        signals.append(estimators.finite(later))
    return signals[::-1]
