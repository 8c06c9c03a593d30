"""The categorical of many small choices, and what distributions wrap and are made of.

Pyro's own categorical is the reference, and so is the formula; frequencies are held against bounds that
a right sampler misses less than once in a million seeds (and the seed is fixed).
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

from wsram_ppl.primitives.distributions import (
    ELEMENTWISE,
    Categorical,
    NoRule,
    given_parameters,
    innermost,
    parameters,
    rewrapped,
    select_rows,
    unwrapped,
)

FEW = settings(max_examples=40, deadline=None)
INF = math.inf
NAN = math.nan


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def theirs(logits: Tensor, validate_args: bool | None = None) -> Any:
    return dist.Categorical(logits=logits, validate_args=validate_args)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


@st.composite
def logits_of(draw: st.DrawFn) -> Tensor:
    """``[..., choices]`` of any size, scale and offset; some are -inf, but never all of a row."""
    shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
    choices = draw(st.integers(1, 7))
    seed = draw(st.integers(0, 999))
    logits = normal(*shape, choices, seed=seed) * draw(st.sampled_from([0.0, 1.0, 30.0]))
    logits = logits + draw(st.sampled_from([0.0, -200.0, 1000.0]))
    if draw(st.booleans()):
        ruled_out = normal(*shape, choices, seed=seed + 1) > 0.5
        ruled_out[..., draw(st.integers(0, choices - 1))] = False
        logits = logits.masked_fill(ruled_out, -INF)
    return logits


# The categorical: densities.


@FEW
@given(logits_of())
def test_it_is_pyros_categorical(logits: Tensor) -> None:
    own, other = Categorical(logits), theirs(logits)
    assert isinstance(own, dist.Categorical)
    assert own.batch_shape == other.batch_shape and own.event_shape == other.event_shape
    assert own.param_shape == other.param_shape and own.shape((2,)) == other.shape((2,))
    assert_close(own.logits, other.logits)
    assert_close(own.probs, other.probs)
    assert_close(own.entropy(), other.entropy())
    assert torch.equal(own.mode, logits.argmax(-1))
    for expand in (False, True):
        values = own.enumerate_support(expand)
        assert torch.equal(values, other.enumerate_support(expand))
        assert_close(own.log_prob(values), other.log_prob(values.clone()))
        assert torch.equal(own.log_prob(values), own.log_prob(values.clone()))
    # By the formula too: a softmax sums to one.
    values = torch.arange(logits.shape[-1]).view(-1, *[1] * (logits.dim() - 1))
    by_formula = (logits - logits.logsumexp(-1, keepdim=True)).movedim(-1, 0)
    assert_close(own.log_prob(values), by_formula)
    assert_close(own.probs.sum(-1), torch.ones(own.batch_shape, dtype=torch.float64))


@FEW
@given(logits_of(), st.integers(0, 99))
def test_gradients_are_those_of_pyros(logits: Tensor, seed: int) -> None:
    """Of log-probabilities and entropies together, as in an exploration term; finite with -inf too."""
    with_value = normal(*logits.shape[:-1], seed=seed)
    with_entropy = normal(*logits.shape[:-1], seed=seed + 1).tanh()
    value = theirs(logits).sample()

    def gradient(of: Callable[[Tensor], Any]) -> Tensor:
        leaf = logits.clone().requires_grad_()
        fn = of(leaf)
        total = (fn.log_prob(value) * with_value + fn.entropy() * with_entropy).sum()
        return torch.autograd.grad(total, leaf)[0]

    found = gradient(Categorical)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, gradient(theirs), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_and_types(dtype: torch.dtype) -> None:
    logits = normal(3, 4, dtype=dtype).requires_grad_()
    fn = Categorical(logits)
    value = torch.tensor([0, 3, 1])
    assert fn.log_prob(value).dtype == fn.entropy().dtype == fn.probs.dtype == dtype
    assert fn.sample().dtype == fn.mode.dtype == torch.long
    assert torch.equal(fn.log_prob(value.to(dtype)), fn.log_prob(value))  # as from torch's choices
    if dtype == torch.float64:
        for quantity in (lambda x: Categorical(x).entropy(), lambda x: Categorical(x).log_prob(value)):
            assert torch.autograd.gradcheck(quantity, logits)
            assert torch.autograd.gradgradcheck(quantity, logits)


def test_a_choice_ruled_out() -> None:
    logits = torch.tensor([[0.0, -INF, 0.0], [-INF, -INF, 5.0]], requires_grad=True)
    fn = Categorical(logits, validate_args=True)
    assert fn.probs.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]
    assert fn.log_prob(torch.tensor([1, 1])).tolist() == [-INF, -INF]
    entropy = fn.entropy()
    torch.testing.assert_close(entropy.detach(), torch.tensor([math.log(2.0), 0.0]))
    (gradient,) = torch.autograd.grad(entropy.sum(), logits, retain_graph=True)
    assert torch.equal(gradient, torch.zeros_like(logits))  # each row is uniform already
    (gradient,) = torch.autograd.grad(fn.log_prob(torch.tensor([0, 2])).sum(), logits)
    assert torch.equal(gradient, torch.tensor([[0.5, 0.0, -0.5], [0.0, 0.0, 0.0]]))


def test_a_choice_ruled_out_by_an_entropy_that_counts_much() -> None:
    logits = torch.tensor([0.0, -INF, 1.0], requires_grad=True)
    (once,) = torch.autograd.grad(Categorical(logits).entropy(), logits)
    (found,) = torch.autograd.grad(2 * Categorical(logits).entropy(), logits)
    torch.testing.assert_close(found, 2 * once)


# The categorical: other distributions made of it.


@FEW
@given(logits_of(), st.integers(1, 3), st.booleans())
def test_expanded_it_stays_what_it_is(logits: Tensor, times: int, used_before: bool) -> None:
    fn = Categorical(logits, validate_args=False)
    if used_before:
        _ = fn.probs
    for other in (fn.expand((times, *fn.batch_shape)), fn.expand_by((times,))):
        assert type(other) is Categorical and other._validate_args is False
        assert other.batch_shape == (times, *fn.batch_shape)
        assert torch.equal(other.logits, fn.logits.expand(other.batch_shape + logits.shape[-1:]))
        assert torch.equal(other.probs, fn.probs.expand_as(other.logits))
        assert other.logits.data_ptr() == fn.logits.data_ptr()  # a view: nothing is computed again
        values = other.sample((2,))
        assert values.shape == (2, times, *fn.batch_shape)
        assert torch.equal(other.log_prob(values), fn.log_prob(values))
        assert torch.equal(other.entropy(), fn.entropy().expand(other.batch_shape))
        assert other.enumerate_support(False).shape == (logits.shape[-1], *[1] * len(other.batch_shape))


def test_expansion_keeps_validation() -> None:
    fn = Categorical(normal(1, 3), validate_args=True).expand((4, 2))
    with pytest.raises(ValueError, match="within the support"):
        fn.log_prob(torch.full((4, 2), 3))


def test_masked_and_as_an_event() -> None:
    logits, value = normal(2, 3, 4), torch.tensor([[0, 1, 2], [3, 2, 1]])
    own, other = Categorical(logits), theirs(logits)
    mask = torch.tensor([True, False, True])
    assert_close(own.mask(mask).log_prob(value), other.log_prob(value) * mask)
    assert own.mask(mask).log_prob(value)[:, 1].tolist() == [0.0, 0.0]
    assert own.mask(False).log_prob(value).eq(0).all()
    assert type(own.mask(mask).base_dist) is Categorical
    assert own.to_event(0) is own
    assert own.to_event(1).batch_shape == (2,) and own.to_event(1).event_shape == (3,)
    assert_close(own.to_event(1).log_prob(value), other.log_prob(value).sum(-1))
    assert_close(own.to_event(2).entropy(), other.entropy().sum())


def test_divergences_and_copies() -> None:
    a, b = normal(3, 4), normal(3, 4, seed=1)
    for p, q in [(Categorical(a), Categorical(b)), (Categorical(a), theirs(b))]:
        found = torch.distributions.kl_divergence(p, q)
        assert_close(found, torch.distributions.kl_divergence(theirs(a), theirs(b)))
    for same in (copy.deepcopy(Categorical(a)), pickle.loads(pickle.dumps(Categorical(a)))):
        assert type(same) is Categorical
        assert torch.equal(same.logits, Categorical(a).logits)


def test_in_a_program_all_values_can_be_enumerated() -> None:
    logits = normal(3, 4)

    def program(kind_of: Callable[[Tensor], Any]) -> None:
        with pyro.plate("rows", 3):
            k = pyro.sample("k", kind_of(logits))
            pyro.sample("y", dist.Normal(k.double(), 1.0), obs=torch.ones(3, dtype=torch.float64))

    def evidence(kind_of: Callable[[Tensor], Any]) -> Tensor:
        model = pyro.infer.config_enumerate(program)
        elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
        return torch.as_tensor(elbo.loss(model, lambda kind_of: None, kind_of))

    def by_formula() -> Tensor:
        k = torch.arange(4).double()
        joint = logits.log_softmax(-1) + dist.Normal(k, 1.0).log_prob(torch.ones(4).double())
        return -joint.logsumexp(-1).sum()

    assert evidence(Categorical).item() == pytest.approx(by_formula().item(), abs=1e-5)


# The categorical: draws.


@pytest.mark.parametrize("sample_shape", [(), (1,), (5,), (2, 3), (0,)])
@pytest.mark.parametrize("batch", [(), (1,), (4,), (3, 2), (0,)])
def test_draws_have_pyros_shapes(batch: tuple[int, ...], sample_shape: tuple[int, ...]) -> None:
    own, other = Categorical(normal(*batch, 5), False), theirs(normal(*batch, 5), False)
    for shape in (sample_shape, torch.Size(sample_shape), list(sample_shape)):
        found = own.sample(shape)
        assert found.shape == (*sample_shape, *batch) and found.dtype == torch.long
        assert bool((found >= 0).all()) and bool((found < 5).all())
    assert own.sample().shape == other.sample().shape
    assert own().shape == other().shape
    assert not Categorical(normal(*batch, 5).requires_grad_(), False).sample().requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frequencies_are_the_probabilities(dtype: torch.dtype) -> None:
    """Pearson's statistic of each row, with 5 degrees of freedom: above 42 once in 10 million."""
    torch.manual_seed(0)
    draws = 200_000
    logits = torch.cat((normal(3, 6), torch.tensor([[0.0] * 6, [9.0, 8.0, 7.0, 6.0, 5.0, 4.0]])))
    fn = Categorical(logits.to(dtype))
    # In one call, by expansion, and both: however they are asked for, draws are independent.
    for values in (
        fn.sample((draws,)),
        fn.expand((draws, 5)).sample(),
        fn.expand((draws // 100, 5)).sample((100,)).flatten(0, 1),
    ):
        counts = torch.nn.functional.one_hot(values, 6).sum(0).double()
        expected = draws * logits.softmax(-1)
        assert expected.min() > 50
        statistic = ((counts - expected).square() / expected).sum(-1)
        assert bool((statistic < 42).all())
        # Rows do not know of each other: the pairs of two rows' draws, 25 degrees of freedom.
        pairs = torch.bincount(values[:, 0] * 6 + values[:, 3], minlength=36).view(6, 6).double()
        independent = counts[0, :, None] * counts[3] / draws
        assert ((pairs - independent).square() / independent).sum() < 82


def test_a_choice_ruled_out_is_never_drawn() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[-INF, 0.0, -INF, -30.0], [3.0, -INF, -INF, -INF]])
    values = Categorical(logits).sample((100_000,))
    assert set(values[:, 0].tolist()) == {1}  # e^-30 is not drawn either, in so many
    assert set(values[:, 1].tolist()) == {0}


