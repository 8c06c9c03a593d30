"""Effect handlers: what each changes about a run, and that it changes nothing else."""

from __future__ import annotations

from typing import Any, get_args

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from wsram_ppl.guides import InferenceNetwork
from wsram_ppl.models import GlimpseClassifier, classifier_network
from wsram_ppl.objectives import ImportanceBound, Objective, Prior, VariationalBound, WakeSleep, sampling
from wsram_ppl.objectives.wake_sleep import ControlVariate
from wsram_ppl.primitives.handlers import (
    PARTICLE_PLATE,
    DetachSamples,
    Memoize,
    Mode,
    ParticlePlate,
    Substitute,
    memoize,
)
from wsram_ppl.testing import ForceSamples

# Memoize, on the programs that it is for.

OBJECTIVES = {
    "importance": lambda v: ImportanceBound(3, vectorize_particles=v),
    "variational": lambda v: VariationalBound("site", num_particles=3, vectorize_particles=v),
    "sleep": lambda v: WakeSleep(insomnia=0.5, num_particles=3, vectorize_particles=v),
    **{
        name: (lambda v, name=name: WakeSleep(name, num_particles=3, vectorize_particles=v))
        for name in get_args(ControlVariate)
    },
}


def attention() -> tuple[GlimpseClassifier, nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = GlimpseClassifier(hidden=8, num_glimpses=3, patch=4, scales=(1, 2))
    return model, InferenceNetwork(model), (torch.rand(4, 24, 24), torch.arange(4))


def loss_and_gradients(objective: Objective, count: list[int]) -> tuple[list[Tensor], int]:
    """Loss and every gradient, and how many patches were read for them."""
    model, guide, batch = attention()
    objective.loss(model, guide, *batch)  # a first run finds out about the program
    count.clear()
    torch.manual_seed(1)
    loss = objective(model, guide)(*batch)
    patches = len(count)
    parameters = [*model.parameters(), *guide.parameters()]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss, *(torch.zeros(()) if g is None else g for g in gradients)], patches


@pytest.fixture
def count_patches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    count: list[int] = []
    extract = classifier_network.extract

    def counted(*args: Any) -> Tensor:
        count.append(1)
        return extract(*args)

    monkeypatch.setattr(classifier_network, "extract", counted)
    return count


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_reuse_changes_no_bit_and_halves_the_work(
    name: str, vectorized: bool, count_patches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = OBJECTIVES[name]
    with_reuse, reads = loss_and_gradients(make(vectorized), count_patches)
    monkeypatch.setattr(sampling, "Memoize", Messenger)
    without, all_reads = loss_and_gradients(make(vectorized), count_patches)
    assert len(with_reuse) == len(without)
    assert all(torch.equal(a, b) for a, b in zip(with_reuse, without, strict=True))
    runs = 1 if vectorized else 3
    asleep = (3 + 2) * runs if name == "sleep" else 0  # a fantasy, and the guide on it
    # The model reads three patches per run; the guide needs the first two of them.
    assert reads - asleep == 3 * runs
    assert all_reads - asleep == (3 + 2) * runs


def test_reuse_lets_go_of_what_it_held() -> None:
    model, _, batch = attention()
    reuse = Memoize()
    with reuse:
        model(*batch)
        assert reuse._results
    assert not reuse._results


# Memoize, by itself.


@memoize
def square(x: Tensor, times: float = 1.0) -> Tensor:
    CALLS.append(x)
    return times * x * x


CALLS: list[Tensor] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


def test_a_shared_function_is_plain_without_a_handler() -> None:
    x = torch.tensor(3.0)
    assert square(x).item() == 9.0
    assert square(x).item() == 9.0
    with Messenger():  # some other handler
        assert square(x).item() == 9.0
    assert len(CALLS) == 3
    assert square.__name__ == "square"


def test_reuse_is_by_identity_of_function_and_arguments() -> None:
    x = torch.tensor(3.0)
    with Memoize():
        first = square(x)
        assert square(x) is first
        assert len(CALLS) == 1
        equal = square(x.clone())
        assert equal is not first and equal.item() == 9.0
        assert len(CALLS) == 2
        two = 2.0
        assert square(x, times=two).item() == 18.0
        assert square(x, times=two).item() == 18.0
        assert square(x, two).item() == 18.0  # by position: another call, and still right
        assert len(CALLS) == 4
    assert square(x) is not first
    with Memoize():
        assert square(x) is not first


def test_reuse_keeps_graph_and_no_graph_apart() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    with Memoize():
        with torch.no_grad():
            constant = square(x)
        value = square(x)
    assert not constant.requires_grad
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.item() == 6.0


def test_reuse_never_takes_a_new_object_for_a_dead_one() -> None:
    """An argument that is gone could leave its identity to another: so none is let go."""

    @memoize
    def double(x: Tensor) -> Tensor:
        return 2 * x  # keeps no reference of its own

    with Memoize():
        for n in range(200):
            assert double(torch.tensor(float(n))).item() == 2.0 * n


def test_reuse_knows_results_that_are_none_or_false() -> None:
    calls = []

    @memoize
    def nothing(x: Tensor) -> None:
        calls.append(x)

    x = torch.zeros(())
    with Memoize():
        nothing(x)
        nothing(x)
    assert len(calls) == 1


# DetachSamples.


def test_samples_are_constants_while_the_program_runs() -> None:
    loc = torch.tensor(0.5, requires_grad=True)
    seen = []

    def program() -> None:
        a = pyro.sample("a", dist.Normal(loc, 1.0))
        seen.append(a)
        pyro.sample("b", dist.Normal(2 * a, 1.0))
        pyro.sample("y", dist.Normal(a, 1.0), obs=loc * 3)

    with DetachSamples():
        trace = poutine.trace(program).get_trace()
    assert not seen[0].requires_grad
    assert trace.nodes["a"]["value"] is seen[0]
    assert not trace.nodes["b"]["fn"].loc.requires_grad
    assert trace.nodes["y"]["value"].requires_grad  # an observation is no sample
    # Log-densities remain functions of the parameters: d log N(a; loc, 1) / d loc = a - loc.
    (gradient,) = torch.autograd.grad(trace.nodes["a"]["fn"].log_prob(seen[0]), loc)
    torch.testing.assert_close(gradient, seen[0] - 0.5)


def test_a_sample_that_is_constant_stays_the_same_object() -> None:
    value = torch.tensor(1.0)
    with DetachSamples(), ForceSamples({"a": value}):
        assert pyro.sample("a", dist.Normal(0.0, 1.0)) is value


# Substitute.


def two_sites(y: Tensor | None = None) -> Tensor:
    a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"note": "mine"})
    pyro.sample("b", dist.Normal(a, 1.0), obs=y)
    return a


