"""What is not supported raises one clear sentence that says what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import Planar
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDiscreteParallel, AutoNormalMessenger
from torch import Tensor

from wsram_ppl.objectives import (
    ImportanceBound,
    Objective,
    Prior,
    ThermodynamicBound,
    VariationalBound,
    WakeSleep,
)
from wsram_ppl.testing import ForceSamples

Program = Callable[..., Any]
Y = torch.tensor([0.0, 1.0, 1.0, 0.0])


def model() -> None:
    with pyro.plate("data", 4):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("y", dist.Normal(a, 1.0), obs=Y)


def guide() -> None:
    with pyro.plate("data", 4):
        pyro.sample("a", dist.Bernoulli(torch.tensor(0.4)))


def normal() -> None:
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=Y)


EVERY = (VariationalBound, ImportanceBound, WakeSleep, ThermodynamicBound)
#: Those that form importance weights.
WEIGHING = EVERY[1:]


def rejects(
    message: str,
    model: Program,
    guide: Program,
    *args: Any,
    makers: Sequence[Callable[..., Objective]] = EVERY,
    **options: Any,
) -> None:
    """Objectives raise the message, with particles at once or one after the other."""
    for vectorized in (False, True):
        for make in makers:
            options = {"max_plate_nesting": 2, **options}
            objective: Objective = make(num_particles=2, vectorize_particles=vectorized, **options)
            for method in (objective.loss, objective.loss_and_grads, objective.differentiable_loss):
                with pytest.raises(ValueError, match=re.escape(message)):
                    method(model, guide, *args)


# Constructors.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImportanceBound(0), "num_particles must be a whole number of at least 1, not 0"),
        (lambda: VariationalBound(num_particles=-1), "num_particles must be a whole number of at least"),
        (
            lambda: ImportanceBound("ovis"),
            "num_particles must be a whole number of at least 1, not 'ovis'",
        ),  # type: ignore[arg-type]
        (
            lambda: VariationalBound("mean"),  # type: ignore[arg-type]
            "unknown baseline 'mean': choose one of 'none', 'leave-one-out', 'site'",
        ),
        (
            lambda: VariationalBound("leave-one-out", num_particles=1),
            "baseline 'leave-one-out' needs num_particles of at least 2",
        ),
        (
            lambda: WakeSleep("best"),  # type: ignore[arg-type]
            "unknown control_variate 'best': choose one of 'none', 'self-normalized', "
            "'unnormalized', 'adaptive', 'learned'",
        ),
        (
            lambda: VariationalBound(5),  # type: ignore[arg-type]
            "the first argument of VariationalBound is baseline: write "
            "VariationalBound(num_particles=5)",
        ),
        (
            lambda: WakeSleep(5),  # type: ignore[arg-type]
            "the first argument of WakeSleep is control_variate: write WakeSleep(num_particles=5)",
        ),
        (
            lambda: ImportanceBound(guide_gradient="best"),  # type: ignore[arg-type]
            "unknown guide_gradient 'best': choose one of 'vimco', 'ovis'",
        ),
        (lambda: ImportanceBound(ovis_gamma=2.0), "ovis_gamma must lie in [0, 1], not 2.0"),
        (
            lambda: ImportanceBound(1, guide_gradient="ovis"),
            "guide_gradient 'ovis' needs num_particles of at least 2",
        ),
        (
            lambda: ImportanceBound(num_global_particles=0),
            "num_global_particles must be at least 1, not 0",
        ),
        (
            lambda: ImportanceBound(pathwise="a"),
            "pathwise takes a list of names: write pathwise=['a']",
        ),
        (
            lambda: ThermodynamicBound(1),
            "ThermodynamicBound needs num_particles of at least 2, for a covariance",
        ),
        (lambda: ThermodynamicBound(num_temperatures=0), "num_temperatures must be at least 1, not 0"),
        (
            lambda: ThermodynamicBound(first_temperature=1.0),
            "first_temperature must lie in (0, 1), not 1.0",
        ),
        (lambda: WakeSleep(insomnia=1.5), "insomnia must lie in [0, 1], not 1.5"),
        (lambda: WakeSleep(insomnia=-0.1), "insomnia must lie in [0, 1], not -0.1"),
        (lambda: WakeSleep(decay=1.0), "decay must lie in [0, 1), not 1.0"),
        (lambda: WakeSleep(decay=-0.5), "decay must lie in [0, 1), not -0.5"),
        (
            lambda: WakeSleep(num_particles=1),
            "WakeSleep needs num_particles of at least 2: the normalised weight of a single particle "
            "is always 1",
        ),
    ],
)
def test_constructor_arguments(make: Callable[[], Objective], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


# Programs.


@pytest.mark.parametrize("whose", ["model", "guide"])
@pytest.mark.parametrize("default", ["parallel", "sequential"])
def test_enumerated_sites(whose: str, default: str) -> None:
    """Sites marked by ``config_enumerate``; these objectives sample."""
    programs = {"model": model, "guide": guide}
    programs[whose] = config_enumerate(programs[whose], default=default)
    message = (
        f"site 'a' of the {whose} is marked for enumeration, but these objectives sample: remove "
        "config_enumerate, or unmark its sites with poutine.infer_config(program, lambda site: "
        "{'enumerate': None}) (or use pyro.infer.TraceEnum_ELBO)"
    )
    rejects(message, programs["model"], programs["guide"])


def test_unmarked_enumeration() -> None:
    """What the message says works, also for a guide that marks its own sites."""
    parallel = AutoDiscreteParallel(model)
    unmarked = poutine.infer_config(parallel, lambda site: {"enumerate": None})
    assert math.isfinite(ImportanceBound(2).loss(model, unmarked))


def test_a_tensor_scale() -> None:
    scaled = poutine.scale(model, scale=torch.tensor(2.0))
    message = "is scaled by a tensor: importance weights need one number, the same for all sites"
    rejects(message, scaled, guide, makers=WEIGHING)


def test_different_scales() -> None:
    """Scaling the model and not the guide, or one site and not another."""
    message = (
        "sites have different scales [1.0, 2.0]: a scale inside an importance weight has no meaning"
    )
    rejects(message, poutine.scale(model, scale=2.0), guide, makers=WEIGHING)

    def annealed() -> None:
        with pyro.plate("data", 4):
            with poutine.scale(scale=2.0):
                a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("y", dist.Normal(a, 1.0), obs=Y)

    rejects(message, annealed, guide, makers=WEIGHING)


def test_scales_that_differ_by_rounding_are_one() -> None:
    """0.1 * 3 and 0.3."""

    def twice_scaled() -> None:
        with poutine.scale(scale=0.1), poutine.scale(scale=3.0):
            guide()

    objective = ImportanceBound(2)
    with ForceSamples({"a": Y}):
        loss = objective.loss(poutine.scale(model, scale=0.3), twice_scaled)
        assert loss == pytest.approx(0.3 * objective.loss(model, guide))


def test_one_scale_around_everything_is_a_factor_of_the_loss() -> None:
    """The supported way to scale: one number around the whole model and the whole guide."""
    objective = ImportanceBound(2)
    losses = []
    for scale in (1.0, 3.0):
        with ForceSamples({"a": Y}):
            losses.append(
                objective.loss(poutine.scale(model, scale=scale), poutine.scale(guide, scale=scale))
            )
    assert losses[1] == pytest.approx(3 * losses[0])


def test_a_subsampled_inner_plate() -> None:
    """A minibatch of parts inside a datum would put a scale into the datum's weight."""

    def program(is_guide: bool) -> Program:
        def run() -> None:
            with pyro.plate("data", 4, dim=-1):
                a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
                if not is_guide:
                    with pyro.plate("parts", 10, subsample_size=3, dim=-2):
                        pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(3, 4))

        return run

    message = (
        "plate 'parts' is subsampled but does not enclose every sample site (it encloses 'y'): a scale "
        "inside an importance weight has no meaning; subsample only plates that are common to all sites"
    )
    rejects(message, program(False), program(True), makers=WEIGHING)


