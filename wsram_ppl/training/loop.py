"""The training loop: update, measure, evaluate, save, until the end or a signal."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wsram_ppl import collectives
from wsram_ppl.config import ExperimentConfig
from wsram_ppl.distributed.processes import Processes
from wsram_ppl.errors import Diverged, InputError, Interrupted, RunError, SourceError
from wsram_ppl.interfaces import Gazes
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.checkpoints import Checkpoint, not_finite, save_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.environment import environment
from wsram_ppl.runs.metrics import METRICS, MetricsLog
from wsram_ppl.runs.signals import Signals
from wsram_ppl.runs.trackers import Trackers, check_loggers
from wsram_ppl.training.measurements import (
    check_held_out,
    draw_glimpses,
    measure_held_out,
    measure_minibatch,
    measure_variance,
)
from wsram_ppl.training.threads import use_threads
from wsram_ppl.training.trainer import Trainer

#: Called after every update with its number and, if it was measured, the row of numbers.
Progress = Callable[[int, Mapping[str, float] | None], None]


def train(
    config: ExperimentConfig, run: RunDirectory, progress: Progress | None = None
) -> dict[str, Any]:
    """Trains a config and fills the run's directory, or resumes where an earlier call was stopped.

    A resumed run ends with the weights, metrics and random draws of one that was never stopped.
    SIGTERM, SIGINT (Ctrl-C) and SIGHUP save a checkpoint first. While a run is being trained, no other
    process can train it. A finished run can be resumed with more ``training.steps``.

    With several processes (``training.devices``, ``training.num_nodes``) the calling script is run again
    for each, unless ``torchrun`` has started them, and each calls this function. The first one writes.

    Returns:
        The summary: the last evaluation, updates, seconds and updates per second, and what it was made
        with. That of a finished run as it is.

    Raises:
        InputError: the config cannot be built here, the directory belongs to another run, or none of its
            checkpoints is intact.
        RunError: training failed (no space, a quantity that is not finite, data that cannot be read), or
            another process trains this run.
        Interrupted: by a signal.
        WorkerExit: in all processes but the first, whatever error the first one raises.
    """
    with (
        pyro_settings(validate=config.training.validate_sites),
        Signals() as signals,
        ExitStack() as claimed,
    ):
        claimed.callback(torch.set_num_threads, torch.get_num_threads())
        processes = Processes.launch(config.training)
        try:
            summary = processes.decide(partial(_look, config, run))
            if summary is None:
                summary = _train(config, run, signals, progress, processes, claimed)
        except Exception as error:
            # If one process gets here, all do.
            told = processes.agreed(error)
            if isinstance(told, Diverged):
                told = _dumped(told, run)
            if told is error:
                raise
            raise told from error
        processes.close()
        return summary


def _dumped(found: Diverged, run: RunDirectory) -> RunError:
    """What has diverged, and where all that it may depend on has been written."""
    dump = run.path / "diverged.safetensors"
    try:
        save_checkpoint(dump, found.tensors, found.data)
    except RunError as error:
        return RunError(f"{found} (and weights, gradients and minibatch are lost: {error})")
    return RunError(f"{found} (weights, gradients and minibatch are in {dump})")


def _look(config: ExperimentConfig, run: RunDirectory) -> dict[str, Any] | None:
    """The summary of a finished run; what would stop it at once is told before much is built."""
    summary = run.finished(config)
    if summary is None:
        run.check_free()
        check_loggers(config)
    return summary


def _train(
    config: ExperimentConfig,
    run: RunDirectory,
    signals: Signals,
    progress: Progress | None,
    processes: Processes,
    claimed: ExitStack,
) -> dict[str, Any]:
    trainer = Trainer.start(config, processes)
    if config.training.init is not None and not run.has_checkpoint():
        trainer.start_from(RunDirectory(config.training.init))
    trainer.minibatches.check(trainer.step)
    check_held_out(trainer)

    def begin() -> Checkpoint | None:
        claimed.enter_context(run.claim(config))
        with _writing(run):
            return run.begin(config, trainer.components.data)

    saved = processes.decide(begin)
    if saved is not None:
        if processes.first:
            saved.warn("resuming from")
        trainer.state.load(saved.tensors)
        trainer.step = saved.step
        trainer.schedule(trainer.step - 1)  # what is measured now is measured as after that update
    before = saved.data.get("threads") if saved is not None else None
    claimed.enter_context(use_threads(trainer, before))
    names = config.training.loggers if processes.first else ()
    with Trackers(run.path, config, names, after=trainer.step) as trackers:
        return _loop(trainer, run, signals, progress or (lambda step, numbers: None), saved, trackers)


@contextmanager
def _writing(run: RunDirectory) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {run}: {error.strerror or error}") from error


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def save(trainer: Trainer, run: RunDirectory, seconds: float = 0.0) -> None:
    """Writes a checkpoint of everything that the run needs to resume after so many seconds.

    With several processes the first one writes; all hold the same state.

    Raises:
        RunError: weights are not finite (existing checkpoints are kept), or no space.
    """
    if not trainer.processes.first:
        return
    tensors = trainer.state.tensors()
    bad = not_finite(tensors, apart_from=trainer.constants)
    if bad:
        raise RunError(f"update {trainer.step}: {bad[0]} is not finite; lower the learning rate")
    data = {"step": trainer.step, "seconds": seconds, "fingerprint": trainer.config.fingerprint()}
    run.save(tensors, data | {"threads": torch.get_num_threads()})


class _Loop:
    """A run in progress: what it writes, and when.

    Args:
        saved: the checkpoint that it resumes from, if any.
        trackers: get what is written too.
    """

    def __init__(
        self, trainer: Trainer, run: RunDirectory, saved: Checkpoint | None, trackers: Trackers
    ) -> None:
        self.trainer, self.run, self.trackers = trainer, run, trackers
        self.begun = self.kept = trainer.step  # kept: the updates done at the last checkpoint
        self.started = time.perf_counter() - (saved.data["seconds"] if saved else 0.0)
        self.log: MetricsLog | None = None
        # A new log is opened with the first row, whose numbers name its columns.
        decide = trainer.processes.decide
        self.opened = decide(lambda: saved is not None and (run.path / METRICS).exists())
        if self.opened:
            self.open_log(())
        #: The splits already measured after the checkpoint's number of updates.
        self.done = decide(lambda: self.log.measured if self.log else set[str]())

    def open_log(self, columns: Iterable[str]) -> None:
        """Opens the log, in one process only. An open one gets the columns that it lacks."""
        self.opened = True
        if self.trainer.processes.first:
            kept = self.begun if self.log is None else self.trainer.step
            self.close()
            with _writing(self.run):
                self.log = MetricsLog(self.run.path, columns, after=kept)

    def write(self, split: str, values: Mapping[str, float]) -> None:
        """Writes a row, in one process only."""
        if not self.opened or (self.log is not None and not values.keys() <= set(self.log.columns)):
            self.open_log(values)
        if self.log is not None:
            with _writing(self.run):
                self.log.write(self.trainer.step, split, values)
        if split == "eval" and isinstance(self.trainer.components.model, Gazes):
            draw = partial(draw_glimpses, self.trainer)
            self.trackers.show(self.trainer.step, f"{split}/glimpses", draw)
        self.trackers.add(self.trainer.step, split, values)

    def keep(self) -> None:
        if self.log is not None:
            with _writing(self.run):
                self.log.sync()  # a run that goes on from here takes its rows from there
        save(self.trainer, self.run, time.perf_counter() - self.started)
        self.kept = self.trainer.step

    @contextmanager
    def kept_after(self, *errors: type[Exception]) -> Iterator[None]:
        """For work between two updates: if it fails, the updates so far are saved."""
        try:
            yield
        except errors:
            if self.trainer.step > self.kept:
                self.keep()
            raise

    def update(self, signal_number: int) -> tuple[Tensor, ...]:
        on_cpu = self.trainer.fabric.device.type == "cpu"
        with self.kept_after(InputError, SourceError):
            return self.trainer.update(check=on_cpu, signal=signal_number)

    def evaluate(self) -> dict[str, Any]:
        with self.kept_after(Exception):
            return measure_held_out(self.trainer)

    def measure(self, done: Collection[str] = ()) -> None:
        """What is due after this number of updates, except the splits done and the last evaluation."""
        training, step = self.trainer.training, self.trainer.step
        if _due(step, training.eval_every) and step < training.steps and "eval" not in done:
            self.write("eval", self.evaluate())
        if _due(step, training.probe_every) and "probe" not in done:
            with self.kept_after(Exception):
                moments = measure_variance(self.trainer)
            self.write("probe", moments)

    def close(self) -> None:
        if self.log is not None:
            with _writing(self.run):
                self.log.close()


def _interrupted(trainer: Trainer, run: RunDirectory, received: int) -> Interrupted:
    """After an update, which is saved, or before there was any."""
    name = signal.Signals(received).name
    if trainer.step == 0:
        return Interrupted(f"stopped by {name} before the first update: nothing is lost", received)
    return Interrupted(
        f"stopped by {name} after update {trainer.step}, which is saved: {run.resumed_by} resumes from "
        "there",
        received,
    )


def _loop(
    trainer: Trainer,
    run: RunDirectory,
    signals: Signals,
    progress: Progress,
    saved: Checkpoint | None,
    trackers: Trackers,
) -> dict[str, Any]:
    training, first = trainer.training, trainer.processes.first
    alone = trainer.shard.count == 1
    loop = _Loop(trainer, run, saved, trackers)
    made_with = environment(trainer.fabric.device)  # now: files may change while the run is at work
    busy = 0.0  # seconds spent updating, without evaluations and checkpoints

    def stop_if_asked() -> None:
        """Of several processes, all call it, and stop together."""
        _, received = collectives.exchange(signal=signals.received or 0)
        if received:
            raise _interrupted(trainer, run, received)

    try:
        stop_if_asked()  # since the parts were begun to be built
        if loop.opened and trainer.step < training.steps:
            loop.measure(loop.done)  # what failed, or was not completed
        since, measured = trainer.step, time.perf_counter()
        while trainer.step < training.steps:
            try:
                batch = loop.update(signals.received or 0)
            except InputError as error:
                # Ctrl-C reaches a C++ compiler too; what fails for another reason will fail again.
                if signals.received is None or not alone:
                    raise
                raise _interrupted(trainer, run, signals.received) from error
            last = trainer.step == training.steps
            numbers = None
            if _due(trainer.step, training.log_every) or last or not loop.opened:
                numbers = measure_minibatch(trainer, batch)
                now = time.perf_counter()
                numbers["updates_per_second"] = (trainer.step - since) / (now - measured)
                numbers["seconds"] = now - loop.started
                busy += now - measured
                loop.write("train", numbers)
                since, measured = trainer.step, now
            if first:
                progress(trainer.step, numbers)
            if last:
                break
            pause = time.perf_counter()
            loop.measure()
            # Several processes stop together, if any of them received a signal before the update.
            received = signals.received if alone else trainer.signal
            if received or _due(trainer.step, training.checkpoint_every):
                loop.keep()
            if received:
                raise _interrupted(trainer, run, received)
            measured += time.perf_counter() - pause
        if trainer.step > loop.kept:
            loop.keep()  # before anything else can fail
        stop_if_asked()
        done = loop.done if trainer.step == loop.begun else ()
        evaluation = loop.evaluate()
        loop.measure(done)
        if "eval" not in done:
            loop.write("eval", evaluation)
    finally:
        loop.close()
    seconds = time.perf_counter() - loop.started
    summary = {
        **evaluation,
        "updates": trainer.step,
        "seconds": round(seconds, 3),
        **({"updates_per_second": round((trainer.step - loop.begun) / busy, 3)} if busy else {}),
        "torch": torch.__version__,
        "device": str(trainer.fabric.device),
        "threads": torch.get_num_threads(),
        "processes": trainer.shard.count,
        "environment": made_with,
    }
    if first:
        run.write_summary(summary)
    return summary
