"""Runs of a program that leave no trace, and the random numbers that come from outside torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["other_randomness", "without_a_trace"]


class _Stateful(Protocol):
    def state_dict(self) -> Mapping[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor], /) -> object: ...


@contextmanager
def without_a_trace(*parts: nn.Module | _Stateful | None) -> Iterator[Callable[[], None]]:
    """A context for a run that is only looked at: in the end all is as if it had not taken place.

    That is: buffers of modules, such as the running means of a batch normalisation, the state of other
    parts, and all random numbers, of torch, Python and numpy. Buffers stay where they are in memory.
    Nothing here waits for the device. Parameters are not changed by a run; their gradients are left.

    Args:
        parts: modules, and others whose ``state_dict`` is a copy; None is left out.

    Yields:
        A function that, once called, lets the changes stay, except those of random numbers.
    """
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    buffers = [
        (module._buffers, name, buffer, None if buffer is None else buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    others = [
        (part, part.state_dict())
        for part in parts
        if part is not None and not isinstance(part, nn.Module)
    ]
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    pythons, numpys = random.getstate(), np.random.get_state()
    kept: list[bool] = []
    try:
        with torch.random.fork_rng(devices):
            yield lambda: kept.append(True)
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
        for owner, name, buffer, value in () if kept else buffers:
            owner[name] = buffer
            if buffer is not None and value is not None and not _is_expanded(buffer):
                buffer.data.copy_(value)  # a gradient that needs the buffer has not missed anything
        for part, state in () if kept else others:
            part.load_state_dict(state)


def _is_expanded(buffer: Tensor) -> bool:
    """Whether elements share memory, so that nothing can have been written to them."""
    if buffer.layout != torch.strided:
        return False
    return any(size > 1 and not step for size, step in zip(buffer.shape, buffer.stride(), strict=True))


def other_randomness() -> tuple[Any, ...]:
    """The state of the generators of Python and numpy, to be compared."""
    legacy: Any = np.random.get_state()
    return random.getstate(), legacy[1].tobytes(), legacy[2]
