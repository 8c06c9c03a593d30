"""The exploration heuristics: what they add to a gradient, exactly, and what they leave alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor, nn

from wsram_ppl.guides import InferenceNetwork
from wsram_ppl.models import GlimpseClassifier
from wsram_ppl.objectives import ImportanceBound, Objective, Prior, VariationalBound, WakeSleep
from wsram_ppl.objectives.exploration import GRID, Exploration, Temper, tempered
from wsram_ppl.testing import ForceSamples

examples = settings(max_examples=30, deadline=None)
temperatures = st.floats(0.2, 5.0)
logits = st.lists(st.floats(-3, 3), min_size=2, max_size=4).map(
    lambda x: torch.tensor(x, dtype=torch.float64)
)


# Temperature: the density to the power 1/T, normalised again.


@given(logits, temperatures)
@examples
def test_a_tempered_categorical(logits: Tensor, temperature: float) -> None:
    for make in (dist.Categorical, dist.OneHotCategorical):
        found = tempered(make(logits=logits), temperature, "a")
        power = make(logits=logits).probs ** (1 / temperature)
        torch.testing.assert_close(found.probs, power / power.sum())
        assert type(found) is make


@given(st.floats(-4, 4), temperatures)
@examples
def test_a_tempered_bernoulli(logit: float, temperature: float) -> None:
    p = torch.tensor(logit, dtype=torch.float64).sigmoid()
    found = tempered(dist.Bernoulli(p), temperature, "a").probs
    power = torch.stack([p, 1 - p]) ** (1 / temperature)
    torch.testing.assert_close(found, power[0] / power.sum())


@given(st.floats(-1, 1), st.floats(0.1, 2), temperatures)
@examples
def test_a_tempered_normal(loc: float, scale: float, temperature: float) -> None:
    """p^(1/T) is proportional to a density with the variance times T."""
    fn = dist.Normal(torch.tensor(loc, dtype=torch.float64), scale)
    found = tempered(fn, temperature, "a")
    assert found.loc == fn.loc
    torch.testing.assert_close(found.scale**2, temperature * fn.scale**2)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    constant = found.log_prob(x) - fn.log_prob(x) / temperature
    torch.testing.assert_close(constant, constant[:1].expand(7))


def test_wrappers_keep_their_shape() -> None:
    normal = dist.Normal(torch.zeros(3, 2), torch.ones(3, 2))
    event = tempered(normal.to_event(1), 4.0, "a")
    assert (event.batch_shape, event.event_shape) == ((3,), (2,))
    torch.testing.assert_close(event.base_dist.scale, torch.full((3, 2), 2.0))
    wide = dist.Categorical(torch.tensor([0.2, 0.8])).expand_by([5])
    assert tempered(wide, 2.0, "a").batch_shape == (5,)
    expanded = ExpandedDistribution(dist.Categorical(torch.tensor([0.2, 0.8])), torch.Size([5]))
    assert tempered(expanded, 2.0, "a").batch_shape == (5,)
    mask = torch.tensor([True, False, True])
    masked = tempered(normal.to_event(1).mask(mask), 4.0, "a")
    assert torch.equal(masked.log_prob(torch.zeros(3, 2)) != 0, mask)


def test_temper_flattens_latent_sites_alone() -> None:
    def program() -> None:
        with pyro.plate("rows", 4, subsample_size=2):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0))
            pyro.sample("y", dist.Normal(a, 1.0), obs=torch.ones(2))

    with Temper(9.0):
        trace = poutine.trace(program).get_trace()
    assert trace.nodes["a"]["fn"].scale.tolist() == [3.0, 3.0]
    assert trace.nodes["y"]["fn"].scale.tolist() == [1.0, 1.0]
    assert len(trace.nodes["rows"]["value"]) == 2


# A small model: a ~ Categorical(3), b | a ~ Bernoulli, y | a, b ~ Bernoulli, for two data.


class Model(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

        self.a, self.b, self.y = normal(2, 3), normal(2, 3), normal(2, 3, 2)

    def latents(self) -> tuple[Tensor, Tensor]:
        rows = torch.arange(2)
        a = pyro.sample("a", dist.Categorical(logits=self.a))
        b = pyro.sample("b", dist.Bernoulli(logits=self.b[rows, a]))
        return a, b

    def forward(self) -> None:
        with pyro.plate("data", 2):
            a, b = self.latents()
            y = self.y[torch.arange(2), a, b.long()]
            pyro.sample("y", dist.Bernoulli(logits=y), obs=torch.ones(2, dtype=torch.float64))


class Guide(Model):
    def forward(self) -> None:
        with pyro.plate("data", 2):
            self.latents()


def entropy(probs: Tensor) -> Tensor:
    """By its definition, over the last dimension."""
    return -(probs * probs.log()).sum(-1)


def bernoulli(logits: Tensor) -> Tensor:
    return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)


PARTICLES = 3
OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "variational": lambda **o: VariationalBound("leave-one-out", num_particles=PARTICLES, **o),
    "importance": lambda **o: ImportanceBound(PARTICLES, **o),
    "wake-sleep": lambda **o: WakeSleep("none", num_particles=PARTICLES, **o),
    "wake-sleep-learned": lambda **o: WakeSleep("learned", num_particles=PARTICLES, **o),
    "sleep": lambda **o: WakeSleep(insomnia=0.5, num_particles=PARTICLES, **o),
}


class FantasyGuide(Guide):
    """Takes what sleep-q shows it (and makes nothing of it)."""

    def forward(self, observations: dict[str, Tensor] | None = None) -> None:
        super().forward()


def loss_and_gradients(
    make: Callable[..., Objective], exploration: Exploration | None, prior: bool, vectorized: bool
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """The loss, its gradients for theta and eta, and the particles (``[M, data]`` per site)."""
    model = Model(0)
    guide: nn.Module = Prior(model) if prior else FantasyGuide(1)
    drawn: dict[str, list[Tensor]] = {"a": [], "b": []}

    def record(name: str) -> Callable[[Any], Tensor]:
        def draw(fn: Any) -> Tensor:
            value: Tensor = fn.sample()
            drawn[name].append(value)
            return value

        return draw

    torch.manual_seed(7)
    objective = make(vectorize_particles=vectorized, max_plate_nesting=1)
    objective.regularizer = exploration
    with ForceSamples({name: record(name) for name in drawn}):
        loss = objective(model, guide)()
    parameters = [*model.parameters(), *guide.parameters()]
    found = torch.autograd.grad(-loss, parameters, allow_unused=True)
    gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    runs = 1 if vectorized else PARTICLES  # the first; later ones are the sleep phase's
    values = {name: torch.stack(v[:runs]).reshape(PARTICLES, 2) for name, v in drawn.items()}
    return loss, gradients, values


def added(
    make: Callable[..., Objective], exploration: Exploration, prior: bool, vectorized: bool
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What the exploration terms add to the gradient (ascent) on the same particles."""
    plain, without, values = loss_and_gradients(make, None, prior, vectorized)
    loss, gradients, same = loss_and_gradients(make, exploration, prior, vectorized)
    assert torch.equal(loss, plain), "the value is the bound, whatever is added to the gradient"
    assert all(torch.equal(values[name], same[name]) for name in values)
    return [a - b for a, b in zip(gradients, without, strict=True)], values


