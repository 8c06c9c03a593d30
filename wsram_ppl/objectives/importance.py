"""The multi-sample importance bound with its exact gradient."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.base import Objective
from wsram_ppl.objectives.estimators import weighted
from wsram_ppl.objectives.particles import Particles

__all__ = ["ImportanceBound"]


@dataclass(eq=False)
class ImportanceBound(Objective):
    r"""Importance bound L_M = E[log mean_m w~_m] with its exact gradient (VIMCO for the guide).

    * theta (model): sum_m w_m d log p(y, a^m), w = softmax(log w~);
    * eta (guide): sum_m (signal_m - w_m) d log q(a^m), with VIMCO's leave-one-out signal (Mnih,
      Rezende 2016), in O(M).

    Exactly unbiased for the gradient of E[L_M] with respect to both, also with the prior as
    proposal, where theta receives the score term too.

    Args:
        num_particles: M. With 1 this is the variational bound, with log w~ itself as the signal.
        max_plate_nesting, vectorize_particles, retain_graph, regularizer: see
            :class:`~wsram_ppl.objectives.base.Objective`.

    Example::

        loss = ImportanceBound(num_particles=5, vectorize_particles=True)(model, guide)
        loss(images, labels).backward()
    """

    num_particles: int = field(default=5, kw_only=False)

    def bound(self, log_weights: Tensor) -> Tensor:
        return estimators.multi_sample_bound(log_weights)

    def surrogate(self, particles: Particles) -> Tensor:
        weights = estimators.normalized_weights(particles.log_weights)
        signal = estimators.vimco_signal(particles.log_weights)
        return (
            weighted(weights, particles.log_likelihood)
            + weighted(weights, particles.log_prior)
            + weighted(signal - weights, particles.log_proposal)
        )
