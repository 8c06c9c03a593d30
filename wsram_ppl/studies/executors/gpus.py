"""This machine's GPUs, shared among runs: each run goes to the one with the fewest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final

import torch

from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.executors.mps import multi_process_service

__all__ = ["Gpus", "sharing_gpus"]

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


@dataclass
class Gpus:
    """What each run's process is told about GPUs.

    Args:
        names: of the GPUs, as the processes are to call them.
        environment: further variables of every process that computes on one.
    """

    names: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    _runs: Counter[str] = field(default_factory=Counter)

    def take(self, job: Job) -> tuple[str | None, dict[str, str]]:
        """The GPU of a run, if it is given one, and the variables of its process."""
        if not self.names or not _wants_gpu(job):
            return None, {}
        if job.device.startswith("cuda:") or job.devices > 1:  # it chooses among all
            return None, {**self.environment, _VISIBLE: ",".join(self.names)}
        name = min(self.names, key=lambda name: self._runs[name])
        self._runs[name] += 1
        return name, {**self.environment, _VISIBLE: name}

    def give_back(self, name: str | None) -> None:
        """A run that had this GPU has ended."""
        if name is not None:
            self._runs[name] -= 1


@contextmanager
def sharing_gpus(jobs: Sequence[Job], slots: int, note: Callable[[str], None]) -> Iterator[Gpus]:
    """Entered while jobs are run, so many at once; with more of them than GPUs, under MPS."""
    names = _visible() if any(_wants_gpu(job) for job in jobs) else []
    crowded = bool(names) and min(slots, len(jobs)) > len(names)
    with multi_process_service(note) if crowded else nullcontext() as environment:
        if environment:
            # Its server counts the GPUs that it sees from 0. Those called by their UUID keep it.
            names = [str(n) if name.isdigit() else name for n, name in enumerate(names)]
        yield Gpus(names, environment or {})


def _wants_gpu(job: Job) -> bool:
    return job.device == "auto" or job.device.startswith("cuda")


def _visible() -> list[str]:
    count = torch.cuda.device_count()
    named = os.environ.get(_VISIBLE)
    return [str(n) for n in range(count)] if named is None else named.split(",")[:count]
