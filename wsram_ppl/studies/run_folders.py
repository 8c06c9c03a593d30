"""A study's runs in its folder: whether they are finished, and what makes the way free for them."""

from __future__ import annotations

import glob
import itertools
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from wsram_ppl.config import ExperimentConfig
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.files import make_folder, write_atomically
from wsram_ppl.runs.directory import CONFIG, SUMMARY, RunDirectory
from wsram_ppl.studies.definition import Candidate, Variant
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.results import read_summary

__all__ = ["RunFolders", "TrainCommand", "Trial", "VariantRun"]

#: Makes the command that trains the config in the first path into the second.
TrainCommand = Callable[[Path, Path], Sequence[str]]


@dataclass
class VariantRun:
    """One run of a study and how it ended.

    Attributes:
        name: its path within the study's folder: ``runs/VARIANT/seed-N``.
        seed: of all that is random in it.
        config: what to train; None where the search found nothing to train with.
        failure: why there is no result; None if the run is finished, or has not started yet.
        finished: whether there is a result.
        command: the one that trained it, or would train it.
    """

    variant: Variant
    name: str
    config: ExperimentConfig | None
    seed: int = field(kw_only=True)
    failure: str | None = None
    finished: bool = False
    command: str = ""


@dataclass
class Trial(VariantRun):
    """A run of the search.

    Attributes:
        candidate: what it tried.
        value: the search's metric; None where it failed.
        chosen: whether the variant's runs use this candidate.
        over: whether the variant's runs have begun, so that it is not tried again.
    """

    candidate: Candidate = field(kw_only=True)
    value: float | None = None
    chosen: bool = False
    over: bool = False


@dataclass(frozen=True)
class RunFolders:
    """Where the runs of a study are, with their configs and logs.

    Args:
        folder: of the study.
        command: makes the command of a run.
        note: told what the user should know.
    """

    folder: Path
    command: TrainCommand
    note: Callable[[str], None]

    def config_file(self, run: VariantRun) -> Path:
        """The config that a run is trained from."""
        return self.folder / "configs" / f"{run.name}.toml"

    def log_file(self, run: VariantRun) -> Path:
        """What a run has printed."""
        return self.folder / "logs" / f"{run.name}.log"

    def command_of(self, run: VariantRun) -> str:
        """The command that trained a finished run (the first line of its config), or would train it."""
        file = self.config_file(run)
        if run.finished and file.is_file():
            first = file.read_text(encoding="utf-8").partition("\n")[0]
            if first.startswith("# "):
                return first.removeprefix("# ")
        return shlex.join(self.command(file, self.folder / run.name))

    def job(self, run: VariantRun, config: ExperimentConfig) -> Job:
        """What an executor must know to train a run."""
        path, training = self.folder / run.name, config.training
        return Job(
            run.name,
            self.command(self.config_file(run), path),
            path,
            self.log_file(run),
            training.steps,
            training.device,
            training.devices * training.num_nodes,
        )

    def prepare(self, run: VariantRun, job: Job) -> bool:
        """Makes the files of a run that is claimed ready; False: another process has finished it.

        Raises:
            InputError: what is there is another run's, or damaged.
            RunError: a process trains it that has no claim; a file cannot be written.
        """
        config, path = run.config, job.run
        assert config is not None
        if self.is_finished(run, config):
            return False
        earlier = RunDirectory(path)
        if (path / CONFIG).is_file():
            earlier.check_free()
            if earlier.config().fingerprint() != config.fingerprint():
                aside = self._set_aside(run)
                self.note(f"{run.name} was not finished and has another config: it is now in {aside}")
        if not (path / CONFIG).is_file():
            self._take_up(run, config)
        if (path / CONFIG).is_file():
            # An earlier part of the same run: training resumes from its last checkpoint.
            ended = (path / SUMMARY).exists()
            why = "has fewer updates than the study now needs" if ended else "was not finished"
            self.note(f"{run.name} {why}: it resumes from its last checkpoint")
            earlier.write_config(config)  # its data may have moved
            (path / SUMMARY).unlink(missing_ok=True)
        file = self.config_file(run)
        make_folder(file.parent)
        # A TOML file is UTF-8, which a path in the command need not be.
        write_atomically(file, f"# {run.command}\n\n{config.to_toml()}".encode(errors="replace"))
        return True

    def _set_aside(self, run: VariantRun) -> Path:
        place = self.folder / "interrupted" / run.name
        numbered = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
        aside = next(free for free in itertools.chain([place], numbered) if not free.exists())
        _move(self.folder / run.name, aside)
        return aside

    def _take_up(self, run: VariantRun, config: ExperimentConfig) -> None:
        """Brings back an unfinished run of this config that was set aside."""
        place = self.folder / "interrupted" / run.name
        for aside in (place, *sorted(place.parent.glob(f"{glob.escape(place.name)}-*"))):
            if not (aside / CONFIG).is_file():
                continue
            with suppress(InputError):  # damaged: it stays there
                if RunDirectory(aside).config().fingerprint() == config.fingerprint():
                    _move(aside, self.folder / run.name)
                    self.note(f"{run.name} was set aside in {aside}, and goes on")
                    return

    def is_finished(self, run: VariantRun, config: ExperimentConfig) -> bool:
        """Whether its directory holds the result of exactly this config.

        Raises:
            InputError: the result of another config, or something else.
        """
        path = self.folder / run.name
        if RunDirectory(path).is_empty():
            return False
        if not (path / CONFIG).is_file():
            raise InputError(f"{path} is in the way: it is not a run; move it, or choose another --out")
        if not (path / SUMMARY).is_file():
            return False
        done = read_summary(path)["updates"]
        found = RunDirectory(path).config()
        if found.fingerprint() != config.fingerprint():
            raise InputError(
                f"{path} is a finished run of another config ({found.difference(config)}): "
                "choose another --out, or remove it"
            )
        if done < config.training.steps:
            return False
        if done > config.training.steps:
            raise InputError(
                f"{path} has {done} updates, more than the study's steps = {config.training.steps}: "
                "choose another --out, or remove it"
            )
        others = found.deviation(config, ignored=("device", "threads", "loggers"))
        if others:
            self.note(f"{run.name} is kept, though it was run with {others}")
        return True


def _move(path: Path, aside: Path) -> None:
    """Renames a folder.

    Raises:
        RunError: that is not possible, for instance since something is there.
    """
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        if aside.is_dir():
            aside.rmdir()  # an empty one
        path.rename(aside)
    except OSError as error:
        raise RunError(f"cannot move {path} to {aside}: {error.strerror}") from error
