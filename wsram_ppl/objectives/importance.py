"""The multi-sample importance bound with its exact gradient."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.base import check_choice
from wsram_ppl.objectives.estimators import weighted
from wsram_ppl.objectives.multi_sample import MultiSampleObjective
from wsram_ppl.objectives.particles import Particles, TraceDraw

__all__ = ["GuideGradient", "ImportanceBound"]

#: The score-function estimator of the guide's gradient.
GuideGradient = Literal["vimco", "ovis"]


@dataclass(eq=False)
class ImportanceBound(MultiSampleObjective):
    r"""Importance bound L_M = E[log mean_m w~_m] with its exact gradient.

    * theta (model): sum_m w_m d log p(y, a^m), w = softmax(log w~);
    * eta (guide): sum_m (signal_m - w_m) d log q(a^m), with VIMCO's leave-one-out signal (Mnih,
      Rezende 2016) or that of OVIS (Liévin et al. 2020), in O(M). For ``pathwise`` sites,
      sum_m w_m d log w~_m through their values, or doubly reparameterised (Tucker et al. 2019)
      sum_m w_m^2 (d log w~_m / d a) d a / d eta.

    Exactly unbiased for the gradient of E[L_M] with respect to both, also with the prior as
    proposal, where theta receives the score term too; except for OVIS with ``ovis_gamma`` > 0.

    Args:
        num_particles: M. With 1 this is the variational bound, with log w~ itself as the signal.
        guide_gradient: ``"vimco"``, or ``"ovis"`` (needs ``num_particles`` >= 2).
        ovis_gamma: in [0, 1]; the expectation is the exact gradient plus ``ovis_gamma`` times that of
            wake-q. According to the paper, 0 suits few effective particles and 1 many.
        doubly_reparameterized: for ``pathwise`` sites; model and guide then run twice.
        num_global_particles: see :class:`~wsram_ppl.objectives.multi_sample.MultiSampleObjective`.
        max_plate_nesting, vectorize_particles, pathwise, retain_graph, regularizer: see
            :class:`~wsram_ppl.objectives.base.Objective`.

    Raises:
        ValueError: an unknown ``guide_gradient``, ``ovis_gamma`` out of range, OVIS with one particle;
            ``doubly_reparameterized`` without a pathwise site.

    Example::

        loss = ImportanceBound(num_particles=5, vectorize_particles=True)(model, guide)
        loss(images, labels).backward()
    """

    num_particles: int = field(default=5, kw_only=False)
    guide_gradient: GuideGradient = field(default="vimco", kw_only=True)
    ovis_gamma: float = field(default=0.0, kw_only=True)
    doubly_reparameterized: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("guide_gradient", self.guide_gradient, get_args(GuideGradient), type(self).__name__)
        if not 0.0 <= self.ovis_gamma <= 1.0:
            raise ValueError(f"ovis_gamma must lie in [0, 1], not {self.ovis_gamma}")
        if self.guide_gradient == "ovis" and self.num_particles < 2:
            raise ValueError("guide_gradient 'ovis' needs num_particles of at least 2")

    def bound(self, log_weights: Tensor) -> Tensor:
        return estimators.multi_sample_bound(log_weights)

    def held_constant(self, draws: Sequence[TraceDraw]) -> Collection[str]:
        return pathwise_names(draws) if self.doubly_reparameterized else ()

    def surrogate(self, particles: Particles) -> Tensor:
        weights = estimators.normalized_weights(particles.log_weights)
        if self.guide_gradient == "ovis":
            signal = estimators.ovis_signal(particles.log_weights, self.ovis_gamma)
        else:
            signal = estimators.vimco_signal(particles.log_weights)
        direct = particles.constant or particles
        gain = (
            weighted(weights, direct.log_likelihood)
            + weighted(weights, direct.log_prior)
            + weighted(signal - weights, particles.log_score)
        )
        if particles.constant is not None:
            return gain + through_samples(weights.square(), particles)
        if particles.log_pathwise is not None:
            gain = gain - weighted(weights, particles.log_pathwise)
        return gain


def pathwise_names(draws: Sequence[TraceDraw]) -> list[str]:
    """The local latents whose values carry gradients.

    Raises:
        ValueError: there are none.
    """
    names = [*{site.name: None for draw in draws for site in draw.latents if site.pathwise}]
    if not names:
        raise InputError(
            "doubly_reparameterized=True needs a latent inside the data plates that is pathwise "
            "(and, in the guide, depends on a parameter): name it in pathwise"
        )
    return names


def through_samples(coefficient: Tensor, particles: Particles) -> Tensor:
    """sum coefficient (d log w~ / d a) d a: the direct effect of parameters cancels."""
    assert particles.constant is not None
    held = particles.constant.log_weights_with_gradient
    return weighted(coefficient, particles.log_weights_with_gradient) - weighted(coefficient, held)