def test_nothing_but_globals_beside_a_subsampled_data_plate() -> None:
    """With every latent outside the data plate there is one weight per trace, and no minibatches."""

    def program(is_guide: bool) -> Program:
        def run() -> None:
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
            if not is_guide:
                with pyro.plate("data", 10, subsample_size=3):
                    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.zeros(3))

        return run

    message = "plate 'data' is subsampled but does not enclose every"
    rejects(message, program(False), program(True), makers=WEIGHING)


def test_a_guide_site_that_the_model_lacks() -> None:
    def auxiliary() -> None:
        guide()
        pyro.sample("u", dist.Normal(0.0, 1.0))

    message = (
        "the guide samples site 'u', which the model lacks: remove it, add it to the model, or mark it "
        "with infer={'is_auxiliary': True} if the guide's other sites are functions of it"
    )
    rejects(message, model, auxiliary)


def test_a_latent_that_the_guide_lacks() -> None:
    message = (
        "the model samples site 'a' but no value was proposed for it: give the guide a site 'a', or "
        "observe it in the model"
    )
    rejects(message, model, lambda: None)


def test_a_site_observed_in_the_model_and_sampled_by_the_guide() -> None:
    def eager() -> None:
        with pyro.plate("data", 4):
            pyro.sample("a", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("y", dist.Normal(torch.zeros(4), 1.0))

    message = (
        "site 'y' is observed in the model but sampled by the guide: hide it in the guide, or pass no "
        "observation"
    )
    rejects(message, model, eager)


@pytest.mark.parametrize("kind", ["observation", "factor"])
def test_an_observation_in_the_guide(kind: str) -> None:
    def observing() -> None:
        guide()
        if kind == "factor":
            pyro.factor("extra", torch.tensor(1.0))
        else:
            pyro.sample("extra", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

    message = {
        "observation": "site 'extra' of the guide is observed: a guide can only sample; move it to the "
        "model, or, where the guide runs the model, hide it by poutine.block(guide, "
        "hide_types=['observe'])",
        "factor": 'At guide site pyro.factor("extra",...), missing specification of has_rsample.',
    }
    rejects(message[kind], model, observing)


def test_a_guide_that_runs_the_model() -> None:
    """Its observations are hidden as the message says."""
    messenger = AutoNormalMessenger(normal)
    rejects("site 'y' of the guide is observed", normal, messenger)
    hidden = poutine.block(messenger, hide_types=["observe"])
    assert math.isfinite(VariationalBound().loss_and_grads(normal, hidden))
    pyro.clear_param_store()


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_density_that_fails(vectorized: bool) -> None:
    """The site is named."""

    def negative() -> None:
        with pyro.plate("data", 4):
            pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("y", dist.Poisson(torch.tensor(1.0)), obs=-torch.ones(4))

    objective = ImportanceBound(2, max_plate_nesting=1, vectorize_particles=vectorized)
    with pytest.raises(ValueError, match="the log-density of site 'y' fails: Expected value argument"):
        objective.loss(negative, guide)


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_flow_without_an_inverse(vectorized: bool) -> None:
    """Its density is known only of the very sample that it made."""
    flow = Planar(2)

    def program(is_guide: bool) -> Program:
        def run() -> None:
            with pyro.plate("data", 4):
                base = dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)
                z = pyro.sample("z", dist.TransformedDistribution(base, [flow]) if is_guide else base)
                if not is_guide:
                    pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=Y)

        return run

    for refused in ({}, {"pathwise": ["z"], "doubly_reparameterized": True}):
        objective = ImportanceBound(2, vectorize_particles=vectorized, **refused)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="site 'z' fails, since a transform without an inverse"):
            objective.differentiable_loss(program(False), program(True))
    objective = ImportanceBound(2, vectorize_particles=vectorized, pathwise=["z"])
    assert objective.differentiable_loss(program(False), program(True)).isfinite()


