"""Sites that are differentiated through, beside sites that are not: every estimator's exact expectation.

A normal latent z and a categorical b, in either order in the guide. Expectations over z are
Gauss-Hermite sums over nodes z = loc + scale e, so that the expectation of an estimator is a finite sum
over tuples of (e, b), pathwise gradients included; those over b are exact. Each tuple is a row of the
data plate, with its own copy of the parameters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.testing.rejection_gamma import RejectionStandardGamma
from pyro.infer import Trace_ELBO, autoguide
from torch import Tensor

from tests.objectives import cases
from tests.objectives.cases import gradients
from wsram_ppl.objectives import (
    ImportanceBound,
    Objective,
    Prior,
    ThermodynamicBound,
    VariationalBound,
    WakeSleep,
)
from wsram_ppl.testing import ForceSamples

NODES = 18
CHOICES = 2
Y = 0.7
THETA = {"m": (), "wb": (CHOICES,), "vb": (CHOICES,), "c": (CHOICES,)}
ETA = {"mu": (), "ls": (), "ub": (CHOICES,), "tb": (CHOICES,)}
Params = dict[str, Tensor]


def parameters(seed: int) -> Params:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in (THETA | ETA).items()
    }


def nodes(count: int = NODES) -> tuple[Tensor, Tensor]:
    """Nodes and probabilities of a standard normal."""
    e, weight = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(e), torch.tensor(weight / math.sqrt(2 * math.pi))


# Distributions, for a row of parameters or for all: [..., rows] and [..., rows, CHOICES].


def prior_z(p: Params) -> Any:
    return dist.Normal(p["m"], 1.0)


def prior_b(p: Params, z: Tensor) -> Any:
    return dist.Categorical(logits=p["vb"] + p["wb"] * z.unsqueeze(-1))


def likelihood(p: Params, z: Tensor, b: Tensor) -> Any:
    return dist.Normal(z.square() / 4 + pick(p["c"], b), 2.0)


def proposal_z(p: Params, b: Tensor | None) -> Any:
    shift = 0.0 if b is None else pick(p["tb"], b)
    return dist.Normal(p["mu"] + shift, 0.8 * p["ls"].exp())


def proposal_b(p: Params, z: Tensor | None) -> Any:
    return dist.Categorical(logits=p["ub"] + (0.0 if z is None else p["tb"] * z.unsqueeze(-1)))


def pick(table: Tensor, b: Tensor) -> Tensor:
    """``[rows, CHOICES]`` at ``[..., rows]``."""
    return table.expand(*b.shape, CHOICES).gather(-1, b.unsqueeze(-1)).squeeze(-1)


@dataclass(frozen=True)
class Setting:
    """The programs on ``rows`` data.

    Args:
        p: parameters, each with rows in front.
        z_first: whether the guide draws z before b.
    """

    p: Params
    z_first: bool

    @property
    def rows(self) -> int:
        return len(self.p["mu"])

    def model(self) -> None:
        with pyro.plate("data", self.rows):
            z = pyro.sample("z", prior_z(self.p))
            b = pyro.sample("b", prior_b(self.p, z))
            pyro.sample("y", likelihood(self.p, z, b), obs=torch.full((self.rows,), Y).double())

    def guide(self) -> None:
        with pyro.plate("data", self.rows):
            if self.z_first:
                z = pyro.sample("z", proposal_z(self.p, None))
                pyro.sample("b", proposal_b(self.p, z))
            else:
                b = pyro.sample("b", proposal_b(self.p, None))
                pyro.sample("z", proposal_z(self.p, b))

    def log_weights_and_score(self, e: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w~, log q(b) and z of particles ``[M, rows]`` of noise and choices."""
        p = self.p
        z = self._z(e, b)
        log_q_b = proposal_b(p, z if self.z_first else None).log_prob(b)
        log_q = proposal_z(p, None if self.z_first else b).log_prob(z) + log_q_b
        log_p = prior_z(p).log_prob(z) + prior_b(p, z).log_prob(b)
        log_p = log_p + likelihood(p, z, b).log_prob(torch.tensor(Y).double())
        return log_p - log_q, log_q_b, z

    def _z(self, e: Tensor, b: Tensor) -> Tensor:
        fn = proposal_z(self.p, None if self.z_first else b)
        z: Tensor = fn.loc + fn.scale * e
        return z


