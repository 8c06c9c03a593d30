"""OVIS and the thermodynamic objective: their formulas, and what they are exactly unbiased for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.cases import cases, examples
from wsram_ppl.objectives import ImportanceBound, ThermodynamicBound, VariationalBound
from wsram_ppl.objectives import estimators as e
from wsram_ppl.testing.enumeration import (
    Problem,
    TableGuide,
    TableModel,
    Tuples,
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


@given(case=cases(least=2), gamma=st.sampled_from([0.0, 0.4, 1.0]), vectorized=st.booleans())
@examples(40)
def test_ovis_is_the_exact_gradient_plus_gamma_wake_q(
    case: Case, gamma: float, vectorized: bool
) -> None:
    """Theta: the gradient of E[L_M]. Eta: the same plus gamma times E[sum_m w_m d log q(a^m)]."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = ImportanceBound(
        particles, guide_gradient="ovis", ovis_gamma=gamma, vectorize_particles=vectorized
    )
    found = expectation(objective, tuples)
    bound = gradient(expected_bound(tuples, "L"), problem)
    wake_q = weighted_scores(tuples, weights(tuples), lambda theta, eta: problem.log_proposal(eta))
    extra = gradient(wake_q, problem).eta
    assert_equal(found.theta, bound.theta)
    assert_equal(found.eta, [b + gamma * x for b, x in zip(bound.eta, extra, strict=True)])


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.floats(0, 1))
@examples(200)
def test_ovis_signal_is_its_definition(values: list[float], gamma: float) -> None:
    """log Z - v - c with c = log Z_{-m} - gamma v_m + (1 - gamma) log(1 - 1/M), one by one."""
    log_w = torch.tensor(values, dtype=torch.float64)
    count, v = len(values), log_w.softmax(0)
    log_z = log_w.logsumexp(0) - math.log(count)
    expected = []
    for m in range(count):
        rest = torch.cat([log_w[:m], log_w[m + 1 :]])
        c = (
            rest.logsumexp(0)
            - math.log(count - 1)
            - gamma * v[m]
            + (1 - gamma) * math.log(1 - 1 / count)
        )
        expected.append(log_z - v[m] - c)
    found = e.ovis_signal(log_w, gamma) - e.normalized_weights(log_w)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("zeros", [1, 2, 3])
def test_ovis_with_particles_that_are_ruled_out(zeros: int) -> None:
    """Weights of zero give finite signals; where all are zero, none."""
    log_w = torch.zeros(3).index_fill(0, torch.arange(zeros), -torch.inf)
    assert e.ovis_signal(log_w, 0.5).isfinite().all()
    if zeros == 3:
        assert e.ovis_signal(log_w, 0.5).count_nonzero() == 0


def tempered(problem: Problem, log_w: Tensor, betas: Tensor) -> list[Tensor]:
    """softmax(beta log w~) of each tuple's particles, ``[T, M]`` per left end."""
    return [(beta * log_w).softmax(1) for beta in betas[:-1]]


