"""Sites evaluated together: the numbers and gradients of each by itself, in fewer calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import Tensor

from wsram_ppl.objectives import sites
from wsram_ppl.objectives.sites import Site, evaluate, log_density, random_sites
from wsram_ppl.primitives.distributions import Categorical

FEW = settings(max_examples=60, deadline=None)
STEPS, ROWS, KEPT = 3, 6, 4


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """As in training: distributions that check their arguments are not joined."""
    with pyro.validation_enabled(False):
        yield


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters() -> dict[str, Tensor]:
    shapes = {"loc": (STEPS, 2), "scale": (STEPS, 2), "logits": (STEPS, 5), "rate": (), "obs": (STEPS,)}
    return {
        name: normal(*shape, seed=seed).requires_grad_()
        for seed, (name, shape) in enumerate(shapes.items())
    }


def program(given: dict[str, Tensor]) -> None:
    """Recurrent choices among whatever else Pyro has sites for."""
    pyro.param("parameter", torch.zeros(()))
    rate = pyro.sample("rate", dist.Gamma(2.0, given["rate"].exp()))
    pyro.sample("other rate", dist.Gamma(3.0, given["rate"].exp()))
    keep = torch.tensor([True, False, True, True])
    with pyro.plate("rows", ROWS, subsample_size=KEPT, dim=-1):
        state = torch.zeros(KEPT, dtype=torch.float64)
        for t in range(STEPS):
            with poutine.scale(scale=2.0), poutine.mask(mask=keep):
                where = pyro.sample(
                    f"where {t}",
                    dist.Normal(given["loc"][t] + state[:, None], given["scale"][t].exp()).to_event(1),
                )
            what = pyro.sample(f"what {t}", Categorical(given["logits"][t] + where[:, :1]))
            state = pyro.deterministic(f"state {t}", torch.tanh(where.sum(-1) + what))
            masked = dist.Normal(state, 1.0).mask(keep)
            pyro.sample(f"masked {t}", masked, obs=given["obs"][t].expand(KEPT))
            pyro.sample(
                f"y {t}", dist.Bernoulli(logits=state * given["obs"][t]), obs=state.gt(0).double()
            )
            pyro.sample(f"wide {t}", dist.Normal(given["obs"][t], 1.0))  # expanded by the plate
        with pyro.plate("columns", 3, dim=-2):
            pyro.sample("table", dist.Normal(state, rate))
            pyro.sample("another table", dist.Normal(-state, rate))
        pyro.factor("energy", -state.square())
    pyro.sample("number", dist.Normal(given["obs"][0], 1.0), obs=torch.tensor(0.5))
    pyro.sample("another number", dist.Normal(given["obs"][1], 1.0), obs=torch.tensor(0.5).double())


def traced(seed: int = 0) -> tuple[dict[str, Tensor], Any]:
    given = parameters()
    torch.manual_seed(seed)
    return given, poutine.trace(program).get_trace(given)


def entropy(site: Site) -> Tensor:
    found: Tensor = site["fn"].entropy()
    return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Batch shapes of the Normals whose log_prob is called."""
    found: list[torch.Size] = []
    own = torch.distributions.Normal.log_prob

    def counted(fn: Any, value: Tensor) -> Tensor:
        found.append(fn.batch_shape)
        return own(fn, value)

    monkeypatch.setattr(torch.distributions.Normal, "log_prob", counted)
    return found


def site_of(fn: Any, value: Any = None, *args: Any, **kwargs: Any) -> Site:
    return {"fn": fn, "value": fn.sample() if value is None else value, "args": args, "kwargs": kwargs}


# Which sites have a density.


