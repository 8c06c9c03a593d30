"""The parts of one run, on their device, and its update."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsram_ppl import collectives
from wsram_ppl.config import Components, ExperimentConfig, build
from wsram_ppl.distributed.devices import Stream, seed_for
from wsram_ppl.distributed.processes import Processes
from wsram_ppl.errors import Diverged, InputError, RunError
from wsram_ppl.interfaces import prepared
from wsram_ppl.objectives import Exploration
from wsram_ppl.objectives.exploration import in_place
from wsram_ppl.primitives.undoing import without_a_trace
from wsram_ppl.runs.checkpoints import TrainingState, copy_weights, not_finite
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.compiled import CompiledStep, check_compilable
from wsram_ppl.training.cuda_graph import CudaGraphStep, check_recordable
from wsram_ppl.training.divergence import diverged
from wsram_ppl.training.minibatches import Minibatches
from wsram_ppl.training.optimizer import Clipping, make_optimizer

__all__ = ["Trainer"]

_log = logging.getLogger(__name__)

#: Gradients, the objective's statistics, and the minibatch.
_Computed = tuple[list[Tensor | None], dict[str, Tensor], tuple[Tensor, ...]]


@dataclass
class Trainer:
    """The parts of one run, on their device, and its number of updates.

    Args:
        config: what to train.
        components: the parts that the config names.
        processes: the processes that share the work, each with its own trainer in the same state.
        step: updates done.

    Attributes:
        state: what a checkpoint holds.
        constants: buffers that are not finite from the start, such as a mask of -inf.
        signal: the number of a signal that some process had received by the last update; 0 for none.
    """

    config: ExperimentConfig
    components: Components
    processes: Processes
    step: int = 0

    def __post_init__(self) -> None:
        self.training = training = self.config.training
        self.fabric, self.shard = self.processes.fabric, self.processes.shard
        device, parts = self.fabric.device, self.components
        self.signal = 0
        parts.data.to(device)
        if training.cuda_graph:
            check_recordable(training, device, self.shard.count)
        if training.compile:
            check_compilable(training, device, self.shard.count)
        self._take_objective()
        self.optimizer = make_optimizer(training, parts.model, parts.guide, device)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._clip = Clipping(parts.model, parts.guide, self.parameters, training.gradient_clip)
        self.loss, self.optimizer = self.fabric.setup(
            parts.objective(parts.model, parts.guide), self.optimizer
        )
        self.state = TrainingState(parts, self.optimizer)
        self.constants = frozenset(not_finite(self.state.buffers()))
        if self.shard.count > 1:
            self.copy_from_first()
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self.minibatches = Minibatches(parts, self.config.data.name, training, self.shard)
        settle = self.minibatches.settle
        self._compute: Callable[..., _Computed] = self._computed
        if training.compile:
            self._compute = CompiledStep(self._computed, TrainingState(parts), settle)
        self._recorded: CudaGraphStep[_Computed] | None = None
        if training.cuda_graph:
            self._recorded = CudaGraphStep(self._whole_update, self.state, settle)
        self._buffers = {
            (part, name): dict(getattr(parts, part).named_buffers())[name]
            for part, name in parts.scheduled
        }

    @classmethod
    def start(cls, config: ExperimentConfig, processes: Processes | None = None) -> Trainer:
        """Builds the parts of a config with new parameters, determined by its seed.

        Args:
            processes: None to launch them.
        """
        training = config.training
        if training.threads:
            torch.set_num_threads(training.threads)
        torch.set_float32_matmul_precision(training.matmul_precision)
        processes = processes or Processes.launch(training)
        torch.manual_seed(seed_for(training.seed, Stream.PARAMETERS))
        with processes.one_after_the_other():  # the first may download what the others then find
            components = build(config)
        return cls(config, components, processes)

    def start_from(self, run: RunDirectory) -> None:
        """Takes the weights of another run where they fit; the others stay as they were drawn.

        Raises:
            InputError: there are none, or nothing fits.
        """
        try:
            saved = run.weights()
        except InputError as error:
            raise InputError(f"training.init = {str(run)!r}: {error}") from error
        taken = 0
        anew: list[str] = []
        for part in ("model", "guide"):
            options = getattr(self.config, part).parameters
            count, others = copy_weights(getattr(self.components, part), part, saved.tensors, options)
            taken, anew = taken + count, [*anew, *others]
        if not taken:
            raise InputError(f"training.init = {str(run)!r}: nothing there fits ({'; '.join(anew[:3])})")
        said = f": {', '.join(anew)}" if anew else ""
        _log.info("%s: %d tensors taken, %d newly drawn%s", run, taken, len(anew), said)

    def _take_objective(self) -> None:
        """Checks the objective and gives it the run's exploration."""
        parts, name = self.components, self.config.objective.name
        try:
            parts.objective.check(parts.model, parts.guide)
        except ValueError as error:
            raise InputError(f"objective {name!r}: {error}") from error
        if parts.objective.regularizer is not None:
            raise InputError(
                f"objective {name!r} brings a regularizer of its own, but a run's regularizer is its "
                "table [exploration]: leave the objective's out"
            )
        self.exploration = Exploration()
        if self.training.records:
            off = {"entropy": 0.0, "temperature": 1.0, "coverage": 0.0}
            dtype = torch.float64 if self.training.precision == "64-true" else torch.float32
            for key, value in off.items():
                schedule = getattr(self.config.exploration, key)
                if not (schedule.constant and schedule.initial == value):
                    # A recorded or compiled update reads what changes during the run from a tensor.
                    place = torch.full((), value, dtype=dtype, device=self.fabric.device)
                    setattr(self.exploration, key, place)
        parts.objective.regularizer = self.exploration

    def copy_from_first(self) -> None:
        """Gives every process the first one's weights, in case their draws differ despite the seed."""
        modules = (self.components.model, self.components.guide)
        collectives.copy_from_first(t for m in modules for t in (*m.parameters(), *m.buffers()))

    # What depends on the number of the update.

    def seed(self, stream: Stream, step: int | None = None) -> None:
        """Seeds all random numbers for one use at a step, by default the present one."""
        seed, process = self.training.seed, self.shard.rank + 1
        step = self.step if step is None else step
        own = seed_for(seed, stream, step, process) if self.shard.count > 1 else 0
        self.shard.seed(seed_for(seed, stream, step), own)

    def drawing(self) -> AbstractContextManager[Any]:
        """A context for running programs on this process's rows of a minibatch."""
        return self.shard.drawing(self.training.batch_size)

    def measuring(self) -> AbstractContextManager[Any]:
        """A context for running programs without a trace, whatever the next update does."""
        parts = self.components
        return without_a_trace(parts.model, parts.guide, parts.objective)

    def schedule(self, step: int) -> None:
        """Sets everything that changes during the run, for update ``step``, from 0.

        The last update has the schedules' last values. An only one has the first.
        """
        progress = step / max(self.training.horizon - 1, 1)
        training, exploration = self.training, self.config.exploration
        rate = training.learning_rate.value(progress)
        guide_rate = (training.guide_learning_rate or training.learning_rate).value(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = in_place(group["lr"], guide_rate if group["name"] == "guide" else rate)
        self.exploration.set(
            entropy=exploration.entropy.value(progress),
            temperature=exploration.temperature.value(progress),
            coverage=exploration.coverage.value(progress),
        )
        for key, schedule in self.components.scheduled.items():
            self._buffers[key].fill_(schedule.value(progress))

    # The update.

    def update(self, check: bool = False, signal: int = 0) -> tuple[Tensor, ...]:
        """One update; returns its minibatch (this process's rows of it), which the next may overwrite.

        Nothing in it waits for the device, except a check.

        Args:
            check: check the gradient before it reaches the weights. That is free on a CPU; on an
                accelerator, calling :meth:`check` now and then is enough.
            signal: the number of a signal that this process has received; 0 for none.

        Raises:
            Diverged: the gradient is not finite, or a distribution cannot be sampled from.
            SourceError: there is no minibatch; the state is unchanged.
        """
        made = self.minibatches(self.step)  # first: if there is none, nothing has changed
        self.schedule(self.step)
        batch = made.batch
        self.seed(Stream.SAMPLES)
        with self.explained(lambda: self.minibatches.composed(*made.batch), self.step + 1):
            if self._recorded is not None:
                batch = self._take(self._recorded(*batch))
            elif self.training.compile:
                batch = self._take(self._compute(*batch))
            else:
                self._gradients(made.prepared, signal)
        if check:
            self.check(batch, self.step + 1)
        if not self.training.cuda_graph:
            self.optimizer.step()
        self.step += 1
        return batch

    def _gradients(self, ready: tuple[Any, ...], signal: int = 0) -> None:
        """The gradient of the mean loss of a minibatch, clipped."""
        for parameter in self.parameters:
            parameter.grad = None  # not ``zero_grad``, which calls the profiler: cannot be compiled
        with self.drawing():
            self.fabric.backward(self.loss(*ready) / self.training.batch_size)
        gradients, self.signal = collectives.sum_tensors(
            [p.grad for p in self.parameters], self.parameters, signal=signal
        )
        if self.shard.count > 1:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient
        self._clip(self._finite)

    def _computed(self, *made: Tensor) -> _Computed:
        """What an update computes before its step, from its minibatch as made; may be compiled."""
        with torch.no_grad():
            batch = self.minibatches.composed(*made)
            ready = prepared(self.components.model, batch)
        self._gradients(ready)
        return [p.grad for p in self.parameters], self.components.objective.statistics, batch

    def _whole_update(self, *made: Tensor) -> _Computed:
        """All that an update computes on the device, to be recorded; returns what is read later."""
        found = self._compute(*made)
        self._take(found)
        self.optimizer.step()
        return found

    def _take(self, computed: _Computed) -> tuple[Tensor, ...]:
        """Stores what was computed, perhaps outside Python, where the components look for it.

        Returns:
            The minibatch.
        """
        gradients, self.components.objective.statistics, batch = computed
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return batch

    # If something is not finite.

    def check(self, batch: tuple[Tensor, ...], update: int) -> None:
        """Waits for the device and checks that all gradients so far were finite.

        Args:
            batch: the minibatch of the last update.
            update: its number, from 1.

        Raises:
            Diverged: one was not. The message names the first site or parameter that is at fault.
        """
        if not self._finite:
            raise self.diverged(batch, update)

    def diverged(self, batch: tuple[Tensor, ...], update: int, measured: Sequence[str] = ()) -> Diverged:
        """What is not finite; see :func:`wsram_ppl.training.divergence.diverged`."""
        with self.measuring(), self.drawing():
            self.seed(Stream.SAMPLES, update - 1)
            return diverged(
                self.components,
                batch,
                step=self.step,
                update=update,
                measured=measured,
                constants=self.constants,
            )

    @contextmanager
    def explained(self, batch: Callable[[], tuple[Tensor, ...]], update: int) -> Iterator[None]:
        """Explains a failed update: sampling fails if a distribution's parameters are not finite.

        Args:
            batch: makes the update's minibatch.
        """
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if not isinstance(error, (RunError, InputError)):
                found = self.diverged(batch(), update)
                if found.has_cause:
                    raise found from error
            raise
