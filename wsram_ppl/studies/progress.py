"""Progress of a study's runs: bars side by side in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from wsram_ppl.runs.metrics import last_row
from wsram_ppl.studies.executors.jobs import Job, Watcher
from wsram_ppl.training.progress import Lines

__all__ = ["StudyBars"]


class StudyBars(Watcher):
    """A bar for each active run and one for all runs; one line for each run that has ended.

    Where standard error is not a terminal, one plain line for all runs replaces the bars, every minute
    or tenth of the work.
    """

    def __init__(self) -> None:
        self._bars: dict[str, tqdm[Any]] = {}
        self._all: tqdm[Any] | None = None
        self._lines: Lines | None = None
        self._begun: dict[str, float] = {}
        #: Updates of each run so far.
        self._steps: dict[str, int] = {}
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
        # Updates that a resumed run already has.
        self._steps = {job.name: (last_row(job.run) or (0,))[0] for job in jobs}
        steps, begun = sum(job.steps for job in jobs), sum(self._steps.values())
        self._all = self._bar("all", steps, begun, position=0)
        self._lines = Lines("update", begun, steps) if self._all.disable else None

    def started(self, job: Job) -> None:
        taken = {bar.pos for bar in self._bars.values()}
        position = next(n for n in range(1, len(taken) + 2) if -n not in taken)
        self._bars[job.name] = self._bar(job.name, job.steps, self._steps[job.name], position)
        self._begun[job.name] = time.monotonic()

    def progressed(self, job: Job, step: int, numbers: Mapping[str, float]) -> None:
        bar = self._bars[job.name]
        self._advance(job, step)
        bar.update(step - bar.n)
        if "error" in numbers:
            bar.set_postfix_str(f"error {numbers['error']:.0%}")

    def ended(self, job: Job, failure: str | None) -> None:
        begun = self._begun.pop(job.name, None)
        if begun is not None:
            self._bars.pop(job.name).close()
        if failure is not None and self._lines is not None:
            self._lines.skip(job.steps - self._steps[job.name])
        self._advance(job, job.steps)
        self._count += 1
        if failure is not None:
            end = f"failed: {failure}"
        elif begun is None:
            end = "finished elsewhere"
        else:
            end = f"finished in {time.monotonic() - begun:.0f} s"
        tqdm.write(f"[{self._count}/{self._total}] {job.name} {end}")

    def waited(self) -> None:
        if self._lines is not None:
            shown = {"runs": f"{self._count} of {self._total} ended", "running": f"{len(self._bars)}"}
            self._lines.update(sum(self._steps.values()), shown)

    def _advance(self, job: Job, step: int) -> None:
        assert self._all is not None
        self._all.update(step - self._steps[job.name])
        self._steps[job.name] = step

    def _bar(self, name: str, steps: int, begun: int, position: int) -> tqdm[Any]:
        return tqdm(
            total=steps,
            initial=begun,
            desc=name,
            unit="update",
            position=position,
            leave=False,
            disable=None,
            dynamic_ncols=True,
        )
