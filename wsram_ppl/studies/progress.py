"""Progress of a study's runs in a terminal, side by side."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from wsram_ppl.studies.executors import Job

__all__ = ["StudyBars"]


class StudyBars:
    """A bar for each run at work and one for all; one line for each run that has ended.

    The bars are silent where standard error is not a terminal.
    """

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}
        self._all: tqdm[Any] | None = None
        self._begun: dict[str, float] = {}
        self._count, self._total = 0, 0

    def __enter__(self) -> StudyBars:
        return self

    def __exit__(self, *error: object) -> None:
        for bar in (*self._bars.values(), self._all):
            if bar is not None:
                bar.close()

    def noted(self, text: str) -> None:
        tqdm.write(f"note: {text}", file=sys.stderr)

    def planned(self, jobs: Sequence[Job]) -> None:
        if self._all is not None:
            self._all.close()
        self._count, self._total = 0, len(jobs)
        self._all = self._bar("all", sum(job.steps for job in jobs), position=0)

    def started(self, job: Job) -> None:
        taken = {bar.pos for bar in self._bars.values()}
        position = next(n for n in range(1, len(taken) + 2) if -n not in taken)
        self._bars[job.name] = self._bar(job.name, job.steps, position)
        self._begun[job.name] = time.monotonic()

    def progressed(self, job: Job, step: int, numbers: Mapping[str, float]) -> None:
        bar = self._bars[job.name]
        assert self._all is not None
        self._all.update(step - bar.n)
        bar.update(step - bar.n)
        if "error" in numbers:
            bar.set_postfix_str(f"error {numbers['error']:.0%}")

    def ended(self, job: Job, failure: str | None) -> None:
        bar = self._bars.pop(job.name)
        assert self._all is not None
        self._all.update(job.steps - bar.n)
        bar.close()
        self._count += 1
        seconds = time.monotonic() - self._begun.pop(job.name)
        end = f"finished in {seconds:.0f} s" if failure is None else f"failed: {failure}"
        tqdm.write(f"[{self._count}/{self._total}] {job.name} {end}")

    def _bar(self, name: str, steps: int, position: int) -> tqdm[Any]:
        return tqdm(
            total=steps,
            desc=name,
            unit="update",
            position=position,
            leave=False,
            disable=None,
            dynamic_ncols=True,
        )
