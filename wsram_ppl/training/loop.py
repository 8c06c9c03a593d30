"""The training loop: update, measure, evaluate, save, until the end or a signal."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from wsram_ppl.config import ExperimentConfig
from wsram_ppl.distributed.processes import Processes
from wsram_ppl.errors import Diverged, Interrupted, RunError
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.checkpoints import Checkpoint, save_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.metrics import MetricsLog
from wsram_ppl.runs.signals import Signals
from wsram_ppl.training.measurements import measure_held_out, measure_minibatch, measure_variance
from wsram_ppl.training.trainer import Trainer

#: Called after every update with its number and, when measured, the row of numbers.
Progress = Callable[[int, Mapping[str, float] | None], None]


def train(
    config: ExperimentConfig, run: RunDirectory, progress: Progress | None = None
) -> dict[str, Any]:
    """Trains a config and fills the run's directory, or goes on where an earlier call was stopped.

    A run that goes on ends with the weights, metrics and random draws of one that was never stopped.
    SIGTERM and SIGINT (Ctrl-C) save a checkpoint first.

    With several processes (``training.devices``, ``training.num_nodes``) the calling script is run again
    for each, unless ``torchrun`` has started them, and each comes here. The first one writes.

    Returns:
        The summary: the last evaluation, updates, seconds and updates per second. That of a finished
        run as it is.

    Raises:
        InputError: the config cannot be built here, the directory is another run's, or none of its
            checkpoints is whole.
        RunError: the work failed (no space, a quantity that is not finite).
        Interrupted: by a signal.
        WorkerExit: in all processes but the first, whatever the first one raises.
    """
    with pyro_settings(validate=config.training.validate_sites), Signals() as signals:
        processes = Processes.launch(config.training)
        try:
            try:
                summary = processes.decide(lambda: run.finished(config))
                if summary is None:
                    summary = _train(config, run, signals, progress, processes)
            except OSError as error:
                raise RunError(f"cannot write to {run}: {error.strerror or error}") from error
        except Exception as error:
            # Every process comes here when one does.
            told = processes.agreed(error)
            if isinstance(told, Diverged):
                dump = run.path / "diverged.safetensors"
                save_checkpoint(dump, told.tensors, told.data)
                told = RunError(f"{told} (weights, gradients and minibatch are in {dump})")
            if told is error:
                raise
            raise told from error
        processes.close()
        return summary


def _train(
    config: ExperimentConfig,
    run: RunDirectory,
    signals: Signals,
    progress: Progress | None,
    processes: Processes,
) -> dict[str, Any]:
    trainer = Trainer.start(config, processes)
    trainer.minibatches.check(trainer.step, config.data.name)

    def claim() -> Checkpoint | None:
        run.claim(config)
        run.keep_data(trainer.components.data)
        return run.saved(config)

    saved = processes.decide(claim)
    if saved is not None:
        for reason in saved.refused if processes.first else ():
            warnings.warn(f"{reason}; going on from {saved.path}", stacklevel=2)
        trainer.state.load(saved.tensors)
        trainer.step = saved.step
    return _loop(trainer, run, signals, progress or (lambda step, numbers: None), saved)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def save(trainer: Trainer, run: RunDirectory, seconds: float = 0.0) -> None:
    """Writes a checkpoint of everything that the run needs to go on after so many seconds.

    Of several processes the first one does; they all hold the same.

    Raises:
        RunError: weights are not finite (the checkpoints there are left alone), or no space.
    """
    if not trainer.processes.first:
        return
    tensors = trainer.state.tensors()
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise RunError(f"update {trainer.step}: {bad[0]} is not finite; lower the learning rate")
    fingerprint = trainer.config.fingerprint()
    run.save(tensors, {"step": trainer.step, "seconds": seconds, "fingerprint": fingerprint})


def _loop(
    trainer: Trainer, run: RunDirectory, signals: Signals, progress: Progress, saved: Checkpoint | None
) -> dict[str, Any]:
    training, first = trainer.training, trainer.processes.first
    probed = ("variance", "mean", "snr") if training.probe_every else ()
    # A new log opens with the first row, whose numbers name its columns. One process writes.
    log = MetricsLog(run.path, probed, after=saved.step) if saved and first else None
    opened = saved is not None

    def write(split: str, values: Mapping[str, float]) -> None:
        if log is not None:
            log.write(trainer.step, split, values)

    begun = since = trainer.step
    measured = time.perf_counter()
    started = measured - (saved.data["seconds"] if saved else 0.0)
    alone = trainer.shard.count == 1
    on_cpu = trainer.fabric.device.type == "cpu"
    busy = 0.0  # seconds spent updating, without evaluations and checkpoints
    try:
        while trainer.step < training.steps:
            batch = trainer.update(check=on_cpu, signal=signals.received or 0)
            last = trainer.step == training.steps
            numbers = None
            if _due(trainer.step, training.log_every) or last or not opened:
                numbers, opened = measure_minibatch(trainer, batch), True
                now = time.perf_counter()
                numbers["updates_per_second"] = (trainer.step - since) / (now - measured)
                numbers["seconds"] = now - started
                busy += now - measured
                if log is None and first:
                    log = MetricsLog(run.path, [*numbers, *probed])
                write("train", numbers)
                since, measured = trainer.step, now
            if first:
                progress(trainer.step, numbers)
            pause = time.perf_counter()
            if _due(trainer.step, training.eval_every) and not last:
                write("eval", measure_held_out(trainer))
            if _due(trainer.step, training.probe_every):
                write("probe", measure_variance(trainer))
            # Several processes stop together, for a signal that any of them had before the update.
            received = signals.received if alone else trainer.signal
            if not last and (received or _due(trainer.step, training.checkpoint_every)):
                save(trainer, run, time.perf_counter() - started)
            if not last and received:
                raise Interrupted(
                    f"stopped by {signal.Signals(received).name} after update {trainer.step}, which is "
                    f"saved: the same command, or wsram train --resume {run}, goes on from there",
                    received,
                )
            measured += time.perf_counter() - pause
        evaluation = measure_held_out(trainer)
        if trainer.step > begun:
            write("eval", evaluation)
        save(trainer, run, time.perf_counter() - started)
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
        "processes": trainer.shard.count,
    }
    if first:
        run.write_summary(summary)
    return summary
