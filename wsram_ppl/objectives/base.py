"""The common part of all objectives: draw particles, form the bound, attach the gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.infer.util import torch_backward
from pyro.poutine.trace_struct import Trace
from pyro.util import warn_if_nan
from torch import Tensor, nn

from wsram_ppl.errors import InputError
from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.inspection import inspect
from wsram_ppl.objectives.particles import Particles, TraceDraw, add
from wsram_ppl.objectives.prior import is_prior
from wsram_ppl.objectives.running import RunningMeans
from wsram_ppl.objectives.sampling import Sampler, carries_gradients
from wsram_ppl.objectives.sites import Program, module_of, plate_nesting
from wsram_ppl.objectives.traces import combine
from wsram_ppl.primitives.handlers import is_minibatch
from wsram_ppl.primitives.undoing import without_a_trace

__all__ = ["Objective", "ObjectiveModule", "Regularizer", "aside", "check_choice", "is_recorded"]


class Regularizer(Protocol):
    """Terms added to an objective's gradient (not to its value), and changes to its proposal."""

    @property
    def changes_proposal(self) -> bool:
        """Whether :meth:`proposal` currently does anything."""

    def proposal(self) -> AbstractContextManager[Any]:
        """A context for running the guide: changes what it samples from."""

    def bonus(self, particles: Particles) -> Tensor | None:
        """A term to maximise besides the bound: a mean over particles, summed over the data plate."""


class ObjectiveModule(ELBOModule):
    """An objective tied to a model and a guide; its ``state_dict`` holds the running estimates."""

    elbo: Objective

    def get_extra_state(self) -> dict[str, Tensor]:
        return self.elbo.state_dict()

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        self.elbo.load_state_dict(state)


