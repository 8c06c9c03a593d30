"""Runs as child processes of this one; one that dies takes nothing else down."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from wsram_ppl.errors import RunError
from wsram_ppl.studies.executors.gpus import Gpus, sharing_gpus
from wsram_ppl.studies.executors.jobs import ONE_THREAD, Ended, Executor, Job, failure, launch

__all__ = ["LocalExecutor"]


@dataclass
class LocalExecutor(Executor):
    """Child processes on this machine; with several at once each computes on one thread.

    Args:
        slots: how many at once; on GPUs as many share each as it takes.
    """

    slots: int = 1
    _gpus: Gpus = field(default_factory=Gpus, init=False)

    @contextmanager
    def at_work(self, jobs: Sequence[Job], note: Callable[[str], None]) -> Iterator[None]:
        with sharing_gpus(jobs, self.slots, note) as self._gpus:
            yield

    def room(self, running: int) -> bool:
        return running < self.slots

    def start(self, job: Job, keep_open: Sequence[int]) -> _Child:
        gpu, environment = self._gpus.take(job)
        threads = ONE_THREAD if self.slots > 1 else {}
        try:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            process = launch(job, {**threads, **environment}, pass_fds=keep_open)
        except OSError as error:
            raise RunError(f"cannot start {job.name}: {error}") from error
        return _Child(job, process, self._gpus, gpu)


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    gpus: Gpus
    gpu: str | None

    def poll(self) -> Ended | None:
        code = self.process.poll()
        if code is None:
            return None
        self.gpus.give_back(self.gpu)
        self.gpu = None
        return Ended(failure(self.job, code))

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.poll()
