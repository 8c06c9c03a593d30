"""Every class and option has exactly the expectation that it names (to 1e-9, by enumeration).

"Unbiased" always has an object here: for the gradient of E[F], of E[L_M], or of the wake objectives.
Guides lie at the prior, at the posterior, between them and off that line; they draw the sites in the
model's order or in any other; observations come before, between and after the latents; particles are
drawn at once or one after the other; sites declare baselines or not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.cases import cases, examples
from wsram_ppl.objectives import ImportanceBound, VariationalBound, WakeSleep
from wsram_ppl.testing.enumeration import (
    Declare,
    Gradients,
    Problem,
    StateNetwork,
    TableGuide,
    TableModel,
    Tuples,
    arbitrary_running_state,
    assert_equal,
    combined_scores,
    estimates,
    expectation,
    expected_bound,
    gradient,
    random_problem,
    weighted_scores,
    weights,
)

Case = tuple[Problem, int]

#: The ways to declare a baseline in Pyro's schema; "average" may be joined with another.
DECLARATIONS = ("network", "value", "average", "network average", "value average")


def declaration(kind: str, network: StateNetwork, names: set[str]) -> Declare:
    """Declares baselines of a kind at some of the sites."""

    def declare(name: str, state: Tensor) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if name not in names:
            return options
        if "network" in kind:
            options |= network.declare(name, state)["baseline"]
        if "value" in kind:
            options["baseline_value"] = network.at(name, state)
        if "average" in kind:
            options |= {"use_decaying_avg_baseline": True, "baseline_beta": 0.7}
        return {"baseline": options}

    return declare


@st.composite
def declarations(draw: st.DrawFn) -> Callable[[Problem], Declare]:
    """Random baselines, to be applied to a problem."""
    kind, seed = draw(st.sampled_from(DECLARATIONS)), draw(st.integers(0, 999))
    absent = draw(st.sets(st.integers(0, 2), max_size=1))

    def declare(problem: Problem) -> Declare:
        names = {f"a{n}" for n in range(len(problem.sizes)) if n not in absent}
        return declaration(kind, StateNetwork(problem.names, seed), names)

    return declare


def assert_matches(found: Gradients, expected: Gradients) -> None:
    assert_equal(found.theta, expected.theta)
    assert_equal(found.eta, expected.eta)


# VariationalBound: the gradient of E[F].


@given(cases(), st.booleans())
@examples(40)
def test_variational_bound_without_baseline(case: Case, vectorized: bool) -> None:
    """VariationalBound("none") is unbiased for the gradient of E[F], for theta and eta."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = VariationalBound("none", num_particles=particles, vectorize_particles=vectorized)
    assert_matches(expectation(objective, tuples), gradient(expected_bound(tuples, "F"), problem))


@given(cases(least=2), st.booleans())
@examples(40)
def test_variational_bound_leave_one_out(case: Case, vectorized: bool) -> None:
    """VariationalBound("leave-one-out") is unbiased for the gradient of E[F]."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = VariationalBound(
        "leave-one-out", num_particles=particles, vectorize_particles=vectorized
    )
    assert_matches(expectation(objective, tuples), gradient(expected_bound(tuples, "F"), problem))


@given(cases(), declarations(), st.sampled_from(["nowhere", "guide", "model", "both"]), st.booleans())
@examples(80)
def test_variational_bound_site_baselines(
    case: Case, declare: Callable[[Problem], Declare], where: str, vectorized: bool
) -> None:
    """VariationalBound("site") is unbiased for the gradient of E[F] with every kind of baseline.

    Also where the guide's order disagrees with the model's: a site's signal leaves out only what is
    known before the site in the guide.
    """
    problem, particles = case
    assume(where != "model" or problem.orders_agree)
    tuples = Tuples(problem, particles)
    objective = VariationalBound("site", num_particles=particles, vectorize_particles=vectorized)
    on_model = declare(problem) if where in ("model", "both") else None
    on_guide = declare(problem) if where in ("guide", "both") else None

    def run() -> Gradients:
        return expectation(objective, tuples, on_model, on_guide)

    arbitrary_running_state(objective, run, seed=particles)
    assert_matches(run(), gradient(expected_bound(tuples, "F"), problem))


# ImportanceBound: the gradient of E[L_M].


@given(cases(), st.booleans())
@examples(60)
def test_importance_bound(case: Case, vectorized: bool) -> None:
    """ImportanceBound is unbiased for the gradient of E[L_M], for theta and eta, M = 1, 2, 3."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = ImportanceBound(particles, vectorize_particles=vectorized)
    assert_matches(expectation(objective, tuples), gradient(expected_bound(tuples, "L"), problem))


# WakeSleep, wake-p: the theta-gradient of E[L_M] where q does not depend on theta.


