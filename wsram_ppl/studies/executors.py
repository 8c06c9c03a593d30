"""Training runs as child processes, several at a time; one that dies does not affect the others."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wsram_ppl.errors import Interrupted, RunError
from wsram_ppl.runs.directory import SUMMARY
from wsram_ppl.runs.metrics import last_row
from wsram_ppl.runs.signals import Signals

__all__ = ["Job", "Watcher", "last_line", "run_jobs"]

#: Seconds between looks at the children, and seconds that they are given to save and end.
_POLL, _GRACE = 0.2, 60.0
#: Bytes at the end of a log that hold its last line.
_TAIL = 8192


@dataclass(frozen=True)
class Job:
    """One training run in its own process.

    Args:
        name: shown to the user.
        command: the program and its arguments.
        run: the directory that the command creates.
        log: the file for what the process prints.
        steps: updates of the run.
    """

    name: str
    command: Sequence[str]
    run: Path
    log: Path
    steps: int


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
        """Called when a job has ended; ``failure`` is the reason in one line, None if it succeeded."""

    def waited(self) -> None:
        """Called now and then while jobs run."""


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    step: int = field(default=0)


def run_jobs(
    jobs: Sequence[Job], workers: int, watcher: Watcher, keep_open: Sequence[int] = ()
) -> dict[str, str]:
    """Runs all jobs, at most ``workers`` at once, in order.

    A job has succeeded if its process exits with 0 and its run has a summary. With several workers each
    process computes on one thread. SIGINT (Ctrl-C) and SIGTERM are passed on as SIGTERM, and the call
    waits for the children; a second signal kills them.

    Args:
        keep_open: file descriptors that the children inherit.

    Returns:
        The reason for every failure, by the job's name.

    Raises:
        Interrupted: by a signal; no child is left running.
        RunError: a process cannot be started, or its log cannot be written.
    """
    environment = dict(os.environ)
    if workers > 1:
        environment.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    waiting, running, failures = list(jobs), list[_Child](), dict[str, str]()
    watcher.planned(jobs)
    with Signals() as signals:
        try:
            while waiting or running:
                if signals.received:
                    raise Interrupted(f"stopped by {signals.received.name}", signals.received)
                while waiting and len(running) < workers:
                    job = waiting.pop(0)
                    running.append(_Child(job, _start(job, environment, keep_open)))
                    watcher.started(job)
                time.sleep(_POLL)
                for child in list(running):
                    _look(child, watcher)
                    code = child.process.poll()
                    if code is None:
                        continue
                    running.remove(child)
                    failure = _failure(child.job, code)
                    if failure is not None:
                        failures[child.job.name] = failure
                    watcher.ended(child.job, failure)
                watcher.waited()
        finally:
            _stop(running)
    return failures


def _start(
    job: Job, environment: Mapping[str, str], keep_open: Sequence[int]
) -> subprocess.Popen[bytes]:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "wb") as log:
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=keep_open,
                # In its own session: Ctrl-C reaches this process alone, which then ends its children.
                start_new_session=True,
            )
    except OSError as error:
        raise RunError(f"cannot start {job.name}: {error}") from error


def _stop(children: Sequence[_Child]) -> None:
    for child in children:
        child.process.terminate()
    end = time.monotonic() + _GRACE
    try:
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end - time.monotonic()))
    finally:  # also after a second signal
        for child in children:
            child.process.kill()
            child.process.wait()


def _failure(job: Job, code: int) -> str | None:
    if code == 0:
        return None if (job.run / SUMMARY).is_file() else f"it ended without a {SUMMARY}"
    if code < 0:
        name = next((s.name for s in signal.Signals if s == -code), str(-code))
        hint = ", perhaps out of memory" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    last = last_line(job.log)
    return last.removeprefix("error: ") if last else f"exit code {code}, and it printed nothing"


def last_line(path: Path) -> str:
    """The last non-empty line of a text file; "" if there is none."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        lines = file.read().decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")
    return ""


def _look(child: _Child, watcher: Watcher) -> None:
    """Notifies the watcher if the run's metrics have grown."""
    row = last_row(child.job.run)
    if row is not None and row[0] > child.step:
        child.step, numbers = row
        watcher.progressed(child.job, child.step, numbers)
