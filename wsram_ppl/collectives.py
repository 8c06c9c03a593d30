"""Communication between the processes of one run, built on ``torch.distributed``.

Every transfer starts with :func:`exchange`: 32 bytes between the hosts, in which each process announces
the names it is about to send, or that it has failed. So processes whose programs branch differently
never mistake one tensor for another, and a failure in one process is raised in all of them at the same
point. In a single process all functions return what they are given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from wsram_ppl.errors import RunError


class PeerFailed(Exception):
    """Another process has failed: call :func:`gather` next to find out how."""


@dataclass
class Traffic:
    """What this process has sent since the start: bytes of payload, and number of calls."""

    control_bytes: int = 0
    tensor_bytes: int = 0
    calls: int = 0


traffic = Traffic()

#: A group over the hosts' network, for :func:`exchange`, if the default group needs a device.
_hosts: Any = None


def use_host_group(group: Any) -> None:
    """Uses this group, not the default one, for messages between hosts."""
    global _hosts
    _hosts = group


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if count() > 1 else 0


def _device() -> torch.device:
    """The device on which the default group expects tensors."""
    if "gloo" in str(dist.get_backend()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _lost(error: Exception) -> RunError:
    first = " ".join(str(error).split())[:120]
    return RunError(
        f"process {rank()} of {count()} lost touch with another, which has ended or cannot be reached "
        f"({first}): saved checkpoints are intact, and wsram train --resume RUN resumes from there"
    )


def _all_reduce(tensor: Tensor, op: Any, group: Any = None) -> None:
    traffic.calls += 1
    try:
        dist.all_reduce(tensor, op=op, group=group)
    except RuntimeError as error:
        raise _lost(error) from error


def _digest(names: Sequence[str]) -> int:
    text = "\0".join(names).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")


def exchange(names: Sequence[str] = (), *, failed: bool = False, signal: int = 0) -> tuple[bool, int]:
    """Synchronises with the other processes before anything else is sent.

    Args:
        names: the names of what will be sent.
        failed: whether this process has failed.
        signal: the number of a signal that this process has received; 0 for none.

    Returns:
        Whether all gave the same names, and the largest signal.

    Raises:
        PeerFailed: another process has failed (not raised in a process that has failed itself).
        RunError: another process has ended or cannot be reached.
    """
    if count() == 1:
        return True, signal
    digest = _digest(names)
    device = torch.device("cpu") if _hosts is not None else _device()
    told = torch.tensor([failed, signal, digest, -digest], dtype=torch.int64, device=device)
    traffic.control_bytes += told.nbytes
    _all_reduce(told, dist.ReduceOp.MAX, _hosts)
    any_failed, signal, greatest, minus_least = told.tolist()
    if any_failed and not failed:
        raise PeerFailed
    return greatest == -minus_least, signal


def gather(value: Any) -> list[Any]:
    """Every process's value, in order of their ranks. Call :func:`exchange` first."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    try:
        dist.all_gather_object(found, value, group=_hosts)
    except RuntimeError as error:
        raise _lost(error) from error
    return found


def broadcast(value: Any) -> Any:
    """The first process's value. Call :func:`exchange` first."""
    if count() == 1:
        return value
    held = [value]
    try:
        dist.broadcast_object_list(held, src=0, group=_hosts)
    except RuntimeError as error:
        raise _lost(error) from error
    return held[0]


def union(names: Iterable[str], *, signal: int = 0) -> tuple[list[str], int]:
    """The names that any process gave, in the order of the first process that gave them.

    Costs no more than :func:`exchange` if all gave the same.
    """
    own = list(names)
    same, signal = exchange(own, signal=signal)
    if same:
        return own, signal
    return list(dict.fromkeys(name for theirs in gather(own) for name in theirs)), signal


def sum_by_name(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each tensor over the processes that have it, for every name that occurs.

    All are sent in one vector, in double precision. A process gets the names it lacks as flat vectors.

    Args:
        values: tensors, of the same size in each process that has the name.
    """
    if count() == 1:
        return dict(values)
    same, _ = exchange(list(values))
    form = {name: (value.numel(), value.dtype) for name, value in values.items()}
    if not same:
        form = {name: found for theirs in gather(form) for name, found in theirs.items()}
    if not form:
        return {}
    device = _device()
    parts = [
        values[name].detach().reshape(-1).to(device, torch.float64)
        if name in values
        else torch.zeros(size, dtype=torch.float64, device=device)
        for name, (size, _) in form.items()
    ]
    flat = torch.cat(parts)
    traffic.tensor_bytes += flat.nbytes
    _all_reduce(flat, dist.ReduceOp.SUM)
    sums = zip(form.items(), flat.split([size for size, _ in form.values()]), strict=True)
    return {
        name: part.reshape(values[name].shape).to(values[name]) if name in values else part.to(dtype)
        for (name, (_, dtype)), part in sums
    }


def mean_by_name(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each number over the processes that have it, for every name that occurs."""
    if count() == 1:
        return dict(values)
    numbers = {f"number of {name}": torch.ones_like(value) for name, value in values.items()}
    sums = sum_by_name({**values, **numbers})
    names = [name for name in sums if f"number of {name}" in sums]
    return {name: (sums[name] / sums[f"number of {name}"]).reshape(()) for name in names}


def sum_tensors(
    tensors: Sequence[Tensor | None], like: Sequence[Tensor], *, signal: int = 0
) -> tuple[list[Tensor | None], int]:
    """The sums of tensors over processes; a process may lack some of them.

    They are sent in one flat buffer (one per dtype), and the results are views of it.

    Args:
        tensors: gradients, for example; None where there is none.
        like: one for each, of the same shape, dtype and device.
        signal: see :func:`exchange`.

    Returns:
        The sums, None where no process has a tensor, and the largest signal.
    """
    if count() == 1:
        return list(tensors), signal
    own = [str(index) for index, tensor in enumerate(tensors) if tensor is not None]
    names, signal = union(own, signal=signal)
    sums: list[Tensor | None] = [None] * len(tensors)
    present = sorted(map(int, names))
    for dtype in dict.fromkeys(like[index].dtype for index in present):
        chosen = [index for index in present if like[index].dtype == dtype]
        parts = []
        for index in chosen:
            tensor = tensors[index]
            parts.append((torch.zeros_like(like[index]) if tensor is None else tensor).reshape(-1))
        flat = torch.cat(parts)
        traffic.tensor_bytes += flat.nbytes
        _all_reduce(flat, dist.ReduceOp.SUM)
        for index, part in zip(chosen, flat.split([p.numel() for p in parts]), strict=True):
            sums[index] = part.view_as(like[index])
    return sums, signal


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrites every process's tensors with those of the first."""
    if count() == 1:
        return
    held = list(tensors)
    exchange([str(len(held))])
    for tensor in held:
        traffic.tensor_bytes += tensor.nbytes
        try:
            dist.broadcast(tensor, src=0)
        except RuntimeError as error:
            raise _lost(error) from error
