"""What the processes of one run tell each other, with ``torch.distributed`` underneath.

Whatever is sent begins with :func:`exchange`, 32 bytes by way of the hosts, in which a process says
which names it is about to send, or that it has failed. So processes whose programs take different ways
never mistake one tensor for another, and a failure anywhere is everybody's failure, at the same place.
In a single process all functions return what they are given.
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
    """Another process has failed: what follows is to find out how (:func:`gather`)."""


@dataclass
class Traffic:
    """What this process has handed over since the start: bytes of payload, and calls."""

    control_bytes: int = 0
    tensor_bytes: int = 0
    calls: int = 0


traffic = Traffic()

#: A group on the hosts' own network, for :func:`exchange`, where the default group needs a device.
_hosts: Any = None


def use_host_group(group: Any) -> None:
    """Sends what the hosts tell each other by this group rather than by the default one."""
    global _hosts
    _hosts = group


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if count() > 1 else 0


def _device() -> torch.device:
    """Where the default group takes tensors from."""
    if "gloo" in str(dist.get_backend()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _lost(error: Exception) -> RunError:
    first = " ".join(str(error).split())[:120]
    return RunError(
        f"process {rank()} of {count()} lost touch with another, which has ended or cannot be reached "
        f"({first}): what is saved is whole, and the same command goes on from there"
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
    """Meets the other processes before anything else is sent.

    Args:
        names: of what is to be sent.
        failed: this process has failed.
        signal: the number of a signal that this process has received; 0 for none.

    Returns:
        Whether all gave the same names, and the greatest signal.

    Raises:
        PeerFailed: another process has failed (not to one that has failed itself).
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
    """Every process's value, in the order of their numbers. To be used after :func:`exchange`."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    try:
        dist.all_gather_object(found, value, group=_hosts)
    except RuntimeError as error:
        raise _lost(error) from error
    return found


def broadcast(value: Any) -> Any:
    """The first process's value. To be used after :func:`exchange`."""
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

    Costs no more than :func:`exchange` where all gave the same.
    """
    own = list(names)
    same, signal = exchange(own, signal=signal)
    if same:
        return own, signal
    return list(dict.fromkeys(name for theirs in gather(own) for name in theirs)), signal


def sum_by_name(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of each tensor over the processes that have it, for all names that any has.

    All go in one vector, in double precision. What a process did not have itself it gets as a vector.

    Args:
        values: of the same size in each process that has the name.
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
    """The mean of each number over the processes that have it, for all names that any has."""
    if count() == 1:
        return dict(values)
    numbers = {f"number of {name}": torch.ones_like(value) for name, value in values.items()}
    sums = sum_by_name({**values, **numbers})
    names = [name for name in sums if f"number of {name}" in sums]
    return {name: (sums[name] / sums[f"number of {name}"]).reshape(()) for name in names}


def sum_tensors(
    tensors: Sequence[Tensor | None], like: Sequence[Tensor], *, signal: int = 0
) -> tuple[list[Tensor | None], int]:
    """The sums over processes of tensors, some of which some processes may not have.

    They go in one flat buffer (one per type of number), of which the results are views.

    Args:
        tensors: e.g. gradients; None where there is none.
        like: one for each, of its shape, type and device.
        signal: see :func:`exchange`.

    Returns:
        The sums, None where no process has a tensor, and the greatest signal.
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
