"""Runs jobs, as many at once as there is room for, and none that another process is at work on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from wsram_ppl.errors import InputError, Interrupted, RunError
from wsram_ppl.runs.metrics import last_row
from wsram_ppl.runs.signals import Signals
from wsram_ppl.studies.executors.claims import Claims
from wsram_ppl.studies.executors.jobs import GRACE, POLL, Executor, Job, Task, Watcher

__all__ = ["run_jobs"]

#: How often a job is started whose machine is lost.
_TRIES: Final = 4
#: Seconds between looks at what other processes are at work on.
_LOOK: Final = 2.0


@dataclass
class _Running:
    job: Job
    task: Task
    step: int = 0
    tries: int = 1


def run_jobs(
    jobs: Sequence[Job],
    executor: Executor,
    watcher: Watcher,
    claims: Claims,
    ready: Callable[[Job], bool],
    note: Callable[[str], None],
) -> dict[str, str]:
    """Runs all jobs, in order, and waits for those that another process is at work on.

    SIGINT (Ctrl-C) and SIGTERM are passed on as SIGTERM, and the jobs are waited for; a second one kills
    them. A job whose machine is lost is started again, elsewhere.

    Args:
        ready: makes a job's files ready, once it is claimed; False: it is finished already. What it
            raises is the job's failure.
        note: told what the user should know.

    Returns:
        The reason for every failure, by the job's name.

    Raises:
        Interrupted: by a signal; no process is left.
        InputError: the executor cannot run them.
        RunError: a process cannot be started, or its log cannot be written.
    """
    work = _Work(list(jobs), executor, watcher, claims, ready, note)
    claims.watch(job.name for job in jobs)
    watcher.planned(jobs)
    with Signals() as signals, executor.at_work(jobs, note):
        try:
            while work.waiting or work.running:
                if signals.received:
                    raise Interrupted(f"stopped by {signals.received.name}", signals.received)
                work.start()
                time.sleep(POLL)
                work.look()
                watcher.waited()
        finally:
            _stop([running.task for running in work.running])
    return work.failures


@dataclass
class _Work:
    waiting: list[Job]
    executor: Executor
    watcher: Watcher
    claims: Claims
    ready: Callable[[Job], bool]
    note: Callable[[str], None]
    running: list[_Running] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)  # jobs that others are told to have
    next_look: float = 0.0

    def start(self) -> None:
        """Starts what there is room for."""
        if time.monotonic() < self.next_look:
            return
        held = []
        for job in list(self.waiting):
            if not self.executor.room(len(self.running)):
                return
            failure = self.claims.failed_elsewhere(job.name)
            if failure is not None:
                self.end(job, failure)
            elif not self.claims.take(job.name):
                held.append(job.name)
            else:
                self.begin(job)
        # There is room, and all that is left is held by others.
        self.next_look = time.monotonic() + _LOOK if held else 0.0
        fresh = [name for name in held if name not in self.elsewhere]
        if fresh:
            self.elsewhere.update(fresh)
            owner = self.claims.owner(fresh[0])
            more = f" and {len(fresh) - 1} more" if len(fresh) > 1 else ""
            self.note(f"{fresh[0]}{more}: at work on {owner}, and waited for")

    def begin(self, job: Job) -> None:
        """Starts a job that is claimed, unless it has been finished meanwhile."""
        try:
            ready = self.ready(job)
        except (InputError, RunError) as error:
            self.claims.give_back(job.name, str(error))
            self.end(job, str(error))
            return
        if not ready:
            self.claims.give_back(job.name)
            self.end(job, None)
            return
        task = self.executor.start(job, [self.claims.file_of(job.name)])
        self.waiting.remove(job)
        self.running.append(_Running(job, task))
        self.watcher.started(job)

    def end(self, job: Job, failure: str | None) -> None:
        if job in self.waiting:
            self.waiting.remove(job)
        if failure is not None:
            self.failures[job.name] = failure
        self.watcher.ended(job, failure)

    def look(self) -> None:
        """Looks at what runs."""
        lost = self.claims.beat()
        for running in list(self.running):
            job = running.job
            row = last_row(job.run)
            if row is not None and row[0] > running.step:
                running.step, numbers = row
                self.watcher.progressed(job, running.step, numbers)
            if job.name in lost:
                # This process had been silent for so long that it seemed dead.
                running.task.kill()
                self.running.remove(running)
                self.end(job, f"it was taken over by {self.claims.owner(job.name)}")
                continue
            ended = running.task.poll()
            if ended is None:
                continue
            if ended.lost and running.tries < _TRIES:
                running.tries += 1
                start = f"start {running.tries} of {_TRIES}"
                self.note(f"{job.name}: {ended.failure}; it resumes from its last checkpoint ({start})")
                running.task = self.executor.start(job, [self.claims.file_of(job.name)])
                continue
            self.running.remove(running)
            self.claims.give_back(job.name, ended.failure)
            self.end(job, ended.failure)


def _stop(tasks: Sequence[Task]) -> None:
    for task in tasks:
        task.terminate()
    end = time.monotonic() + GRACE
    try:
        while time.monotonic() < end and any([task.poll() is None for task in tasks]):
            time.sleep(POLL)
    finally:  # also after a second signal
        for task in tasks:
            task.kill()