def test_random_sites_are_those_with_a_density() -> None:
    _, trace = traced()
    expected = ["rate", "other rate"]
    for t in range(STEPS):
        expected += [f"where {t}", f"what {t}", f"masked {t}", f"y {t}", f"wide {t}"]
    expected += ["table", "another table", "energy", "number", "another number"]
    found = random_sites(trace)
    assert list(found) == expected  # in the order of the program
    for name, site in found.items():
        assert site is trace.nodes[name]
    for name in ("rows", "columns", "parameter", "state 0", "_INPUT", "_RETURN"):
        assert name in trace.nodes


def test_a_site_without_infer_is_a_random_site() -> None:
    _, trace = traced()
    trace.nodes["rate"]["infer"] = None
    assert "rate" in random_sites(trace)


def test_the_density_knows_no_mask_and_no_scale_of_a_handler() -> None:
    """But that of the distribution itself: who adds them up multiplies by a handler's."""
    _, trace = traced()
    where, masked = trace.nodes["where 1"], trace.nodes["masked 1"]
    assert where["scale"] == 2.0 * ROWS / KEPT and where["mask"].tolist() == [True, False, True, True]
    expected = torch.distributions.Normal(where["fn"].base_dist.loc, where["fn"].base_dist.scale)
    assert torch.equal(log_density(where), expected.log_prob(where["value"]).sum(-1))
    assert log_density(masked)[1] == 0.0 and log_density(masked).ne(0).sum() == KEPT - 1


def test_what_a_site_is_called_with_goes_to_its_density() -> None:
    class Odd(dist.Normal):
        def log_prob(self, value: Tensor, plus: float = 0.0, *, times: float = 1.0) -> Tensor:
            found: Tensor = super().log_prob(value) * times + plus
            return found

    fns = [Odd(torch.zeros(3), torch.ones(3), validate_args=False) for _ in range(3)]
    zero = torch.zeros(3)
    odd = [site_of(fns[0], zero, 4.0), site_of(fns[1], zero, times=3.0), site_of(fns[2], zero, 4.0)]
    found = evaluate(odd, log_density)
    plain = dist.Normal(zero, 1.0).log_prob(zero)
    for site, expected in zip(odd, (plain + 4, plain * 3, plain + 4), strict=True):
        assert torch.equal(found[id(site)], expected)


# The numbers.


@pytest.mark.parametrize("seed", range(3))
def test_each_site_gets_what_its_distribution_gives(seed: int) -> None:
    _, trace = traced(seed)
    found = evaluate(random_sites(trace).values(), log_density)
    assert set(found) == {id(site) for site in random_sites(trace).values()}
    for name, site in random_sites(trace).items():
        expected = site["fn"].log_prob(site["value"])
        assert found[id(site)].shape == expected.shape, name
        torch.testing.assert_close(found[id(site)], expected, atol=1e-12, rtol=1e-12)
        if isinstance(getattr(site["fn"], "base_dist", site["fn"]), dist.Normal):
            assert torch.equal(found[id(site)], expected), name


def test_gradients_are_those_of_the_sites_one_by_one() -> None:
    """Each site counts by another weight, so that none can stand for another."""

    def gradients(of: Callable[[list[Site]], list[Tensor]]) -> tuple[Tensor, ...]:
        given, trace = traced()
        terms = of(list(random_sites(trace).values()))
        weighted = [(x * normal(*x.shape, seed=n)).sum() for n, x in enumerate(terms)]
        return torch.autograd.grad(torch.stack(weighted).sum(), list(given.values()))

    def together(all_sites: list[Site]) -> list[Tensor]:
        found = evaluate(all_sites, log_density)
        return [found[id(site)] for site in all_sites]

    def one_by_one(all_sites: list[Site]) -> list[Tensor]:
        return [site["fn"].log_prob(site["value"]) for site in all_sites]

    for a, b in zip(gradients(together), gradients(one_by_one), strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-11)


