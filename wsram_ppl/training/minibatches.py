"""Minibatches, the next one prepared while one trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Minibatches(Generic[T]):
    """The minibatches of a run, made one after the other, ahead of their use if so wanted.

    Torch lets go of Python's lock while it computes, so a thread is enough to keep a second core at
    work; on an accelerator its kernels join the same queue. What is made does not depend on when.

    Args:
        make: the minibatch of a step; a pure function of it, apart from caches. It is called once at
            a time.
        steps: of the run; no minibatch from here on is made ahead.
        ahead: make the next one in a thread while the last one is in use.
    """

    def __init__(self, make: Callable[[int], T], steps: int, *, ahead: bool) -> None:
        self._make = make
        self._steps = steps
        self._next: tuple[int, Future[T]] | None = None
        # OpenMP does not hand the number of its threads on to a new thread.
        count = torch.get_num_threads()
        self._thread = (
            ThreadPoolExecutor(1, "minibatches", torch.set_num_threads, (count,)) if ahead else None
        )

    def __call__(self, step: int) -> T:
        """The minibatch of ``step``; that of the next step is started on.

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
        """A minibatch out of turn."""
        if self._thread is None:
            return self._make(step)
        return self._thread.submit(self._make, step).result()
