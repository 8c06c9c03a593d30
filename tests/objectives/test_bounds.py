"""Properties of the bounds and of their estimates that hold for every problem, exactly.

F <= L_1 <= L_2 <= L_3 <= log p; the range of the effective sample size; what a constant added to all
log-likelihoods does; the order of particles and the company of other data do nothing.
"""

from __future__ import annotations

import itertools

import pyro
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.objectives.cases import cases, examples
from wsram_ppl.objectives import ImportanceBound, Objective, VariationalBound
from wsram_ppl.objectives import estimators as e
from wsram_ppl.testing.enumeration import (
    Gradients,
    Problem,
    StateNetwork,
    TableGuide,
    TableModel,
    Tuples,
    arbitrary_running_state,
    assert_equal,
    estimates,
    force,
)

from .test_plates import OBJECTIVES

Case = tuple[Problem, int]
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def bounds(objective: Objective, tuples: Tuples) -> Tensor:
    """The objective's bound at every tuple, ``[T]``; also checks that the loss is minus their sum."""
    model, guide = TableModel(tuples.problem, tuples.rows), TableGuide(tuples.problem, tuples.rows)
    with force(tuples.values, objective.vectorize_particles):
        found = objective.bound(objective.particles(model, guide).log_weights)
    with force(tuples.values, objective.vectorize_particles):
        assert objective.loss(model, guide) == pytest.approx(-found.sum().item(), rel=1e-12)
    return found


@given(cases(most=1), st.booleans())
@examples(50)
def test_bounds_are_ordered(case: Case, vectorized: bool) -> None:
    """E[F] = E[L_1] <= E[L_2] <= E[L_3] <= log p(y), exactly, each by enumeration."""
    problem, _ = case
    assume(problem.count <= 12)
    options = {"vectorize_particles": vectorized, "max_plate_nesting": 1}
    expected = []
    for particles in (1, 2, 3):
        tuples = Tuples(problem, particles)
        f = tuples.mean(bounds(VariationalBound("none", num_particles=particles, **options), tuples))
        expected.append(tuples.mean(bounds(ImportanceBound(particles, **options), tuples)))
        torch.testing.assert_close(f, expected[0])
    rising = [*expected, problem.log_evidence()]
    for lower, higher in itertools.pairwise(rising):
        assert lower <= higher + 1e-12


@given(cases(share=st.just(1.0), noisy=False), st.booleans())
@examples(40)
def test_the_posterior_closes_the_gap(case: Case, vectorized: bool) -> None:
    """With the posterior as guide every particle has weight p(y): bound log p(y), ESS M."""
    problem, particles = case
    tuples = Tuples(problem, particles)
    for objective in (
        VariationalBound("none", num_particles=particles, vectorize_particles=vectorized),
        ImportanceBound(particles, vectorize_particles=vectorized),
    ):
        found = bounds(objective, tuples)
        torch.testing.assert_close(found, problem.log_evidence().expand_as(found))
        assert objective.statistics["ess"].item() == pytest.approx(particles)
        assert objective.statistics["bound"].item() == pytest.approx(problem.log_evidence().item())


@given(st.lists(st.floats(-400, 400), min_size=1, max_size=9), st.floats(-1e3, 1e3))
@examples(200)
def test_effective_sample_size_lies_between_1_and_m(values: list[float], shift: float) -> None:
    """ESS is in [1, M], depends on weight ratios alone, and is M for equal weights."""
    x = torch.tensor(values, dtype=torch.float64)
    ess = e.effective_sample_size(x).item()
    assert 1 - 1e-12 <= ess <= len(values) + 1e-9
    assert e.effective_sample_size(x + shift).item() == pytest.approx(ess, rel=1e-6)
    equal = torch.full((len(values), 2), shift, dtype=torch.float64)
    torch.testing.assert_close(
        e.effective_sample_size(equal), torch.full((2,), 1.0 * len(values)).double()
    )
    assert e.effective_sample_size(torch.full((3,), -torch.inf)) == 0


class Shifted(TableModel):
    """The same model with a constant added to every datum's log-likelihood."""

    shift = 0.0

    def in_plate(self) -> None:
        pyro.factor("shift", torch.full((self.rows,), self.shift, dtype=torch.float64))