@given(case=cases(least=2), temperatures=st.integers(1, 4), vectorized=st.booleans())
@examples(30)
def test_thermodynamic_formula(case: Case, temperatures: int, vectorized: bool) -> None:
    """Tuple by tuple the covariance gradient as the paper has it, for theta and eta."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    objective = ThermodynamicBound(
        particles, num_temperatures=temperatures, vectorize_particles=vectorized
    )
    model, guide = TableModel(problem, tuples.rows), TableGuide(problem, tuples.rows)
    found = estimates(objective, model, guide, tuples.values)
    log_w = tuples.of(problem.log_weights(problem.theta, problem.eta))
    betas = objective.temperatures(log_w)
    of_p, of_q = torch.zeros_like(log_w), torch.zeros_like(log_w)
    for beta, step, w in zip(betas[:-1], betas.diff(), tempered(problem, log_w, betas), strict=True):
        covariance = w * (log_w - (w * log_w).sum(1, keepdim=True)) * particles / (particles - 1)
        of_p += step * (w + beta * covariance)
        of_q += step * (-w + (1 - beta) * covariance)

    def log_p(tables: list[Tensor]) -> Tensor:
        return problem.log_prior(tables) + problem.log_likelihood(tables)

    assert_equal(found.theta, combined_scores(tuples, problem.theta, (of_p, log_p)))
    assert_equal(found.eta, combined_scores(tuples, problem.eta, (of_q, problem.log_proposal)))


@given(case=cases(least=2), vectorized=st.booleans())
@examples(30)
def test_one_temperature_is_the_variational_bound(case: Case, vectorized: bool) -> None:
    """With beta = 0 alone: the gradient of E[F], without bias, and its value."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    options = {"vectorize_particles": vectorized}
    objective = ThermodynamicBound(particles, num_temperatures=1, **options)  # type: ignore[arg-type]
    found, target = expectation(objective, tuples), gradient(expected_bound(tuples, "F"), problem)
    assert_equal(found.theta, target.theta)
    assert_equal(found.eta, target.eta)
    log_w = tuples.of(problem.log_weights(problem.theta, problem.eta)).T
    same = VariationalBound(num_particles=particles).bound(log_w)
    torch.testing.assert_close(objective.bound(log_w), same)


@pytest.mark.parametrize("seed", range(5))
def test_bound_and_gradient_of_the_exact_tempered_densities(seed: int) -> None:
    """Every value as a particle of a uniform guide: the sums over particles are the exact expectations.

    The bound rises with the number of temperatures from F to log p(y), and the coefficients (their
    covariance without M / (M - 1)) are the derivatives of the Riemann sum in log p and log q.
    """
    problem = random_problem([3, 2], share=0.0, seed=seed)
    problem = problem.with_proposal(torch.zeros(problem.count, dtype=torch.float64))
    log_p = (problem.log_prior(problem.theta) + problem.log_likelihood(problem.theta)).requires_grad_()
    log_q = problem.log_proposal(problem.eta).requires_grad_()
    rising = [(log_q.exp() * (log_p - log_q)).sum().item()]
    for temperatures in (1, 2, 5, 50):
        betas = ThermodynamicBound(2, num_temperatures=temperatures).temperatures(log_p.detach())
        exact = torch.zeros((), dtype=torch.float64)
        for beta, step in zip(betas[:-1], betas.diff(), strict=True):
            density = (beta * log_p + (1 - beta) * log_q).softmax(0)
            exact = exact + step * (density * (log_p - log_q)).sum()
        expected = torch.autograd.grad(exact, (log_p, log_q))
        log_w = (log_p - log_q).detach()
        assert e.thermodynamic_bound(log_w, betas).item() == pytest.approx(exact.item())
        rising.append(exact.item())
        shrink = (problem.count - 1) / problem.count
        steps = zip(betas[:-1], betas.diff(), strict=True)
        plain = torch.stack([step * (beta * log_w).softmax(0) for beta, step in steps]).sum(0)
        for found, direct, target in zip(
            e.thermodynamic_coefficients(log_w, betas), (plain, -plain), expected, strict=True
        ):
            torch.testing.assert_close(direct + shrink * (found - direct), target)
    assert rising[0] == pytest.approx(rising[1])
    evidence = problem.log_evidence().item()
    assert all(a <= b + 1e-12 for a, b in zip(rising[1:], [*rising[2:], evidence], strict=True))
    assert evidence - rising[-1] < 0.1 * (evidence - rising[0])


def test_a_ruled_out_particle_counts_at_beta_zero_alone() -> None:
    log_w = torch.tensor([[0.0], [-torch.inf]])
    objective = ThermodynamicBound(2)
    betas = objective.temperatures(log_w)
    assert objective.bound(log_w).isfinite().all()
    assert all(x.isfinite().all() for x in e.thermodynamic_coefficients(log_w, betas))
