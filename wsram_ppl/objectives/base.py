"""The common part of all objectives: draw particles, form the bound, attach the gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO, ELBOModule
from pyro.infer.util import torch_backward
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from wsram_ppl.objectives import estimators
from wsram_ppl.objectives.particles import Particles
from wsram_ppl.objectives.prior import is_prior
from wsram_ppl.objectives.running import RunningMeans
from wsram_ppl.objectives.sites import Program, values_of
from wsram_ppl.objectives.traces import combine, read_draw
from wsram_ppl.primitives.handlers import DetachSamples, Memoize, ParticlePlate, Substitute

__all__ = ["Objective", "ObjectiveModule", "Regularizer"]


class Regularizer(Protocol):
    """What may be added to any objective's gradient (not to its value), and change its proposal."""

    @property
    def changes_proposal(self) -> bool:
        """Whether :meth:`proposal` does anything now."""

    def proposal(self) -> AbstractContextManager[Any]:
        """Entered while the guide runs: changes what it samples from."""

    def bonus(self, particles: Particles) -> Tensor | None:
        """To be maximised beside the bound: a mean over particles, summed over the data plate."""


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
    ``objective(model, guide)``. Importance weights belong to a *datum*: one element of the plates that
    enclose every sample site of model and guide (one weight for the whole trace where there is no
    such plate). All samples are constants: no pathwise gradients.

    To write your own, implement only :meth:`bound` and :meth:`surrogate`. Options are fields of a
    dataclass, as here.

    Args:
        num_particles: M, samples of the guide per datum, at least 1.
        max_plate_nesting: how many batch dimensions the plates of model and guide use; guessed by
            running both once (without touching the random state) when not given.
        vectorize_particles: draw all particles in one run, as a plate left of all others. Otherwise
            one after the other, which also allows runs of different structure.
        retain_graph: as in Pyro's ``ELBO``.
        regularizer: exploration terms and a tempered proposal
            (:class:`~wsram_ppl.objectives.exploration.Exploration`).

    Attributes:
        statistics: of the last evaluation, constants on the device of the data: ``bound`` (mean per
            datum, in nats) and ``ess`` (mean effective sample size, in [1, M]).

    Raises:
        ValueError: in use, for what has no meaning here (enumerated sites, scales on inner plates,
            sites that only one of guide and model samples); the message says what to do.
    """

    num_particles: int = 5
    max_plate_nesting: int | float = float("inf")
    vectorize_particles: bool = False
    retain_graph: bool | None = None
    regularizer: Regularizer | None = None

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, not {self.num_particles}")
        super().__init__(  # type: ignore[no-untyped-call]
            num_particles=self.num_particles,
            max_plate_nesting=self.max_plate_nesting,
            vectorize_particles=self.vectorize_particles,
            retain_graph=self.retain_graph,
        )
        self.running = RunningMeans()
        self.statistics: dict[str, Tensor] = {}

    # The two methods that make an objective.

    @abstractmethod
    def bound(self, log_weights: Tensor) -> Tensor:
        """The bound per datum: ``[particle, *datum] -> [*datum]``."""

    @abstractmethod
    def surrogate(self, particles: Particles) -> Tensor:
        """A scalar whose *gradient* is to be ascended, summed over data; its value means nothing."""

    def check(self, model: Program, guide: Program) -> None:
        """Whether this objective can train these two, as far as that can be told without running them.

        Raises:
            ValueError: it cannot; the message says what to change.
        """

    def guide_surrogate(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """A further term that needs runs of its own (the sleep phase)."""
        return None

    # Pyro's interface.

    def __call__(self, model: nn.Module, guide: nn.Module) -> ObjectiveModule:
        return ObjectiveModule(model, guide, self)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Minus the bound, summed over the data plate and scaled by its subsampling.

        The value is the bound itself; the gradient is this objective's estimator. Nothing in here
        waits for the device.
        """
        particles = self.particles(model, guide, *args, **kwargs)
        value = self._value(particles)
        surrogate = self.surrogate(particles)
        if self.regularizer is not None:
            bonus = self.regularizer.bonus(particles)
            if bonus is not None:
                surrogate = surrogate + bonus
        asleep = self.guide_surrogate(model, guide, args, kwargs)
        if asleep is not None:
            surrogate = surrogate + asleep
        surrogate = particles.scale * surrogate
        return -(value + (surrogate - surrogate.detach()))

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the bound as a number, without gradients and without touching running estimates."""
        with torch.no_grad():
            return -self._value(self.particles(model, guide, *args, **kwargs)).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Minus the bound as a number; gradients are added to the parameters' ``.grad``."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        torch_backward(loss, retain_graph=self.retain_graph)
        return loss.item()

    def state_dict(self) -> dict[str, Tensor]:
        """The running estimates, to be saved with a checkpoint."""
        return self.running.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.running.load_state_dict(state)

    # Drawing particles.

    def particles(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Particles:
        """Runs guide and model and returns the particles with their log-densities."""
        draws = []
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            vectorized = self.vectorize_particles
            draws.append(read_draw(model_trace, guide_trace, self.num_particles if vectorized else 1))
        return combine(draws, shares_parameters=is_prior(guide, model))

    def _value(self, particles: Particles) -> Tensor:
        bound = self.bound(particles.log_weights)
        ess = estimators.effective_sample_size(particles.log_weights)
        self.statistics = {"bound": bound.mean(), "ess": ess.mean()}
        return particles.scale * bound.sum()

    def _get_traces(
        self, model: Program, guide: Program, args: Any, kwargs: Any
    ) -> Iterator[tuple[Trace, Trace]]:
        run = self._get_trace
        if is_prior(guide, model) and not (self.regularizer and self.regularizer.changes_proposal):
            run = self._get_prior_trace  # every log-density of the guide is the model's own
        if not self.vectorize_particles:
            for _ in range(self.num_particles):
                yield run(model, guide, args, kwargs)
            return
        if self.max_plate_nesting == float("inf"):
            devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
            with torch.random.fork_rng(devices), torch.no_grad():
                self._guess_max_plate_nesting(model, guide, args, kwargs)  # type: ignore[no-untyped-call]
        yield run(self._all_particles(model), self._all_particles(guide), args, kwargs)

    def _all_particles(self, program: Program) -> Program:
        """The program inside the particle plate."""
        if self.num_particles == 1:
            return program
        return ParticlePlate(self.num_particles, -int(self.max_plate_nesting))(program)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        with DetachSamples(), Memoize():
            proposal = self.regularizer.proposal() if self.regularizer else nullcontext()
            with proposal:
                guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            with Substitute(values_of(guide_trace)):
                model_trace = poutine.trace(model).get_trace(*args, **kwargs)
        return model_trace, guide_trace

    def _get_prior_trace(
        self, model: Program, guide: Program, args: Any, kwargs: Any
    ) -> tuple[Trace, Trace]:
        with DetachSamples(), Memoize():
            model_trace = poutine.trace(model).get_trace(*args, **kwargs)
        guide_trace = Trace()
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and not site["is_observed"]:
                guide_trace.nodes[name] = site
        return model_trace, guide_trace