def test_a_seed_gives_the_same_draws_again() -> None:
    fn = Categorical(normal(50, 6))
    torch.manual_seed(1)
    once, then = fn.sample(), fn.sample()
    torch.manual_seed(1)
    assert torch.equal(fn.sample(), once) and torch.equal(fn.sample(), then)
    assert not torch.equal(once, then)


def test_a_draw_leaves_no_trace_in_the_gradient() -> None:
    """Probabilities first used to draw, without gradients, must not be kept without them."""
    logits = normal(3, 4).requires_grad_()
    fn = Categorical(logits)
    fn.sample()
    assert_close(
        torch.autograd.grad(fn.entropy().sum(), logits)[0],
        torch.autograd.grad(theirs(logits).entropy().sum(), logits)[0],
    )


# The categorical: wrong arguments.


def test_what_is_not_a_number_is_refused_with_validation() -> None:
    logits = torch.tensor([[0.0, 1.0], [NAN, 0.0]])
    with pytest.raises(ValueError, match="Expected parameter logits"):
        Categorical(logits, validate_args=True)
    fn = Categorical(torch.zeros(2, 3), validate_args=True)
    for value in (3, -1, 0.5):
        with pytest.raises(ValueError, match="within the support"):
            fn.log_prob(torch.tensor([0, value]))
    assert fn.log_prob(torch.tensor([0, 2])).tolist() == pytest.approx([-math.log(3)] * 2)
    with pytest.raises(ValueError, match="Expected parameter logits"):
        Categorical(torch.full((3,), -INF), validate_args=True)