@dataclass(kw_only=True, eq=False)
class Objective(ELBO):
    """A bound on log p(y | I) and an estimator of its gradient, for any Pyro model and guide.

    Works under :class:`pyro.infer.SVI` and, with any ``torch.optim`` optimiser, as
    ``objective(model, guide)``. Importance weights belong to a *datum*: one element of the data plates
    (:mod:`~wsram_ppl.objectives.plates`). Samples are constants, and the guide is trained by their
    scores, except for ``pathwise`` sites and ``Delta`` distributions.

    To write your own, implement only :meth:`bound` and :meth:`surrogate`. Options are fields of a
    dataclass, as here.

    Args:
        num_particles: M, samples of the guide per datum, at least 1.
        max_plate_nesting: how many batch dimensions the plates of model and guide use; guessed by
            running both once (without touching the random state) if not given.
        vectorize_particles: draw all particles in one run, as a plate left of all others. Otherwise
            they are drawn one after another, which also allows runs of different structure.
        pathwise: latent sites whose reparameterised samples are differentiated through: names, in which
            ``*`` matches anything, or True for every site that has such samples.
        retain_graph: as for Pyro's ``ELBO``.
        regularizer: exploration terms and a tempered proposal
            (:class:`~wsram_ppl.objectives.exploration.Exploration`).

    Attributes:
        statistics: of the last evaluation, as constants on the device of the data: ``bound`` (mean per
            datum, in nats) and ``ess`` (mean effective sample size, in [1, M]).

    Raises:
        ValueError: when evaluated, for what has no meaning here (enumerated sites, scales inside an
            importance weight, sites that only one of guide and model samples) and, if Pyro's validation
            is on, for what Pyro refuses; the message says what to do.

    Warns:
        UserWarning: once per objective, about a program that is probably a mistake
            (:mod:`~wsram_ppl.objectives.inspection`).
    """

    #: Whether importance weights are formed, over particles of the local sites that share the globals.
    forms_weights: ClassVar[bool] = False
    #: Whether model and guide follow the gradients of different things.
    gradients_differ: ClassVar[bool] = False

    num_particles: int = 5
    max_plate_nesting: int | float = float("inf")
    vectorize_particles: bool = False
    pathwise: bool | Sequence[str] = ()
    retain_graph: bool | None = None
    regularizer: Regularizer | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.num_particles, "__index__") or self.num_particles < 1:
            raise ValueError(
                f"num_particles must be a whole number of at least 1, not {self.num_particles!r}"
            )
        if isinstance(self.pathwise, str):
            raise ValueError(f"pathwise takes a list of names: write pathwise=['{self.pathwise}']")
        given = self.max_plate_nesting
        super().__init__(  # type: ignore[no-untyped-call]
            num_particles=self.num_particles,
            vectorize_particles=self.vectorize_particles,
            retain_graph=self.retain_graph,
        )
        self.max_plate_nesting = given  # without the particles' plate, which Pyro's ELBO adds to it
        self.running = RunningMeans()
        self.statistics: dict[str, Tensor] = {}
        self._global_names: frozenset[str] | None = None
        self._inspected = False

    # The two methods that define an objective.

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound per datum: ``[particle, *datum] -> [*datum]``."""

    @abstractmethod
    def surrogate(self, particles: Particles) -> Tensor:
        """A scalar whose *gradient* is ascended, summed over data; its value has no meaning."""

    # What an objective may override besides.

    def check(self, model: Program, guide: Program) -> None:
        """Checks that this objective can train these two, as far as possible without running them.

        Raises:
            ValueError: it cannot; the message says what to change.
        """
        if self.pathwise and getattr(guide, "constant_samples", False):
            raise InputError(
                f"the guide {type(guide).__name__} takes earlier samples as constants, so that "
                "gradients through samples would be incomplete: leave out pathwise, or use Prior(model) "
                "(guide 'prior') or your own guide"
            )

    @property
    def uses_baselines(self) -> bool:
        """Whether it reads the baselines that sites declare."""
        return False

    def held_constant(self, draws: Sequence[TraceDraw]) -> Collection[str]:
        """The latents that are constants in a second evaluation (``Particles.constant``)."""
        return ()

    def evaluations(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Particles]:
        """The evaluations that the gradient is averaged over."""
        return [self.particles(model, guide, *args, **kwargs)]

    def global_surrogate(
        self, evaluations: Sequence[Particles], bounds: Sequence[Tensor]
    ) -> Tensor | None:
        """The term that trains model and guide through their global sites.

        Args:
            bounds: the bound of each evaluation, in units of the data plates' scale; constants.
        """
        return None

    def guide_surrogate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """A further term that needs separate runs (the sleep phase)."""
        return None

    # Pyro's interface.

    def __call__(self, model: nn.Module, guide: nn.Module) -> ObjectiveModule:
        return ObjectiveModule(model, guide, self)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, summed over the data plates and scaled by their subsampling.

        The value is the bound itself; the gradient is this objective's estimator. Nothing in it waits
        for the device.
        """
        if not self._inspected:
            self.check(model, guide)
        evaluations = self.evaluations(model, guide, args, kwargs)
        if not self._inspected:
            inspect(self, evaluations[0], model, guide)
            self._inspected = True
        bounds = self._bounds(evaluations)
        terms = []
        for particles in evaluations:
            terms.append(self.surrogate(particles))
            bonus = self.regularizer.bonus(particles) if self.regularizer is not None else None
            if bonus is not None:
                terms[-1] = terms[-1] + bonus
        surrogate = _mean(terms)
        for term in (
            self.global_surrogate(evaluations, bounds),
            self.guide_surrogate(model, guide, args, kwargs),
        ):
            if term is not None:
                surrogate = surrogate + term
        surrogate = evaluations[0].scale * surrogate
        return -(evaluations[0].scale * _mean(bounds) + (surrogate - surrogate.detach()))

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the bound as a number, without gradients and without touching running estimates."""
        with torch.no_grad():
            evaluations = self.evaluations(model, guide, args, kwargs)
            return _number(-(evaluations[0].scale * _mean(self._bounds(evaluations))))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the bound as a number; gradients are added to the parameters' ``.grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        torch_backward(loss, retain_graph=self.retain_graph)
        return _number(loss)

    def state_dict(self) -> dict[str, Tensor]:
        """The running estimates, to be saved with a checkpoint."""
        return self.running.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.running.load_state_dict(state)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        draw = self.particles(model, guide, *args, **kwargs).draws[0]
        return draw.model_trace, draw.guide_trace

    # Drawing particles.

    def particles(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Particles:
        """Runs guide and model and returns the particles with their log-densities."""
        shares_parameters = is_prior(guide, model)
        changed = self.regularizer is not None and self.regularizer.changes_proposal
        sampler = Sampler(
            model,
            guide,
            args,
            kwargs,
            is_prior=shares_parameters and not changed,
            num_particles=1,
            max_plate_nesting=self.max_plate_nesting,
            carries_gradients=carries_gradients(self.pathwise),
            proposal=self.regularizer.proposal if self.regularizer is not None else nullcontext,
            forms_weights=self.forms_weights,
        )
        if self.particles_in_a_plate:
            self._look_ahead(sampler)
            sampler = replace(
                sampler, num_particles=self.num_particles, max_plate_nesting=self.dimensions
            )
        draws = [self._first_draw(sampler)]
        shared = self._global_names or frozenset()
        if not self.vectorize_particles:
            given = {
                name: site["value"]
                for name, site in draws[0].guide_trace.nodes.items()
                # A weight compares explanations of the same data, so all have the first's minibatch.
                if name in shared
                or (self.forms_weights and site["type"] == "sample" and is_minibatch(site))
            }
            draws += [sampler.draw(given=given) for _ in range(1, self.num_particles)]
        held = self.held_constant(draws) if torch.is_grad_enabled() else ()
        constant = None
        if held:
            if shares_parameters:
                raise InputError(
                    f"site '{next(iter(held))}' is pathwise, and this objective must separate the "
                    "guide's part of the gradient from the model's, which are the same for Prior: leave "
                    "it out of pathwise, or use ImportanceBound without doubly_reparameterized"
                )
            constant = combine([sampler.again(draw, shared, held) for draw in draws], shares_parameters)
        return combine(draws, shares_parameters, constant)

    def _first_draw(self, sampler: Sampler) -> TraceDraw:
        """The first draw, repeated if its global latents turn out to differ from those assumed."""
        if not self.forms_weights or sampler.num_particles == 1:
            draw = sampler.draw()
            self._global_names = draw.plates.global_names if self.forms_weights else None
            return draw
        for _ in range(3):
            draw = sampler.draw(shared=self._global_names or ())
            known, self._global_names = self._global_names, draw.plates.global_names
            if (known or frozenset()) == self._global_names:
                return draw
        raise ValueError("which latents lie outside the data plates changes from run to run")

    @property
    def particles_in_a_plate(self) -> bool:
        """Whether several particles are drawn in one run."""
        return self.vectorize_particles and self.num_particles > 1

    @property
    def dimensions(self) -> int | float:
        """How many batch dimensions the plates use, that of the particles included."""
        return self.max_plate_nesting + self.particles_in_a_plate

    def _look_ahead(self, sampler: Sampler) -> None:
        """Finds, by a run with one particle, the plates' dimensions and the global latents."""
        guessed = self.max_plate_nesting == float("inf")
        if not guessed and (self._global_names is not None or not self.forms_weights):
            return
        # The run that follows reports errors, if it can take place.
        with nullcontext() if guessed else suppress(Exception), aside(sampler.model, sampler.guide):
            draw = sampler.draw()
            self._global_names = draw.plates.global_names
            if guessed:
                self.max_plate_nesting = max(map(plate_nesting, (draw.model_trace, draw.guide_trace)))

    def _bounds(self, evaluations: Sequence[Particles]) -> list[Tensor]:
        """Each evaluation's bound, summed over data, in units of the data plates' scale; constants."""
        found, means, sizes = [], [], []
        for particles in evaluations:
            bound = self.bound(particles.log_weights)
            total, mean = bound.sum(), bound.mean()
            if particles.global_bound is not None:
                total = total + particles.global_bound.detach()
                mean = total / bound.numel()
            found.append(total)
            means.append(mean)
            sizes.append(estimators.effective_sample_size(particles.log_weights).mean())
        self.statistics = {"bound": _mean(means), "ess": _mean(sizes)}
        return found


@contextmanager
def aside(*programs: Program) -> Iterator[None]:
    """A context for a run of programs without gradients or a trace, hidden from handlers."""
    with without_a_trace(*map(module_of, programs)), torch.no_grad(), poutine.block():
        yield


def is_recorded() -> bool:
    """Whether operations are traced or captured, to be run later."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    if get_proxy_mode() is not None:
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _mean(terms: Sequence[Tensor]) -> Tensor:
    total = add(terms)
    return total if len(terms) == 1 else total / len(terms)


def _number(loss: Tensor) -> float:
    """The value of a loss; Pyro's warning if it is not a number."""
    return warn_if_nan(loss.detach(), "loss").item()


def check_choice(option: str, value: object, choices: Sequence[str], objective: str) -> None:
    """Raises an error that says what to write, if a value is not one of the choices.

    Raises:
        ValueError: for anything else.
    """
    if value in choices:
        return
    if isinstance(value, int):
        raise ValueError(
            f"the first argument of {objective} is {option}: write {objective}(num_particles={value})"
        )
    raise ValueError(f"unknown {option} {value!r}: choose one of {', '.join(map(repr, choices))}")