def expected(
    term: Callable[[Model, dict[str, Tensor]], Tensor], values: dict[str, Tensor], both: bool
) -> list[Tensor]:
    """Autograd of a term of the model, and of the guide where it counts there too."""
    model, guide = Model(0), FantasyGuide(1)
    total = term(model, values) + (term(guide, values) if both else 0.0)
    parameters = [*model.parameters(), *guide.parameters()]
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def conditional_entropy(model: Model, values: dict[str, Tensor]) -> Tensor:
    """Mean over particles of H(a) + H(b | a), summed over data."""
    of_b = entropy(bernoulli(model.b[torch.arange(2), values["a"]]))
    return entropy(model.a.softmax(-1)).sum() + of_b.sum() / PARTICLES


COMBINATIONS = pytest.mark.parametrize(
    ("name", "prior"),
    [
        (name, prior)
        for name in OBJECTIVES
        for prior in (False, True)
        if (name, prior) != ("sleep", True)
    ],
)


@pytest.mark.parametrize("vectorized", [True, False])
@COMBINATIONS
def test_the_entropy_bonus(name: str, prior: bool, vectorized: bool) -> None:
    found, values = added(OBJECTIVES[name], Exploration(entropy=0.3), prior, vectorized)
    wanted = expected(lambda m, v: 0.3 * conditional_entropy(m, v), values, both=not prior)
    for f, w in zip(found, wanted, strict=not prior):
        torch.testing.assert_close(f, w)


