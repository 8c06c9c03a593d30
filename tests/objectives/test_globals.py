"""A global latent beside local ones: weights per datum given the global, exactly, by enumeration.

g is a categorical of the whole data set (or a normal, of whose noise the nodes are listed), a_d a
categorical per datum that guide and model condition on g, y_d what is observed. The expectation of an
estimator is a sum over all values of g and of every datum's particles.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from tests.objectives import cases
from tests.objectives.cases import gradients
from tests.objectives.test_pathwise import nodes
from wsram_ppl.objectives import (
    Exploration,
    ImportanceBound,
    Objective,
    Prior,
    ThermodynamicBound,
    VariationalBound,
    WakeSleep,
)
from wsram_ppl.testing import ForceSamples

DATA, FULL, CHOICES = 2, 6, 2
SCALE = FULL / DATA
Y = torch.tensor([0.4, -1.1], dtype=torch.float64)
SHAPES = {
    "theta": {"gp": (2,), "ap": (2, CHOICES), "c": (CHOICES,)},
    "eta": {"gq": (2,), "aq": (2, DATA, CHOICES)},
}
Params = dict[str, Tensor]


def parameters(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES["theta"] | SHAPES["eta"]
    return {
        name: 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in shapes.items()
    }


@dataclass(frozen=True)
class Programs:
    """g decides which of two tables the locals follow; a normal g mixes the two.

    Args:
        p: the parameters: those of g (two numbers), those of a given g, the observations' means.
        normal: whether g is a normal, of mean and log-scale ``gq`` in the guide.
        nodes: of its quadrature; few will do for what is differentiated through.
    """

    p: Params
    normal: bool = False
    nodes: int = 6

    def prior_g(self) -> Any:
        gp = self.p["gp"]
        return dist.Normal(gp[0], 0.6 * gp[1].exp()) if self.normal else dist.Categorical(logits=gp)

    def proposal_g(self) -> Any:
        gq = self.p["gq"]
        return dist.Normal(gq[0], 0.6 * gq[1].exp()) if self.normal else dist.Categorical(logits=gq)

    def given(self, table: Tensor, g: Tensor) -> Tensor:
        """``[2, ...]`` at g."""
        return table[0] + (torch.sin(g) if self.normal else g.to(table)).unsqueeze(-1) * table[1]

    def prior_a(self, g: Tensor) -> Any:
        return dist.Categorical(logits=self.given(self.p["ap"], g))

    def proposal_a(self, g: Tensor) -> Any:
        return dist.Categorical(logits=self.given(self.p["aq"], g))

    def likelihood(self, a: Tensor) -> Any:
        return dist.Normal(self.p["c"][a], 1.0)

    def data(self) -> Any:
        return pyro.plate("data", FULL, subsample=torch.arange(DATA))

    def model(self) -> None:
        g = pyro.sample("g", self.prior_g())
        with self.data():
            a = pyro.sample("a", self.prior_a(g))
            pyro.sample("y", self.likelihood(a), obs=Y)

    def guide(self) -> None:
        g = pyro.sample("g", self.proposal_g())
        with self.data():
            pyro.sample("a", self.proposal_a(g))

    # The same by hand.

    def values_of_g(self) -> Iterator[tuple[Any, Callable[[], Tensor], Tensor]]:
        """What to force g to, its value as a function of the parameters, its log-probability."""
        fn = self.proposal_g()
        if not self.normal:
            for value in range(2):
                g = torch.tensor(value)
                yield g, lambda g=g: g, fn.log_prob(g)
            return
        for e, weight in zip(*nodes(self.nodes), strict=True):
            yield (
                (lambda fn, e=e: fn.loc + fn.scale * e),
                lambda e=e: fn.loc + fn.scale * e,
                weight.log(),
            )

    def log_weights(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """log w~ and log q of each choice of each datum, ``[DATA, CHOICES]``."""
        a = torch.arange(CHOICES)
        log_q = torch.log_softmax(self.given(self.p["aq"], g), -1)
        log_p = torch.log_softmax(self.given(self.p["ap"], g), -1) + self.likelihood(a).log_prob(
            Y.unsqueeze(-1)
        )
        return log_p - log_q, log_q

    def local_bound(self, g: Tensor, particles: int, kind: str) -> Tensor:
        """E_a[F] or E_a[L_M], summed over the minibatch's data."""
        log_w, log_q = self.log_weights(g)
        if kind == "F":
            return (log_q.exp() * log_w).sum()
        index = torch.cartesian_prod(*[torch.arange(CHOICES)] * particles).reshape(-1, particles)
        bound = log_w[:, index].logsumexp(-1) - math.log(particles)
        if kind == "T":
            estimator = ThermodynamicBound(particles)
            bound = estimator.bound(log_w[:, index].movedim(-1, 0))
        return (log_q[:, index].sum(-1).exp() * bound).sum()

    def bound(self, particles: int, kind: str) -> Tensor:
        """The whole objective, a differentiable function of all parameters."""
        total = torch.zeros((), dtype=torch.float64)
        for _, value, log_probability in self.values_of_g():
            g = value()
            own = self.prior_g().log_prob(g) - self.proposal_g().log_prob(g)
            total = total + log_probability.exp() * (own + SCALE * self.local_bound(g, particles, kind))
        return total

    def wake_q(self, particles: int) -> Tensor:
        """E[sum_m w_m log q(a)], to be differentiated in ``aq`` as it stands in log q alone."""
        total = torch.zeros((), dtype=torch.float64)
        index = torch.cartesian_prod(*[torch.arange(CHOICES)] * particles).reshape(-1, particles)
        for _, value, log_probability in self.values_of_g():
            log_w, log_q = self.log_weights(value())
            probability = (log_probability.exp() * log_q[:, index].sum(-1).exp()).detach()
            w = log_w[:, index].softmax(-1).detach()
            total = total + SCALE * (probability * (w * log_q[:, index]).sum(-1)).sum()
        return total


