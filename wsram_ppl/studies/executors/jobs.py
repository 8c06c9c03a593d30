"""A training run as a job, who runs it, and who is told about it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from wsram_ppl.runs.directory import SUMMARY

__all__ = [
    "GRACE",
    "ONE_THREAD",
    "POLL",
    "Ended",
    "Executor",
    "Job",
    "Task",
    "Watcher",
    "failure",
    "launch",
]

#: Seconds between looks at a process.
POLL: Final = 0.2
#: Seconds that a process is given to save and end when told to.
GRACE: Final = 60.0
#: What keeps a process to one thread.
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
#: Bytes at the end of a log that hold its last line.
_TAIL: Final = 8192


@dataclass(frozen=True)
class Job:
    """One training run in its own process.

    Args:
        name: shown to the user.
        command: the program and its arguments.
        run: the directory that the command creates.
        log: the file for what the process prints.
        steps: updates of the run.
        device: the run's ``training.device``.
        devices: how many of them it computes on, with a process for each.
    """

    name: str
    command: Sequence[str]
    run: Path
    log: Path
    steps: int
    device: str = "cpu"
    devices: int = 1


class Watcher(Protocol):
    """Receives the progress of the jobs."""

    def noted(self, text: str) -> None:
        """Called with something that the user should know."""

    def planned(self, jobs: Sequence[Job]) -> None:
        """Called with the jobs that are about to run."""

    def started(self, job: Job) -> None:
        """Called when a job has started."""

    def progressed(self, job: Job, step: int, numbers: Mapping[str, float]) -> None:
        """Called with the ``numbers`` in the last row of the run's metrics."""

    def ended(self, job: Job, failure: str | None) -> None:
        """``failure``: why the job failed, in a line; None: it has succeeded.

        A job that was not started has ended in another process.
        """

    def waited(self) -> None:
        """Called now and then while jobs run."""


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        failure: why there is no result, in a line.
        lost: whether that was the machine's doing, so that another try may succeed.
    """

    failure: str | None
    lost: bool = False


class Task(Protocol):
    """A job at work."""

    def poll(self) -> Ended | None:
        """None: it is at work still."""

    def terminate(self) -> None:
        """Tells it to save and end; returns at once."""

    def kill(self) -> None:
        """Ends it."""


class Executor(Protocol):
    """Where jobs are run.

    Attributes:
        slots: how many at once.
    """

    slots: int

    def at_work(self, jobs: Sequence[Job], note: Callable[[str], None]) -> AbstractContextManager[None]:
        """Entered while these are run.

        Raises:
            InputError: they cannot be run here; the message says why.
        """

    def room(self, running: int) -> bool:
        """Whether one more may be started beside those that run."""

    def start(self, job: Job, keep_open: Sequence[int]) -> Task:
        """Starts a job.

        Args:
            keep_open: file descriptors that its process inherits, if it is one of this machine.

        Raises:
            RunError: its process cannot be started, or its log not be written.
        """


def launch(
    job: Job, environment: Mapping[str, str], mode: str = "wb", **options: Any
) -> subprocess.Popen[bytes]:
    """Starts a job's command, which prints into the job's log.

    In a session of its own: Ctrl-C reaches only the process that ends it.

    Args:
        environment: beside this process's own.
        mode: in which the log is opened.
        options: of ``subprocess.Popen``.

    Raises:
        OSError: the command cannot be started, or its log not be written.
    """
    with open(job.log, mode) as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
            **options,
        )


def failure(job: Job, code: int) -> str | None:
    """Why a job failed whose process ended with this exit code; None: it succeeded."""
    if code == 0:
        return None if (job.run / SUMMARY).is_file() else f"it ended without a {SUMMARY}"
    if code < 0:
        name = next((s.name for s in signal.Signals if s == -code), str(-code))
        hint = ", perhaps out of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    last = _last_line(job.log)
    return last.removeprefix("error: ") if last else f"exit code {code}, and it printed nothing"


def _last_line(path: Path) -> str:
    """The last non-empty line of a text file; "" if there is none."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""
