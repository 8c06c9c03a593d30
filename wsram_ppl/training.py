"""The training loop: update, measure, evaluate, save, until the end or a signal."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from wsram_ppl.checkpoints import save_checkpoint
from wsram_ppl.errors import Diverged, InputError, Interrupted, RunError
from wsram_ppl.evaluation import pyro_settings
from wsram_ppl.runs import MetricsLog, RunDirectory, Saved
from wsram_ppl.signals import Signals
from wsram_ppl.spec import Spec
from wsram_ppl.trainer import Trainer

#: Called after every update with its number and, when measured, the row of numbers.
Progress = Callable[[int, Mapping[str, float] | None], None]


def train(spec: Spec, run: RunDirectory, progress: Progress | None = None) -> dict[str, Any]:
    """Trains a spec and fills the run's directory, or goes on where an earlier call was stopped.

    A run that goes on ends with the weights, metrics and random draws of one that was never stopped.
    SIGTERM and SIGINT (Ctrl-C) save a checkpoint first.

    Returns:
        The summary: the last evaluation, updates, seconds and updates per second. That of a finished
        run as it is.

    Raises:
        InputError: the spec cannot be built here, the directory is another run's, or none of its
            checkpoints is whole.
        RunError: the work failed (no space, a quantity that is not finite).
        Interrupted: by a signal.
    """
    with pyro_settings(validate=spec.training.validate_sites), Signals() as signals:
        trainer = Trainer.start(spec)
        run.claim(spec)
        run.keep_data(trainer.experiment.data)
        summary = run.summary()
        if summary is not None:
            return summary
        saved = run.saved(spec)
        if saved is not None:
            for reason in saved.refused:
                warnings.warn(f"{reason}; going on from {saved.path}", stacklevel=2)
            trainer.restore(saved)
        try:
            return _loop(trainer, run, signals, progress or (lambda step, numbers: None), saved)
        except Diverged as error:
            dump = run.path / "diverged.safetensors"
            save_checkpoint(dump, error.tensors, error.data)
            raise RunError(f"{error} (weights, gradients and minibatch are in {dump})") from error
        except OSError as error:
            raise RunError(f"cannot write to {run}: {error.strerror or error}") from error


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _divergence_explained(update: int) -> Iterator[None]:
    """Once weights are not finite, or so large that densities are not, sampling fails first."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if isinstance(error, (RunError, InputError)) or "nan" not in str(error):
            raise
        raise RunError(
            f"update {update}: a distribution's parameters are not finite; lower the learning rate"
        ) from error


def _loop(
    trainer: Trainer, run: RunDirectory, signals: Signals, progress: Progress, saved: Saved | None
) -> dict[str, Any]:
    training = trainer.training
    probed = ("variance", "mean", "snr") if training.probe_every else ()
    # A new log opens with the first row, whose numbers name its columns.
    log = MetricsLog(run, probed, after=saved.step) if saved else None
    begun = since = trainer.step
    measured = time.perf_counter()
    started = measured - (saved.data["seconds"] if saved else 0.0)
    on_cpu = trainer.fabric.device.type == "cpu"
    busy = 0.0  # seconds spent updating, without evaluations and checkpoints
    try:
        while trainer.step < training.steps:
            with _divergence_explained(trainer.step + 1):
                batch = trainer.update(check=on_cpu)
            last = trainer.step == training.steps
            numbers = None
            if _due(trainer.step, training.log_every) or last or log is None:
                with _divergence_explained(trainer.step):
                    numbers = trainer.measure(batch)
                now = time.perf_counter()
                numbers["updates_per_second"] = (trainer.step - since) / (now - measured)
                numbers["seconds"] = now - started
                busy += now - measured
                if log is None:
                    log = MetricsLog(run, [*numbers, "log_likelihood", *probed])
                log.write(trainer.step, "train", numbers)
                since, measured = trainer.step, now
            progress(trainer.step, numbers)
            pause = time.perf_counter()
            if _due(trainer.step, training.eval_every) and not last:
                assert log is not None
                log.write(trainer.step, "eval", trainer.evaluate())
            if _due(trainer.step, training.probe_every):
                assert log is not None
                log.write(trainer.step, "probe", trainer.probe())
            if not last and (signals.received or _due(trainer.step, training.checkpoint_every)):
                trainer.save(run, time.perf_counter() - started)
            if not last and signals.received:
                raise Interrupted(
                    f"stopped by {signals.received.name} after update {trainer.step}, which is saved: "
                    f"the same command, or train --resume {run}, goes on from there",
                    signals.received,
                )
            measured += time.perf_counter() - pause
        evaluation = trainer.evaluate()
        if log is not None and trainer.step > begun:
            log.write(trainer.step, "eval", evaluation)
        trainer.save(run, time.perf_counter() - started)
    finally:
        if log is not None:
            log.close()
    seconds = time.perf_counter() - started
    summary = {
        **evaluation,
        "updates": trainer.step,
        "seconds": round(seconds, 3),
        "updates_per_second": round((trainer.step - begun) / max(busy, 1e-9), 3),
        "torch": torch.__version__,
        "device": str(trainer.fabric.device),
        "threads": torch.get_num_threads(),
    }
    run.write_summary(summary)
    return summary