def test_propose_gives_values_and_keeps_the_programs_own_infer() -> None:
    a, b = torch.tensor(0.25), torch.tensor(-1.0)
    with Substitute({"a": a, "b": b}):
        trace = poutine.trace(two_sites).get_trace()
    assert trace.nodes["a"]["value"] is a and trace.nodes["b"]["value"] is b
    assert trace.nodes["a"]["infer"] == {"note": "mine"}
    with Substitute({"a": a}):
        observed = poutine.trace(two_sites).get_trace(torch.tensor(3.0))
    assert observed.nodes["b"]["value"].item() == 3.0


def test_propose_names_what_does_not_fit() -> None:
    a = torch.tensor(0.0)
    missing = "the guide samples site 'b' but no value was proposed for it: give the guide a site 'b'"
    with pytest.raises(ValueError, match=missing), Substitute({"a": a}, whose="guide"):
        two_sites()
    observed = "site 'b' is observed in the model but sampled by the guide: hide it in the guide"
    with pytest.raises(ValueError, match=observed), Substitute({"a": a, "b": a}):
        two_sites(torch.tensor(1.0))


def test_propose_hands_on_the_subsample_of_a_plate() -> None:
    def program() -> Tensor:
        with pyro.plate("data", 10, subsample_size=3) as index:
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
        return torch.as_tensor(index)

    trace = poutine.trace(program).get_trace()
    values = {name: trace.nodes[name]["value"] for name in ("data", "z")}
    with Substitute(values):
        assert torch.equal(program(), values["data"])


# ForceSamples.


def test_force_samples_by_value_or_from_the_distribution() -> None:
    fixed = torch.tensor(7.0)
    with ForceSamples({"a": fixed, "b": lambda fn: fn.loc + 1}):
        trace = poutine.trace(two_sites).get_trace()
        observed = poutine.trace(two_sites).get_trace(torch.tensor(0.0))
    assert trace.nodes["a"]["value"] is fixed
    assert trace.nodes["b"]["value"].item() == 8.0
    assert observed.nodes["b"]["value"].item() == 0.0  # observations stay
    with ForceSamples({"b": fixed}):  # other sites are sampled as ever
        torch.manual_seed(0)
        free = two_sites()
    torch.manual_seed(0)
    assert torch.equal(free, two_sites())


# Mode.


