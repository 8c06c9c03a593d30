r"""The estimators, as pure functions of ``[particle, *datum]`` tensors.

Dimension 0 holds the M particles of each datum; nothing is normalised across the other dimensions. All
inputs and outputs are constants: a gradient estimator is ``sum_m coefficient_m * d log-density_m``,
and these functions return the coefficients. Weights stay in log space until they are normalised.

Equation numbers are those of Ba, Grosse, Salakhutdinov, Frey (NIPS 2015, arXiv 1509.06812); VIMCO is
Mnih, Rezende (ICML 2016, arXiv 1602.06725), OVIS Liévin et al. (NeurIPS 2020, arXiv 2008.01998), the
thermodynamic objective Masrani, Le, Wood (NeurIPS 2019, arXiv 1907.00031).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def multi_sample_bound(log_weights: Tensor) -> Tensor:
    """L_M = log mean_m w~_m (eq. 9), ``[*datum]``; -inf if no particle has any weight."""
    return torch.logsumexp(log_weights, 0) - math.log(log_weights.shape[0])


def variational_bound(log_weights: Tensor) -> Tensor:
    """F = mean_m log w~_m (eq. 2, 3), ``[*datum]``."""
    return log_weights.mean(0)


def normalized_weights(log_weights: Tensor) -> Tensor:
    """w = softmax_m(log w~), ``[particle, *datum]``; all 0 if every w~ is 0."""
    return torch.softmax(log_weights, 0).masked_fill(torch.isneginf(log_weights), 0.0)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """1 / sum_m w_m^2, in [1, M], ``[*datum]``; 0 if every w~ is 0."""
    squared = normalized_weights(log_weights).square().sum(0)
    return torch.where(squared > 0, squared.reciprocal(), squared)


def ratio(log_ratio: Tensor) -> Tensor:
    """r = exp(log r), clamped to the fourth root of the largest float.

    Beyond that (e^22 in float32) r^2, which the coefficients below average, would soon overflow;
    an estimator with such a ratio has no useful variance anyway.
    """
    return log_ratio.clamp(max=math.log(torch.finfo(log_ratio.dtype).max) / 4).exp()


def finite(log_density: Tensor) -> Tensor:
    """The log-density with -inf replaced by a constant 0, so that a zero coefficient gives zero.

    A particle ruled out by the model has weight 0, but 0 * -inf is not a number.
    """
    return log_density.masked_fill(torch.isneginf(log_density), 0.0)


def weighted(coefficient: Tensor, log_density: Tensor) -> Tensor:
    """sum coefficient_m log_density_m over particles and data, to be differentiated."""
    return (coefficient.detach() * finite(log_density)).sum()


def squared_error(residual: Tensor, mask: Tensor | None) -> Tensor:
    """sum residual^2 where the mask is true, to be differentiated; the value itself is 0.

    The square would overflow float32 above 1e19, although its gradient does not.
    """
    squared = 2 * residual.detach() * (residual - residual.detach())
    return squared.sum() if mask is None else (squared * mask).sum()


def _others(x: Tensor, scan: str) -> Tensor:
    """The running ``scan`` ("sum" or "logsumexp") over all *other* particles, in O(M).

    Joins an exclusive scan from the front with one from the back. Subtracting a particle from the
    total would be shorter but wrong: it cancels if that particle has all the weight, and is inf - inf
    if its log-weight is infinite.
    """
    accumulate: Callable[[Tensor, int], Tensor]
    join: Callable[[Tensor, Tensor], Tensor]
    if scan == "sum":
        accumulate, join, empty = torch.cumsum, torch.add, 0.0
    else:
        accumulate, join, empty = torch.logcumsumexp, torch.logaddexp, -math.inf
    edge = torch.full_like(x[:1], empty)
    before = torch.cat([edge, accumulate(x[:-1], 0)])
    after = torch.cat([accumulate(x[1:].flip(0), 0).flip(0), edge])
    return join(before, after)


def leave_one_out_mean(signal: Tensor) -> Tensor:
    """The mean of the other particles' signals, a baseline that does not change the expectation.

    Raises:
        ValueError: there is only one particle.
    """
    if signal.shape[0] < 2:
        raise ValueError("a leave-one-out baseline needs at least 2 particles")
    others = _others(signal, "sum") / (signal.shape[0] - 1)
    # Others that are ruled out (-inf) make a useless baseline; 0 is just as unbiased.
    return torch.where(torch.isfinite(others), others, 0.0)


def vimco_signal(log_weights: Tensor) -> Tensor:
    """The learning signal of the guide in ImportanceBound, ``[particle, *datum]``, in O(M).

    L_M - L_M with w~_m replaced by the geometric mean of the others (Mnih, Rezende 2016, eq. 10).
    With one particle there are no others and the signal is log w~ itself.
    """
    particles = log_weights.shape[0]
    bound = multi_sample_bound(log_weights)
    if particles > 1:
        stand_in = _others(log_weights, "sum") / (particles - 1)
        without = torch.logaddexp(_others(log_weights, "logsumexp"), stand_in)
        without = without - math.log(particles)
        signal = bound - torch.where(torch.isfinite(without), without, 0.0)
    else:
        signal = log_weights
    # If every particle is ruled out the bound is -inf and has no gradient.
    return torch.where(torch.isneginf(bound), 0.0, signal)


def ovis_signal(log_weights: Tensor, gamma: float) -> Tensor:
    r"""OVIS's learning signal of the guide in ImportanceBound, ``[particle, *datum]``, in O(M).

    The asymptotic control variate of Liévin et al. (2020, eq. 17): the coefficient ``signal - w`` of
    d log q(a^m) is

        L_M - log mean_{l != m} w~_l - (1 - gamma) (w_m + log(1 - 1/M)).

    Its expectation is the gradient of E[L_M] plus gamma sum_m w_m d log q(a^m), the gradient of wake-q.

    Args:
        gamma: in [0, 1]; 0 is unbiased for E[L_M].
    """
    count = log_weights.shape[0]
    bound = multi_sample_bound(log_weights)
    without = _others(log_weights, "logsumexp") - math.log(count - 1)
    signal = bound - torch.where(torch.isfinite(without), without, 0.0)
    signal = signal + gamma * normalized_weights(log_weights) - (1 - gamma) * math.log1p(-1 / count)
    # If every particle is ruled out the bound is -inf and has no gradient.
    return torch.where(torch.isneginf(bound), 0.0, signal)


def thermodynamic_bound(log_weights: Tensor, temperatures: Tensor) -> Tensor:
    """The left Riemann sum of E_beta[log w~] over beta from 0 to 1, ``[*datum]``.

    E_beta, under q^(1 - beta) p^beta, is estimated by weights softmax(beta log w~).

    Args:
        temperatures: 0 = beta_0 < ... < beta_K = 1, ``[K + 1]``.
    """
    tempered, steps = _tempered(log_weights, temperatures)
    return (steps * (tempered * finite(log_weights)).sum(1)).sum(0)


def thermodynamic_coefficients(log_weights: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """The covariance gradient of :func:`thermodynamic_bound`: of d log p(y, a^m) and of d log q(a^m).

    d E_beta[f] = E_beta[d f] + Cov_beta[f, beta d log p + (1 - beta) d log q] with f = log w~, whose
    covariance is estimated with M / (M - 1) (Masrani et al. 2019, eq. 12).

    Returns:
        Two tensors ``[particle, *datum]``.
    """
    count = log_weights.shape[0]
    tempered, steps = _tempered(log_weights, temperatures)
    f = finite(log_weights)
    centred = f - (tempered * f).sum(1, keepdim=True)
    if count > 1:
        centred = centred * (count / (count - 1))
    beta = temperatures[:-1].reshape(-1, *[1] * log_weights.dim())
    model = (steps.unsqueeze(1) * tempered * (1 + beta * centred)).sum(0)
    guide = (steps.unsqueeze(1) * tempered * ((1 - beta) * centred - 1)).sum(0)
    return model, guide


def _tempered(log_weights: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(beta log w~) at each step's left end, ``[K, particle, *datum]``; the steps' widths."""
    shape = (-1, *[1] * log_weights.dim())
    beta = temperatures[:-1].reshape(shape)
    # At beta = 0 a particle that is ruled out counts like any other: 0 * -inf should be 0.
    heated = torch.where(beta > 0, beta * log_weights, 0.0)
    tempered = torch.softmax(heated, 1).masked_fill(torch.isneginf(heated), 0.0)
    return tempered, temperatures.diff().reshape(shape[:-1])