def test_entropies_by_the_same_way() -> None:
    given, trace = traced()
    choices = [s for name, s in random_sites(trace).items() if name.startswith(("wh", "wide", "rate"))]
    found = evaluate(choices, entropy)
    assert len(choices) == 3 * STEPS + 1
    for site in choices:
        torch.testing.assert_close(found[id(site)], site["fn"].entropy(), atol=1e-12, rtol=1e-12)
    total = torch.stack([x.sum() for x in found.values()]).sum()
    (gradient,) = torch.autograd.grad(total, given["scale"])
    assert torch.equal(gradient, torch.full((STEPS, 2), float(KEPT), dtype=torch.float64))


SHAPES = ((), (1,), (3,), (2, 3), (1, 3))


def distribution(family: int, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Any:
    a, b = (normal(*shape, 4, seed=2 * seed + n).to(dtype) for n in range(2))
    return [
        lambda: dist.Normal(a, b.exp()),
        lambda: dist.Normal(a, b.exp()).to_event(1),
        lambda: Categorical(a),
        lambda: dist.Categorical(logits=a),
        lambda: dist.Categorical(probs=a.exp()),
        lambda: dist.Bernoulli(logits=a),
        lambda: dist.Bernoulli(probs=a.sigmoid()).to_event(1),
        lambda: dist.Gamma(a.exp(), b.exp()),
        lambda: dist.Laplace(a, b.exp()).mask(b > 0),
        lambda: dist.Uniform(a, a + b.exp()),
        lambda: dist.ExpandedDistribution(dist.Exponential(b.exp()), (3, *shape, 4)),
    ][family]()


@FEW
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10),
            st.sampled_from(SHAPES),
            st.sampled_from([torch.float32, torch.float64]),
            st.sampled_from([(), (2,)]),  # more dimensions of the value than the distribution has
        ),
        max_size=12,
    ),
    st.integers(0, 99),
)
def test_any_sites_in_any_order(
    drawn: list[tuple[int, tuple[int, ...], torch.dtype, tuple[int, ...]]], seed: int
) -> None:
    torch.manual_seed(seed)
    all_sites = []
    with pyro.validation_enabled(False):
        for n, (family, shape, dtype, more) in enumerate(drawn):
            fn = distribution(family, shape, seed + n, dtype)
            all_sites.append(site_of(fn, fn.sample(more)))
        found = evaluate(all_sites, log_density)
        assert set(found) == {id(site) for site in all_sites}
        for site in all_sites:
            expected = site["fn"].log_prob(site["value"])
            assert found[id(site)].shape == expected.shape
            torch.testing.assert_close(found[id(site)], expected, atol=2e-6, rtol=2e-6)


# The calls.


def test_alike_sites_are_evaluated_by_one_call(calls: list[torch.Size]) -> None:
    _, trace = traced()
    calls.clear()
    evaluate(random_sites(trace).values(), log_density)
    expected = [
        (STEPS, KEPT, 2),  # where
        (STEPS, KEPT),  # wide
        *[(KEPT,)] * STEPS,  # masked: each with its own mask
        (2, 3, KEPT),  # the tables
        *[()] * 2,  # the numbers: observations of different precision
    ]
    assert sorted(map(tuple, calls)) == sorted(expected)


def test_a_site_with_none_alike_is_handed_on_as_it_is() -> None:
    fn = dist.Normal(torch.zeros(3), 1.0)
    all_sites = [site_of(fn), site_of(dist.Gamma(1.0, 1.0)), site_of(dist.Gamma(1.0, 1.0))]
    seen: list[Site] = []

    def noted(site: Site) -> Tensor:
        seen.append(site)
        return log_density(site)

    evaluate(all_sites, noted)
    assert len(seen) == 3 and all(a is b for a, b in zip(seen, all_sites, strict=True))