def test_one_latents_bonus_is_the_exact_entropy() -> None:
    """Without a second latent nothing is sampled in the bonus: it is H itself."""
    table = nn.Parameter(torch.tensor([[0.5, -1.0, 0.2], [0.0, 0.3, 2.0]], dtype=torch.float64))
    net = nn.ParameterList([table])

    def model() -> None:
        with pyro.plate("data", 2):
            a = pyro.sample("a", dist.Categorical(logits=table))
            pyro.sample("y", dist.Bernoulli(0.2 + 0.2 * a.double()), obs=torch.ones(2).double())

    gradients = []
    for weight in (0.0, 1.0):
        objective = ImportanceBound(4, vectorize_particles=True, regularizer=Exploration(entropy=weight))
        torch.manual_seed(0)
        loss = objective.differentiable_loss(model, Prior(model))
        gradients.append(torch.autograd.grad(-loss, list(net))[0])
    (exact,) = torch.autograd.grad(entropy(table.softmax(-1)).sum(), table)
    torch.testing.assert_close(gradients[1] - gradients[0], exact)


def kl_from_uniform(marginal: Tensor) -> Tensor:
    return (marginal * (marginal * len(marginal)).log()).sum()


@COMBINATIONS
@pytest.mark.parametrize("vectorized", [True, False])
def test_the_coverage_penalty(name: str, prior: bool, vectorized: bool) -> None:
    """-KL(marginal over minibatch and particles || uniform) per site, times the number of data."""
    found, values = added(OBJECTIVES[name], Exploration(coverage=0.7), prior, vectorized)

    def penalty(model: Model, values: dict[str, Tensor]) -> Tensor:
        of_a = model.a.softmax(-1).mean(0)
        of_b = bernoulli(model.b[torch.arange(2), values["a"]]).mean((0, 1))
        return -0.7 * 2 * (kl_from_uniform(of_a) + kl_from_uniform(of_b))

    wanted = expected(penalty, values, both=False)
    for f, w in zip(found, wanted, strict=not prior):
        torch.testing.assert_close(f, w)


def gradient_of_coverage(model: Callable[[], None], *parameters: Tensor, vectorized: bool = True) -> Any:
    gradients = []
    for weight in (0.0, 1.0):
        objective = ImportanceBound(2, vectorize_particles=vectorized)
        objective.regularizer = Exploration(coverage=weight)
        torch.manual_seed(0)
        loss = objective.differentiable_loss(model, Prior(model))
        gradients.append(torch.autograd.grad(-loss, parameters))
    return [b - a for a, b in zip(*gradients, strict=True)]


def test_coverage_of_places_counts_the_cells_of_a_grid() -> None:
    loc = torch.tensor([[0.3, -0.6], [0.1, 0.4], [-0.9, 0.9]], dtype=torch.float64, requires_grad=True)

    def model() -> None:
        with pyro.plate("data", 3):
            place = pyro.sample("place", dist.Normal(loc, 0.25).to_event(1))
            pyro.sample("y", dist.Normal(place.sum(-1), 1.0), obs=torch.zeros(3).double())

    (found,) = gradient_of_coverage(model, loc)
    edges = torch.linspace(-1, 1, GRID + 1, dtype=torch.float64)
    below = torch.distributions.Normal(loc[..., None], 0.25).cdf(edges)  # [3, 2, GRID + 1]
    x, y = (below[..., 1:] - below[..., :-1]).unbind(1)
    marginal = (x[:, :, None] * y[:, None, :]).mean(0).flatten()
    marginal = marginal / marginal.sum()
    (wanted,) = torch.autograd.grad(-3 * kl_from_uniform(marginal), loc)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("how", ["handler", "distribution", "never"])
