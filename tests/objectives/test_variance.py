"""The exact variance of WakeSleep's estimates, and which orders among them are theorems.

With the coefficients that minimise the gradient's total variance,

    plain >= one constant >= one per site >= state-dependent        (all with partial ratios)

is a theorem: each family contains the one before. "One constant with the *whole* ratio >= one per site
with partial ratios" is not: neither family contains the other, and a counterexample is below. With the
least-squares coefficients of training none of it is a theorem: ``docs/results/exact_variance.md`` says
how often and by how much they fall short.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.objectives.cases import examples
from wsram_ppl.objectives import ImportanceBound
from wsram_ppl.testing.enumeration import Problem, Tuples, assert_equal, expectation, random_problem
from wsram_ppl.testing.variance import Runs, Variances, constant

both = pytest.mark.parametrize("which", ["theta", "eta"])


@st.composite
def chains(draw: st.DrawFn) -> tuple[Problem, int]:
    """Two-step chains with the guide anywhere, and M."""
    sizes = draw(st.sampled_from([(2, 2), (2, 3), (3, 2), (3, 3)]))
    particles = draw(st.sampled_from([2, 3] if sizes != (3, 3) else [2]))
    problem = random_problem(
        sizes,
        observed=draw(st.sampled_from([[2], [1, 2]])),
        share=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
        noise=draw(st.sampled_from([0.0, 0.5])),
        spread=draw(st.sampled_from([0.5, 1.5])),
        contrast=draw(st.sampled_from([1.0, 3.0])),
        seed=draw(st.integers(0, 2**16)),
    )
    return problem, particles


@both
@given(case=chains())
@examples(40)
def test_richer_coefficients_never_have_more_variance(which: str, case: tuple[Problem, int]) -> None:
    """plain >= one constant >= per site >= state-dependent, with each family's best coefficients."""
    v = Variances(Runs(*case), which)
    families = [[], [v.one_constant], v.per_site, v.per_state]
    found = [v.variance(v.best(family)) if family else v.variance(v.plain) for family in families]
    for poorer, richer in itertools.pairwise(found):
        assert richer <= poorer + 1e-9 * found[0]
    assert v.variance(v.best([v.whole_ratio])) <= found[0] * (1 + 1e-9)
    if which == "eta":  # no ratio: "whole" and "partial" are the same
        torch.testing.assert_close(v.whole_ratio, v.one_constant, rtol=0.0, atol=1e-9)


@both
@given(case=chains())
@examples(40)
def test_every_control_variate_has_mean_zero(which: str, case: tuple[Problem, int]) -> None:
    """So no coefficient whatsoever changes the expectation; "self-normalized" is not of this kind."""
    v = Variances(Runs(*case), which)
    for variate in [v.whole_ratio, v.one_constant, *v.per_site, *v.per_state]:
        scale = max(1.0, float(variate.abs().max()))
        torch.testing.assert_close(
            v.mean(variate), torch.zeros_like(variate[0]), rtol=0.0, atol=1e-10 * scale
        )
    assert v.squared_bias(v.best(v.per_state)) < 1e-18


@both
@given(case=chains())
@examples(20)
def test_the_objective_is_linear_in_its_coefficients(which: str, case: tuple[Problem, int]) -> None:
    """The estimates assembled from the basis are those of the objective run with the coefficients."""
    runs = Runs(*case)
    v = Variances(runs, which)
    for kind in ("site", "state"):
        c = v.fitted(kind)
        direct = v.components(runs.wake_sleep("learned", c))
        torch.testing.assert_close(direct, v.with_coefficients(c), rtol=1e-9, atol=1e-9)
    if which == "theta":
        # c = numerator / denominator for w r/M and (r/M)^2, and 1/M is 1 here
        c = v.fitted_constant()
        ratio = torch.tensor([c, 1.0], dtype=torch.float64)
        state = {"c/numerator": ratio[0], "c/denominator": ratio[1]}
        direct = v.components(runs.wake_sleep("adaptive", state=state))
        torch.testing.assert_close(direct, v.plain - c * v.whole_ratio, rtol=1e-9, atol=1e-9)