def test_what_is_not_a_number_is_drawn_from_without_validation() -> None:
    """Divergence is found by its own check, not by torch.multinomial's (fatal on CUDA)."""
    logits = torch.tensor([[NAN, 0.0], [0.0, INF], [-INF, -INF], [0.0, 0.0]])
    fn = Categorical(logits, validate_args=False)
    values = fn.sample((20,))
    assert bool((values >= 0).all()) and bool((values < 2).all())
    assert fn.log_prob(torch.zeros(4)).isnan().tolist() == [True, True, True, False]
    assert fn.entropy().isnan().tolist() == [True, True, True, False]
    with pytest.raises(RuntimeError):
        theirs(logits, validate_args=False).sample()


# What a distribution was made of.


def some(family: str, seed: int = 0, shape: tuple[int, ...] = (3, 4), **options: Any) -> Any:
    """A distribution without validation, of parameters by chance, in single precision."""

    def numbers(n: int) -> Tensor:
        return normal(*shape, seed=10 * seed + n, dtype=torch.float32)

    options = {"validate_args": False, **options}
    a, b = numbers(0), numbers(1).exp()
    match family:
        case "normal":
            return dist.Normal(a, b, **options)
        case "normal with a number":
            return dist.Normal(a, 0.3, **options)
        case "event":
            return dist.Normal(a, b, **options).to_event(1)
        case "two events":
            return dist.Normal(a, b, **options).to_event(1).to_event(1)
        case "own categorical":
            return Categorical(a, **options)
        case "categorical by logits":
            return dist.Categorical(logits=a, **options)
        case "categorical by probs":
            return dist.Categorical(probs=b, **options)
        case "bernoulli by logits":
            return dist.Bernoulli(logits=a, **options)
        case "bernoulli by probs":
            return dist.Bernoulli(probs=a.sigmoid(), **options)
        case "bernoulli event":
            return dist.Bernoulli(logits=a, **options).to_event(2)
        case "uniform":
            return dist.Uniform(a, a + b, **options)
        case "laplace":
            return dist.Laplace(a, b, **options)
        case "exponential":
            return dist.Exponential(b, **options)
    raise AssertionError(family)


