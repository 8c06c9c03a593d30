"""Programs that are likely not meant so get one warning, with the site's name and what to do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.optim import Adam
from torch import Tensor, nn

from wsram_ppl.objectives import (
    ImportanceBound,
    Objective,
    Prior,
    ThermodynamicBound,
    VariationalBound,
    WakeSleep,
)

Y = torch.tensor([0.0, 1.0, 1.0])
EVERY: tuple[Callable[..., Objective], ...] = (
    VariationalBound,
    ImportanceBound,
    WakeSleep,
    ThermodynamicBound,
)


class Coin(nn.Module):
    """A Bernoulli per datum, in model or guide."""

    def __init__(self, is_guide: bool, baseline: Any = None) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))
        self.is_guide, self.declared = is_guide, baseline
        self.baselines = nn.Linear(1, 1) if baseline is None else nn.Identity()

    def forward(self, y: Tensor) -> None:
        infer: Any = {}
        if self.declared is not None:
            infer = {"baseline": {"nn_baseline": self.declared, "nn_baseline_input": y.unsqueeze(-1)}}
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.Bernoulli(logits=self.logit.expand(len(y))), infer=infer)
            if not self.is_guide:
                pyro.sample("y", dist.Normal(a, 1.0), obs=y)


def silent(objective: Objective, model: Any, guide: Any, *args: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective.differentiable_loss(model, guide, *args)


def told_once(message: str, objective: Objective, model: Any, guide: Any, *args: Any) -> None:
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        for _ in range(3):
            objective.differentiable_loss(model, guide, *args)
    assert len(caught) == 1


# G: baselines.


class Squeezed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


@pytest.mark.parametrize(
    "make", [lambda: VariationalBound("site"), lambda: WakeSleep("learned"), lambda: WakeSleep()]
)
def test_baselines_that_are_asked_for(make: Callable[[], Objective]) -> None:
    """A site must declare one, and its network must be trained; one that nobody asks for is fine."""
    plain = Coin(False), Coin(True)
    elsewhere = Coin(False), Coin(True, lambda_free := Squeezed(1, 1))
    if not make().uses_baselines:
        silent(make(), *plain, Y)
        silent(make(), *elsewhere, Y)
        return
    told_once("this objective uses the baselines that sites declare, and none does", make(), *plain, Y)
    silent(make(), *elsewhere, Y)  # declared, it is an attribute of the guide: `self.declared`
    outside = Squeezed(1, 1)
    guide = Coin(True, lambda_free)
    guide.declared = None
    hidden = [outside]

    class Lost(Coin):
        def forward(self, y: Tensor) -> None:
            infer: Any = {"baseline": {"nn_baseline": hidden[0], "nn_baseline_input": y.unsqueeze(-1)}}
            with pyro.plate("data", len(y)):
                pyro.sample("a", dist.Bernoulli(logits=self.logit.expand(len(y))), infer=infer)

    message = "the baseline network of site 'a' is a submodule of neither model nor guide"
    told_once(message, make(), Coin(False), Lost(True), Y)
    pyro.module("lost", outside)
    silent(make(), Coin(False), Lost(True), Y)
    pyro.clear_param_store()


# I: parameters of the model in the guide.


def test_the_blocked_model_as_guide() -> None:
    """In place of Prior(model): wake-sleep would count its gradient twice. The bounds are right."""
    model = Coin(False)
    guide = poutine.block(model, hide=["y"])
    message = (
        "the guide's density of site 'a' depends on parameters of the model, whose gradient then counts"
    )
    told_once(message, WakeSleep(), model, guide, Y)
    for objective in (WakeSleep(), VariationalBound(), ImportanceBound()):
        if not objective.gradients_differ:
            silent(objective, model, guide, Y)
        silent(objective, model, Prior(model), Y)


def test_the_gradient_would_count_twice() -> None:
    """Why: on the same draws, twice the gradient of Prior in expectation."""
    model, found = Coin(False), []
    for guide in (Prior(model), poutine.block(model, hide=["y"])):
        pyro.set_rng_seed(0)
        objective = WakeSleep("none", num_particles=200, vectorize_particles=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss = objective.differentiable_loss(model, guide, Y)
        (gradient,) = torch.autograd.grad(loss, model.logit)
        found.append(gradient.item())
    assert found[1] == pytest.approx(2 * found[0], rel=1e-4)


# B: one weight per trace.


def outside(is_guide: bool) -> None:
    a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
    with pyro.plate("data", 3):
        if not is_guide:
            pyro.sample("y", dist.Normal(a, 1.0), obs=Y)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("vectorized", [True, False])
def test_one_weight_for_all_data(make: Callable[..., Objective], vectorized: bool) -> None:
    """Nothing but globals: the trace is the datum, which is said to whoever forms weights."""
    objective = make(num_particles=3, vectorize_particles=vectorized)
    programs = (lambda: outside(False)), (lambda: outside(True))
    if objective.forms_weights:
        told_once(
            "site 'a' lies outside a plate that contains others, so that all data", objective, *programs
        )
    else:
        silent(objective, *programs)


def test_an_observation_outside_beside_a_global() -> None:
    """The observation is named, not the global, which lies where it should."""

    def program(is_guide: bool) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        if not is_guide:
            pyro.sample("first", dist.Normal(mu, 1.0), obs=Y[0])
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(3)))
            if not is_guide:
                pyro.sample("y", dist.Normal(a + mu, 1.0), obs=Y)

    programs = (lambda: program(False)), (lambda: program(True))
    told_once("site 'first' lies outside a plate that contains others", ImportanceBound(3), *programs)


def test_two_data_plates() -> None:
    def program(is_guide: bool) -> None:
        for name in ("labelled", "others"):
            with pyro.plate(name, 3):
                a = pyro.sample(f"a_{name}", dist.Bernoulli(0.5 * torch.ones(3)))
                if not is_guide:
                    pyro.sample(f"y_{name}", dist.Normal(a, 1.0), obs=Y)

    programs = (lambda: program(False)), (lambda: program(True))
    message = (
        "no plate encloses all observed sites ('y_labelled' in 'labelled', 'y_others' in 'others'), so "
    )
    told_once(message, ImportanceBound(3), *programs)


def test_a_global_before_an_iterated_plate() -> None:
    """A vectorised plate would leave one weight as well."""

    def program(is_guide: bool) -> None:
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
        for n in pyro.plate("data", 3):
            if not is_guide:
                pyro.sample(f"y_{n}", dist.Normal(a, 1.0), obs=Y[n])

    programs = (lambda: program(False)), (lambda: program(True))
    told_once("site 'a' lies outside a plate that contains others", ImportanceBound(3), *programs)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_guide_that_draws_everything_outside(vectorized: bool) -> None:
    """A joint guide leaves nothing to draw for a datum, so that its particles are the same."""

    def program() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    options: Any = {"num_particles": 3, "pathwise": True, "vectorize_particles": vectorized}
    joint, apart = AutoDiagonalNormal(program), AutoNormal(program)
    told_once(
        "all local latents of the guide ('z' ...) are Delta", ImportanceBound(**options), program, joint
    )
    silent(ImportanceBound(**options), program, apart)
    silent(VariationalBound(**options), program, joint)
    pyro.clear_param_store()


class Both(nn.Module):
    """Model and guide as methods of one module, as in Pyro's tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))
        self.baselines = Squeezed(1, 1)

    def model(self, y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            a = pyro.sample("a", dist.Bernoulli(torch.full((len(y),), 0.5)))
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    def guide(self, y: Tensor) -> None:
        baseline = {"nn_baseline": self.baselines, "nn_baseline_input": y.unsqueeze(-1)}
        with pyro.plate("data", len(y)):
            logits = self.logit.expand(len(y))
            pyro.sample("a", dist.Bernoulli(logits=logits), infer={"baseline": baseline})


def test_methods_as_programs() -> None:
    """The guide's network is known, and the prior of a method is that of the same method."""
    both = Both()
    silent(VariationalBound("site", num_particles=3), both.model, both.guide, Y)
    silent(ImportanceBound(3), both.model, Prior(both.model), Y)


def test_an_observed_site_outside() -> None:
    def program(is_guide: bool) -> None:
        with pyro.plate("data", 3):
            a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(3)))
            if not is_guide:
                pyro.sample("y", dist.Normal(a, 1.0), obs=Y)
        if not is_guide:
            pyro.factor("penalty", torch.tensor(-1.0))

    told_once(
        "site 'penalty' lies outside a plate",
        ImportanceBound(3),
        lambda: program(False),
        lambda: program(True),
    )