def tuples(particles: int) -> tuple[Tensor, Tensor, Tensor]:
    """All tuples: noise and choice ``[M, T]``, and the probability of the noise ``[T]``."""
    e, weight = nodes()
    values = torch.cartesian_prod(torch.arange(NODES), torch.arange(CHOICES))
    index = torch.cartesian_prod(*[torch.arange(len(values))] * particles).reshape(-1, particles).T
    chosen = values[index]
    return e[chosen[..., 0]], chosen[..., 1], weight[chosen[..., 0]].prod(0)


def rows_of(p: Params, rows: int) -> Params:
    return {name: v.expand(rows, *v.shape).clone().requires_grad_() for name, v in p.items()}


def expected_estimate(objective: Objective, p: Params, z_first: bool) -> Params:
    """The exact expectation of an objective's gradient (of ascent)."""
    e, b, weight = tuples(objective.num_particles)
    rows = Setting(rows_of(p, e.shape[1]), z_first)

    def noise(fn: Any) -> Tensor:
        return fn.loc + fn.scale * (e if objective.num_particles > 1 else e[0])

    values = {"z": noise, "b": b if objective.num_particles > 1 else b[0]}
    with ForceSamples(values):
        loss = objective.differentiable_loss(rows.model, rows.guide)
    found = torch.autograd.grad(-loss, list(rows.p.values()), allow_unused=True)
    with torch.no_grad():
        _, log_q_b, _ = rows.log_weights_and_score(e, b)
        probability = weight * log_q_b.sum(0).exp()
    return {
        name: torch.zeros_like(p[name]) if g is None else torch.tensordot(probability, g, 1)
        for name, g in zip(rows.p, found, strict=True)
    }


def target(p: Params, z_first: bool, particles: int, kind: str) -> Params:
    """The gradient of E[F] ("F") or E[L_M] ("L"), or of wake-q ("q"), by automatic differentiation."""
    e, b, weight = tuples(particles)
    leaves = {name: v.clone().requires_grad_() for name, v in p.items()}
    setting = Setting({name: v.unsqueeze(0) for name, v in leaves.items()}, z_first)
    if kind == "q":
        with torch.no_grad():
            log_w, log_q_b, z = setting.log_weights_and_score(e, b)
            probability = weight * log_q_b.sum(0).exp()
        log_q = proposal_b(setting.p, z if z_first else None).log_prob(b)
        log_q = log_q + proposal_z(setting.p, None if z_first else b).log_prob(z)
        total = (probability * (log_w.softmax(0) * log_q).sum(0)).sum()
    else:
        log_w, log_q_b, _ = setting.log_weights_and_score(e, b)
        bound = log_w.mean(0) if kind == "F" else log_w.logsumexp(0) - math.log(particles)
        total = (weight * log_q_b.sum(0).exp() * bound).sum()
    return gradients(total, leaves)


def assert_close(found: Params, expected: Params, names: Any, tolerance: float = 2e-6) -> None:
    cases.assert_close(found, expected, names, tolerance)


def options(particles: int) -> dict[str, Any]:
    vectorized = {"vectorize_particles": True, "max_plate_nesting": 1}
    return {"num_particles": particles, **vectorized}


CASES: dict[str, tuple[Callable[[], Objective], str]] = {
    "variational": (lambda: VariationalBound(pathwise=["z"], **options(1)), "F"),
    "variational, leave-one-out": (
        lambda: VariationalBound("leave-one-out", pathwise=["z"], **options(2)),
        "F",
    ),
    "variational, site": (lambda: VariationalBound("site", pathwise=["z*"], **options(2)), "F"),
    "importance": (lambda: ImportanceBound(pathwise=["z"], **options(2)), "L"),
    "importance, ovis": (
        lambda: ImportanceBound(pathwise=True, guide_gradient="ovis", **options(2)),
        "L",
    ),
    "doubly reparameterised": (
        lambda: ImportanceBound(pathwise=True, doubly_reparameterized=True, **options(2)),
        "L",
    ),
}


