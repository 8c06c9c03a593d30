"""Runs a study: missing runs are started, finished ones are left alone, failures are recorded.

The folder of a study holds::

    runs/VARIANT/seed-N/            run directories (:mod:`wsram_ppl.runs.directory`)
    search/VARIANT/CANDIDATE/       run directories of the search's trials
    configs/, logs/                 each run's config and its output, under the same names
    interrupted/                    unfinished runs, moved away when the config has changed
    claims/                         who is at work on which run
    calls.json                      when and how the study was worked on

Several processes may work in one folder at once: each run is claimed by one of them
(:mod:`wsram_ppl.studies.executors.claims`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wsram_ppl.config import build_data
from wsram_ppl.errors import InputError, Interrupted, RunError, nearest
from wsram_ppl.files import make_folder, turn, write_atomically
from wsram_ppl.runs.data_record import DataRecord
from wsram_ppl.runs.directory import SUMMARY
from wsram_ppl.studies import forecast
from wsram_ppl.studies.definition import Study, Variant
from wsram_ppl.studies.executors.claims import Claims
from wsram_ppl.studies.executors.jobs import Executor, Job, Watcher
from wsram_ppl.studies.executors.local import LocalExecutor
from wsram_ppl.studies.executors.loop import run_jobs
from wsram_ppl.studies.run_folders import RunFolders, TrainCommand, Trial, VariantRun
from wsram_ppl.studies.search import begun_with, check_metric, choose, trials_of
from wsram_ppl.training.reading import held_out, reading

__all__ = ["Call", "Comparison", "compare"]


@dataclass(frozen=True)
class Call:
    """One invocation that worked on the study.

    Attributes:
        command: the command line.
        started: in ISO 8601, UTC.
        seconds: wall time.
        jobs: runs at once.
        trained: how many runs it finished.
    """

    command: str
    started: str
    seconds: float
    jobs: int
    trained: int


@dataclass(frozen=True)
class Comparison:
    """All runs of a study and what is known of them so far."""

    study: Study
    folder: Path
    runs: Sequence[VariantRun]
    trials: Sequence[Trial]
    notes: Sequence[str]
    calls: Sequence[Call]

    @property
    def failed(self) -> list[VariantRun]:
        """The runs that ended with an error, including those of a search that is not over."""
        trials = [trial for trial in self.trials if not trial.over]
        return [run for run in (*trials, *self.runs) if run.failure is not None]

    def of(self, variant: Variant) -> list[VariantRun]:
        """The runs of a variant, one for each seed."""
        return [run for run in self.runs if run.variant is variant]


def compare(
    study: Study,
    folder: Path,
    command: TrainCommand,
    watcher: Watcher,
    *,
    executor: Executor | None = None,
    only: Sequence[str] = (),
    run_missing: bool = True,
    call: str = "",
) -> Comparison:
    """Runs what a study lacks, and reports how every run ended.

    Args:
        folder: the study's folder, existing or not.
        executor: where runs are trained; None: here, one after the other.
        only: the runs to train, as ``VARIANT/SEED``, with the search of their variants; none: all.
        run_missing: if False, start nothing and only read what is there.
        call: the command line, to be recorded.

    Raises:
        InputError: a finished run of another config is in the way, or something that is no run; data
            that are not there; ``only`` names no run of the study.
        Interrupted: by a signal; calling again goes on.
        RunError: the folder cannot be written.
    """
    executor = executor or LocalExecutor()
    wanted = _selected(study, only)
    if not run_missing:
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder} to report on")
        return _Work(study, folder, command, watcher, executor, wanted, None).all()
    make_folder(folder)
    with at_turn(folder):
        write_atomically(folder / "study.toml", study.text)
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    with Claims(folder) as claims:
        work = _Work(study, folder, command, watcher, executor, wanted, claims)
        try:
            comparison = work.all()
        finally:
            if work.mine:
                seconds = round(time.monotonic() - clock, 1)
                trained = sum((job.run / SUMMARY).is_file() for job in work.mine)
                record = Call(call, started, seconds, executor.slots, trained)
                with at_turn(folder):
                    text = json.dumps([asdict(each) for each in [*_calls(folder), record]], indent=2)
                    write_atomically(folder / "calls.json", text.encode())
    return replace(comparison, calls=_calls(folder))


@contextmanager
def at_turn(folder: Path) -> Iterator[None]:
    """Entered to write what all processes in a study's folder write.

    Raises:
        RunError: the folder cannot be written.
    """
    with turn(folder / "lock"):
        yield


def _selected(study: Study, only: Sequence[str]) -> frozenset[tuple[str, int]]:
    """Variants and seeds of the runs to train."""
    names = {f"{v.name}/{seed}": (v.name, seed) for v in study.variants for seed in study.seeds}
    for text in only:
        if text not in names:
            some = ", ".join(list(names)[:6])
            hint = nearest(text, names) or f" its runs are {some}{', ...' if len(names) > 6 else ''}"
            raise InputError(f"--only {text}: the study has no such run;{hint}")
    return frozenset(names[text] for text in only or names)


@dataclass
class _Work:
    study: Study
    folder: Path
    command: TrainCommand
    watcher: Watcher
    executor: Executor
    wanted: frozenset[tuple[str, int]]
    claims: Claims | None  # None: nothing is started
    notes: list[str] = field(default_factory=list)
    checked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # data known to be there
    mine: list[Job] = field(default_factory=list)  # jobs that this process has started
    done: list[VariantRun] = field(default_factory=list)  # finished before this call
    paces: dict[str, float] = field(default_factory=dict)  # of runs that have been, by variant

    def __post_init__(self) -> None:
        self.folders = RunFolders(self.folder, self.command, self.note)

    def all(self) -> Comparison:
        study = self.study
        trials = trials_of(study)
        by_variant = {v.name: [trial for trial in trials if trial.variant is v] for v in study.variants}
        begun = {v.name: begun_with(study, self.folder, v) for v in study.variants}
        names = {name for name, _ in self.wanted if begun[name] is None}
        self.finish(trials, [trial for trial in trials if trial.variant.name in names])
        runs, wanted = [], []
        for variant in study.variants:
            mine, candidate = by_variant[variant.name], None
            if study.search is not None:
                candidate = choose(
                    study.search, self.folder, variant, mine, begun[variant.name], self.note
                )
            for seed in study.seeds:
                run = VariantRun(variant, f"runs/{variant.name}/seed-{seed}", None, seed=seed)
                if study.search is None or candidate is not None:
                    run.config = study.config(variant, seed, candidate)
                elif all(trial.failure for trial in mine):
                    run.failure = "none of the candidates of its search could be trained"
                runs.append(run)
                if (variant.name, seed) in self.wanted:
                    wanted.append(run)
        self.finish(runs, wanted)
        return Comparison(study, self.folder, runs, trials, self.notes, _calls(self.folder))

    def finish(self, runs: Sequence[VariantRun], wanted: Sequence[VariantRun]) -> None:
        """Runs those that are wanted and missing; notes on each whether it is finished, or why not."""
        for run in runs:
            if run.config is None:
                continue
            for note in run.config.notes:
                self.note(f"{run.variant.name}: {note}")
            run.finished = self.folders.is_finished(run, run.config)
            run.command = self.folders.command_of(run)
        self.done += [run for run in runs if run.finished]
        if self.claims is None:
            for run in runs:
                if not run.finished and run.config is not None:
                    run.failure = Claims(self.folder).failure(run.name)
            return
        self.learn_paces(runs)
        missing = {run.name: run for run in wanted if run.config is not None and not run.finished}
        if not missing:
            return
        self.check_data(list(missing.values()))
        jobs = [self.folders.job(run, run.config) for run in missing.values() if run.config is not None]

        def ready(job: Job) -> bool:
            run = missing[job.name]
            if self.study.search is not None and isinstance(run, Trial):
                same = [t for t in runs if isinstance(t, Trial) and t.variant is run.variant]
                check_metric(self.study.search.metric, self.folder, same)
            if not self.folders.prepare(run, job):
                return False
            self.mine.append(job)
            return True

        try:
            self.foretell(list(missing.values()), jobs)
            failures = run_jobs(jobs, self.executor, self.watcher, self.claims, ready, self.note)
        except Interrupted as error:
            done = sum((self.folder / run.name / SUMMARY).is_file() for run in wanted)
            what = "trials" if runs and isinstance(runs[0], Trial) else "runs"
            raise Interrupted(
                f"{error}: {done} of {len(wanted)} {what} are finished; the same command resumes there",
                error.exit_code - 128,
            ) from error
        for run in missing.values():
            run.failure = failures.get(run.name)
            run.finished = run.failure is None
        self.learn_paces(list(missing.values()))

    def learn_paces(self, runs: Sequence[VariantRun]) -> None:
        for run in runs:
            if run.finished:
                self.paces[run.variant.name] = forecast.finished_pace(self.folder / run.name)

    def foretell(self, runs: Sequence[VariantRun], jobs: Sequence[Job]) -> None:
        """Tells how long the jobs of these runs will take on this machine."""
        if not isinstance(self.executor, LocalExecutor):
            return
        known, slots = self.paces, self.executor.slots
        paces = {run.name: known[run.variant.name] for run in runs if run.variant.name in known}
        why = ""
        if not paces and forecast.is_long(jobs):
            self.watcher.noted(f"timing {forecast.TIMED} updates, for a forecast")
            configs = {run.name: run.config for run in runs if run.config is not None}
            try:
                paces = forecast.time_updates(
                    configs,
                    slots,
                    self.folder,
                    self.command,
                    self.timed,
                )
            except Interrupted:
                raise
            except RunError as error:
                why = f" (no forecast: {error})"
        what = "trials" if isinstance(runs[0], Trial) else "runs"
        self.watcher.noted(forecast.forecast(jobs, slots, paces, what) + why)

    def timed(self, jobs: Sequence[Job], watcher: Watcher) -> dict[str, str]:
        """Runs jobs that nobody else knows of."""
        with Claims(jobs[0].run.parent) as claims:
            return run_jobs(jobs, self.executor, watcher, claims, lambda job: True, self.note)

    def check_data(self, runs: Sequence[VariantRun]) -> None:
        """Makes sure once that the data of the coming runs are there, before each run fails by itself.

        Raises:
            InputError, RunError: they are not, or they are not those that others were trained on; the
                message names the first variant that needs them.
        """
        for run in runs:
            assert run.config is not None
            name, options, size = (
                run.config.data.name,
                run.config.data.options,
                run.config.training.batch_size,
            )
            if (name, options) in self.checked:
                continue
            try:
                data = build_data(run.config)
                with reading(name):
                    data.training_batch(0, size, run.config.training.seed)
                next(held_out(data, name, size, size))
                for other in self.done:
                    same = other.config is not None and other.config.data == run.config.data
                    kept = DataRecord(self.folder / other.name)
                    if same and kept.path.is_file():
                        kept.check(data)
            except (InputError, RunError) as error:
                kind = InputError if isinstance(error, InputError) else RunError
                raise kind(f"variant {run.variant.name!r}: {error}") from error
            self.checked.append((name, options))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self.watcher.noted(text)


def _calls(folder: Path) -> list[Call]:
    path = folder / "calls.json"
    if not path.is_file():
        return []
    try:
        return [Call(**call) for call in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged: remove it") from error