def wake_q(tuples: Tuples) -> list[Tensor]:
    """E[sum_m w_m d log q(a^m)], from the tables."""
    problem = tuples.problem
    target = weighted_scores(tuples, weights(tuples), lambda theta, eta: problem.log_proposal(eta))
    return gradient(target, problem).eta


def wake_p(tuples: Tuples) -> list[Tensor]:
    """E[sum_m w_m d log p(y, a^m)], from the tables."""
    problem = tuples.problem
    target = weighted_scores(
        tuples,
        weights(tuples),
        lambda theta, eta: problem.log_prior(theta) + problem.log_likelihood(theta),
    )
    return gradient(target, problem).theta


@given(cases(least=2))
@examples(20)
def test_wake_p_is_the_gradient_of_the_importance_bound(case: Case) -> None:
    """E[sum_m w_m d log p(y, a^m)] is the theta-gradient of E[L_M] (a check of the targets)."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    assert_equal(wake_p(tuples), gradient(expected_bound(tuples, "L"), problem).theta)


def _wake_sleep(
    case: Case, control_variate: Any, vectorized: bool, seed: int, *declare: Declare | None
) -> tuple[Tuples, Gradients]:
    """The expectation of WakeSleep's estimate with arbitrary running estimates."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = WakeSleep(
        control_variate, num_particles=particles, vectorize_particles=vectorized, decay=0.5
    )

    def run() -> Gradients:
        return expectation(objective, tuples, *declare)

    arbitrary_running_state(objective, run, seed)
    return tuples, run()


@pytest.mark.parametrize("control_variate", ["none", "unnormalized", "adaptive"])
@given(case=cases(least=2), vectorized=st.booleans(), seed=st.integers(0, 999))
@examples(30)
def test_wake_sleep(control_variate: str, case: Case, vectorized: bool, seed: int) -> None:
    """Unbiased, "adaptive" for any c: theta's gradient of E[L_M] and E[sum_m w_m d log q(a^m)].

    E[L_M] is taken with q not depending on theta.
    """
    tuples, found = _wake_sleep(case, control_variate, vectorized, seed)
    assert_equal(found.theta, gradient(expected_bound(tuples, "L"), tuples.problem).theta)
    assert_equal(found.eta, wake_q(tuples))


@given(
    cases(least=2),
    declarations(),
    declarations(),
    st.sampled_from(["nowhere", "guide", "model", "both"]),
    st.booleans(),
    st.integers(0, 999),
)
@examples(100)
def test_wake_sleep_learned(
    case: Case,
    on_model: Callable[[Problem], Declare],
    on_guide: Callable[[Problem], Declare],
    where: str,
    vectorized: bool,
    seed: int,
) -> None:
    """With any coefficients of the state, "learned" has the same expectations as "none".

    Partial ratios reach just as far as the two programs' orders allow; with orders that disagree too.
    """
    problem = case[0]
    tuples, found = _wake_sleep(
        case,
        "learned",
        vectorized,
        seed,
        on_model(problem) if where in ("model", "both") else None,
        on_guide(problem) if where in ("guide", "both") else None,
    )
    assert_equal(found.theta, gradient(expected_bound(tuples, "L"), problem).theta)
    assert_equal(found.eta, wake_q(tuples))


# The paper's choice, and its own expectation.


def self_normalized(tuples: Tuples) -> list[Tensor]:
    """E[sum_m w_m d log p(y|a^m) + (w_m - r^_m) d log p(a^m)], from the tables."""
    problem, w = tuples.problem, weights(tuples)
    log_r = problem.log_prior(problem.theta) - problem.log_proposal(problem.eta)
    likelihood = weighted_scores(tuples, w, lambda theta, eta: problem.log_likelihood(theta))
    prior = weighted_scores(
        tuples, w - tuples.of(log_r).softmax(1), lambda theta, eta: problem.log_prior(theta)
    )
    return gradient(lambda theta, eta: likelihood(theta, eta) + prior(theta, eta), problem).theta


@given(case=cases(least=2), vectorized=st.booleans())
@examples(40)
def test_self_normalized_has_its_own_expectation(case: Case, vectorized: bool) -> None:
    """The exact bias of "self-normalized" (eq. 16 with 18) is the one computed from the tables.

    Its wake-q (eq. 17) is unbiased.
    """
    tuples, found = _wake_sleep(case, "self-normalized", vectorized, 0)
    assert_equal(found.theta, self_normalized(tuples))
    assert_equal(found.eta, wake_q(tuples))


@given(case=cases(least=2, share=st.sampled_from([0.3, 0.7, 1.0])), vectorized=st.booleans())
@examples(40)
def test_self_normalized_is_biased_where_the_guide_differs(case: Case, vectorized: bool) -> None:
    """The paper's "self-normalized" is *not* unbiased for the gradient of E[L_M] when q is not p."""
    problem, _ = case
    log_p, log_q = problem.log_prior(problem.theta), problem.log_proposal(problem.eta)
    divergence = (log_p.exp() * (log_p - log_q)).sum()
    assume(divergence > 0.01)
    tuples, found = _wake_sleep(case, "self-normalized", vectorized, 0)
    expected = gradient(expected_bound(tuples, "L"), problem).theta
    bias = sum((f - e).square().sum() for f, e in zip(found.theta, expected, strict=True))
    assert bias > 1e-9


