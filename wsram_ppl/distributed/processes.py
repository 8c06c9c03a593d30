"""The processes of a run: started by Lightning Fabric or ``torchrun``, ended together.

Each process works on its rows of every minibatch (:mod:`wsram_ppl.distributed.sharding`), and gradients
are summed (:mod:`wsram_ppl.collectives`). The first process decides, reads and writes. Fabric chooses
devices, starts the processes and connects them; the model is not wrapped: one flat buffer, summed after
the backward pass, is exact also where an update leaves parameters without a gradient.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import nn

from wsram_ppl import collectives
from wsram_ppl.config import TrainingSettings
from wsram_ppl.distributed.devices import resolve_device
from wsram_ppl.distributed.environment import (
    end_with_launcher,
    from_torchrun,
    is_worker,
    name_launcher,
    one_starts_all,
    process_rank,
)
from wsram_ppl.distributed.sharding import BatchShard
from wsram_ppl.errors import Diverged, InputError, RunError, WorkerExit, exit_code

_T = TypeVar("_T")

#: Holds something once this process has been one of several of which the first one started the others.
_once: list[bool] = []

#: How long a process may wait for another, for a download say. Dead processes are noticed at once.
_PATIENCE = timedelta(hours=1)


class _OnePerDevice(DDPStrategy):
    """Fabric's processes and their connection, without its wrapper around the model."""

    def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
        return module

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = _Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def end_workers(self) -> None:
        """Ends the processes that this one started, if any."""
        assert isinstance(self.launcher, _Launcher)
        workers = list(self.launcher.workers)
        self.launcher.workers.clear()  # so that they are not reported as failed
        for worker in workers:
            worker.kill()