@pytest.mark.parametrize("make", EVERY)
def test_a_plate_that_is_iterated_over(make: Callable[..., Objective]) -> None:
    """Elements visited one by one share one weight, unless a vectorised plate holds them."""

    def program(is_guide: bool) -> None:
        for n in pyro.plate("data", 3):
            a = pyro.sample(f"a_{n}", dist.Bernoulli(torch.tensor(0.5)))
            if not is_guide:
                pyro.sample(f"y_{n}", dist.Normal(a, 1.0), obs=Y[n])

    def parts(is_guide: bool) -> None:
        data = pyro.plate("data", 3)
        for n in pyro.plate("parts", 2):
            with data:
                a = pyro.sample(f"a_{n}", dist.Bernoulli(torch.full((3,), 0.5)))
                if not is_guide:
                    pyro.sample(f"y_{n}", dist.Normal(a, 1.0), obs=Y)

    silent(make(num_particles=3), lambda: parts(False), lambda: parts(True))
    programs = (lambda: program(False)), (lambda: program(True))
    if make is VariationalBound:
        silent(make(num_particles=3), *programs)
    else:
        told_once(
            "plate 'data' is iterated over, so that all its data", make(num_particles=3), *programs
        )


@pytest.mark.parametrize("make", EVERY[1:])
def test_a_subsample_that_is_iterated_over(make: Callable[..., Objective]) -> None:
    def program(is_guide: bool) -> None:
        for n in pyro.plate("data", 3, subsample_size=2):
            a = pyro.sample(f"a_{n}", dist.Bernoulli(torch.tensor(0.5)))
            if not is_guide:
                pyro.sample(f"y_{n}", dist.Normal(a, 1.0), obs=Y[n])

    with pytest.raises(ValueError, match="plate 'data' is subsampled and iterated over, so that all"):
        make(num_particles=3).loss(lambda: program(False), lambda: program(True))


