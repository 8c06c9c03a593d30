"""The prior as proposal: guide and model share theta, and each objective says what theta then gets.

A naive sum of the terms for theta and for eta would be wrong in both directions: it would count the
proposal's own gradient where it does not belong (wake-sleep), or lose it (the bounds).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.objectives.cases import cases, examples
from wsram_ppl.objectives import ImportanceBound, Objective, Prior, VariationalBound, WakeSleep
from wsram_ppl.testing.enumeration import (
    Gradients,
    Problem,
    StateNetwork,
    TableModel,
    Tables,
    Tuples,
    arbitrary_running_state,
    assert_equal,
    combined_scores,
    estimates,
    expected_bound,
    gradient,
    random_problem,
    weighted_scores,
    weights,
)

#: Problems whose guide tables are the prior's own.
prior_cases = cases(least=2, any_order=False, share=st.just(0.0), noisy=False)
Case = tuple[Problem, int]


def estimate(objective: Objective, tuples: Tuples, baselines: bool, seed: int) -> Gradients:
    """The estimates of all tuples with ``Prior(model)`` as guide, at arbitrary running estimates."""
    network = StateNetwork(tuples.problem.names, seed)
    model = TableModel(tuples.problem, tuples.rows, network.declare if baselines else None)

    def run() -> Gradients:
        return estimates(objective, model, Prior(model), tuples.values)

    arbitrary_running_state(objective, run, seed)
    return run()


def bound_under_prior(tuples: Tuples, kind: str) -> Any:
    """E_p[F] or E_p[L_M]: the bound where the proposal *is* the prior, a function of theta alone."""
    count = len(tuples.problem.prior)
    bound = expected_bound(tuples, kind)

    def function(theta: Tables, eta: Tables) -> torch.Tensor:
        return bound(theta, theta[:count])

    return function


@pytest.mark.parametrize("baseline", ["none", "leave-one-out", "site"])
@given(case=prior_cases, vectorized=st.booleans(), declared=st.booleans(), seed=st.integers(0, 999))
@examples(40)
def test_variational_bound_is_unbiased(
    baseline: Any, case: Case, vectorized: bool, declared: bool, seed: int
) -> None:
    """VariationalBound: the gradient of E_p[log p(y|a)], with every baseline."""
    tuples = Tuples(*case)
    objective = VariationalBound(baseline, num_particles=case[1], vectorize_particles=vectorized)
    found = estimate(objective, tuples, declared, seed).map(tuples.mean)
    assert_equal(found.theta, gradient(bound_under_prior(tuples, "F"), case[0]).theta)


@given(case=prior_cases, vectorized=st.booleans())
@examples(40)
def test_variational_bound_is_equation_5(case: Case, vectorized: bool) -> None:
    """VariationalBound("none") is eq. 5 tuple by tuple: d log p(y|a) + log p(y|a) d log p(a)."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = VariationalBound("none", num_particles=particles, vectorize_particles=vectorized)
    log_likelihood = tuples.of(problem.log_likelihood(problem.theta))
    expected = combined_scores(
        tuples,
        problem.theta,
        (torch.ones_like(log_likelihood) / particles, problem.log_likelihood),
        (log_likelihood / particles, problem.log_prior),
    )
    assert_equal(estimate(objective, tuples, False, 0).theta, expected)


@given(case=prior_cases, vectorized=st.booleans(), declared=st.booleans())
@examples(40)
def test_importance_bound_is_unbiased(case: Case, vectorized: bool, declared: bool) -> None:
    """ImportanceBound: the exact gradient of E_p[L_M], score term included."""
    tuples = Tuples(*case)
    objective = ImportanceBound(case[1], vectorize_particles=vectorized)
    found = estimate(objective, tuples, declared, 0).map(tuples.mean)
    assert_equal(found.theta, gradient(bound_under_prior(tuples, "L"), case[0]).theta)


@pytest.mark.parametrize(
    "control_variate", ["none", "self-normalized", "unnormalized", "adaptive", "learned"]
)
@given(case=prior_cases, vectorized=st.booleans(), declared=st.booleans(), seed=st.integers(0, 999))
@examples(30)
def test_wake_sleep_has_no_second_gradient(
    control_variate: Any, case: Case, vectorized: bool, declared: bool, seed: int
) -> None:
    """WakeSleep: the expectation of eq. 8, sum_m w_m d log p(y, a^m), under the prior; nothing more.

    r = 1, so that all five share it. It is not the gradient of E_p[L_M], which has a score term.
    """
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = WakeSleep(
        control_variate, num_particles=particles, vectorize_particles=vectorized, decay=0.5
    )
    found = estimate(objective, tuples, declared, seed).map(tuples.mean)
    target = weighted_scores(
        tuples,
        weights(tuples),
        lambda theta, eta: problem.log_prior(theta) + problem.log_likelihood(theta),
    )
    assert_equal(found.theta, gradient(target, problem).theta)


@pytest.mark.parametrize("control_variate", ["self-normalized", "unnormalized"])
@given(case=prior_cases, vectorized=st.booleans())
@examples(20)
def test_wake_sleep_is_equation_16_with_r_equal_to_1(
    control_variate: Any, case: Case, vectorized: bool
) -> None:
    """Tuple by tuple: sum_m w_m d log p(y|a^m) + (w_m - 1/M) d log p(a^m)."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = WakeSleep(control_variate, num_particles=particles, vectorize_particles=vectorized)
    w = weights(tuples)
    expected = combined_scores(
        tuples, problem.theta, (w, problem.log_likelihood), (w - 1 / particles, problem.log_prior)
    )
    assert_equal(estimate(objective, tuples, False, 0).theta, expected)


@pytest.mark.parametrize("vectorized", [False, True])
def test_the_prior_costs_one_run_of_the_model(vectorized: bool) -> None:
    """Guide and model are one program here: it runs once per draw, not twice."""
    tuples = Tuples(random_problem([2, 2], share=0.0), 3)
    runs = 0

    class Counting(TableModel):
        def in_plate(self) -> None:
            nonlocal runs
            runs += 1

    model = Counting(tuples.problem, tuples.rows)
    objective = WakeSleep(num_particles=3, vectorize_particles=vectorized, max_plate_nesting=1)
    objective.loss(model, Prior(model))  # a first run finds out about the program
    runs = 0
    objective.differentiable_loss(model, Prior(model))
    assert runs == (1 if vectorized else 3)