def expected_estimate(objective: Objective, programs: Programs) -> Params:
    """The exact expectation of an objective's gradient (of ascent), over g and all local particles."""
    p, m = programs.p, objective.num_particles
    total = {name: torch.zeros_like(value) for name, value in p.items()}
    draws_of_g = (
        m if isinstance(objective, VariationalBound) else getattr(objective, "num_global_particles", 1)
    )
    locals_of_g = 1 if isinstance(objective, VariationalBound) else m
    choices = list(itertools.product(range(CHOICES), repeat=DATA * locals_of_g))
    state = objective.state_dict()
    for gs in itertools.product(list(programs.values_of_g()), repeat=draws_of_g):
        for chosen in itertools.product(choices, repeat=draws_of_g):
            a = torch.tensor(chosen).reshape(draws_of_g, locals_of_g, DATA)
            log_probability = torch.zeros((), dtype=torch.float64)
            with torch.no_grad():
                for (_, value, log_p), each in zip(gs, a, strict=True):
                    _, log_q = programs.log_weights(value())
                    log_probability = log_probability + log_p
                    log_probability += log_q[torch.arange(DATA), each].sum()
            objective.load_state_dict(state)
            if objective.vectorize_particles and locals_of_g == 1 < draws_of_g:
                values: Any = {"g": torch.stack([g for g, *_ in gs]).unsqueeze(-1), "a": a.squeeze(1)}
            elif objective.vectorize_particles:
                forced_g, forced_a = iter(gs), iter(a)
                values = {"g": at_next(forced_g), "a": lambda fn, it=forced_a: next(it).squeeze(0)}
            else:
                one_by_one = iter(a.flatten(0, 1))
                values = {"g": at_next(iter(gs)), "a": lambda fn, it=one_by_one: next(it)}
            with ForceSamples(values):
                loss = objective.differentiable_loss(programs.model, programs.guide)
            found = torch.autograd.grad(-loss, list(p.values()), allow_unused=True)
            for name, gradient in zip(p, found, strict=True):
                if gradient is not None:
                    total[name] += log_probability.exp() * gradient
    return total


def at_next(gs: Iterator[Any]) -> Callable[[Any], Tensor]:
    def value(fn: Any) -> Tensor:
        forced = next(gs)[0]
        found: Tensor = forced(fn) if callable(forced) else forced
        return found

    return value


def assert_close(found: Params, expected: Params, names: Any, tolerance: float = 1e-9) -> None:
    cases.assert_close(found, expected, names, tolerance)


def given_state(objective: Objective, programs: Programs, value: float = 0.3) -> None:
    """Puts a number in place of the running means: unbiased whatever they are."""
    objective.differentiable_loss(programs.model, programs.guide)
    state = {name: torch.full_like(mean, value) for name, mean in objective.state_dict().items()}
    objective.load_state_dict(state)


OPTIONS: dict[bool, dict[str, Any]] = {
    False: {"vectorize_particles": False},
    True: {"vectorize_particles": True, "max_plate_nesting": 1},
}
both_ways = pytest.mark.parametrize("vectorized", [True, False])


