"""With how many threads an update computes on a CPU, where the config leaves that open."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from wsram_ppl.distributed.devices import Stream
from wsram_ppl.training.minibatches import Prefetcher
from wsram_ppl.training.trainer import Trainer

__all__ = ["use_threads"]

_log = logging.getLogger(__name__)

#: Gradients with each number of threads in a trial (and one to warm up), and the seconds after which it
#: is cut short.
_REPEATS, _ENOUGH = 20, 3.0

#: More threads than one have to take less than this of its time: they cost the machine's other work.
_WORTHWHILE = 0.95


@contextmanager
def use_threads(trainer: Trainer, before: int | None = None) -> Iterator[None]:
    """Entered while a run whose ``training.threads`` is 0 trains: sets torch's number of threads.

    That is one thread, all of torch's own (the cores, unless something says otherwise), or all but the
    one that makes minibatches ahead, whichever makes an update fastest in a short trial on the first
    minibatches. Where all compute there is none to make minibatches ahead, and it is not done. The
    number decides the order of sums, so a resumed run keeps what it had. A run on another device, or
    of several processes, is left as it is.

    Args:
        trainer: as it is before its first update; the trial changes nothing about it.
        before: what the run had before it was stopped.
    """
    training, own = trainer.training, torch.get_num_threads()
    if training.threads or trainer.fabric.device.type != "cpu" or trainer.shard.count > 1:
        yield
        return
    if before is not None and before <= own:
        chosen, why = before, "as before the run was stopped"
    elif own == 1:
        chosen, why = 1, ""
    else:
        chosen, why = _trial(trainer, own)
    torch.set_num_threads(chosen)
    if chosen == own > 1:
        trainer.minibatches.make_in_turn()
    if why:  # there was a choice
        _log.info("training.threads: %d (%s)", chosen, why)
    try:
        yield
    finally:
        torch.set_num_threads(own)


def _trial(trainer: Trainer, own: int) -> tuple[int, str]:
    """The number of threads with which an update is fastest, and what was found."""
    prefetch, first, last = trainer.training.prefetch, trainer.step, trainer.step + _REPEATS + 1
    counts = sorted({1, own - 1, own} if prefetch else {1, own})
    times: dict[int, list[float]] = {count: [] for count in counts}
    make = trainer.minibatches.make
    minibatches = {n: Prefetcher(make, last, ahead=prefetch and n < own) for n in counts}
    begun = time.perf_counter()
    with trainer.measuring():
        for step in range(first, last):
            for count, found in times.items():
                torch.set_num_threads(count)
                trainer.seed(Stream.SAMPLES)
                start = time.perf_counter()
                try:
                    ready = minibatches[count](step).prepared
                    with trainer.drawing():
                        trainer.fabric.backward(trainer.loss(*ready))
                    found.append(time.perf_counter() - start)
                except Exception:  # the update will say the same, and why
                    return 1, "there was nothing to compare"
                finally:
                    minibatches[count].settle()  # its thread must not slow the next one
            if step > first and time.perf_counter() - begun > _ENOUGH:
                break
    for parameter in trainer.parameters:
        parameter.grad = None
    medians = {count: 1e3 * statistics.median(found[1:]) for count, found in times.items()}
    said = ", ".join(f"{ms:.1f} ms with {count}" for count, ms in medians.items())
    best = min(counts, key=medians.__getitem__)
    return (best if medians[best] < _WORTHWHILE * medians[1] else 1), f"of an update: {said}"