def test_a_site_given_twice_is_evaluated_once(calls: list[torch.Size]) -> None:
    """The prior as proposal: sites of the guide are those of the model."""
    site = site_of(dist.Normal(torch.zeros(3), 1.0))
    found = evaluate([site, site, site], log_density)
    assert calls == [(3,)] and list(found) == [id(site)]
    other = site_of(dist.Normal(torch.ones(3), 1.0))
    calls.clear()
    found = evaluate(iter([site, other, site, other]), log_density)
    assert calls == [(2, 3)] and list(found) == [id(site), id(other)]
    for one in (site, other):
        assert torch.equal(found[id(one)], one["fn"].log_prob(one["value"]))


def test_equal_sites_are_not_the_same_site() -> None:
    fn, value = dist.Normal(torch.zeros(3), 1.0), torch.ones(3)
    a, b = site_of(fn, value), site_of(fn, value)
    found = evaluate([a, b], log_density)
    assert len(found) == 2 and torch.equal(found[id(a)], found[id(b)])


def test_no_sites_no_numbers() -> None:
    assert evaluate([], log_density) == {}


@pytest.mark.parametrize(("more", "expected"), [(0, 1), (1, 2)])
def test_a_large_site_is_evaluated_by_itself(more: int, expected: int, calls: list[torch.Size]) -> None:
    zero = torch.zeros(sites._SMALL + more)
    all_sites = [site_of(dist.Normal(zero, 1.0), zero + n) for n in range(2)]
    found = evaluate(all_sites, log_density)
    assert len(calls) == expected
    for n, site in enumerate(all_sites):
        assert torch.equal(found[id(site)], dist.Normal(zero, 1.0).log_prob(zero + n))


def normals(*shape: int, **options: Any) -> Any:
    return dist.Normal(torch.zeros(shape), 1.0, **options)


UNLIKE: dict[str, Callable[[], Site]] = {
    "shape": lambda: site_of(normals(1, 3), torch.zeros(1, 3)),
    "more values": lambda: site_of(normals(3), torch.zeros(2, 3)),
    "one value for all": lambda: site_of(normals(3), torch.tensor(0.5)),
    "a number": lambda: site_of(normals(3), 0.5),
    "type of the value": lambda: site_of(normals(3), torch.zeros(3).double()),
    "type": lambda: site_of(dist.Normal(torch.zeros(3).double(), 1.0), torch.zeros(3)),
    "event": lambda: site_of(normals(3).to_event(1), torch.zeros(3)),
    "mask": lambda: site_of(normals(3).mask(False), torch.zeros(3)),
    "validation": lambda: site_of(normals(3, validate_args=True), torch.zeros(3)),
    "family": lambda: site_of(dist.Laplace(torch.zeros(3), 1.0), torch.zeros(3)),
}


@pytest.mark.parametrize("difference", UNLIKE)
def test_unlike_sites_are_evaluated_apart(difference: str) -> None:
    alike = [site_of(normals(3), torch.full((3,), float(n))) for n in range(2)]
    all_sites = [alike[0], UNLIKE[difference](), alike[1]]
    seen: list[Site] = []

    def noted(site: Site) -> Tensor:
        seen.append(site)
        return log_density(site)

    found = evaluate(all_sites, noted)
    assert len(seen) == 2 and any(site is all_sites[1] for site in seen)
    for site in all_sites:
        expected = site["fn"].log_prob(site["value"])
        assert found[id(site)].dtype == expected.dtype and torch.equal(found[id(site)], expected)


def test_distributions_with_other_parameters_than_their_bases() -> None:
    """Pyro's OrderedLogistic is a Categorical."""

    def ratings() -> None:
        for n in range(3):
            cutpoints = torch.tensor([-1.0, 0.0, 1.0]).double()
            pyro.sample(f"rating {n}", dist.OrderedLogistic(normal(4, seed=n), cutpoints))

    ratings_sites = random_sites(poutine.trace(ratings).get_trace()).values()
    found = evaluate(ratings_sites, log_density)
    for site in ratings_sites:
        expected = site["fn"].log_prob(site["value"])
        torch.testing.assert_close(found[id(site)], expected, atol=1e-12, rtol=1e-12)