@both_ways
@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("gradient", ["vimco", "ovis"])
def test_importance_bound(gradient: Any, draws: int, vectorized: bool) -> None:
    """E over g of log p(g) - log q(g) + N/B sum_d L_M: the gradient in all parameters."""
    programs = Programs(parameters(draws))
    objective = ImportanceBound(
        2, guide_gradient=gradient, num_global_particles=draws, **OPTIONS[vectorized]
    )
    given_state(objective, programs)
    expected = gradients(programs.bound(2, "L"), programs.p)
    assert_close(expected_estimate(objective, programs), expected, programs.p)


@both_ways
@pytest.mark.parametrize("pathwise", [("g",), ()])
def test_importance_bound_with_a_normal_global(pathwise: Any, vectorized: bool) -> None:
    """The same through g's sample, and by its score."""
    programs = Programs(parameters(3), normal=True, nodes=6 if pathwise else 40)
    objective = ImportanceBound(2, pathwise=pathwise, **OPTIONS[vectorized])
    given_state(objective, programs)
    expected = gradients(programs.bound(2, "L"), programs.p)
    tolerance = 1e-9 if pathwise else 1e-6  # the score's expectation is a quadrature
    assert_close(expected_estimate(objective, programs), expected, programs.p, tolerance)


@both_ways
@pytest.mark.parametrize("control_variate", ["none", "unnormalized", "adaptive", "learned"])
@pytest.mark.parametrize("pathwise", [("g",), ()])
def test_wake_sleep(pathwise: Any, control_variate: Any, vectorized: bool) -> None:
    """Model and g's guide follow the bound, the local guide wake-q."""
    programs = Programs(parameters(4), normal=bool(pathwise))
    objective = WakeSleep(control_variate, num_particles=2, pathwise=pathwise, **OPTIONS[vectorized])
    given_state(objective, programs)
    found = expected_estimate(objective, programs)
    bound = gradients(programs.bound(2, "L"), programs.p)
    assert_close(found, bound, ["gp", "ap", "c", "gq"])
    assert_close(found, gradients(programs.wake_q(2), programs.p), ["aq"])


@both_ways
@pytest.mark.parametrize("normal", [True, False])
@pytest.mark.parametrize("baseline", ["none", "leave-one-out", "site"])
def test_variational_bound(baseline: Any, normal: bool, vectorized: bool) -> None:
    """Signals in each site's own plates: E[F], with the global's terms counted once."""
    if normal and baseline == "leave-one-out":
        pytest.skip("two draws of a normal are many nodes: the case without covers it")
    particles = 2 if baseline == "leave-one-out" else 1
    programs = Programs(parameters(5), normal=normal)
    pathwise = ("g",) if normal else ()
    objective = VariationalBound(
        baseline, num_particles=particles, pathwise=pathwise, **OPTIONS[vectorized]
    )
    expected = gradients(programs.bound(1, "F"), programs.p)
    assert_close(expected_estimate(objective, programs), expected, programs.p)


@both_ways
def test_thermodynamic_bound_of_one_temperature(vectorized: bool) -> None:
    """With beta = 0 alone it is the variational bound, exactly, also for the global."""
    programs = Programs(parameters(6))
    objective = ThermodynamicBound(2, num_temperatures=1, **OPTIONS[vectorized])
    given_state(objective, programs)
    expected = gradients(programs.bound(2, "F"), programs.p)
    assert_close(expected_estimate(objective, programs), expected, programs.p)


@both_ways
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda **o: ImportanceBound(3, **o), "L"),
        (lambda **o: WakeSleep(num_particles=3, **o), "L"),
        (lambda **o: VariationalBound(num_particles=1, **o), "F"),
    ],
)
def test_the_loss_is_the_bound(make: Any, kind: str, vectorized: bool) -> None:
    """Its value at given draws, from the tables; ``statistics`` has it per datum of the data set."""
    programs = Programs(parameters(7))
    objective = make(**OPTIONS[vectorized])
    m = objective.num_particles
    a = torch.tensor([[0, 1], [1, 1], [0, 0]])[:m]
    g = torch.tensor(1)
    values: Any = {"g": g, "a": a.squeeze(0)}
    if not vectorized:
        one_by_one = iter(a)
        values["a"] = lambda fn: next(one_by_one)
    with ForceSamples(values):
        loss = objective.loss(programs.model, programs.guide)
    log_w, _ = programs.log_weights(g)
    each = log_w[torch.arange(DATA), a]
    local = each.logsumexp(0) - math.log(m) if kind == "L" else each.mean(0)
    own = programs.prior_g().log_prob(g) - programs.proposal_g().log_prob(g)
    expected = own + SCALE * local.sum()
    assert loss == pytest.approx(-expected.item(), rel=1e-12)
    assert objective.statistics["bound"].item() == pytest.approx(expected.item() / FULL, rel=1e-12)