def test_event_dimensions_that_disagree() -> None:
    """[4, 3] as four vectors in the model and as twelve numbers in the guide."""

    def vectors() -> None:
        with pyro.plate("data", 4, dim=-1):
            pyro.sample("a", dist.Normal(torch.zeros(4, 3), 1.0).to_event(1))

    def numbers() -> None:
        with pyro.plate("wide", 3, dim=-1), pyro.plate("tall", 4, dim=-2):
            pyro.sample("a", dist.Normal(torch.zeros(4, 3), 1.0))

    rejects("Model and guide event_dims disagree at site 'a': 1 vs 0", vectors, numbers)
    with pyro.validation_enabled(False):
        message = "site 'a' has event_dim 1 in the model and 0 in the guide: make them agree with "
        rejects(message, vectors, numbers)


def test_a_program_that_needs_its_particles_dimension() -> None:
    """The run with one particle that comes first, to find globals, may fail in any way."""

    def program(is_guide: bool) -> Program:
        def run() -> None:
            with pyro.plate("data", 4):
                a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
                if not is_guide:
                    pyro.sample("y", dist.Normal(a / a.size(-2), 1.0), obs=Y)

        return run

    objective = ImportanceBound(2, max_plate_nesting=1, vectorize_particles=True)
    assert math.isfinite(objective.loss(program(False), program(True)))


