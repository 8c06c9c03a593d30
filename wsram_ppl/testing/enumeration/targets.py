"""What estimates should be on average, from the tables alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wsram_ppl.testing.enumeration.problems import Tables
from wsram_ppl.testing.enumeration.tuples import Tuples


def expected_bound(tuples: Tuples, kind: str) -> Callable[[Tables, Tables], Tensor]:
    """(theta, eta) -> E[F] (``kind="F"``) or E[L_M] (``"L"``), a differentiable function of both."""
    problem = tuples.problem

    def function(theta: Tables, eta: Tables) -> Tensor:
        log_q = problem.log_proposal(eta)
        log_w = problem.log_weights(theta, eta)
        if kind == "F":
            mean: Tensor = (log_q.exp() * log_w).sum()
            return mean
        bound = torch.logsumexp(tuples.of(log_w), 1) - torch.tensor(float(tuples.particles)).log()
        expected: Tensor = (tuples.log_probability(log_q).exp() * bound).sum()
        return expected

    return function


def weights(tuples: Tuples) -> Tensor:
    """Each tuple's normalised importance weights, constants; ``[T, M]``."""
    problem = tuples.problem
    return tuples.of(problem.log_weights(problem.theta, problem.eta)).softmax(1)


def weighted_scores(
    tuples: Tuples, coefficient: Tensor, log_density: Callable[[Tables, Tables], Tensor]
) -> Callable[[Tables, Tables], Tensor]:
    """(theta, eta) -> E[sum_m coefficient_m log density(a^m)], to be differentiated in the density only.

    Args:
        coefficient: constants, ``[T, M]``.
        log_density: (theta, eta) -> ``[A]``.
    """

    def function(theta: Tables, eta: Tables) -> Tensor:
        each = (coefficient * tuples.of(log_density(theta, eta))).sum(1)
        return (tuples.probability * each).sum()

    return function


def combined_scores(
    tuples: Tuples, tables: Tables, *terms: tuple[Tensor, Callable[[Tables], Tensor]]
) -> list[Tensor]:
    """What each tuple's estimate should be: a sum over terms and m of coefficient_m d log-density(a^m).

    Args:
        tables: theta or eta.
        terms: pairs of a coefficient ``[T, M]`` and a log-density, from the tables to ``[A]``.

    Returns:
        ``[T, *table]`` for each of the tables.
    """
    total = [torch.zeros(tuples.rows, *table.shape, dtype=table.dtype) for table in tables]
    for coefficient, log_density in terms:

        def function(*tables: Tensor, log_density: Callable[[Tables], Tensor] = log_density) -> Tensor:
            return log_density(tables)

        scores = torch.autograd.functional.jacobian(function, tuple(tables), vectorize=True)
        for sum_, score in zip(total, scores, strict=True):
            sum_ += torch.einsum("tm,tm...->t...", coefficient, score[tuples.index])
    return total