def test_mode_takes_the_most_probable_value_of_every_latent() -> None:
    def program(y: Tensor | None = None) -> dict[str, Tensor]:
        with pyro.plate("data", 2):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            x = pyro.sample("x", dist.Normal(k.float(), 1.0))
            xy = pyro.sample("xy", dist.Normal(torch.ones(2, 3), 1.0).to_event(1))
            y = pyro.sample("y", dist.Normal(x, 1.0), obs=y)
        return {"k": k, "x": x, "xy": xy, "y": y}

    with Mode():
        found = program(torch.full((2,), 5.0))
    assert found["k"].tolist() == [1, 1]
    assert found["x"].tolist() == [1.0, 1.0]
    assert found["xy"].tolist() == [[1.0] * 3] * 2
    assert found["y"].tolist() == [5.0, 5.0]
    with Mode(), pyro.plate("rows", 4, subsample_size=2) as index:
        assert len(index) == 2  # a plate's subsample is drawn as ever


def test_modes_of_masked_and_fixed_sites_and_of_ties() -> None:
    some = torch.tensor([True, False])
    with Mode():
        masked = pyro.sample("masked", dist.Normal(torch.ones(2), 1.0).mask(some))
        inside = pyro.sample("inside", dist.Normal(torch.ones(2), 1.0).mask(some).to_event(1))
        fixed = pyro.sample("fixed", dist.Delta(torch.tensor(3.0)))
        even = pyro.sample("even", dist.Bernoulli(torch.tensor([0.5, 0.9])))
    assert masked.tolist() == inside.tolist() == [1.0, 1.0]
    assert float(fixed) == 3.0
    assert even.tolist() == [0.0, 1.0]


def test_mode_says_which_distribution_has_none() -> None:
    with pytest.raises(NotImplementedError, match="Multinomial"), Mode():
        pyro.sample("counts", dist.Multinomial(3, torch.ones(2)))


def test_handlers_leave_the_prior_guide_alone() -> None:
    """All at once, as the objectives use them: one run of the model serves as both."""
    model, _, batch = attention()
    torch.manual_seed(3)
    with DetachSamples(), Memoize():
        handled = poutine.trace(Prior(model)).get_trace(*batch)
    torch.manual_seed(3)
    plain = poutine.trace(Prior(model)).get_trace(*batch)
    for name in plain.stochastic_nodes:
        assert torch.equal(handled.nodes[name]["value"], plain.nodes[name]["value"])


# All particles at once.


def in_pyros_plate(program: Any, size: int, dim: int) -> Any:
    return pyro.plate(PARTICLE_PLATE, size, dim=dim)(program)


def all_kinds_of_sites() -> None:
    pyro.sample("alone", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, dim=-1):
        pyro.sample("row", dist.Categorical(logits=torch.zeros(4, 3)))
        wide = pyro.sample("pair", dist.Normal(torch.zeros(4, 2), 1.0).to_event(1))
        pyro.sample("own", dist.Normal(wide[..., 0], 1.0), obs=torch.zeros(4))
    pyro.factor("factor", torch.zeros(()))


@pytest.mark.parametrize("dim", [-2, -3])
def test_all_particles_do_what_pyros_plate_does(dim: int) -> None:
    """The same draws, log-densities, shapes and frames, without a site for the plate itself."""
    found = []
    for around in (lambda p, m, d: ParticlePlate(m, d)(p), in_pyros_plate):
        torch.manual_seed(0)
        found.append(poutine.trace(around(all_kinds_of_sites, 5, dim)).get_trace())
    ours, pyros = (trace.nodes for trace in found)
    assert ours.keys() == pyros.keys() - {PARTICLE_PLATE}
    for name in ("alone", "row", "pair", "own", "factor"):
        one, other = ours[name], pyros[name]
        assert torch.equal(one["value"], other["value"])
        assert one["fn"].batch_shape == other["fn"].batch_shape
        assert torch.equal(one["fn"].log_prob(one["value"]), other["fn"].log_prob(other["value"]))
        assert set(one["cond_indep_stack"]) == set(other["cond_indep_stack"])
        assert one["scale"] == other["scale"] == 1.0


def test_all_particles_keep_their_dimension_to_themselves() -> None:
    def program() -> None:
        with pyro.plate("auto", 3) as rows:  # pyro chooses a free dimension
            assert pyro.sample("x", dist.Normal(0.0, 1.0)).shape == (2, len(rows))

    for _ in range(2):  # it is free again afterwards
        ParticlePlate(2, -2)(program)()
    with pytest.raises(ValueError, match="collide at dim=-1"):
        ParticlePlate(2, -1)(lambda: pyro.plate("rows", 3, dim=-1).__enter__())()
    with pytest.raises(ValueError, match=r"site 'x' has 4 rows in dimension -1, .* 3 particles"):
        ParticlePlate(3, -1)(lambda: pyro.sample("x", dist.Normal(torch.zeros(4), 1.0)))()