def test_one_plate_under_two_names() -> None:
    """Else no plate would enclose all sites, and all data would silently share one weight."""

    def program(plate: str) -> None:
        with pyro.plate(plate, 4):
            pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))

    message = (
        "site 'a' lies in plate 'data' of the model and in plate 'images' of the guide: give them one "
        "name, or a datum's weight would be shared by all data"
    )
    rejects(message, lambda: program("data"), lambda: program("images"))


def test_a_model_without_any_site() -> None:
    rejects("the model has no sample site: there is nothing to train", lambda: None, lambda: None)


def test_data_plates_that_change_between_particles() -> None:
    """Sequential particles whose data plate has another size each time."""
    sizes = iter([3, 3, 5, 5] * 20)

    def program() -> None:
        with pyro.plate("data", next(sizes)):
            pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))

    message = (
        "particles drawn one after another have different data plates [(3,), (5,)]: the plates that "
        "enclose all sample sites must be the same in every run"
    )
    for make in EVERY:
        with pytest.raises(ValueError, match=re.escape(message)):
            make(num_particles=2).loss(program, program)


def test_the_prior_of_another_model() -> None:
    rejects(
        "the guide is the prior of another model: make it from the model in use",
        model,
        Prior(lambda: model()),
    )


# Baselines.


def declaring(baseline: dict[str, Any], is_guide: bool = True) -> Program:
    def run() -> None:
        with pyro.plate("data", 4):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.4)), infer={"baseline": baseline})
            if not is_guide:
                pyro.sample("y", dist.Normal(a, 1.0), obs=Y)

    return run


BAD_BASELINES: list[tuple[dict[str, Any], str]] = [
    (
        {"nn_baselin": torch.cos},
        "Unrecognized baseline options at site 'a': ['nn_baselin']; known are ['nn_baseline', "
        "'nn_baseline_input', 'use_decaying_avg_baseline', 'baseline_beta', 'baseline_value']",
    ),
    (
        {"nn_baseline": torch.cos, "nn_baseline_input": Y, "baseline_value": Y},
        "site 'a' declares both baseline_value and nn_baseline: give one of them",
    ),
]
WRONG_SHAPES = [torch.zeros(4, 1), torch.zeros(3), torch.zeros(7, 5, 4)]


@pytest.mark.parametrize(("baseline", "message"), BAD_BASELINES)
@pytest.mark.parametrize("is_guide", [False, True])
def test_bad_declarations(baseline: dict[str, Any], message: str, is_guide: bool) -> None:
    """Unknown or contradictory options raise in every objective: none is silently ignored."""
    if is_guide:
        rejects(message, model, declaring(baseline))
    else:
        rejects(message, declaring(baseline, is_guide=False), guide)


