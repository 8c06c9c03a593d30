"""With how many threads an update computes on a CPU, where the config leaves that open."""

from __future__ import annotations

import logging
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from wsram_ppl.distributed.devices import Stream
from wsram_ppl.runs.checkpoints import TrainingState
from wsram_ppl.training.trainer import Trainer

__all__ = ["use_threads"]

_log = logging.getLogger(__name__)

#: Gradients by each number of threads in a trial, and the seconds after which it is cut short.
_REPEATS, _ENOUGH = 7, 3.0

#: What many threads may take of one thread's time. They also cost the machine's other work.
_WORTHWHILE = 0.9


@contextmanager
def use_threads(trainer: Trainer, before: int | None = None) -> Iterator[None]:
    """Entered while a run whose ``training.threads`` is 0 trains: sets torch's number of threads.

    That is torch's own number, the cores unless something says otherwise, less one for the thread that
    makes minibatches ahead; or 1, if that is about as fast in a short trial on the first minibatch. The
    number decides the order of sums, so a run that goes on keeps what it had. A run on another device,
    or of several processes, is left as it is.

    Args:
        trainer: as it is before its first update; the trial changes nothing about it.
        before: what the run had before it was stopped.
    """
    training, own = trainer.training, torch.get_num_threads()
    if training.threads or trainer.fabric.device.type != "cpu" or trainer.shard.count > 1:
        yield
        return
    most = max(own - training.prefetch, 1)
    if before is not None and before <= own:
        chosen, why = before, "as before the run was stopped"
    elif most == 1:
        chosen, why = 1, "the other core makes minibatches" if own > 1 else ""
    else:
        chosen, why = _trial(trainer, most)
    torch.set_num_threads(chosen)
    if why:  # there was a choice
        _log.info("training.threads: %d (%s)", chosen, why)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _trial(trainer: Trainer, most: int) -> tuple[int, str]:
    """One thread or ``most``, whichever computes a gradient faster, and what was found."""
    _, ready = trainer.minibatches.extra(trainer.step)
    times: dict[int, list[float]] = {1: [], most: []}
    begun = time.perf_counter()
    with _without_a_trace(trainer):
        for turn in range(_REPEATS + 1):
            for count, found in times.items():
                torch.set_num_threads(count)
                trainer.seed(Stream.SAMPLES)
                start = time.perf_counter()
                try:
                    with trainer.drawing():
                        trainer.fabric.backward(trainer.loss(*ready))
                except Exception:  # the update will say the same, and why
                    return 1, "there was nothing to compare"
                found.append(time.perf_counter() - start)
            if turn and time.perf_counter() - begun > _ENOUGH:
                break
    one, many = (1e3 * statistics.median(found[1:]) for found in times.values())
    said = f"{one:.1f} ms a gradient with 1, {many:.1f} with {most}"
    return (most if many < _WORTHWHILE * one else 1), said


@contextmanager
def _without_a_trace(trainer: Trainer) -> Iterator[None]:
    """What is computed leaves weights, running means, gradients and random numbers as they were."""
    state = TrainingState(trainer.components)
    held = {name: tensor.clone() for name, tensor in state.tensors().items()}
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
        state.load(held)
        for parameter in trainer.parameters:
            parameter.grad = None