@given(case=cases(least=2, share=st.just(0.0), noisy=False), vectorized=st.booleans())
@examples(20)
def test_self_normalized_is_unbiased_at_the_prior(case: Case, vectorized: bool) -> None:
    """The paper's "self-normalized" is unbiased for the gradient of E[L_M] where q = p."""
    tuples, found = _wake_sleep(case, "self-normalized", vectorized, 0)
    assert_equal(found.theta, gradient(expected_bound(tuples, "L"), tuples.problem).theta)


# The formulas, tuple by tuple.


@pytest.mark.parametrize("option", ["none", "self-normalized", "unnormalized", "adaptive"])
@given(case=cases(least=2), vectorized=st.booleans(), seed=st.integers(0, 999))
@examples(20)
def test_wake_sleep_formulas(option: Any, case: Case, vectorized: bool, seed: int) -> None:
    """The coefficients of d log p(y|a), d log p(a) and d log q(a) are those of eq. 8, 14, 16, 17, 18."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = WakeSleep(option, num_particles=particles, vectorize_particles=vectorized)
    model, guide = TableModel(problem, tuples.rows), TableGuide(problem, tuples.rows)

    def run() -> Gradients:
        return estimates(objective, model, guide, tuples.values)

    arbitrary_running_state(objective, run, seed)
    state, found = objective.state_dict(), run()
    w = weights(tuples)
    r = tuples.of((problem.log_prior(problem.theta) - problem.log_proposal(problem.eta)).exp())
    coefficient = {
        "none": lambda: w,
        "self-normalized": lambda: w - r / r.sum(1, keepdim=True),
        "unnormalized": lambda: w - r / particles,
        "adaptive": lambda: w - state["c/numerator"] / state["c/denominator"] * r / particles,
    }[option]()
    theta = combined_scores(
        tuples, problem.theta, (w, problem.log_likelihood), (coefficient, problem.log_prior)
    )
    less = 0.0 if option == "none" else 1 / particles
    assert_equal(found.theta, theta)
    assert_equal(found.eta, combined_scores(tuples, problem.eta, (w - less, problem.log_proposal)))


@given(case=cases(least=2), vectorized=st.booleans(), leave_one_out=st.booleans())
@examples(40)
def test_variational_bound_formulas(case: Case, vectorized: bool, leave_one_out: bool) -> None:
    """theta: mean_m d log p(y, a^m). eta: mean_m (log w~_m - mean of the others) d log q(a^m)."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = VariationalBound(
        "leave-one-out" if leave_one_out else "none",
        num_particles=particles,
        vectorize_particles=vectorized,
    )
    model, guide = TableModel(problem, tuples.rows), TableGuide(problem, tuples.rows)
    found = estimates(objective, model, guide, tuples.values)
    log_w = tuples.of(problem.log_weights(problem.theta, problem.eta))
    each = torch.ones_like(log_w) / particles
    theta = combined_scores(
        tuples, problem.theta, (each, problem.log_likelihood), (each, problem.log_prior)
    )
    others = (log_w.sum(1, keepdim=True) - log_w) / (particles - 1)
    signal = (log_w - others if leave_one_out else log_w) / particles
    assert_equal(found.theta, theta)
    assert_equal(found.eta, combined_scores(tuples, problem.eta, (signal, problem.log_proposal)))


# What the tests above could not see if the estimates did not differ.


@pytest.mark.parametrize("vectorized", [False, True])
def test_the_estimators_differ_tuple_by_tuple(vectorized: bool) -> None:
    """The options share an expectation, not a formula: no two give the same estimates."""
    tuples = Tuples(random_problem([3, 2], share=0.5, seed=3), 2)
    model, guide = TableModel(tuples.problem, tuples.rows), TableGuide(tuples.problem, tuples.rows)

    def estimate(make: Any, option: str) -> Gradients:
        objective = make(option, num_particles=2, vectorize_particles=vectorized)

        def run() -> Gradients:
            return estimates(objective, model, guide, tuples.values)

        arbitrary_running_state(objective, run, seed=1)
        return run()

    options = ["none", "self-normalized", "unnormalized", "adaptive", "learned"]
    thetas = [estimate(WakeSleep, option).flat("theta") for option in options]
    baselines = ["none", "leave-one-out", "site"]
    etas = [estimate(VariationalBound, option).flat("eta") for option in baselines]
    for found in (thetas, etas):
        for one, other in itertools.combinations(found, 2):
            assert (one - other).abs().max() > 1e-3
