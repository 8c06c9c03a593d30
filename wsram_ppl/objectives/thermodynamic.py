"""The thermodynamic variational objective, between the variational bound and log p(y)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wsram_ppl.errors import InputError
from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.estimators import weighted
from wsram_ppl.objectives.multi_sample import MultiSampleObjective
from wsram_ppl.objectives.particles import Particles

__all__ = ["ThermodynamicBound"]


@dataclass(eq=False)
class ThermodynamicBound(MultiSampleObjective):
    r"""Thermodynamic bound sum_k (beta_{k+1} - beta_k) E_{beta_k}[log w~] (TVO; Masrani et al. 2019).

    log p(y) is the integral of E_beta[log w~], under a density proportional to q^(1 - beta) p^beta, over
    beta from 0 to 1. The integrand increases with beta, so that the left Riemann sum is a lower bound:
    with one temperature (beta = 0) the variational bound, and closer to log p(y) with more temperatures.

    Model and guide follow the covariance gradient, which needs neither pathwise gradients nor baselines.
    Expectations under the tempered densities are estimated from the M particles with
    self-normalised weights softmax(beta log w~): bound and gradient are consistent, with a bias of
    O(1/M) from every temperature above 0. With ``num_temperatures = 1`` both are unbiased, except the
    guide's gradient with one particle, which has no covariance.

    Args:
        num_particles: M, at least 2.
        num_temperatures: K, at least 1: 0, and K - 1 spaced evenly in log beta.
        first_temperature: the smallest beta above 0; in (0, 1).
        num_global_particles: see :class:`~wsram_ppl.objectives.multi_sample.MultiSampleObjective`.
        max_plate_nesting, vectorize_particles, pathwise, retain_graph, regularizer: see
            :class:`~wsram_ppl.objectives.base.Objective`. Only global sites may be ``pathwise``.

    Raises:
        ValueError: a number out of range; a pathwise site inside the data plates.

    Example::

        svi = SVI(model, guide, Adam({"lr": 1e-3}), ThermodynamicBound(10, vectorize_particles=True))
    """

    num_particles: int = field(default=5, kw_only=False)
    num_temperatures: int = field(default=5, kw_only=True)
    first_temperature: float = field(default=0.08, kw_only=True)

    def __post_init__(self) -> None:
        if self.num_particles < 2:
            raise ValueError("ThermodynamicBound needs num_particles of at least 2, for a covariance")
        if self.num_temperatures < 1:
            raise ValueError(f"num_temperatures must be at least 1, not {self.num_temperatures}")
        if not 0.0 < self.first_temperature < 1.0:
            raise ValueError(f"first_temperature must lie in (0, 1), not {self.first_temperature}")
        super().__post_init__()

    def temperatures(self, like: Tensor) -> Tensor:
        """0 = beta_0 < ... < beta_K = 1, ``[K + 1]``, with the dtype of ``like``."""
        between = self.first_temperature ** torch.linspace(
            1.0, 0.0, self.num_temperatures, device=like.device, dtype=like.dtype
        )
        if self.num_temperatures == 1:
            between = like.new_ones(1)
        return torch.cat([like.new_zeros(1), between])

    def bound(self, log_weights: Tensor) -> Tensor:
        return estimators.thermodynamic_bound(log_weights, self.temperatures(log_weights))

    def surrogate(self, particles: Particles) -> Tensor:
        if particles.log_pathwise is not None:
            names = [site.name for draw in particles.draws for site in draw.latents if site.pathwise]
            raise InputError(
                f"site '{names[0]}' is pathwise, but the covariance gradient of ThermodynamicBound uses "
                "scores: leave it out of pathwise, or use ImportanceBound"
            )
        model, guide = estimators.thermodynamic_coefficients(
            particles.log_weights, self.temperatures(particles.log_weights)
        )
        return (
            weighted(model, particles.log_likelihood)
            + weighted(model, particles.log_prior)
            + weighted(guide, particles.log_proposal)
        )
