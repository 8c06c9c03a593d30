"""A step on a GPU, recorded once and replayed: one launch instead of a thousand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from wsram_ppl.config import TrainingSettings
from wsram_ppl.errors import InputError
from wsram_ppl.primitives.undoing import other_randomness
from wsram_ppl.runs.checkpoints import TrainingState

__all__ = ["USUAL_CALLS", "CudaGraphStep", "check_recordable"]

T = TypeVar("T")

#: Calls for each shape of arguments that run normally before one is recorded: by then everything that is
#: created once (library handles, momenta, running means) exists. The last of these calls is checked.
USUAL_CALLS = 3


@dataclass
class _Recording(Generic[T]):
    """A recorded call: the tensors of its arguments, and the result, which each replay overwrites."""

    graph: torch.cuda.CUDAGraph
    arguments: tuple[Tensor, ...]
    result: T


class CudaGraphStep(Generic[T]):
    """A function of tensors that is computed on a GPU as a CUDA graph.

    For each shape of arguments, the first calls run normally, the next is recorded, and from then on
    the recording is replayed on the given arguments. Python does not run in a replay: other inputs of
    the function must be tensors that stay in place, such as parameters, and the outcome of every branch
    is fixed. Random numbers on the device are drawn anew at each replay, from the generator as seeded.

    Args:
        function: of tensors on the device. Its result must not be kept beyond the next call.
        state: what the function may change.
        quiet: called before a recording; nothing else may use the device while recording.

    Raises:
        InputError: when called, if the function cannot be recorded: it waits for the device, draws
            random numbers on the host, which would be the same every time, or replaces a tensor of the
            state, which would keep its value.
    """

    def __init__(
        self, function: Callable[..., T], state: TrainingState, quiet: Callable[[], None]
    ) -> None:
        self._function, self._state, self._quiet = function, state, quiet
        self._stream = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()
        self._calls: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording[T]] = {}

    def __call__(self, *arguments: Tensor) -> T:
        key = tuple((x.shape, x.dtype) for x in arguments)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        current = torch.cuda.current_stream()
        # Normal calls too, so that the autograd graph does not mix two streams.
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            if calls < USUAL_CALLS:
                result = self._function(*arguments)
            elif calls == USUAL_CALLS:
                result = self._rehearse(arguments)
            else:
                held = self._recordings.get(key)
                if held is None:
                    held = self._recordings[key] = self._record(arguments)
                for place, argument in zip(held.arguments, arguments, strict=True):
                    place.copy_(argument, non_blocking=True)
                held.graph.replay()
                result = held.result
        current.wait_stream(self._stream)
        return result

    def _rehearse(self, arguments: tuple[Tensor, ...]) -> T:
        """The last normal call, checked for anything that cannot be recorded.

        A recording that fails would leave torch's generator unusable for the rest of the process.
        """
        self._quiet()
        before, mode = _host_randomness(), torch.cuda.get_sync_debug_mode()
        places = self._state.places()
        _set_sync_debug_mode("error")
        try:
            result = self._function(*arguments)
        except RuntimeError as error:
            if "synchronizing" in str(error):
                raise _refusal("something in it waits for the device", error) from error
            raise
        finally:
            _set_sync_debug_mode(mode)
        if _host_randomness() != before:
            raise InputError(
                "training.cuda_graph: model or guide draws random numbers on the host (in a subsampled "
                "plate without a device, say), and a recording would repeat them; use "
                "cuda_graph = false"
            )
        for name, place in self._state.places().items():
            if place != places.get(name, place):
                raise InputError(
                    f"training.cuda_graph: the update puts another tensor in the place of {name}, but a "
                    "recording would read the old one: change that by copy_, or use cuda_graph = false"
                )
        return result

    def _record(self, arguments: tuple[Tensor, ...]) -> _Recording[T]:
        places = tuple(x.clone() for x in arguments)
        self._quiet()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = self._function(*places)
        except RuntimeError as error:
            raise _refusal("something in it cannot be part of a CUDA graph", error) from error
        return _Recording(graph, places, result)


def check_recordable(training: TrainingSettings, device: torch.device, processes: int) -> None:
    """Checks that an update can be recorded, as far as possible without running it.

    Raises:
        InputError: it cannot.
    """
    obstacle = ""
    if device.type != "cuda":
        obstacle = f"device '{device.type}' cannot record; use device = 'cuda'"
    elif processes > 1:
        obstacle = "communication between processes cannot be recorded; use devices = 1"
    elif training.validate_sites:
        obstacle = "an update with validation cannot be recorded; set validate = false"
    if obstacle:
        raise InputError(f"training.cuda_graph: {obstacle}, or cuda_graph = false")


def _refusal(what: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:160]
    return InputError(
        f"training.cuda_graph: the update cannot be recorded, since {what} ({reason}); use "
        "cuda_graph = false"
    )


def _set_sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the mode a prototype
        torch.cuda.set_sync_debug_mode(mode)


def _host_randomness() -> tuple[Any, ...]:
    """The state of the generators on the host."""
    return torch.default_generator.get_state().numpy().tobytes(), *other_randomness()