# J: subsamples.


def test_the_guide_subsamples_other_rows() -> None:
    def program(rows: Tensor | None, is_guide: bool) -> None:
        plate = pyro.plate("data", 100, subsample_size=3, subsample=rows)
        with plate:
            a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(3)))
            if not is_guide:
                pyro.sample("y", dist.Normal(a, 1.0), obs=Y)

    rows = torch.arange(3)
    message = "plate 'data' has other rows in the guide than the subsample that the model gives"
    for make in EVERY:
        objective = make(num_particles=2)
        with pytest.warns(UserWarning, match=message):
            objective.loss(lambda: program(rows, False), lambda: program(None, True))
        silent(objective, lambda: program(rows, False), lambda: program(rows.clone(), True))
        silent(objective, lambda: program(None, False), lambda: program(None, True))


# A, E, H, K.


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("vectorized", [True, False])
def test_what_pyro_refuses(make: Callable[..., Objective], vectorized: bool) -> None:
    """Shapes that would pair every datum with every other, or data without a plate, in Pyro's words."""

    def pairs(is_guide: bool) -> None:
        with pyro.plate("data", 6):
            a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(6)))
            if not is_guide:
                pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(6, 1))

    def bare(is_guide: bool) -> None:
        a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(6)))
        if not is_guide:
            pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(6))

    def guide_in_another_plate(is_guide: bool) -> None:
        if is_guide:
            with pyro.plate("extra", 6):
                pyro.sample("a", dist.Normal(torch.zeros(6), 1.0))
        else:
            pyro.sample("a", dist.Normal(0.0, 1.0))

    def events(is_guide: bool) -> None:
        shape = (2, 1) if is_guide else (1, 2)
        pyro.sample("a", dist.Normal(torch.zeros(shape), 1.0).to_event(2))

    objective = make(num_particles=2, vectorize_particles=vectorized)
    for program, message in (
        (pairs, 'at site "y", invalid log_prob shape'),
        (bare, "invalid log_prob shape"),
        (guide_in_another_plate, "Model and guide shapes disagree at site 'a'"),
        (events, "Model and guide shapes disagree at site 'a'"),
    ):
        objective = make(num_particles=2, vectorize_particles=vectorized, max_plate_nesting=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match=re.escape(message)):
                objective.loss(lambda p=program: p(False), lambda p=program: p(True))