class _Launcher(_SubprocessScriptLauncher):
    """Fabric's launcher with another watcher: Fabric's own would kill this process silently."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.workers: list[subprocess.Popen[bytes]] = []

    def _call_children_scripts(self) -> None:
        name_launcher()
        super()._call_children_scripts()
        self.workers, self.procs = self.procs, []  # Fabric's watcher finds none
        _Watch(self.workers).start()


@dataclass(frozen=True)
class Processes:
    """All processes of a run, seen from one of them.

    Args:
        fabric: devices and precision.
        shard: this process's part of each minibatch.
        added: what their start added to the environment of this process.
    """

    fabric: Fabric
    shard: BatchShard
    added: frozenset[str] = frozenset()

    @classmethod
    def launch(cls, training: TrainingSettings) -> Processes:
        """Starts the other processes, unless they were started from outside, and waits for them.

        They run the same command as this one.

        Raises:
            InputError: they cannot be started as the config asks.
            RunError: they did not connect.
        """
        if is_worker() and _once:
            raise SystemExit(0)  # it was started for one run, which has ended
        device = resolve_device(training.device)
        count = training.devices * training.num_nodes
        check_processes(training, device)
        if count == 1:
            fabric = Fabric(
                accelerator=device.type,
                devices=[device.index or 0] if device.type == "cuda" else 1,
                precision=training.precision,
                plugins=LightningEnvironment(),  # else Fabric would query the cluster that it runs on
            )
            return cls(fabric, BatchShard(0, 1, fabric.device))
        if _once:
            raise InputError(
                f"training.devices = {training.devices}: this script has started processes before, "
                "which run it from its beginning, so that a second time cannot work: train each such "
                "run by a script of its own, or by wsram train"
            )
        before = frozenset(os.environ)
        strategy = _OnePerDevice(timeout=_PATIENCE)
        fabric = Fabric(
            accelerator=device.type,
            strategy=strategy,
            devices=training.devices,
            num_nodes=training.num_nodes,
            precision=training.precision,
        )
        end_with_launcher()
        try:
            with _ending_at_once():
                fabric.launch()
                if dist.get_backend() != "gloo":
                    collectives.use_host_group(dist.new_group(backend="gloo", timeout=_PATIENCE))
        except (RuntimeError, OSError) as error:
            strategy.end_workers()
            _remove(frozenset(os.environ) - before)
            text = " ".join(str(error).split())[:200]
            raise RunError(f"the {count} processes could not connect to each other: {text}") from error
        if one_starts_all():
            _once.append(True)
        shard = BatchShard(fabric.global_rank, fabric.world_size, fabric.device)
        return cls(fabric, shard, frozenset(os.environ) - before)

    @property
    def first(self) -> bool:
        """Whether this is the process that reads and writes the run's directory."""
        return self.shard.rank == 0

    def decide(self, work: Callable[[], _T]) -> _T:
        """Runs something in the first process, for all; an error there is raised everywhere."""
        found = work() if self.first else None
        collectives.exchange(["decide"])
        result: _T = collectives.broadcast(found)
        return result

    @contextmanager
    def one_after_the_other(self) -> Iterator[None]:
        """A context that the first process enters first, then all others at once."""
        if not self.first:
            collectives.exchange(["turn"])
        yield
        if self.first:
            collectives.exchange(["turn"])

    def agreed(self, error: Exception) -> Exception:
        """The error to raise for a failure of this process or another; all processes must call it.

        Returns:
            In the first process the error to report; in the others one that prints nothing.
        """
        if self.shard.count == 1:
            return error
        own = None if isinstance(error, collectives.PeerFailed) else error
        try:
            if own is not None:
                collectives.exchange(failed=True)
            told = collectives.gather(None if own is None else _portable(own))
        except RunError as lost:
            # Another has died silently. Report what this one knows.
            return lost if own is None else own
        self.close()
        failed: dict[int, Exception] = {r: e for r, e in enumerate(told) if e is not None}
        causes = [r for r, found in failed.items() if getattr(found, "has_cause", True)]
        rank = min(causes or failed)
        if not self.first:
            # To Fabric a worker that exits with a code other than 0 has died, which this one has not.
            return WorkerExit(exit_code(failed[rank]) if from_torchrun() else 0)
        if rank == 0 or len(causes) == len(told):
            return failed[rank]
        return _prefixed(failed[rank], f"process {rank} of {len(told)}: ")

    def close(self) -> None:
        """Releases the other processes, which have finished too."""
        if self.shard.count > 1:
            collectives.use_host_group(None)
            dist.destroy_process_group()
            _remove(self.added)


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """A context in which signals end this process, also where Python does not run for an hour."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGINT, signal.SIGTERM]
        numbers += [signal.SIGHUP] if sys.platform != "win32" else []
        before = {
            number: signal.signal(number, signal.SIG_DFL)
            for number in numbers
            if signal.getsignal(number) not in (signal.SIG_IGN, None)
        }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _remove(names: frozenset[str]) -> None:
    """Removes variables from the environment, so that nothing takes this process for one of several."""
    for name in names:
        os.environ.pop(name, None)


def check_processes(training: TrainingSettings, device: torch.device) -> None:
    """Checks that the requested number of processes can be started here.

    Raises:
        InputError: they cannot; the message says what to change.
    """
    devices, nodes = training.devices, training.num_nodes
    count = devices * nodes
    process_rank(training)
    if count == 1:
        return
    if device.type == "mps":
        raise InputError(
            f"training.devices = {devices}: device 'mps' is one device; use 1, or cpu or cuda"
        )
    if device.type == "cuda":
        if training.device.startswith("cuda:"):
            raise InputError(
                f"training.device = {training.device!r} names one GPU, but training.devices is "
                f"{devices}: use 'cuda', and CUDA_VISIBLE_DEVICES to choose which"
            )
        there = torch.cuda.device_count()
        if devices > there:
            raise InputError(
                f"training.devices = {devices}, but torch sees {there} CUDA devices: ask for no more"
            )
    if training.batch_size % count:
        raise InputError(
            f"training.batch_size = {training.batch_size} cannot be divided among {count} processes: "
            f"choose a multiple of {count} (it is the size of the whole minibatch)"
        )
    clustered = from_torchrun() or "SLURM_NTASKS" in os.environ or "MASTER_ADDR" in os.environ
    if nodes > 1 and not clustered:
        raise InputError(
            f"training.num_nodes = {nodes}: start this command on every node with torchrun, as in "
            "docs/scaling.md"
        )


def _portable(error: Exception) -> Exception:
    """The error in a form that can be sent to another process."""
    if isinstance(error, Diverged):
        tensors = {name: tensor.detach().cpu() for name, tensor in error.tensors.items()}
        return Diverged(str(error), tensors, error.data, error.has_cause)
    if isinstance(error, (InputError, RunError)):
        return error
    return RunError(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _prefixed(error: Exception, prefix: str) -> Exception:
    error.args = (prefix + str(error), *error.args[1:])
    return error


class _Watch(threading.Thread):
    """Ends this process if a worker has died and it does not notice by itself.

    With gloo the connection breaks and the next exchange fails; a collective on GPUs would wait.
    """

    def __init__(self, workers: list[subprocess.Popen[bytes]]) -> None:
        super().__init__(daemon=True, name="watch")
        self.workers = workers

    def run(self) -> None:
        while self.workers:
            time.sleep(0.2)
            for number, worker in enumerate(self.workers, start=1):
                if worker.poll():
                    time.sleep(3.0)  # for the process to end by itself, with a better message
                    code = worker.returncode
                    killed = f"was killed by {signal.Signals(-code).name}" if code < 0 else ""
                    print(
                        f"error: process {number} {killed or f'ended with {code}'}: saved checkpoints "
                        "are intact, and wsram train --resume RUN resumes from there",
                        file=sys.stderr,
                        flush=True,
                    )
                    for other in self.workers:
                        other.kill()
                    os._exit(1)
            if all(worker.returncode == 0 for worker in self.workers):
                return