def test_coverage_leaves_out_what_is_masked(how: str) -> None:
    logits = torch.tensor([[0.5, -1.0], [0.0, 0.3], [2.0, 1.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True])

    def model() -> None:
        with pyro.plate("data", 3):
            fn: Any = dist.Categorical(logits=logits)
            if how == "distribution":
                pyro.sample("a", fn.mask(mask))
            else:
                with poutine.mask(mask=mask if how == "handler" else False):
                    pyro.sample("a", fn)
            pyro.sample("y", dist.Bernoulli(logits=logits[:, 0]), obs=torch.ones(3).double())

    (found,) = gradient_of_coverage(model, logits)
    marginal = logits.softmax(-1)[mask].mean(0)
    (wanted,) = torch.autograd.grad(-3 * kl_from_uniform(marginal), logits)
    torch.testing.assert_close(found, torch.zeros_like(wanted) if how == "never" else wanted)


@pytest.mark.parametrize("vectorized", [True, False])
def test_coverage_without_any_plate(vectorized: bool) -> None:
    logits = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64, requires_grad=True)

    def model() -> None:
        a = pyro.sample("a", dist.Categorical(logits=logits))
        pyro.sample("y", dist.Bernoulli(0.2 + 0.2 * a.double()), obs=torch.ones(()).double())

    (found,) = gradient_of_coverage(model, logits, vectorized=vectorized)
    (wanted,) = torch.autograd.grad(-kl_from_uniform(logits.softmax(-1)), logits)
    torch.testing.assert_close(found, wanted)


# Temperature inside an objective.


def joint(tables: Model, temperature: float) -> Tensor:
    """log q_T(a, b) of each datum by enumeration: ``[2, 3, 2]``."""
    a = (tables.a / temperature).log_softmax(-1)
    b = bernoulli(tables.b / temperature).log()
    return a[..., None] + b


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("prior", [False, True])
def test_weights_use_the_tempered_density(prior: bool, vectorized: bool) -> None:
    model = Model(0)
    guide: nn.Module = Prior(model) if prior else Guide(1)
    exploration = Exploration(temperature=3.0)
    objective = ImportanceBound(PARTICLES, vectorize_particles=vectorized, regularizer=exploration)
    particles = objective.particles(model, guide)
    log_q = joint(model if prior else guide, 3.0)  # type: ignore[arg-type]
    log_p = joint(model, 1.0)
    assert len(particles.draws) == (1 if vectorized else PARTICLES)
    a, b = (
        torch.stack([d.guide_trace.nodes[name]["value"] for d in particles.draws]).reshape(-1, 2).long()
        for name in ("a", "b")
    )
    rows = torch.arange(2)
    log_y = torch.nn.functional.logsigmoid(model.y[rows, a, b])
    torch.testing.assert_close(particles.log_proposal, log_q[rows, a, b])
    torch.testing.assert_close(particles.log_prior, log_p[rows, a, b])
    weights = log_p[rows, a, b] + log_y - log_q[rows, a, b]
    torch.testing.assert_close(particles.log_weights, weights.detach())


class Rows(nn.Module):
    """Every tuple of M values of one categorical latent, a row of the data plate each."""

    def __init__(self, prior: Tensor, likelihood: Tensor, rows: int) -> None:
        super().__init__()
        self.prior = nn.Parameter(prior.expand(rows, -1).clone())
        self.likelihood = nn.Parameter(likelihood.expand(rows, -1).clone())

    def forward(self) -> None:
        rows = len(self.prior)
        with pyro.plate("data", rows):
            a = pyro.sample("a", dist.Categorical(logits=self.prior))
            y = self.likelihood[torch.arange(rows), a]
            pyro.sample("y", dist.Bernoulli(logits=y), obs=torch.ones(rows).double())


@pytest.mark.parametrize("name", ["variational", "importance"])
@given(
    seed=st.integers(0, 999), temperature=st.sampled_from([0.5, 1.0, 2.5]), particles=st.integers(2, 4)
)
@settings(max_examples=15, deadline=None)
def test_the_tempered_prior_as_proposal_stays_exact(
    name: str, seed: int, temperature: float, particles: int
) -> None:
    """E of the estimate over all tuples drawn from the prior at temperature T, against autograd.

    The bound is then a function of theta through the proposal too: E_{q_T(theta)}[bound(theta)].
    """
    generator = torch.Generator().manual_seed(seed)
    prior, likelihood = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    tuples = torch.cartesian_prod(*[torch.arange(3)] * particles)  # [T, M]
    model = Rows(prior, likelihood, len(tuples))
    exploration = Exploration(temperature=temperature)
    objective: Objective = (
        ImportanceBound(particles, vectorize_particles=True, regularizer=exploration)
        if name == "importance"
        else VariationalBound(
            "none", num_particles=particles, vectorize_particles=True, regularizer=exploration
        )
    )
    with ForceSamples({"a": tuples.T}):
        loss = objective(model, Prior(model))()
    found = torch.autograd.grad(-loss, [model.prior, model.likelihood])

    def expectation(prior: Tensor, likelihood: Tensor) -> tuple[Tensor, Tensor]:
        log_q = (prior / temperature).log_softmax(-1)
        log_w = prior.log_softmax(-1) + torch.nn.functional.logsigmoid(likelihood) - log_q
        each = log_w[tuples]
        bound = each.mean(-1) if name == "variational" else each.logsumexp(-1) - math.log(particles)
        probability = log_q[tuples].sum(-1).exp()
        return (probability * bound).sum(), probability

    _, probability = expectation(prior, likelihood)
    wanted = torch.autograd.functional.jacobian(lambda p, y: expectation(p, y)[0], (prior, likelihood))
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(torch.einsum("t,tk->k", probability, f), w)


