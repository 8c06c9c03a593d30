"""Runs as tasks of a Ray cluster; one whose worker or node dies goes on elsewhere.

A task starts the command that trains the run, on the node that Ray has chosen, and ends with it. All
nodes see the study's folder, the program and the working directory at the same paths. The driver reads
progress from the folder, and starts a lost run again.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

from wsram_ppl.errors import InputError, RunError, one_line
from wsram_ppl.studies.executors.jobs import (
    GRACE,
    ONE_THREAD,
    POLL,
    Ended,
    Executor,
    Job,
    failure,
    launch,
)

__all__ = ["RayExecutor"]

#: Seconds in which the cluster's address has to answer.
_PATIENCE: Final = 5.0
#: A frame of HTTP/2, with which either side begins: three bytes of length (0), its type, flags, stream.
_SETTINGS: Final = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
#: Linux: the signal that a process gets when its parent has died.
_PR_SET_PDEATHSIG: Final = 1


@dataclass
class RayExecutor(Executor):
    """Tasks of a Ray cluster, each with one CPU and, if it computes on one, a share of a GPU.

    Args:
        jobs: how many at once: divided among the cluster's GPUs, this is each task's share of one. None:
            as many as it has CPUs, or GPUs for runs that compute on them.
        address: of the cluster, as ``HOST:PORT``; "": that of the variable RAY_ADDRESS, or a cluster
            that runs on this machine.

    Raises:
        InputError: Ray is not installed.
    """

    jobs: int | None = None
    address: str = ""

    def __post_init__(self) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise InputError("--executor ray needs Ray: pip install 'wsram_ppl[cluster]'") from None
        self.ray: Any = ray
        self.slots, self._share, self._on_gpus = 1, 1.0, False

    @contextmanager
    def at_work(self, jobs: Sequence[Job], note: Callable[[str], None]) -> Iterator[None]:
        named = [job for job in jobs if job.device.startswith("cuda:")]
        if named:
            raise InputError(
                f"{named[0].name} has training.device = {named[0].device!r}, but Ray chooses the GPU: "
                "use --device cuda"
            )
        self._connect()
        try:
            gpus = self.ray.cluster_resources().get("GPU", 0.0)
            devices = {job.device for job in jobs}
            if "cuda" in devices and not gpus:
                raise InputError("the Ray cluster has no GPU: use --device cpu")
            self._on_gpus = bool(gpus) and bool(devices & {"cuda", "auto"})
            if self._on_gpus and self.jobs:
                self._share = _share(self.jobs, gpus)
            self.room(0)
            note(f"Ray has room for {self.slots} runs at once")
            yield
        finally:
            self.ray.shutdown()

    def _connect(self) -> None:
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        _check_reachable(address)
        # Ray has a handler of its own, which would end this process without its runs.
        before = signal.getsignal(signal.SIGTERM)
        try:
            self.ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            if address:
                raise InputError(f"no Ray cluster answers at {address}: {one_line(error)}") from None
            raise InputError(
                "there is no Ray cluster on this machine: start one (ray start --head), or name one "
                "with --ray-address HOST:PORT"
            ) from None
        except (RuntimeError, ValueError) as error:  # another version of Ray or Python, among others
            raise RunError(f"cannot join the Ray cluster: {one_line(error)[:300]}") from error
        finally:
            with suppress(ValueError):  # not the main thread: no handler was set
                signal.signal(signal.SIGTERM, before)

    def room(self, running: int) -> bool:
        held = self.ray.cluster_resources()  # nodes come and go
        most = int(held.get("CPU", 0))
        if self._on_gpus:
            most = min(most, math.floor(held.get("GPU", 0.0) / self._share))
        self.slots = max(1, min(most, self.jobs or most))
        return running < self.slots

    def start(self, job: Job, keep_open: Sequence[int]) -> _RayTask:
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_bytes(b"")
        except OSError as error:
            raise RunError(f"cannot write {job.log}: {error.strerror}") from error
        on_gpu = self._on_gpus and job.device != "cpu"
        share = self._share if job.devices == 1 else float(job.devices)
        task = self.ray.remote(_train).options(
            name=job.name,
            num_cpus=job.devices,
            num_gpus=share if on_gpu else 0,
            max_retries=0,  # a lost run is started again by the study, which tells of it
        )
        here = os.getcwd()
        seen = replace(job, run=job.run.absolute(), log=job.log.absolute())
        return _RayTask(self.ray, task.remote(seen, here))


@dataclass
class _RayTask:
    ray: Any
    result: Any

    def poll(self) -> Ended | None:
        done, _ = self.ray.wait([self.result], timeout=0)
        if not done:
            return None
        errors = self.ray.exceptions
        try:
            return Ended(self.ray.get(self.result))
        except errors.TaskCancelledError:
            return Ended("cancelled")
        except errors.RayTaskError as error:
            return Ended(one_line(error.cause))
        except errors.NodeDiedError:
            return Ended("its node died", lost=True)
        except errors.RayError as error:
            return Ended(f"its worker died ({one_line(error)[:120]})", lost=True)

    def terminate(self) -> None:
        self.ray.cancel(self.result)

    def kill(self) -> None:
        self.ray.cancel(self.result, force=True)


def _share(jobs: int, gpus: float) -> float:
    """The share of a GPU with which so many tasks fit on all, rounded down to what Ray counts in."""
    return math.floor(10_000 / math.ceil(jobs / gpus)) / 10_000


def _check_reachable(address: str) -> None:
    """Whether something speaks Ray's protocol, HTTP/2, at ``HOST:PORT``: Ray would wait without end.

    Raises:
        InputError: nothing does, or this is no such address.
    """
    if address in ("", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise InputError(f"the Ray cluster's address is {address!r}: should be HOST:PORT")
    try:
        with socket.create_connection((host, int(port)), _PATIENCE) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
            answer = connection.recv(len(_SETTINGS))
    except (OSError, OverflowError) as error:
        raise InputError(f"no Ray cluster answers at {address}: {one_line(error)}") from None
    if answer[3:4] != _SETTINGS[3:4]:
        raise InputError(f"no Ray cluster answers at {address}: something else does")


def _train(job: Job, folder: str) -> str | None:
    """Runs a job on this node, in a folder; why it failed, if it did."""
    host = socket.gethostname()
    for path in (folder, job.log.parent):
        if not os.path.isdir(path):
            return f"{host} does not see {path}: every node needs it, shared, at the same path"
    libc = ctypes.CDLL(None)

    def end_with_worker() -> None:
        """Else a run whose worker is killed would go on beside its successor."""
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    try:
        process = launch(job, ONE_THREAD, "ab", cwd=folder, preexec_fn=end_with_worker)
    except OSError as error:
        return f"cannot start on {host}: {error}"
    try:
        while process.poll() is None:
            time.sleep(POLL)
    finally:  # cancelled
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        process.kill()
    return failure(job, process.wait())