def test_prior_with_a_global() -> None:
    """Prior(model): theta gets the gradient of E_p[L_M], its own global's score included."""
    programs = Programs(parameters(8))
    objective = ImportanceBound(2, **OPTIONS[True])
    p = {name: programs.p[name] for name in SHAPES["theta"]}
    same = Programs({**p, "gq": p["gp"], "aq": p["ap"].unsqueeze(1).expand(2, DATA, CHOICES)})
    model, guide = same.model, Prior(same.model)
    guide._model = (model,)
    total = {name: torch.zeros_like(v) for name, v in p.items()}
    for forced, value, log_p in same.values_of_g():
        for chosen in itertools.product(range(CHOICES), repeat=2 * DATA):
            a = torch.tensor(chosen).reshape(2, DATA)
            _, log_q = same.log_weights(value())
            probability = (log_p + log_q[torch.arange(DATA), a].sum()).exp().detach()
            objective.load_state_dict({})
            with ForceSamples({"g": forced, "a": a}):
                loss = objective.differentiable_loss(model, guide)
            for name, g in zip(p, torch.autograd.grad(-loss, list(p.values())), strict=True):
                total[name] += probability * g
    assert_close(total, gradients(same.bound(2, "L"), p), p)


# Programs with plates beside each other and inside each other.


class Plates:
    """A global, two sibling plates under it, one of them observed through the other's latents."""

    def __init__(self) -> None:
        self.eta = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((), (3,), (2,), ())]

    def model(self) -> None:
        g = pyro.sample("g", dist.Bernoulli(logits=torch.tensor(0.2).double()))
        with pyro.plate("rows", 3, dim=-2):
            a = pyro.sample("a", dist.Bernoulli(logits=g * torch.ones(3, 1).double()))
        with pyro.plate("columns", 2, dim=-1):
            b = pyro.sample("b", dist.Bernoulli(logits=0.5 - g * torch.ones(2).double()))
        with pyro.plate("others", 2, dim=-1):  # another plate of the same size in the same dimension
            x = dist.Normal(g + b.sum() * torch.ones(2).double(), 1.0)
            pyro.sample("x", x, obs=torch.ones(2).double())
        h = pyro.sample("h", dist.Bernoulli(logits=a.sum() - 1.0))
        with pyro.plate("rows_", 3, dim=-2), pyro.plate("columns_", 2, dim=-1), poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(a * b + h, 1.0), obs=torch.ones(3, 2).double())

    def guide(self, late: bool) -> None:
        g_logit, a_logits, b_logits, h_logit = self.eta
        g = pyro.sample("g", dist.Bernoulli(logits=g_logit))
        if not late:
            pyro.sample("h", dist.Bernoulli(logits=h_logit))
        with pyro.plate("rows", 3, dim=-2):
            a = pyro.sample("a", dist.Bernoulli(logits=(a_logits + g).unsqueeze(-1)))
        with pyro.plate("columns", 2, dim=-1):
            pyro.sample("b", dist.Bernoulli(logits=b_logits))
        if late:
            pyro.sample("h", dist.Bernoulli(logits=h_logit * a.sum()))


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("baseline", ["none", "site"])
def test_a_site_that_depends_on_a_whole_plate(baseline: Any, late: bool) -> None:
    """Also where a later latent carries one element's choice to another's terms, F is unbiased."""
    torch.manual_seed(0)
    programs = Plates()
    objective = VariationalBound(baseline, num_particles=1)

    def guide() -> None:
        programs.guide(late)

    total = [torch.zeros_like(v) for v in programs.eta]
    target = torch.zeros((), dtype=torch.float64)
    for g, h, *rest in itertools.product((0.0, 1.0), repeat=7):
        a = torch.tensor(rest[:3]).double().unsqueeze(-1)
        values = {"g": torch.tensor(g).double(), "h": torch.tensor(h).double(), "a": a}
        values["b"] = torch.tensor(rest[3:]).double()
        with ForceSamples(values):
            loss = objective.differentiable_loss(programs.model, guide)
            found = torch.autograd.grad(-loss, programs.eta, allow_unused=True)
            traces = [poutine.trace(p).get_trace() for p in (guide, programs.model)]
        log_q, log_p = (trace.log_prob_sum() for trace in traces)
        target = target + log_q.exp() * (log_p - log_q)
        for sum_, gradient in zip(total, found, strict=True):
            sum_ += 0.0 if gradient is None else log_q.exp().detach() * gradient
    for found, expected in zip(total, torch.autograd.grad(target, programs.eta), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_local_gradients_do_not_grow_with_the_data() -> None:
    """The variance of a local site's gradient is Trace_ELBO's, and not that of all data's terms."""
    size = 200
    logits = torch.zeros(size, requires_grad=True)

    def model() -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size):
            a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(size)))
            pyro.sample("y", dist.Normal(a + 0 * g, 1.0), obs=torch.ones(size))

    def guide() -> None:
        pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size):
            pyro.sample("a", dist.Bernoulli(logits=logits))

    spread = {}
    for objective in (VariationalBound(num_particles=1), Trace_ELBO()):
        pyro.set_rng_seed(0)
        drawn = [
            torch.autograd.grad(objective.differentiable_loss(model, guide), logits)[0]
            for _ in range(200)
        ]
        spread[type(objective)] = torch.stack(drawn).std(0).mean().item()
    assert spread[VariationalBound] == pytest.approx(spread[Trace_ELBO], rel=0.2)