# Errors.


@pytest.mark.parametrize("prior", [False, True])
def test_weights_in_tensors_do_what_numbers_do(prior: bool) -> None:
    """Also at 0 (1 for the temperature), where a number's term is left out."""
    model, guide = GlimpseClassifier(hidden=8, patch=4), None
    guide = Prior(model) if prior else InferenceNetwork(model)
    batch = torch.rand(3, 24, 24), torch.tensor([1, 2, 3])
    parameters = [*model.network.parameters(), *(() if prior else guide.network.parameters())]
    for values in ((0.3, 2.0, 0.2), (0.0, 1.0, 0.0)):
        found = []
        for make in (float, torch.tensor):
            exploration = Exploration()
            for name, value in zip(("entropy", "temperature", "coverage"), values, strict=True):
                setattr(exploration, name, make(value))
            objective = VariationalBound(
                num_particles=4, vectorize_particles=True, max_plate_nesting=1, regularizer=exploration
            )
            torch.manual_seed(0)
            loss = objective.differentiable_loss(model, guide, *batch)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            found.append([loss, *(g for g in gradients if g is not None)])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_tensor_is_set_in_its_place() -> None:
    exploration, held = Exploration(entropy=0.5), torch.tensor(2.0)
    exploration.temperature = held
    exploration.set(entropy=0.25, temperature=3.0)
    assert exploration.entropy == 0.25
    assert exploration.temperature is held and held == 3.0


def test_numbers_out_of_range_are_refused() -> None:
    for numbers in ({"entropy": -0.1}, {"coverage": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match="entropy and coverage must be at least 0 and temperature"):
            Exploration(**numbers)


@pytest.mark.parametrize(
    ("exploration", "message"),
    [
        (Exploration(temperature=2.0), "exploration.temperature has no rule for the Gamma of site 'g'"),
        (Exploration(coverage=0.1), "exploration.coverage has no rule for the Gamma of site 'g': use 0"),
    ],
)
def test_what_has_no_rule_is_told_by_site(exploration: Exploration, message: str) -> None:
    def model() -> None:
        with pyro.plate("data", 2):
            g = pyro.sample("g", dist.Gamma(torch.ones(2), torch.ones(2)))
            pyro.sample("y", dist.Poisson(g), obs=torch.ones(2))

    objective = ImportanceBound(2, regularizer=exploration)
    with pytest.raises(NotImplementedError, match=message):
        objective.differentiable_loss(model, Prior(model))
    objective.regularizer = None
    objective.differentiable_loss(model, Prior(model))


def test_what_has_no_entropy_is_told_by_site() -> None:
    def model() -> None:
        mixture = dist.MixtureSameFamily(
            dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), torch.ones(2))
        )
        z = pyro.sample("z", mixture)
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.ones(()))

    objective = ImportanceBound(2, regularizer=Exploration(entropy=0.1))
    message = (
        "exploration.entropy needs an entropy, which the MixtureSameFamily of site 'z' does not have"
    )
    with pytest.raises(NotImplementedError, match=message):
        objective.differentiable_loss(model, Prior(model))


def test_at_zero_nothing_changes() -> None:
    exploration = Exploration()
    assert not exploration.changes_proposal
    plain, gradients, _ = loss_and_gradients(OBJECTIVES["importance"], None, False, True)
    loss, same, _ = loss_and_gradients(OBJECTIVES["importance"], exploration, False, True)
    assert torch.equal(plain, loss)
    assert all(torch.equal(a, b) for a, b in zip(gradients, same, strict=True))
