"""A run's directory: the resolved config, metrics, TensorBoard events, checkpoints and the summary."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wsram_ppl import __version__
from wsram_ppl.config import (
    Components,
    ExperimentConfig,
    build,
    check_config,
    parse_config,
    read_toml,
)
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.files import (
    is_partial,
    locked,
    make_folder,
    make_next_folder,
    to_json,
    write_atomically,
)
from wsram_ppl.runs.data_record import DATA, DataRecord

if TYPE_CHECKING:  # reading a run's settings does not need torch
    import torch
    from torch import Tensor, nn

    from wsram_ppl.interfaces import DataSource, InformsFromRecord
    from wsram_ppl.runs.checkpoints import Checkpoint

CONFIG, SUMMARY, LOCK = "config.toml", "summary.json", "lock"
CHECKPOINT, PREVIOUS = "last.safetensors", "previous.safetensors"
#: Keys of a checkpoint's data: a note shown whenever it is measured; a mark that it cannot be resumed.
NOTE, WEIGHTS_ONLY = "note", "weights_only"
_log = logging.getLogger(__name__)
_WRITTEN_BY, _EARLIER_CONFIG = "# wsram_ppl ", "spec.toml"


class LoadedModel(NamedTuple):
    """A run's model without its data.

    Attributes:
        source: the class of its data source.
        record: what the run recorded of the data.
    """

    config: ExperimentConfig
    model: nn.Module
    source: InformsFromRecord
    record: dict[str, Any]


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory; created when the first file is written.
        moved: whether the run may resume with its data in another place.
    """

    def __init__(self, path: Path | str, *, moved: bool = False) -> None:
        self.path = Path(path)
        self._moved = moved

    def __str__(self) -> str:
        return str(self.path)

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.path / CHECKPOINT

    def finished(self, config: ExperimentConfig) -> dict[str, Any] | None:
        """The summary, if the directory holds this run and it has finished; writes nothing.

        Raises:
            InputError: the directory holds something else, or a run with more updates.
        """
        found = self.summary() if self._holds(config) else None
        if found is None or found["updates"] < config.training.steps:
            return None
        self._check_length(found["updates"], config)
        return found

    def is_empty(self) -> bool:
        """Whether it is empty, apart from what a process that has ended left before its first file."""
        if not self.path.exists():
            return True
        return self.path.is_dir() and all(
            file.name == LOCK or is_partial(file) for file in self.path.iterdir()
        )

    @property
    def resumed_by(self) -> str:
        """The commands that resume the run."""
        return f"the same command, or wsram train --resume {self},"

    def _check_length(self, done: int, config: ExperimentConfig) -> None:
        steps = config.training.steps
        if done > steps:
            raise InputError(
                f"{self.path} has done {done} updates already, more than training.steps = {steps}: ask "
                f"for at least {done}, or choose another --out"
            )

    def _holds(self, config: ExperimentConfig) -> bool:
        """Whether an earlier part of the same run is there.

        Raises:
            InputError: the directory holds something else.
            RunError: it cannot be read.
        """
        try:
            if not self.is_empty():
                self._check_version()
                if not (self.path / CONFIG).is_file():
                    raise InputError(
                        f"{self.path} exists and is not empty: choose another --out, or remove it"
                    )
                found = self.config()
                if found.fingerprint() != config.fingerprint():
                    raise InputError(
                        f"{self.path} belongs to another run ({found.difference(config)}): choose "
                        "another --out, or remove it"
                    )
                if not self._moved:
                    self._check_places(found, config)
                return True
        except OSError as error:
            kind = InputError if error.errno == errno.ENAMETOOLONG else RunError
            raise kind(f"cannot read {self.path}: {error.strerror}") from error
        return False

    def _check_places(self, found: ExperimentConfig, config: ExperimentConfig) -> None:
        for key in sorted(config.data.paths):
            before, now = (each.data.options.get(key, "unset") for each in (found, config))
            if before != now:
                raise InputError(
                    f"{self.path} was trained with data.{key} {before}, not {now}: for the same data in "
                    f"another place use train --resume {self.path} --set data.{key}={now}, for others "
                    "choose another --out"
                )

    def check_free(self) -> None:
        """Makes sure that no other process is training this run; writes nothing.

        Raises:
            InputError: the run holds only weights.
            RunError: another process is.
        """
        if (self.path / LOCK).exists():
            with self._locked():
                pass
        elif self.has_checkpoint():  # never trained here
            self._check_resumable(self.saved())

    def _check_resumable(self, saved: Checkpoint | None) -> None:
        if saved is not None and saved.data.get(WEIGHTS_ONLY):
            raise InputError(
                f"{self.path} holds only weights, which a run cannot resume from: start a new one "
                f"from them, with train EXPERIMENT --init {self.path}"
            )

    @contextmanager
    def claim(self, config: ExperimentConfig) -> Iterator[None]:
        """Creates the directory, or finds an earlier part of the same run in it.

        Inside the context no other process can claim it.

        Raises:
            InputError: the directory holds something else.
            RunError: it cannot be created, or another process has claimed it.
        """
        self._holds(config)
        make_folder(self.path)
        with self._locked():
            self._holds(config)  # another process may just have written to it
            yield

    @contextmanager
    def _locked(self) -> Iterator[None]:
        busy = f"another process is training {self.path}: wait for its end, or choose another --out"
        with locked(self.path / LOCK, busy):
            yield

    def begin(self, config: ExperimentConfig, data: DataSource) -> Checkpoint | None:
        """Writes the config, and the record of the data, into a directory that is claimed.

        Returns:
            The newest intact checkpoint, to resume from; None if there is none yet.

        Raises:
            InputError: there are checkpoints, but none is intact and of this config; the run has more
                updates; its data have changed.
            RunError: a file cannot be written.
        """
        saved = self.saved(config)
        self._check_resumable(saved)
        if saved is not None:
            self._check_length(saved.step, config)
            DataRecord(self.path).check(data)
        self.write_config(config)
        DataRecord(self.path).keep(data)
        # The summary of an earlier end, after fewer updates.
        (self.path / SUMMARY).unlink(missing_ok=True)
        return saved

    def write_config(self, config: ExperimentConfig) -> None:
        """Writes ``config.toml`` atomically."""
        text = f"{_WRITTEN_BY}{__version__}\n{config.to_toml()}"
        write_atomically(self.path / CONFIG, text.encode())

    def summary(self, remedy: str = "remove it to continue") -> dict[str, Any] | None:
        """The summary of a finished run, or None; null in the file is read as NaN.

        Args:
            remedy: what to do about a damaged one.

        Raises:
            InputError: it is damaged.
        """
        try:
            found = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
            if not isinstance(found, dict) or not isinstance(found.get("updates"), int):
                raise ValueError("it is not the summary of a run")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {self.path / SUMMARY}: {error}; {remedy}") from error
        return {name: math.nan if value is None else value for name, value in found.items()}

    def save(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Writes a checkpoint and keeps the one before it; at any time both names hold intact files.

        Raises:
            RunError: it cannot be written; existing checkpoints are intact.
        """
        from wsram_ppl.runs.checkpoints import save_checkpoint

        fresh = self.path / f".{CHECKPOINT}.new"
        save_checkpoint(fresh, tensors, data)
        try:
            if self.checkpoint.exists():
                os.replace(self.checkpoint, self.path / PREVIOUS)
            os.replace(fresh, self.checkpoint)
        except OSError as error:
            raise RunError(f"cannot write {self.checkpoint}: {error.strerror}") from error

    def saved(self, config: ExperimentConfig | None = None) -> Checkpoint | None:
        """The newest intact checkpoint of the run; None if none was ever written.

        Args:
            config: that of the run; None: whatever it is.

        Raises:
            InputError: there are checkpoints, but none is intact and of this config.
        """
        from wsram_ppl.runs.checkpoints import load_checkpoint

        refused = []
        for path in (self.checkpoint, self.path / PREVIOUS):
            if not path.exists():
                continue
            try:
                found = load_checkpoint(path)
                if config is not None and found.data.get("fingerprint") != config.fingerprint():
                    raise InputError(f"{path} belongs to another config than {self.path / CONFIG}")
            except InputError as error:
                refused.append(str(error))
            else:
                return replace(found, refused=tuple(refused))
        if refused:
            raise InputError("; ".join(refused))
        return None

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.checkpoint.exists() or (self.path / PREVIOUS).exists()

    def weights(self, config: ExperimentConfig | None = None) -> Checkpoint:
        """The newest intact checkpoint, as :meth:`saved`, with a warning if a newer one is damaged.

        Raises:
            InputError: there is none.
        """
        saved = self.saved(config)
        if saved is None:
            raise InputError(f"there is no checkpoint {self.checkpoint}: the run has not got that far")
        saved.warn("these are the weights of")
        return saved

    def config(
        self, overrides: Sequence[str] = (), *, other_data: bool = False, **shorthands: str | int | None
    ) -> ExperimentConfig:
        """The resolved config of the run.

        Args:
            overrides, shorthands: as for :func:`~wsram_ppl.config.load_config`; they must not change
                the run's updates.
            other_data: whether overrides may change anything in ``[data]``, to measure on other data.

        Raises:
            InputError: this is not a run's directory, its config is not valid, or an override changes
                its updates.
        """
        path = self.path / CONFIG
        try:
            self._check_version()
            if not path.is_file():
                raise InputError(f"{self.path} is not a run: it has no {CONFIG}")
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        with self._explained(path):
            tables = read_toml(path)
            check_config(tables)
        check_config(tables, overrides, **shorthands)  # before torch is imported, which is slow
        with self._explained(path):
            found = parse_config(tables)
        config = parse_config(tables, overrides, **shorthands)
        same = replace(config, data=found.data) if other_data else config
        if found.fingerprint() != same.fingerprint():
            places = "".join(f", data.{key}" for key in sorted(found.data.paths))
            raise InputError(
                f"{self.path} is a run with other settings ({found.difference(same)}); those that may "
                f"change are training.steps, the device, how often to log, evaluate and save{places}"
            )
        return config

    @contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        """A context in which an error is one of the run's own config."""
        try:
            yield
        except InputError as error:
            writer = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
            version = writer.removeprefix(_WRITTEN_BY) if writer.startswith(_WRITTEN_BY) else __version__
            by = "" if version == __version__ else f", written by wsram_ppl {version}"
            raise InputError(f"the config of the run {self.path}{by}: {error}") from error

    def _check_version(self) -> None:
        if (self.path / _EARLIER_CONFIG).is_file() and not (self.path / CONFIG).exists():
            raise InputError(
                f"{self.path} was written by wsram_ppl 0.1, whose runs {__version__} cannot read: use "
                "that version, or train again in another directory"
            )

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json`` atomically."""
        write_atomically(self.path / SUMMARY, (to_json(summary, indent=2) + "\n").encode())

    def load(
        self, device: torch.device | str = "cpu", config: ExperimentConfig | None = None
    ) -> tuple[ExperimentConfig, Components, int]:
        """Builds the run's components with the weights of its last checkpoint.

        Args:
            config: the run's config, with its data in another place or with other data
                (:meth:`config`); None: as it is.

        Returns:
            The config, the components on the device, and the weights' number of updates.

        Raises:
            InputError: not a run; a checkpoint that is missing, damaged or of another config; changed
                data.
        """
        import torch

        from wsram_ppl.runs.checkpoints import TrainingState

        own = self.config()
        config = config or own
        saved = self.weights(own)
        other = config.data != own.data
        components = build(config, DataRecord(self.path).read() if other else None)
        DataRecord(self.path).check(components.data, other=other)
        TrainingState(components).load(saved.tensors)
        if note := saved.data.get(NOTE):
            _log.info("%s: %s", self.path, note)
        components.model.to(device)
        components.guide.to(device)
        components.data.to(torch.device(device))
        return config, components, saved.step

    def load_model(
        self, device: torch.device | str = "cpu", config: ExperimentConfig | None = None
    ) -> LoadedModel:
        """Builds the model alone with the weights of the last checkpoint; the data need not be there.

        Args:
            config: the run's config, with its data in another place (:meth:`config`); None: as it is.

        Raises:
            InputError: not a run; a checkpoint that is missing, damaged or of another config; a data
                source without which no model can be built.
        """
        from wsram_ppl.config import build_model
        from wsram_ppl.interfaces import InformsFromRecord
        from wsram_ppl.runs.checkpoints import load_weights

        config = config or self.config()
        source = config.data.cls
        if not isinstance(source, InformsFromRecord):
            raise InputError(f"no model can be built without the data of source '{config.data.name}'")
        saved = self.weights(config)
        record = DataRecord(self.path).read()
        if record is None:
            raise InputError(f"there is no {self.path / DATA}, which a model is built from: restore it")
        try:
            implied = source.implied_options(record)
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{self.path / DATA} is damaged ({error!r}): restore it") from error
        model = build_model(config, implied)
        load_weights(model, "model", saved.tensors)
        return LoadedModel(config, model.to(device), source, record)


class NewRunDirectory(RunDirectory):
    """A directory that does not exist yet: once claimed, the first free one of PATH, PATH-2, ..."""

    @property
    def resumed_by(self) -> str:
        return f"wsram train --resume {self}"

    def finished(self, config: ExperimentConfig) -> None:
        return None

    def check_free(self) -> None:
        pass

    def has_checkpoint(self) -> bool:
        return False

    @contextmanager
    def claim(self, config: ExperimentConfig) -> Iterator[None]:
        self.path = make_next_folder(self.path)
        with super().claim(config):
            yield