@pytest.mark.parametrize("z_first", [True, False])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_unbiased_for_the_bound(name: str, z_first: bool, seed: int) -> None:
    """Pathwise beside score-function sites, in either order: the gradient of E[F] or E[L_M]."""
    make, kind = CASES[name]
    objective, p = make(), parameters(seed)
    expected = target(p, z_first, objective.num_particles, kind)
    assert_close(expected_estimate(objective, p, z_first), expected, p)


@pytest.mark.parametrize("z_first", [True, False])
@pytest.mark.parametrize("kind", ["F", "L"])
def test_scores_and_samples_have_one_expectation(kind: str, z_first: bool) -> None:
    """Without ``pathwise`` the same gradients, from scores alone."""
    p = parameters(3)
    objective = VariationalBound(**options(2)) if kind == "F" else ImportanceBound(**options(2))
    assert_close(expected_estimate(objective, p, z_first), target(p, z_first, 2, kind), p)


@pytest.mark.parametrize("z_first", [True, False])
@pytest.mark.parametrize("control_variate", ["none", "adaptive", "learned"])
@pytest.mark.parametrize("doubly", [True, False])
def test_wake_sleep(doubly: bool, control_variate: Any, z_first: bool) -> None:
    """Theta as the bound's, eta as wake-q, doubly reparameterised or by scores alone."""
    p = parameters(4)
    objective = WakeSleep(
        control_variate, pathwise=["z"] if doubly else (), doubly_reparameterized=doubly, **options(2)
    )
    if control_variate != "none":
        expected_estimate(objective, p, z_first)
        state = {name: torch.full_like(v, 0.3) for name, v in objective.state_dict().items()}
        objective.load_state_dict(state)
    found = expected_estimate(objective, p, z_first)
    assert_close(found, target(p, z_first, 2, "L"), THETA)
    assert_close(found, target(p, z_first, 2, "q"), ETA)


def test_double_reparameterisation_has_less_variance_near_the_posterior() -> None:
    """What it is for: with the posterior as guide its gradient is zero, draw by draw."""

    class Conjugate:
        loc = torch.tensor([0.35], dtype=torch.float64, requires_grad=True)

        def model(self) -> None:
            with pyro.plate("data", 1):
                z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0))
                pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor([0.7]).double())

        def guide(self) -> None:
            with pyro.plate("data", 1):
                pyro.sample("z", dist.Normal(self.loc, math.sqrt(0.5)))

    for doubly in (True, False):
        programs = Conjugate()
        objective = ImportanceBound(4, pathwise=True, doubly_reparameterized=doubly)
        loss = objective.differentiable_loss(programs.model, programs.guide)
        (gradient,) = torch.autograd.grad(loss, programs.loc)
        assert (gradient.abs().item() < 1e-7) == doubly


# Programs from Pyro: the same gradients as Trace_ELBO for the same draws.

X = torch.tensor([[0.1, 1.2], [-0.3, 0.4], [2.0, -1.0]])


def regression(x: Tensor, y: Tensor) -> None:
    """Nothing but globals: weights, a positive scale, a simplex."""
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    mix = pyro.sample("mix", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal((x * weight).sum(-1) + mix[..., 0], scale), obs=y)


