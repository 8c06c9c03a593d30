"""The search of a study: its trials, and which of the candidates a variant's runs take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from wsram_ppl.errors import InputError
from wsram_ppl.runs.directory import CONFIG, SUMMARY, RunDirectory
from wsram_ppl.studies.definition import Candidate, Metric, Search, Study, Variant
from wsram_ppl.studies.executors.claims import Claims
from wsram_ppl.studies.results import read_summary
from wsram_ppl.studies.run_folders import Trial

__all__ = ["begun_with", "check_metric", "choose", "trials_of"]


def trials_of(study: Study) -> list[Trial]:
    """A run for each variant and candidate; none for a study without a search."""
    if study.search is None:
        return []
    return [
        Trial(
            variant,
            f"search/{variant.name}/{candidate.name}",
            study.trial(variant, candidate),
            seed=study.search.seed,
            candidate=candidate,
        )
        for variant in study.variants
        for candidate in study.candidates
    ]


def begun_with(study: Study, folder: Path, variant: Variant) -> Candidate | None:
    """The candidate that the runs of a variant have begun with, which they keep."""
    for seed in study.seeds if study.candidates else ():
        run = RunDirectory(folder / "runs" / variant.name / f"seed-{seed}")
        if not (run.path / CONFIG).is_file():
            continue
        found = run.config().fingerprint()
        for candidate in study.candidates:
            if study.config(variant, seed, candidate).fingerprint() == found:
                return candidate
    return None


def choose(
    search: Search,
    folder: Path,
    variant: Variant,
    trials: Sequence[Trial],
    begun: Candidate | None,
    note: Callable[[str], None],
) -> Candidate | None:
    """The candidate of a variant's best trial, or the one that its runs have begun with.

    Marks the trials accordingly.

    Args:
        folder: of the study.
        trials: the variant's.
        begun: what its runs have begun with, if they have.
        note: told what the user should know.

    Returns:
        None while a trial that has not run yet could be the best, or where all have failed.
    """
    best: tuple[float, Trial] | None = None
    for trial in trials:
        if not trial.finished:
            continue
        value = read_summary(folder / trial.name).get(search.metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            trial.finished = False
            trial.failure = f"its summary has no finite {search.metric!r}"
            note(f"{trial.name}: {trial.failure}")
            continue
        trial.value = float(value)
        score = -trial.value if search.metric == "error" else trial.value
        if best is None or score > best[0]:
            best = score, trial
    if begun is not None:
        for trial in trials:
            trial.chosen, trial.over = trial.candidate is begun, True
            if not trial.finished and trial.failure is None:
                trial.failure = Claims(folder).failure(trial.name)
        if not all(trial.finished for trial in trials) or (best and best[1].candidate is not begun):
            note(
                f"{variant.name}: its runs have begun with {begun.name}, which they keep; to search "
                "again choose another --out, or remove them"
            )
        return begun
    if best is None or any(not t.finished and not t.failure for t in trials):
        return None
    best[1].chosen = True
    return best[1].candidate


def check_metric(metric: Metric, folder: Path, trials: Sequence[Trial]) -> None:
    """Makes sure that those of a variant's trials that have finished measured the search's metric.

    Raises:
        InputError: one did not.
    """
    for trial in trials:
        if not (folder / trial.name / SUMMARY).is_file():
            continue
        found = read_summary(folder / trial.name)
        if metric not in found:
            there = ", ".join(each for each in get_args(Metric) if each in found)
            raise InputError(
                f"search.metric = {metric!r}: {trial.name} has finished without one; it measures {there}"
            )