@given(case=chains())
@examples(20)
def test_least_squares_is_what_it_says(case: tuple[Problem, int]) -> None:
    """The fitted coefficients are the ones whose residual has zero derivative, and cannot be beaten."""
    v = Variances(Runs(*case))
    tuples = v.runs.tuples
    problem = v.runs.problem
    w = tuples.of(problem.log_weights(problem.theta, problem.eta)).softmax(1) * v.runs.particles
    r = v._ratio(1)

    def loss(c: float) -> float:
        return float(tuples.mean((w - c * r).square().sum(1)))

    (c,) = v.fitted("site")["a0"].reshape(1).tolist()
    assert loss(c) <= min(loss(c + 1e-3), loss(c - 1e-3))


def test_partial_ratios_may_lose_to_the_whole_ratio_off_the_line() -> None:
    """A counterexample: the best constant on the whole ratio beats the best per-site partial ratios.

    The guide here is not a mixture of prior and posterior.
    """
    problem = random_problem([2, 2], observed=[2], share=0.0, noise=1.0, spread=3.0, seed=775284)
    v = Variances(Runs(problem, 2))
    whole, partial = v.variance(v.best([v.whole_ratio])), v.variance(v.best(v.per_site))
    assert partial > 1.5 * whole


def test_unnormalized_explodes_as_the_guide_leaves_the_prior() -> None:
    """c = 1 is the best the paper's eq. 16 can do at the prior, and far worse than nothing elsewhere."""
    found = []
    for share in (0.0, 1.0):
        problem = random_problem([3, 3], share=share, contrast=2.0, outcomes=10, seed=3)
        v = Variances(Runs(problem, 3))
        plain, unnormalized = v.variance(v.plain), v.variance(v.components(v.runs.unnormalized))
        found.append(unnormalized / plain)
    assert found[0] < 0.8 and found[1] > 2.0


def test_constant_coefficients_cover_every_site_and_state() -> None:
    problem = random_problem([2, 3, 2], seed=0)
    assert [t.shape for t in constant(problem, 1.0).values()] == [(), (2,), (2, 3)]


def test_the_benchmark_prints_its_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``python -m benchmarks.exact_variance``: a row for each guide, and its own command."""
    from benchmarks import exact_variance

    monkeypatch.setattr("sys.argv", ["exact_variance", "--problems", "1", "--particles", "2"])
    exact_variance.main()
    printed = capsys.readouterr().out
    assert "`python -m benchmarks.exact_variance --problems 1 --particles 2`" in printed
    for place in exact_variance.SHARES:
        assert printed.count(f"\n| {place} | ") == 2
    monkeypatch.setattr("sys.argv", ["exact_variance", "--particles", "1"])
    with pytest.raises(SystemExit):
        exact_variance.main()
    assert "at least one problem and two particles are needed" in capsys.readouterr().err


def test_sites_in_different_orders_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="draw in different orders: their sites cannot be paired"):
        Runs(random_problem([2, 2], order=[1, 0]), 2)


@pytest.mark.parametrize("vectorized", [False, True])
def test_objective_and_tuples_have_as_many_particles(vectorized: bool) -> None:
    bound = ImportanceBound(num_particles=2, vectorize_particles=vectorized, max_plate_nesting=1)
    with pytest.raises(ValueError, match="of {3} particles for an objective with 2".replace("{", "[{]")):
        expectation(bound, Tuples(random_problem([2]), 3))


def test_an_infinity_does_not_hide_a_difference() -> None:
    infinite = torch.tensor([1.0, torch.inf])
    assert_equal([infinite], [infinite])
    with pytest.raises(AssertionError):
        assert_equal([torch.tensor([2.0, torch.inf])], [infinite])