def hierarchy(x: Tensor, y: Tensor) -> None:
    """A global, and a local latent for each datum."""
    centre = pyro.sample("centre", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        local = pyro.sample("local", dist.Normal(centre, 1.0))
        pyro.sample("y", dist.Normal(local + x.sum(-1), 0.5), obs=y)


GUIDES: dict[str, Callable[[Any], Any]] = {
    "delta": autoguide.AutoDelta,
    "normal": autoguide.AutoNormal,
    "diagonal": autoguide.AutoDiagonalNormal,
    "multivariate": autoguide.AutoMultivariateNormal,
    "low rank": autoguide.AutoLowRankMultivariateNormal,
}


@pytest.mark.parametrize("model", [regression, hierarchy])
@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("vectorized", [False, True])
def test_autoguides_as_in_pyro(name: str, model: Any, vectorized: bool) -> None:
    """VariationalBound(pathwise=True) is Trace_ELBO, loss and gradient, under Pyro's guides."""
    guide, y = GUIDES[name](model), torch.tensor([0.3, -0.2, 1.0])
    guide(X, y)
    options: Any = {"num_particles": 3, "vectorize_particles": vectorized, "max_plate_nesting": 1}
    results = []
    for objective in (
        VariationalBound(pathwise=True, **options),
        Trace_ELBO(**options),
    ):
        guide.zero_grad()
        pyro.set_rng_seed(0)
        loss = objective.differentiable_loss(model, guide, X, y)
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in guide.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:all local latents of the guide:UserWarning")
@pytest.mark.parametrize("name", GUIDES)
@pytest.mark.parametrize("pathwise", [True, ()])
def test_autoguides_under_an_importance_bound(name: str, pathwise: Any) -> None:
    """L_M rises while automatic guides are trained, through samples or by scores."""
    pyro.set_rng_seed(0)
    guide, y = GUIDES[name](regression), torch.tensor([0.3, -0.2, 1.0])
    guide(X, y)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.02)
    losses = []
    with pytest.warns(UserWarning, match="site 'weight|site '_Auto|site 'scale|site 'mix"):
        objective = ImportanceBound(8, pathwise=pathwise)
        for _ in range(120):
            optimizer.zero_grad()
            loss = objective.differentiable_loss(regression, guide, X, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-20:]) < sum(losses[:20])


@pytest.mark.filterwarnings("ignore:all local latents of the guide:UserWarning")
def test_a_delta_is_always_differentiated_through() -> None:
    """A point estimate by a Delta of the user's own has no score: its gradient is that of log p."""
    place = torch.tensor(0.4, requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        pyro.sample("z", dist.Delta(place))

    for objective in (VariationalBound(num_particles=2), ImportanceBound(2)):
        (found,) = torch.autograd.grad(-objective.differentiable_loss(model, guide), place)
        torch.testing.assert_close(found, torch.tensor(1.0 - 2 * 0.4))
    with pytest.raises(ValueError, match=re.escape("site 'z' is pathwise (or a Delta with parameters)")):
        WakeSleep(num_particles=2).differentiable_loss(model, guide)


def test_a_factor_in_the_guide_is_part_of_its_density() -> None:
    """A change of variables written with ``pyro.factor``: the gradient of Pyro's Trace_ELBO."""
    loc = torch.tensor(0.3, requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(1.0))

    def guide() -> None:
        u = pyro.sample("u", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u.exp()))
        pyro.factor("jacobian", -u, has_rsample=True)

    results = []
    for objective in (VariationalBound(pathwise=True, num_particles=1), Trace_ELBO()):
        pyro.set_rng_seed(1)
        loss = objective.differentiable_loss(model, guide)
        results.append((loss.detach(), torch.autograd.grad(loss, loc)[0]))
    torch.testing.assert_close(*results)


# What is refused.


def two_sites(is_guide: bool) -> None:
    with pyro.plate("data", 3):
        loc = torch.zeros(3, requires_grad=True)
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("b", dist.Bernoulli(logits=loc))
        if not is_guide:
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.zeros(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ImportanceBound(pathwise=["z", "b"]),
            "pathwise names 'b', but the Bernoulli of site 'b' has no reparameterised samples",
        ),
        (
            lambda: WakeSleep(pathwise=True),
            "site 'z' is pathwise (or a Delta with parameters), but wake-q",
        ),
        (
            lambda: ImportanceBound(doubly_reparameterized=True),
            "doubly_reparameterized=True needs a latent inside the data plates that is pathwise",
        ),
        (
            lambda: WakeSleep(doubly_reparameterized=True),
            "doubly_reparameterized=True needs a latent inside the data plates that is pathwise",
        ),
        (
            lambda: ThermodynamicBound(pathwise=["z"]),
            "site 'z' is pathwise, but the covariance gradient of ThermodynamicBound uses scores",
        ),
    ],
)
@pytest.mark.parametrize("vectorized", [True, False])
def test_what_is_refused(make: Callable[[], Objective], message: str, vectorized: bool) -> None:
    objective = make()
    objective.vectorize_particles = vectorized
    with pytest.raises(ValueError, match=re.escape(message)):
        objective.differentiable_loss(lambda: two_sites(False), lambda: two_sites(True))


