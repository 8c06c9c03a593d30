"""One run's parts and its update: objective, model, guide, data, optimiser, on their device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from wsram_ppl import collectives
from wsram_ppl.config import Experiment, Spec, build
from wsram_ppl.data import training_rows
from wsram_ppl.distributed.devices import seed_for
from wsram_ppl.distributed.processes import Processes
from wsram_ppl.errors import Diverged, InputError, RunError
from wsram_ppl.objectives.diagnostics import gradient_moments, parameter_groups
from wsram_ppl.objectives.exploration import Exploration
from wsram_ppl.runs.directory import RunDirectory, Saved, strip
from wsram_ppl.training.cuda_graph import Recorded, in_place
from wsram_ppl.training.divergence import find_cause
from wsram_ppl.training.evaluation import Measure, batch_metrics, evaluate
from wsram_ppl.training.minibatches import Minibatches
from wsram_ppl.training.optimizer import Clipping, make_optimizer

#: Streams of random numbers of a run; each has its own numbers at each step.
_PARAMETERS, _SAMPLES, _LOGGING, _EVALUATION, _PROBE = range(5)

#: The probe's minibatch is that of a step which no training reaches.
_PROBE_STEP = 2**40


def compile_networks(program: nn.Module) -> int:
    """Compiles, in place, the plain networks of a Pyro program; returns how many.

    These are the outermost modules inside it with a ``forward`` of their own that are no PyroModules:
    effects stay outside compiled code.
    """
    count = 0
    for child in program.children():
        plain = not isinstance(child, PyroModule)
        if plain and type(child).forward is not nn.Module.forward:
            child.compile()
            count += 1
        else:
            count += compile_networks(child)
    return count


class Minibatch(NamedTuple):
    """What an update works on.

    Attributes:
        batch: of the data source.
        prepared: the same as model and guide are to get it: by the model's own
            ``prepare(*batch)``, if it has one (what needs no parameter, done ahead of the update).
    """

    batch: tuple[Tensor, ...]
    prepared: tuple[Any, ...]


@dataclass
class Trainer:
    """One run's parts, on their device, and how far it has come.

    Args:
        spec: what to train.
        experiment: the parts that the spec names.
        processes: those that share the work, each with a trainer of its own in the same state.
        step: updates done.

    Attributes:
        signal: the number of a signal that some process had received by the last update; 0 for none.
    """

    spec: Spec
    experiment: Experiment
    processes: Processes
    step: int = 0

    def __post_init__(self) -> None:
        self.training = self.spec.training
        self.fabric, self.share = self.processes.fabric, self.processes.share
        self.signal = 0
        parts = self.experiment
        parts.data.to(self.fabric.device)
        if self.training.compile and not compile_networks(parts.model) + compile_networks(parts.guide):
            raise InputError(
                "training.compile: neither model nor guide has a plain torch.nn network to compile"
            )
        try:
            parts.objective.check(parts.model, parts.guide)
        except ValueError as error:
            raise InputError(f"objective {self.spec.objective.name!r}: {error}") from error
        self.exploration = Exploration()
        parts.objective.regularizer = self.exploration
        recorded = self.training.cuda_graph
        if recorded:
            self._check_recordable()
            self._keep_exploration_in_tensors()
        self.optimizer = make_optimizer(self.training, parts.model, parts.guide, self.fabric.device)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._clip = Clipping(parts.model, parts.guide, self.parameters, self.training.gradient_clip)
        self.loss, self.optimizer = self.fabric.setup(
            parts.objective(parts.model, parts.guide), self.optimizer
        )
        if self.share.count > 1:
            self.copy_from_first()
        self._finite = torch.ones((), dtype=torch.bool, device=self.fabric.device)
        self._minibatches = Minibatches(
            self._minibatch, self.training.steps, ahead=self.training.prefetch
        )
        self._recorded = Recorded(self._whole_update, self._minibatches.settle) if recorded else None
        self._buffers = {
            (part, name): dict(getattr(parts, part).named_buffers())[name]
            for part, name in parts.scheduled
        }

    @classmethod
    def start(cls, spec: Spec, processes: Processes | None = None) -> Trainer:
        """Builds the parts of a spec with fresh parameters, fixed by its seed.

        Args:
            processes: by default they are launched.
        """
        if spec.training.threads:
            torch.set_num_threads(spec.training.threads)
        torch.set_float32_matmul_precision(spec.training.matmul_precision)
        processes = processes or Processes.launch(spec.training)
        torch.manual_seed(seed_for(spec.training.seed, _PARAMETERS))
        with processes.one_after_the_other():  # the first may download what the others then find
            parts = build(spec)
        return cls(spec, parts, processes)

    def _check_recordable(self) -> None:
        training = self.training
        obstacle = ""
        if self.fabric.device.type != "cuda":
            obstacle = f"device '{self.fabric.device.type}' records nothing; use device = 'cuda'"
        elif self.share.count > 1:
            obstacle = "what processes tell each other cannot be recorded; use devices = 1"
        elif training.compile or training.validate_sites:
            obstacle = "no compiled or validated update can be recorded; set compile and validate false"
        if obstacle:
            raise InputError(f"training.cuda_graph: {obstacle}, or cuda_graph = false")

    def _keep_exploration_in_tensors(self) -> None:
        """So that a recorded update finds what changes during the run."""
        off = {"entropy": 0.0, "temperature": 1.0, "coverage": 0.0}
        for name, value in off.items():
            schedule = getattr(self.spec.exploration, name)
            if not (schedule.constant and schedule.initial == value):
                setattr(self.exploration, name, torch.full((), value, device=self.fabric.device))

    def _seed(self, stream: int) -> None:
        seed, process = self.training.seed, self.share.rank + 1
        self.share.seed(
            seed_for(seed, stream, self.step),
            seed_for(seed, stream, self.step, process) if self.share.count > 1 else 0,
        )

    def copy_from_first(self) -> None:
        """Gives every process the first one's weights, whatever else than the seed has drawn them."""
        parts = self.experiment
        modules = (parts.model, parts.guide)
        collectives.copy_from_first(t for m in modules for t in (*m.parameters(), *m.buffers()))

    def look_at_data(self) -> None:
        """Makes sure that a minibatch of this size can be had, before anything is written.

        Raises:
            InputError: it cannot, or it holds what is not a number.
        """
        for index, part in enumerate(self._minibatches.extra(self.step).batch):
            if not part.isfinite().all():
                raise InputError(
                    f"data {self.spec.data.name!r}: part {index} of the first minibatch is not finite"
                )

    @torch.no_grad()
    def _minibatch(self, step: int) -> Minibatch:
        """This process's rows of the minibatch of an update."""
        parts, training = self.experiment, self.training
        size = training.batch_size
        rows = self.share.rows(size)
        batch = self._cast(training_rows(parts.data, step, size, training.seed, rows))
        # A recorded update prepares it itself.
        return Minibatch(batch, batch if training.cuda_graph else self._prepare(*batch))

    def _prepare(self, *batch: Tensor) -> tuple[Any, ...]:
        prepare = getattr(self.experiment.model, "prepare", None)
        found: tuple[Any, ...] = batch if prepare is None else prepare(*batch)
        return found

    def _cast(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The batch in double precision where the model is."""
        if self.training.precision != "64-true":
            return batch
        return tuple(x.double() if x.is_floating_point() else x for x in batch)

    def schedule(self, progress: float) -> None:
        """Sets everything that changes over the run, for a progress in [0, 1]."""
        training, exploration = self.training, self.spec.exploration
        rate = training.learning_rate.value(progress)
        guide_rate = (training.guide_learning_rate or training.learning_rate).value(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = in_place(group["lr"], guide_rate if group["name"] == "guide" else rate)
        self.exploration.set(
            entropy=exploration.entropy.value(progress),
            temperature=exploration.temperature.value(progress),
            coverage=exploration.coverage.value(progress),
        )
        for key, schedule in self.experiment.scheduled.items():
            self._buffers[key].fill_(schedule.value(progress))

    def update(self, check: bool = False, signal: int = 0) -> tuple[Tensor, ...]:
        """One update; returns its minibatch (this process's rows of it).

        Nothing in here waits for the device, unless to check.

        Args:
            check: look at the gradient before it reaches the weights. That costs nothing on a CPU; for
                an accelerator :meth:`check` now and then does.
            signal: the number of a signal that this process has received; 0 for none.

        Raises:
            Diverged: the gradient is not finite, or a distribution cannot be sampled from.
        """
        training = self.training
        self.schedule(self.step / max(training.steps - 1, 1))  # the last update is at the end
        batch, prepared = self._minibatches(self.step)
        self._seed(_SAMPLES)
        with self._explained(batch, self.step + 1):
            if self._recorded is None:
                self._gradients(prepared, signal)
            else:
                gradients, self.experiment.objective.statistics = self._recorded(*batch)
                for parameter, gradient in zip(self.parameters, gradients, strict=True):
                    parameter.grad = gradient
        if check:
            self.check(batch)
        if self._recorded is None:
            self.optimizer.step()
        self.step += 1
        return batch

    def _gradients(self, prepared: tuple[Any, ...], signal: int = 0) -> None:
        """The gradient of the mean loss of a minibatch, clipped."""
        size = self.training.batch_size
        self.optimizer.zero_grad(set_to_none=True)
        with self.share.drawing(size):
            self.fabric.backward(self.loss(*prepared) / size)
        self._sum_gradients(signal)
        self._clip(self._finite)

    def _whole_update(self, *batch: Tensor) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """All that an update computes on the device, to be recorded; returns what is looked at later."""
        with torch.no_grad():
            prepared = self._prepare(*batch)
        self._gradients(prepared)
        self.optimizer.step()
        return [p.grad for p in self.parameters], self.experiment.objective.statistics

    def check(self, batch: tuple[Tensor, ...]) -> None:
        """Waits for the device and looks whether all gradients so far were finite.

        Raises:
            Diverged: one was not. The message names the first site or parameter that is at fault.
        """
        if not self._finite:
            raise self._diverged(batch, self.step + 1)

    def _sum_gradients(self, signal: int) -> None:
        """Every process gets the gradient of the whole minibatch."""
        gradients, self.signal = collectives.sum_tensors(
            [p.grad for p in self.parameters], self.parameters, signal=signal
        )
        if self.share.count > 1:
            for parameter, gradient in zip(self.parameters, gradients, strict=True):
                parameter.grad = gradient

    @contextmanager
    def _explained(self, batch: tuple[Tensor, ...], update: int) -> Iterator[None]:
        """A distribution whose parameters are not finite cannot be sampled from: names it then."""
        try:
            yield
        except (RuntimeError, ValueError) as error:
            if not isinstance(error, (RunError, InputError)):
                found = self._diverged(batch, update)
                if found.has_cause:
                    raise found from error
            raise

    def _weights(self) -> dict[str, Tensor]:
        """Parameters and buffers of model and guide, by the names that a checkpoint has for them."""
        parts = (("model", self.experiment.model), ("guide", self.experiment.guide))
        return {f"{part}.{k}": v for part, module in parts for k, v in module.state_dict().items()}

    def _diverged(
        self, batch: tuple[Tensor, ...], update: int, measured: Sequence[str] = ()
    ) -> Diverged:
        """Says what is not finite, with all that it may depend on.

        Args:
            measured: what else has been found not to be finite.
        """
        parts = self.experiment
        tensors = self._weights()
        tensors |= {f"batch.{index}": part for index, part in enumerate(batch)}
        for whose, module in (("model", parts.model), ("guide", parts.guide)):
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    tensors[f"gradient.{whose}.{name}"] = parameter.grad
        bad = [name for name, value in tensors.items() if not value.isfinite().all()]
        weights = [f"weight {name}" for name in bad if name.startswith(("model.", "guide."))]
        data = [f"part {name[6:]} of the minibatch" for name in bad if name.startswith("batch.")]
        gradients = [name.replace(".", " of ", 1) for name in bad if name.startswith("gradient.")]
        self._seed(_SAMPLES)
        with self.share.drawing(self.training.batch_size):
            cause = find_cause(parts.objective, parts.model, parts.guide, batch)
        # In the order of cause and effect; where a site is at fault, so may be a weight before it.
        causes = [*data, *weights[:1], *([cause] if cause else [])]
        found = causes or measured or gradients[:1] or ["the gradient's norm"]
        what, verb = " and ".join(found), "is" if len(found) == 1 else "are"
        advice = "look at the data" if data else "lower the learning rate"
        message = f"update {update}: {what} {verb} not finite; {advice}"
        return Diverged(message, tensors, {"step": self.step, "what": what}, bool(causes))

    def measure(self, batch: tuple[Tensor, ...]) -> dict[str, float]:
        """Numbers of the last update and its minibatch."""
        objective, model = self.experiment.objective, self.experiment.model
        self._seed(_LOGGING)
        with self._explained(batch, self.step), self.share.drawing(self.training.batch_size):
            measures = batch_metrics(model, batch, objective.num_particles)
        measures = {name: Measure(value) for name, value in objective.statistics.items()} | measures
        totals = collectives.sum_by_name({name: each.total() for name, each in measures.items()})
        values = {name: total[0] / total[1] for name, total in totals.items()}
        self.check(batch)
        numbers = {name: float(value) for name, value in values.items()}
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            raise self._diverged(batch, self.step, bad)
        numbers["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        numbers["entropy_weight"] = float(self.exploration.entropy)
        return numbers

    def evaluate(self, particles: int | None = None) -> dict[str, Any]:
        """Measures on held-out data (see :func:`wsram_ppl.evaluation.evaluate`)."""
        training, parts = self.training, self.experiment
        self._seed(_EVALUATION)
        batches = map(self._cast, parts.data.evaluation_batches(256, training.eval_examples))
        return evaluate(
            parts.model,
            parts.guide,
            batches,
            samples=training.eval_samples,
            particles=particles or parts.objective.num_particles,
            share=self.share,
        )

    def probe(self) -> dict[str, float]:
        """How noisy the gradient is now: its moments on a fixed minibatch, of the mean loss per datum.

        The minibatch depends on the run's seed alone, so runs of one seed can be compared. The gradient
        is that of the model's parameters, coefficient networks left out, drawn ``probe_repeats`` times:
        ``variance`` is summed over parameters, ``mean`` is the squared norm of the mean, ``snr`` their
        signal-to-noise ratio (:class:`~wsram_ppl.objectives.diagnostics.GradientMoments`). Training goes on as
        if there had been no probe.
        """
        training, parts = self.training, self.experiment
        minibatch = self._minibatches.extra(_PROBE_STEP)
        self._seed(_PROBE)
        groups = {"model": parameter_groups(parts.model, parts.guide)["model"]}
        with self.fabric.autocast(), self.share.drawing(training.batch_size):
            moments = gradient_moments(
                parts.objective,
                parts.model,
                parts.guide,
                *minibatch.prepared,
                repeats=training.probe_repeats,
                groups=groups,
            )["model"]
        data = training.batch_size**2  # from the loss summed over data to its mean
        return {"variance": moments.variance / data, "mean": moments.mean / data, "snr": moments.snr}

    def save(self, run: RunDirectory, seconds: float = 0.0) -> None:
        """Writes a checkpoint of everything that the run needs to go on after so many seconds.

        Of several processes the first one does; they all hold the same.

        Raises:
            RunError: weights are not finite (the checkpoints there are left alone), or no space.
        """
        if not self.processes.first:
            return
        parts = self.experiment
        tensors = self._weights()
        tensors |= {f"objective.{k}": v for k, v in parts.objective.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{k}": v for k, v in state.items() if v is not None}
        bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if bad:
            raise RunError(f"update {self.step}: {bad[0]} is not finite; lower the learning rate")
        data = {"step": self.step, "seconds": seconds, "fingerprint": self.spec.fingerprint()}
        run.save(tensors, data)

    def restore(self, saved: Saved) -> None:
        """Goes back to a checkpoint: weights, running estimates, optimiser, number of updates.

        Random streams need no restoring: they are seeded by the number of the update.
        """
        saved.restore(self.experiment)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in strip(saved.tensors, "optimizer.").items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.step = saved.step
