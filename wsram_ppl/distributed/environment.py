"""What the environment says about the processes of a run: who started them, and which one this is.

Nothing here needs torch: a process knows its rank before torch is imported.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

from wsram_ppl.errors import InputError

if TYPE_CHECKING:
    from wsram_ppl.config import TrainingSettings

__all__ = [
    "end_with_launcher",
    "from_torchrun",
    "is_worker",
    "name_launcher",
    "one_starts_all",
    "process_rank",
]

#: The id of the process that started the others, so that they notice when it has ended.
_LAUNCHER: Final = "WSRAM_LAUNCHER"


def from_torchrun() -> bool:
    """Whether ``torchrun`` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _from_srun() -> bool:
    # Like Lightning Fabric: inside a job with one of these names processes are started by hand.
    by_hand = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_NTASKS" in os.environ and not by_hand and not from_torchrun()


def process_rank(training: TrainingSettings) -> int:
    """This process's rank in the run, as set by whatever started it; rank 0 prints messages.

    A run of one process ignores the cluster that it runs on.

    Raises:
        InputError: the environment contradicts the config, or itself.
    """
    devices, nodes = training.devices, training.num_nodes
    count = devices * nodes
    asked = f"training.devices x training.num_nodes is {devices} x {nodes}"
    if _from_srun():
        return 0 if count == 1 else _rank_in_slurm(devices, nodes, asked)
    started = _number("WORLD_SIZE", count)
    if started != count:
        what = "torchrun has started" if from_torchrun() else "WORLD_SIZE in the environment stands for"
        raise InputError(f"{what} {started} processes, but {asked}: make them agree")
    if from_torchrun():
        return _number("RANK", 0)
    _number("MASTER_PORT", 0)
    local, node = _number("LOCAL_RANK", 0), _number("NODE_RANK", _number("GROUP_RANK", 0))
    own = node * devices + local
    rank = _number("RANK", own)
    found = f"RANK = {rank}" if rank != own else f"LOCAL_RANK = {local} and NODE_RANK = {node}"
    if rank != own or local >= devices or node >= nodes:
        raise InputError(
            f"{found} in the environment, but {asked}: unset what does not belong to this run, or start "
            "its processes with torchrun"
        )
    if count > 1 and "LOCAL_RANK" in os.environ and "MASTER_PORT" not in os.environ:
        raise InputError(
            "LOCAL_RANK is set, as if the processes had been started already, but MASTER_PORT is not: "
            "unset LOCAL_RANK, or start them with torchrun"
        )
    return rank


def _rank_in_slurm(devices: int, nodes: int, asked: str) -> int:
    # Fabric needs the number of tasks on each node if there are several.
    tasks, each = _number("SLURM_NTASKS", 1), _number("SLURM_NTASKS_PER_NODE", 0)
    remedy = f"srun --nodes={nodes} --ntasks-per-node={devices}"
    if tasks != devices * nodes or each != devices or _number("SLURM_NNODES", nodes) != nodes:
        raise InputError(f"SLURM has {tasks} tasks, but {asked}: start them with {remedy}")
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        if name not in os.environ:
            raise InputError(f"SLURM has {tasks} tasks, but {name} is not set: start them with {remedy}")
    return _number("SLURM_PROCID", 0)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name} = {text!r} in the environment: should be a whole number")
    return int(text)


# The processes that the first one started.


def name_launcher() -> None:
    """Call before this process starts the others, which inherit its id."""
    os.environ[_LAUNCHER] = str(os.getpid())


def one_starts_all() -> bool:
    """Whether a process of the run started the others, and not ``torchrun`` or a cluster."""
    return _LAUNCHER in os.environ


def is_worker() -> bool:
    """Whether another process of the run started this one."""
    return one_starts_all() and os.environ.get("LOCAL_RANK", "0") != "0"


@functools.cache  # once in a process
def end_with_launcher() -> None:
    """From now on a process that the first one started ends as soon as the first one has ended.

    Does nothing in other processes.
    """
    if sys.platform == "win32" or not is_worker():  # Windows keeps the id of a parent that has ended
        return
    launcher = int(os.environ[_LAUNCHER])

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="launcher").start()