@every_objective
@given(case=cases(least=2), shift=st.floats(-30, 30), vectorized=st.booleans())
@examples(20)
def test_a_constant_shifts_the_bound_and_leaves_gradients_alone(
    name: str, case: Case, shift: float, vectorized: bool
) -> None:
    """log-likelihood + c: bound + c; the same gradients tuple by tuple, or in expectation.

    Only VariationalBound's plain and per-site signals see c, and it leaves their expectation alone.
    """
    problem, particles = case
    tuples = Tuples(problem, particles)
    model, guide = Shifted(problem, tuples.rows), TableGuide(problem, tuples.rows)
    objective = OBJECTIVES[name](num_particles=particles, vectorize_particles=vectorized)

    def run() -> Gradients:
        return estimates(objective, model, guide, tuples.values)

    arbitrary_running_state(objective, run, seed=0)
    state, before = objective.state_dict(), run()
    bound = objective.statistics["bound"].item()
    objective.load_state_dict(state)
    model.shift = shift
    after = run()
    assert objective.statistics["bound"].item() == pytest.approx(bound + shift, abs=1e-9)
    if name in ("variational none", "variational site"):
        before, after = before.map(tuples.mean), after.map(tuples.mean)
    assert_equal(before.theta, after.theta)
    assert_equal(before.eta, after.eta)


@every_objective
@given(
    case=cases(least=2),
    random=st.randoms(use_true_random=False),
    vectorized=st.booleans(),
    declared=st.booleans(),
)
@examples(20)
def test_the_order_of_particles_does_nothing(
    name: str, case: Case, random: object, vectorized: bool, declared: bool
) -> None:
    """Permuting the particles of each datum changes neither bound nor gradients."""
    problem, particles = case
    permutation = list(range(particles))
    random.shuffle(permutation)  # type: ignore[attr-defined]
    tuples = Tuples(problem, particles)
    declare = StateNetwork(problem.names, 3).declare if declared else None
    if name == "variational site":
        model = TableModel(problem, tuples.rows)
    else:
        model = TableModel(problem, tuples.rows, declare)
    guide = TableGuide(problem, tuples.rows, declare)
    objective = OBJECTIVES[name](num_particles=particles, vectorize_particles=vectorized)
    arbitrary_running_state(objective, lambda: estimates(objective, model, guide, tuples.values), 0)
    state, results = objective.state_dict(), []
    for order in (list(range(particles)), permutation):
        objective.load_state_dict(state)
        values = {site: v[order] for site, v in tuples.values.items()}
        results.append((estimates(objective, model, guide, values), dict(objective.statistics)))
    (one, numbers), (other, other_numbers) = results
    assert_equal(one.theta, other.theta)
    assert_equal(one.eta, other.eta)
    torch.testing.assert_close(numbers, other_numbers)


@every_objective
@given(
    case=cases(least=2),
    seed=st.integers(0, 999),
    vectorized=st.booleans(),
    declared=st.booleans(),
)
@examples(20)
def test_data_do_not_see_each_other(
    name: str, case: Case, seed: int, vectorized: bool, declared: bool
) -> None:
    """A datum's gradient in a batch is its gradient in a batch of one: weights are per datum."""
    problem, particles = case
    rows = 3
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(problem.count, (particles, rows), generator=generator)
    declare = StateNetwork(problem.names, seed).declare if declared else None
    on_model = None if name == "variational site" else declare
    objective = OBJECTIVES[name](num_particles=particles, vectorize_particles=vectorized)
    model, guide = TableModel(problem, rows, on_model), TableGuide(problem, rows, declare)
    values = problem.values(index)
    arbitrary_running_state(objective, lambda: estimates(objective, model, guide, values), seed)
    state = objective.state_dict()
    batch = estimates(objective, model, guide, values)
    model, guide = TableModel(problem, 1, on_model), TableGuide(problem, 1, declare)
    for row in range(rows):
        objective.load_state_dict(state)
        alone = {site: v[:, row : row + 1] for site, v in values.items()}
        one = estimates(objective, model, guide, alone)
        assert_equal([g[0] for g in one.theta], [g[row] for g in batch.theta])
        assert_equal([g[0] for g in one.eta], [g[row] for g in batch.eta])