FAMILIES = (
    "normal",
    "normal with a number",
    "event",
    "two events",
    "own categorical",
    "categorical by logits",
    "categorical by probs",
    "bernoulli by logits",
    "bernoulli by probs",
    "bernoulli event",
    "uniform",
    "laplace",
    "exponential",
)
#: Those whose operations give each element the same bits wherever it stands.
EXACT = ("normal", "normal with a number", "event", "two events", "uniform")


def use(fn: Any) -> Any:
    """Have everything computed and kept that a distribution computes when it is asked for."""
    fn.log_prob(fn.sample())
    fn.entropy()
    for name in ("probs", "logits", "param_shape"):
        getattr(getattr(fn, "base_dist", fn), name, None)
    return fn


@pytest.mark.parametrize("used", [False, True])
def test_given_parameters_are_those_that_were_given(used: bool) -> None:
    a, b = normal(3, 4), normal(3, 4, seed=1).exp()
    p = a.softmax(-1)
    cases: list[tuple[Any, dict[str, Tensor]]] = [
        (dist.Normal(a, b), {"loc": a, "scale": b}),
        (dist.Laplace(a, b), {"loc": a, "scale": b}),
        (dist.Uniform(a, a + b), {"low": a, "high": a + b}),
        (dist.Exponential(b), {"rate": b}),
        (dist.Bernoulli(logits=a), {"logits": a}),
        (dist.Bernoulli(probs=p), {"probs": p}),
        (dist.Categorical(logits=a), {"logits": a.log_softmax(-1)}),
        (dist.Categorical(probs=b), {"probs": b / b.sum(-1, keepdim=True)}),
        (Categorical(a), {"logits": a.log_softmax(-1)}),
    ]
    for fn, expected in cases:
        found = given_parameters(use(fn) if used else fn)
        assert list(found) == list(expected), fn
        for name, value in expected.items():
            assert_close(found[name], value)
    assert {type(fn) for fn, _ in cases} == ELEMENTWISE