def test_weights_are_per_datum() -> None:
    """The effective sample size with a global is that without."""
    pyro.set_rng_seed(0)
    programs = Programs(parameters(9))
    objective = ImportanceBound(4, **OPTIONS[True])
    objective.loss(programs.model, programs.guide)
    assert objective.statistics["ess"] > 2


def test_scales_anywhere_in_a_sum() -> None:
    """KL annealing and subsampled inner plates: loss and gradient are Trace_ELBO's."""
    loc = torch.tensor([0.3, -0.2], requires_grad=True)

    def program(is_guide: bool) -> None:
        with pyro.plate("data", 2):
            with poutine.scale(scale=0.3):
                z = pyro.sample("z", dist.Normal(loc if is_guide else torch.zeros(2), 1.0))
            with poutine.scale(scale=torch.tensor([0.5, 2.0])):
                w = pyro.sample("w", dist.Normal(loc if is_guide else torch.ones(2), 1.0))
            if not is_guide:
                with pyro.plate("parts", 10, subsample=torch.arange(3), dim=-2):
                    pyro.sample("y", dist.Normal(z + w, 1.0), obs=torch.ones(3, 2))

    results = []
    for objective in (VariationalBound(pathwise=True, num_particles=1), Trace_ELBO()):
        pyro.set_rng_seed(0)
        loss = objective.differentiable_loss(lambda: program(False), lambda: program(True))
        results.append((loss.detach(), torch.autograd.grad(loss, loc)[0]))
    torch.testing.assert_close(*results)


# What is refused.


@both_ways
def test_globals_after_locals(vectorized: bool) -> None:
    def model() -> None:
        g = pyro.sample("g", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(3)))
            pyro.sample("y", dist.Normal(a + g, 1.0), obs=torch.zeros(3))

    def guide() -> None:
        with pyro.plate("data", 3):
            pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(3)))
        pyro.sample("g", dist.Normal(0.0, 1.0))

    message = "the global site 'g' comes after the local site 'a' in the guide"
    for make in (ImportanceBound, WakeSleep, ThermodynamicBound):
        with pytest.raises(ValueError, match=re.escape(message)):
            make(num_particles=2, **OPTIONS[vectorized]).loss(model, guide)
    VariationalBound(num_particles=2, **OPTIONS[vectorized]).loss(model, guide)


def test_global_particles_without_a_global() -> None:
    def program(is_guide: bool) -> None:
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(3)))
            if not is_guide:
                pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(3))

    with pytest.raises(ValueError, match="no latent lies outside the data plates: use num_particles"):
        ImportanceBound(num_global_particles=2).loss(lambda: program(False), lambda: program(True))


def test_sleep_with_a_global() -> None:
    programs = Programs(parameters(0))

    def guide(observations: Any = None) -> None:
        programs.guide()

    with pytest.raises(ValueError, match=r"site 'g' is global: use insomnia=1\.0"):
        WakeSleep(insomnia=0.5).differentiable_loss(programs.model, guide)


def test_exploration_concerns_local_sites() -> None:
    """The entropy bonus is of what is chosen per datum; the global's gradient stays the bound's."""
    programs = Programs(parameters(1))
    found = []
    for regularizer in (None, Exploration(entropy=0.5)):
        objective = ImportanceBound(2, regularizer=regularizer, **OPTIONS[True])
        with ForceSamples({"g": torch.tensor(1), "a": torch.tensor([[0, 1], [1, 1]])}):
            loss = objective.differentiable_loss(programs.model, programs.guide)
        found.append(gradients(loss, programs.p))
    assert_close(found[0], found[1], ["gp", "gq", "c"])
    assert not torch.equal(found[0]["aq"], found[1]["aq"])
