"""One run's parts and its update: objective, model, guide, data, optimiser, on their device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.optim import Optimizer

from wsram_ppl.data.ahead import Minibatches
from wsram_ppl.devices import make_fabric, seed_for
from wsram_ppl.diagnostics import gradient_moments, parameter_groups
from wsram_ppl.errors import Diverged, InputError, RunError
from wsram_ppl.evaluation import batch_metrics, evaluate
from wsram_ppl.exploration import Exploration
from wsram_ppl.objectives.particles import random_sites
from wsram_ppl.runs import RunDirectory, Saved, strip
from wsram_ppl.spec import Experiment, Spec, Training, build

#: Streams of random numbers of a run; each has its own numbers at each step.
_PARAMETERS, _SAMPLES, _LOGGING, _EVALUATION, _PROBE = range(5)

#: The probe's minibatch is that of a step which no training reaches.
_PROBE_STEP = 2**40


def make_optimizer(training: Training, model: nn.Module, guide: nn.Module) -> Optimizer:
    """The optimiser, with the model's parameters and the guide's own in two groups."""
    known = {id(p) for p in model.parameters()}
    own = [p for p in guide.parameters() if id(p) not in known]
    groups: list[dict[str, Any]] = [{"params": list(model.parameters()), "name": "model"}]
    if own:
        groups.append({"params": own, "name": "guide"})
    rate = training.learning_rate.initial
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, weight_decay=training.weight_decay)
    adam = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return adam(groups, lr=rate, weight_decay=training.weight_decay, fused=True)


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
        step: updates done.
    """

    spec: Spec
    experiment: Experiment
    step: int = 0

    def __post_init__(self) -> None:
        self.training = self.spec.training
        self.fabric = make_fabric(self.training)
        parts = self.experiment
        parts.data.to(self.fabric.device)
        if self.training.compile and not compile_networks(parts.model) + compile_networks(parts.guide):
            raise InputError(
                "training.compile: neither model nor guide has a plain torch.nn network to compile"
            )
        self.exploration = Exploration()
        parts.objective.regularizer = self.exploration
        self.optimizer = make_optimizer(self.training, parts.model, parts.guide)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        # The gradient of a baseline's regression may be thousands of times as long as the model's.
        followed = {
            id(p) for group in parameter_groups(parts.model, parts.guide).values() for p in group
        }
        self._clipped = [
            [p for p in self.parameters if id(p) in followed],
            [p for p in self.parameters if id(p) not in followed],
        ]
        self.loss, self.optimizer = self.fabric.setup(
            parts.objective(parts.model, parts.guide), self.optimizer
        )
        self._finite = torch.ones((), dtype=torch.bool, device=self.fabric.device)
        self._minibatches = Minibatches(
            self._minibatch, self.training.steps, ahead=self.training.prefetch
        )
        self._buffers = {
            (part, name): dict(getattr(parts, part).named_buffers())[name]
            for part, name in parts.scheduled
        }

    @classmethod
    def start(cls, spec: Spec) -> Trainer:
        """Builds the parts of a spec with fresh parameters, fixed by its seed."""
        if spec.training.threads:
            torch.set_num_threads(spec.training.threads)
        torch.set_float32_matmul_precision(spec.training.matmul_precision)
        torch.manual_seed(seed_for(spec.training.seed, _PARAMETERS))
        return cls(spec, build(spec))

    def _seed(self, stream: int) -> None:
        """Seeds the device in use alone: ``torch.manual_seed`` looks for all others every time."""
        seed = seed_for(self.training.seed, stream, self.step)
        torch.default_generator.manual_seed(seed)
        if self.fabric.device.type != "cpu":
            getattr(torch, self.fabric.device.type).manual_seed(seed)

    @torch.no_grad()
    def _minibatch(self, step: int) -> Minibatch:
        """The minibatch of a step."""
        parts, training = self.experiment, self.training
        batch = self._cast(parts.data.training_batch(step, training.batch_size, training.seed))
        prepare: Callable[..., tuple[Any, ...]] | None = getattr(parts.model, "prepare", None)
        return Minibatch(batch, batch if prepare is None else prepare(*batch))

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
            group["lr"] = guide_rate if group["name"] == "guide" else rate
        self.exploration.entropy = exploration.entropy.value(progress)
        self.exploration.temperature = exploration.temperature.value(progress)
        self.exploration.coverage = exploration.coverage.value(progress)
        for key, schedule in self.experiment.scheduled.items():
            self._buffers[key].fill_(schedule.value(progress))

    def update(self, check: bool = False) -> tuple[Tensor, ...]:
        """One update; returns its minibatch. Nothing in here waits for the device, unless to check.

        Args:
            check: look at the gradient before it reaches the weights. That costs nothing on a CPU; for
                an accelerator :meth:`check` now and then does.

        Raises:
            Diverged: the gradient is not finite.
        """
        training = self.training
        self.schedule(self.step / max(training.steps - 1, 1))  # the last update is at the end
        batch, prepared = self._minibatches(self.step)
        self._seed(_SAMPLES)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(self.loss(*prepared) / training.batch_size)
        for parameters in self._clipped:
            norm = nn.utils.clip_grad_norm_(parameters, training.gradient_clip or math.inf)
            self._finite &= norm.isfinite()
        if check:
            self.check(batch)
        self.optimizer.step()
        self.step += 1
        return batch

    def check(self, batch: tuple[Tensor, ...]) -> None:
        """Waits for the device and looks whether all gradients so far were finite.

        Raises:
            Diverged: one was not. The message names the first site or parameter that is at fault.
        """
        if bool(self._finite):
            return
        parts = self.experiment
        tensors = {f"model.{k}": v for k, v in parts.model.state_dict().items()}
        tensors |= {f"guide.{k}": v for k, v in parts.guide.state_dict().items()}
        tensors |= {f"batch.{index}": part for index, part in enumerate(batch)}
        for whose, module in (("model", parts.model), ("guide", parts.guide)):
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    tensors[f"gradient.{whose}.{name}"] = parameter.grad
        what = self._culprit(batch, tensors)
        message = f"update {self.step + 1}: {what} is not finite; lower the learning rate"
        raise Diverged(message, tensors, {"step": self.step, "what": what})

    @torch.no_grad()
    def _culprit(self, batch: tuple[Tensor, ...], tensors: Mapping[str, Tensor]) -> str:
        """The first quantity that is not finite when the update is run again, in the order of cause."""
        bad = [name for name, value in tensors.items() if not value.isfinite().all()]
        weights = [name for name in bad if not name.startswith(("gradient.", "batch."))]
        if weights:
            return f"weight {weights[0]}"
        self._seed(_SAMPLES)
        parts = self.experiment
        for draw in parts.objective.particles(parts.model, parts.guide, *batch).draws:
            for whose, trace in (("model", draw.model_trace), ("guide", draw.guide_trace)):
                for name, site in random_sites(trace).items():
                    if site["fn"].log_prob(site["value"]).isnan().any():
                        return f"the log-density of site '{name}' in the {whose}"
        return f"the {bad[0].replace('.', ' of ', 1)}" if bad else "the gradient's norm"

    def measure(self, batch: tuple[Tensor, ...]) -> dict[str, float]:
        """Numbers of the last update and its minibatch."""
        objective, model = self.experiment.objective, self.experiment.model
        self._seed(_LOGGING)
        measures = batch_metrics(model, batch, objective.num_particles)
        totals = {name: measure.total() for name, measure in measures.items()}
        values = {name: total[0] / total[1] for name, total in totals.items()}
        values = {**objective.statistics, **values}
        self.check(batch)
        numbers = {name: float(value) for name, value in values.items()}
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            raise RunError(
                f"update {self.step}: {', '.join(bad)} is not finite; lower the learning rate"
            )
        numbers["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        numbers["entropy_weight"] = self.exploration.entropy
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
        )

    def probe(self) -> dict[str, float]:
        """How noisy the gradient is now: its moments on a fixed minibatch, of the mean loss per datum.

        The minibatch depends on the run's seed alone, so runs of one seed can be compared. The gradient
        is that of the model's parameters, coefficient networks left out, drawn ``probe_repeats`` times:
        ``variance`` is summed over parameters, ``mean`` is the squared norm of the mean, ``snr`` their
        signal-to-noise ratio (:class:`~wsram_ppl.diagnostics.GradientMoments`). Training goes on as
        if there had been no probe.
        """
        training, parts = self.training, self.experiment
        minibatch = self._minibatches.extra(_PROBE_STEP)
        self._seed(_PROBE)
        groups = {"model": parameter_groups(parts.model, parts.guide)["model"]}
        with self.fabric.autocast():
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

        Raises:
            RunError: weights are not finite (the checkpoints there are left alone), or no space.
        """
        parts = self.experiment
        tensors = {f"model.{k}": v for k, v in parts.model.state_dict().items()}
        tensors |= {f"guide.{k}": v for k, v in parts.guide.state_dict().items()}
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