@pytest.mark.parametrize("family", FAMILIES)
def test_given_parameters_follow_an_expansion(family: str) -> None:
    """Also of one that was used: both of its parametrisations are expanded, and one is enough."""
    fn = use(some(family, shape=(3, 4)))
    expanded = fn.expand((2, *fn.batch_shape))
    again = type(fn)(**given_parameters(expanded)) if type(fn) in ELEMENTWISE else expanded
    value = expanded.sample()
    torch.testing.assert_close(again.log_prob(value), expanded.log_prob(value), atol=1e-6, rtol=1e-6)


# What a distribution wraps.


def test_a_distribution_is_unwrapped_and_wrapped_again() -> None:
    base = dist.Normal(torch.zeros(3), 1.0)
    mask = torch.tensor([True, False])
    wrapped = dist.Normal(torch.zeros(2, 3), 1.0).to_event(1).mask(mask)
    assert innermost(base) is base and list(unwrapped(base)) == [base]
    assert [type(each).__name__ for each in unwrapped(wrapped)] == [
        "MaskedDistribution",
        "Independent",
        "Normal",
    ]
    wider = rewrapped(wrapped, lambda fn: dist.Normal(fn.loc, 2 * fn.scale))
    assert innermost(wider).scale.eq(2).all()
    assert (wider.batch_shape, wider.event_shape) == (wrapped.batch_shape, wrapped.event_shape)
    value = torch.ones(2, 3)
    expected = torch.distributions.Normal(0.0, 2.0).log_prob(value).sum(-1) * mask
    assert torch.allclose(wider.log_prob(value), expected)
    expanded = ExpandedDistribution(dist.Normal(torch.zeros(3), 1.0), (4, 3))
    assert rewrapped(expanded, lambda fn: dist.Laplace(fn.loc, fn.scale)).batch_shape == (4, 3)


@pytest.mark.parametrize(
    "fn",
    [
        dist.Normal(torch.arange(4.0), 1.0),
        dist.Normal(torch.arange(8.0).view(4, 2), 1.0).to_event(1),
        dist.Normal(torch.arange(4.0), 1.0).mask(torch.tensor([True, False, True, True])),
        dist.OneHotCategorical(logits=torch.arange(12.0).view(4, 3)),
        Categorical(torch.arange(12.0).view(4, 3)),
        ExpandedDistribution(dist.Normal(torch.arange(4.0), 1.0), (4,)),
    ],
)
def test_rows_are_selected_in_order(fn: Any) -> None:
    rows = torch.tensor([2, 0, 2])
    found = select_rows(fn, -1, rows)
    assert found.batch_shape == (3,) and found.event_shape == fn.event_shape
    for name, value in parameters(found):
        expected = dict(parameters(fn))[name]
        assert torch.allclose(value, expected[rows] if expected.dim() else expected), name


def test_rows_of_other_distributions_have_no_rule() -> None:
    with pytest.raises(NoRule, match="Gamma"):
        select_rows(dist.Gamma(torch.ones(3), 1.0), -1, torch.tensor([0]))