@pytest.mark.parametrize("value", WRONG_SHAPES, ids=lambda v: str(list(v.shape)))
@pytest.mark.parametrize("option", ["baseline_value", "nn_baseline"])
def test_a_baseline_of_the_wrong_shape(value: Tensor, option: str) -> None:
    """A network's trailing dimension of size 1 must not broadcast into a [4, 4] table."""
    baseline = {"baseline_value": value}
    if option == "nn_baseline":
        baseline = {"nn_baseline": lambda x: x, "nn_baseline_input": value}  # type: ignore[dict-item]
    for vectorized in (False, True):
        batch = [2, 4] if vectorized else [4]
        message = (
            f"Expected baseline at site 'a' to have the batch shape of the site, {batch}, instead got "
            f"{list(value.shape)}: squeeze a trailing dimension of size 1 off the network's output"
        )
        for objective in (
            VariationalBound("site", num_particles=2, vectorize_particles=vectorized),
            WakeSleep("learned", num_particles=2, vectorize_particles=vectorized),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                objective.differentiable_loss(model, declaring(baseline))


def test_a_baseline_that_is_known_too_late() -> None:
    """Declared in the model, whose order the guide reverses: its input may depend on later draws."""

    def reversed_guide() -> None:
        with pyro.plate("data", 4):
            pyro.sample("b", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("a", dist.Bernoulli(torch.tensor(0.4)))

    def ordered_model() -> None:
        with pyro.plate("data", 4):
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
            infer = {"baseline": {"nn_baseline": torch.cos, "nn_baseline_input": a}}
            pyro.sample("b", dist.Bernoulli(torch.tensor(0.5)), infer=infer)

    message = (
        "the baseline of site 'b' is declared in the model, but there it may depend on latents that the "
        "guide draws later: declare it on the guide's site"
    )
    for vectorized in (False, True):
        objective = VariationalBound("site", num_particles=2, vectorize_particles=vectorized)
        with pytest.raises(ValueError, match=re.escape(message)):
            objective.differentiable_loss(ordered_model, reversed_guide)


# Sleep.


def with_bonus() -> None:
    with pyro.plate("data", 4):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("y", dist.Normal(a, 1.0), obs=Y)
        pyro.factor("bonus", torch.tensor(0.1))


def dreaming(observations: Any = None) -> None:
    guide()


def with_auxiliary(observations: Any = None) -> None:
    with pyro.plate("data", 4):
        pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("a", dist.Bernoulli(torch.tensor(0.4)))


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize(
    ("model_", "guide_", "message"),
    [
        (
            model,
            Prior(model),
            "insomnia < 1 trains the guide by sleep-q, but the guide is the prior and has nothing to "
            "train: use insomnia=1.0 or an inference network",
        ),
        (
            model,
            guide,
            "insomnia < 1 needs a guide with a keyword argument 'observations' (a dict from observed "
            "site to the value to infer from), for training on the model's fantasies",
        ),
        (
            with_bonus,
            dreaming,
            "insomnia < 1 draws fantasies from the model, but its factor 'bonus' cannot be sampled: use "
            "insomnia=1.0, or a sample site instead",
        ),
        (
            model,
            with_auxiliary,
            "insomnia < 1 trains the guide on fantasies of the model, which have no value for its site "
            "'u': use insomnia=1.0",
        ),
    ],
    ids=["prior", "no observations", "factor", "auxiliary"],
)
def test_sleep(model_: Program, guide_: Program, message: str, vectorized: bool) -> None:
    for insomnia in (0.0, 0.5):
        objective = WakeSleep(insomnia=insomnia, num_particles=2, vectorize_particles=vectorized)
        with pytest.raises(ValueError, match=re.escape(message)):
            objective.differentiable_loss(model_, guide_)
        assert isinstance(objective.loss(model_, guide_), float)  # the bound itself needs no fantasies
    awake = WakeSleep(insomnia=1.0, num_particles=2, vectorize_particles=vectorized)
    awake.differentiable_loss(model_, guide_)
