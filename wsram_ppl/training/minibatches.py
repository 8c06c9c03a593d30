"""The minibatches of a run; the next one is made during an update."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from wsram_ppl.config import Components, TrainingSettings
from wsram_ppl.distributed.sharding import BatchShard
from wsram_ppl.errors import InputError
from wsram_ppl.interfaces import Composes, check_batch, prepared, training_rows
from wsram_ppl.training.reading import reading

__all__ = ["Minibatch", "Minibatches", "Prefetcher", "cast"]

T = TypeVar("T")


class Minibatch(NamedTuple):
    """What an update works on.

    Attributes:
        batch: from the data source; where the update composes it, the choices that determine it.
        prepared: the batch as passed to model and guide (:class:`wsram_ppl.interfaces.Prepares`); the
            same as ``batch`` where the update prepares it.
    """

    batch: tuple[Tensor, ...]
    prepared: tuple[Any, ...]


class Minibatches:
    """One process's rows of the minibatches of a run.

    Args:
        components: the data source, and the model, which may prepare its batches.
        source: the name of the data source, for messages.
        training: gives size, seed and precision, and whether the next one is made ahead.
        shard: which rows belong to this process.
    """

    def __init__(
        self, components: Components, source: str, training: TrainingSettings, shard: BatchShard
    ) -> None:
        self._components, self._source = components, source
        self._training, self._shard = training, shard
        # A recording composes its batches, if the source lets it: choices are made in no time.
        data = components.data
        self._composer = data if training.cuda_graph and isinstance(data, Composes) else None
        ahead = training.prefetch and self._composer is None
        self._ahead = Prefetcher(self.make, training.steps, ahead=ahead)

    def __call__(self, step: int) -> Minibatch:
        """The minibatch of an update; starts making the next one."""
        return self._ahead(step)

    def extra(self, step: int) -> Minibatch:
        """The minibatch of any update, out of order; composed."""
        made = self._ahead.extra(step)
        if self._composer is None:
            return made
        batch = self.composed(*made.batch)
        return Minibatch(batch, batch)

    @torch.no_grad()
    def composed(self, *made: Tensor) -> tuple[Tensor, ...]:
        """The batch of a minibatch that was made: what an update may still have to do."""
        if self._composer is None:
            return made
        return cast(self._composer.compose(*made), self._training.precision)

    def settle(self) -> None:
        """Waits until nothing is being made."""
        self._ahead.settle()

    def check(self, step: int) -> None:
        """Makes sure that the source yields such minibatches and that the model can work on them.

        Raises:
            InputError: the source does not, or the model cannot.
            SourceError: the minibatch cannot be read.
        """
        what = f"the first minibatch of data {self._source!r}"
        batch = self.composed(*self._read(step))
        self._check_size(batch)
        check_batch(self._components.model, batch, what)
        self._prepared(batch)

    def make(self, step: int) -> Minibatch:
        """The minibatch of any update, made here and now."""
        return self._prepared(self._read(step))

    def make_in_turn(self) -> None:
        """From now on each is made when it is wanted, none ahead."""
        self.settle()
        self._ahead = Prefetcher(self.make, self._training.steps, ahead=False)

    @torch.no_grad()
    def _read(self, step: int) -> tuple[Tensor, ...]:
        training = self._training
        rows = self._shard.rows(training.batch_size)
        size, seed = training.batch_size, training.seed
        with reading(self._source):
            if self._composer is not None:
                return self._composer.training_choices(step, size, seed, rows)
            batch = training_rows(self._components.data, step, size, seed, rows)
        self._check_size(batch)
        return cast(batch, training.precision)

    def _check_size(self, batch: tuple[Tensor, ...]) -> None:
        rows = self._shard.rows(self._training.batch_size)
        found, asked = batch[0].shape[0], rows.stop - rows.start
        if found != asked:
            raise InputError(
                f"data {self._source!r} yields {found} rows of a minibatch where {asked} were asked for"
                ": its training_batch should return as many as size says"
            )

    @torch.no_grad()
    def _prepared(self, batch: tuple[Tensor, ...]) -> Minibatch:
        # An update that is recorded or compiled prepares its batch itself.
        whole = self._training.records
        return Minibatch(batch, batch if whole else prepared(self._components.model, batch))


def cast(batch: tuple[Tensor, ...], precision: str) -> tuple[Tensor, ...]:
    """The batch, in double precision if the model is."""
    if precision != "64-true":
        return batch
    return tuple(x.double() if x.is_floating_point() else x for x in batch)


class Prefetcher(Generic[T]):
    """Makes one value per step, one step ahead of its use if asked to.

    Torch releases Python's lock while it computes, so a thread is enough to keep a second core busy;
    on an accelerator its kernels join the same queue. The values do not depend on when they are made.

    Args:
        make: makes the value of a step; a pure function of it, apart from caches. Calls never overlap.
        steps: of the run; nothing from this step on is made ahead.
        ahead: make the next value in a thread while the last one is in use.
    """

    def __init__(self, make: Callable[[int], T], steps: int, *, ahead: bool) -> None:
        self._make = make
        self._steps = steps
        self._next: tuple[int, Future[T]] | None = None
        # One thread in all: the other cores are the update's.
        self._thread = (
            ThreadPoolExecutor(1, "minibatches", torch.set_num_threads, (1,)) if ahead else None
        )

    def __call__(self, step: int) -> T:
        """The value of ``step``; starts making that of the next step.

        Raises:
            Exception: whatever ``make`` raised for this step.
        """
        if self._thread is None:
            return self._make(step)
        held, self._next = self._next, None
        future = held[1] if held and held[0] == step else self._thread.submit(self._make, step)
        made = future.result()
        if step + 1 < self._steps:
            self._next = step + 1, self._thread.submit(self._make, step + 1)
        return made

    def settle(self) -> None:
        """Waits until nothing is being made."""
        if self._next is not None:
            wait([self._next[1]])

    def extra(self, step: int) -> T:
        """The value of any step, out of order."""
        if self._thread is None:
            return self._make(step)
        return self._thread.submit(self._make, step).result()