@pytest.mark.parametrize("make", EVERY)
def test_a_plate_without_a_size(make: Callable[..., Objective]) -> None:
    """Where all is observed, and where a latent lies in it."""

    def observed() -> None:
        with pyro.plate("data"):
            pyro.sample("y", dist.Normal(torch.zeros(3), 1.0), obs=Y)

    def latent(is_guide: bool) -> None:
        with pyro.plate("data"):
            a = pyro.sample("a", dist.Bernoulli(0.5 * torch.ones(3)))
            if not is_guide:
                pyro.sample("y", dist.Normal(a, 1.0), obs=Y)

    expected = -dist.Normal(torch.zeros(3), 1.0).log_prob(Y).sum().item()
    for vectorized in (False, True):
        objective = make(num_particles=2, vectorize_particles=vectorized)
        assert objective.loss(observed, lambda: None) == pytest.approx(expected)
        if not vectorized:  # Pyro cannot expand what has no size
            silent(objective, lambda: latent(False), lambda: latent(True))


@pytest.mark.parametrize("make", EVERY)
def test_an_enumerated_latent_that_the_guide_lacks(make: Callable[..., Objective]) -> None:
    @config_enumerate
    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3)))
            pyro.sample("y", dist.Normal(z, 1.0), obs=Y)

    message = (
        "site 'z' of the model is marked for enumeration, but these objectives sample: give the guide a "
        "site 'z' and remove config_enumerate (or use pyro.infer.TraceEnum_ELBO)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make(num_particles=2).loss(model, lambda: None)


OBSERVED: dict[str, Callable[[Tensor], Any]] = {
    "normal": lambda x: dist.Normal(x, 1.0),
    "gamma": lambda x: dist.Gamma(x.exp(), 1.0),
    "beta": lambda x: dist.Beta(x.exp(), 2.0),
    "poisson": lambda x: dist.Poisson(x.exp()),
    "dirichlet": lambda x: dist.Dirichlet(x.exp().unsqueeze(-1).expand(3, 2)),
    "vector": lambda x: dist.Normal(x.unsqueeze(-1).expand(3, 2), 1.0).to_event(1),
}


@pytest.mark.parametrize("name", OBSERVED)
@pytest.mark.parametrize("inside", [False, True])
def test_a_masked_missing_observation(name: str, inside: bool) -> None:
    """NaN where the mask is False: loss and gradient are those of the rest."""
    loc = torch.zeros(3, requires_grad=True)
    mask = torch.tensor([True, False, True])
    value = OBSERVED[name](loc).sample()
    missing = value.clone()
    missing[1] = torch.nan

    def model(obs: Tensor) -> None:
        with pyro.plate("data", 3):
            fn = OBSERVED[name](loc)
            if inside:
                pyro.sample("y", fn.mask(mask), obs=obs)
            else:
                with poutine.mask(mask=mask):
                    pyro.sample("y", fn, obs=obs)

    results = []
    for obs, vectorized in ((value, False), (missing, False), (missing, True)):
        particles = 2 if vectorized else 1
        objective = VariationalBound(num_particles=particles, vectorize_particles=vectorized)
        with pyro.validation_enabled(False):
            loss = objective.differentiable_loss(model, lambda obs: None, obs)
        results.append((loss.detach(), torch.autograd.grad(loss, loc)[0]))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
    assert results[1][1].isfinite().all() and results[1][1][1] == 0


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("vectorized", [False, True])
def test_a_mask_inside_an_event(width: int, vectorized: bool) -> None:
    """Of each component of a vector: loss and gradient are Pyro's, with or without missing ones."""
    loc = torch.zeros(3, width, requires_grad=True)
    mask = torch.rand(3, width, generator=torch.Generator().manual_seed(0)) < 0.5
    value = torch.arange(3.0 * width).reshape(3, width)
    missing = torch.where(mask, value, torch.nan)

    def model(obs: Tensor) -> None:
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(loc, 1.0).mask(mask).to_event(1), obs=obs)

    results = []
    particles = 2 if vectorized else 1
    for obs, objective in (
        (value, Trace_ELBO()),
        (value, VariationalBound(num_particles=particles, vectorize_particles=vectorized)),
        (missing, ImportanceBound(num_particles=particles, vectorize_particles=vectorized)),
    ):
        with pyro.validation_enabled(False):
            loss = objective.differentiable_loss(model, lambda obs: None, obs)
        results.append((loss.detach(), torch.autograd.grad(loss, loc)[0]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_the_readme_warnings_do_not_stop_training() -> None:
    """A warning is said, and the steps are taken."""
    model = Coin(False)
    guide = poutine.block(model, hide=["y"])
    svi = SVI(model, guide, Adam({"lr": 0.1}), WakeSleep())
    with pytest.warns(UserWarning, match="counts twice"):
        before = model.logit.item()
        pyro.module("coin", model)
        svi.step(Y)
    assert isinstance(before, float)
    pyro.clear_param_store()