def test_a_name_that_no_site_has() -> None:
    """Refused where every run has the same sites, and a warning where others may have it."""
    programs = (lambda: two_sites(False)), (lambda: two_sites(True))
    message = re.escape("pathwise names 'zz', which matches no latent site: there are ['z', 'b']")
    at_once = VariationalBound(pathwise=["zz"], vectorize_particles=True)
    for _ in range(2):  # what was refused once is refused again
        with pytest.raises(ValueError, match=message + "$"):
            at_once.differentiable_loss(*programs)
    with pytest.warns(UserWarning, match=message + ", unless other runs of the program have it"):
        VariationalBound(pathwise=["zz"]).differentiable_loss(*programs)


class Rejecting:
    """A gamma by rejection, whose samples alone do not carry the whole gradient."""

    def __init__(self) -> None:
        self.shape = torch.tensor([2.5], dtype=torch.float64, requires_grad=True)

    def guide(self) -> None:
        with pyro.plate("data", 1):
            pyro.sample("z", RejectionStandardGamma(self.shape))

    def model(self) -> None:
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor([1.0]).double())


def test_a_distribution_that_rejects_is_not_pathwise() -> None:
    programs = Rejecting()
    with pytest.raises(ValueError, match="of site 'z' has no reparameterised samples: leave it out"):
        ImportanceBound(pathwise=["z"]).differentiable_loss(programs.model, programs.guide)
    draw = ImportanceBound(pathwise=True).particles(programs.model, programs.guide).draws[0]
    assert not draw.latents[0].pathwise


@pytest.mark.parametrize("doubly", [False, True])
def test_a_straight_through_sample_keeps_its_relaxation(doubly: bool) -> None:
    """Its density is evaluated there: the bound of one's own prior is the likelihood."""
    hot = dist.RelaxedOneHotCategoricalStraightThrough

    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", hot(torch.tensor(0.5), logits=torch.zeros(3)))
            pyro.sample("y", dist.Normal(z[..., 0], 1.0), obs=X[:, 0])

    def guide() -> None:
        logits = torch.zeros(3, 3, requires_grad=True)
        with pyro.plate("data", 3):
            pyro.sample("z", hot(torch.tensor(0.5), logits=logits))

    given: dict[str, Any] = {"pathwise": ["z"], "doubly_reparameterized": True} if doubly else {}
    particles = ImportanceBound(4, **given).particles(model, guide)
    for each in (particles, particles.constant) if particles.constant is not None else (particles,):
        torch.testing.assert_close(each.log_ratio, torch.zeros(4, 3))


@pytest.mark.parametrize("make", [ImportanceBound, WakeSleep])
@pytest.mark.parametrize("vectorized", [True, False])
def test_the_loss_alone_is_not_doubly_reparameterised(make: Any, vectorized: bool) -> None:
    programs = (lambda: two_sites(False)), (lambda: two_sites(True))
    losses = []
    for options in ({}, {"pathwise": ["z"], "doubly_reparameterized": True}):
        torch.manual_seed(0)
        losses.append(make(num_particles=3, vectorize_particles=vectorized, **options).loss(*programs))
    assert losses[0] == losses[1]


def test_the_prior_is_not_doubly_reparameterised() -> None:
    def model() -> None:
        two_sites(False)

    objective = ImportanceBound(pathwise=True, doubly_reparameterized=True)
    with pytest.raises(ValueError, match="which are the same for Prior: leave it out of pathwise"):
        objective.differentiable_loss(model, Prior(model))
