"""A run's directory: the resolved spec, metrics, TensorBoard events, checkpoints and the summary."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsram_ppl.config import Experiment, Spec, build, load_spec
from wsram_ppl.data import DataSource
from wsram_ppl.errors import InputError, RunError, one_line
from wsram_ppl.files import make_folder, write_atomically
from wsram_ppl.runs.checkpoints import load_checkpoint, save_checkpoint

SPEC, METRICS, SUMMARY, DATA = "spec.toml", "metrics.csv", "summary.json", "data.json"
CHECKPOINT, PREVIOUS = "last.safetensors", "previous.safetensors"


class RunDirectory:
    """The files of one run.

    Args:
        path: the directory; created with the first file written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    def finished(self, spec: Spec) -> dict[str, Any] | None:
        """The summary, if the directory holds this run and it has come to its end; writes nothing.

        Raises:
            InputError: the directory holds something else.
        """
        if not self._holds(spec):
            return None
        return self.summary()

    def _holds(self, spec: Spec) -> bool:
        """Whether an earlier part of the same run is there.

        Raises:
            InputError: the directory holds something else.
            RunError: it cannot be read.
        """
        try:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                if not (self.path / SPEC).is_file():
                    raise InputError(
                        f"{self.path} exists and is not empty: choose another --out, or remove it"
                    )
                found = self.spec()
                if found.fingerprint() != spec.fingerprint():
                    raise InputError(
                        f"{self.path} belongs to another run ({found.difference(spec)}): choose "
                        "another --out, or remove it"
                    )
                return True
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}") from error
        return False

    def claim(self, spec: Spec) -> None:
        """Makes the directory, or finds in it an earlier part of the same run, and writes the spec.

        Raises:
            InputError: the directory holds something else.
            RunError: it cannot be made.
        """
        self._holds(spec)
        make_folder(self.path)
        write_atomically(self.path / SPEC, spec.to_toml().encode())

    def keep_data(self, data: DataSource) -> None:
        """Writes what a data source asks to be kept with a run: its ``record``, if it has one.

        That is what weights mean nothing without, like the numbers of words.

        Raises:
            InputError: an earlier part of the run had other data.
        """
        record = getattr(data, "record", None)
        if record is not None and not (self.path / DATA).exists():
            write_atomically(self.path / DATA, (json.dumps(record, indent=1) + "\n").encode())
        self.check_data(data)

    def check_data(self, data: DataSource) -> None:
        """Makes sure that the data are what the run kept of them, if anything.

        Raises:
            InputError: they are not, or the file cannot be read.
        """
        path = self.path / DATA
        if not path.exists():
            return
        try:
            kept: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
        now = json.loads(json.dumps(getattr(data, "record", {})))
        changed = [key for key in {**kept, **now} if kept.get(key) != now.get(key)]
        if changed:
            raise InputError(
                f"the data have changed since {self.path} began ({', '.join(changed)} not as in "
                f"{path}): its weights have no meaning for them; bring the old data back, or train anew"
            )

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, else None."""
        try:
            found = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
            if not isinstance(found, dict) or "updates" not in found:
                raise ValueError("it is not the summary of a run")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"cannot read {self.path / SUMMARY}: {error}; remove it to go on"
            ) from error
        return found

    def save(self, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
        """Writes a checkpoint; the one before it is kept, and both names hold whole files always.

        Raises:
            RunError: it cannot be written; the checkpoints there are intact.
        """
        fresh = self.path / f".{CHECKPOINT}.new"
        save_checkpoint(fresh, tensors, data)
        try:
            if self.checkpoint.exists():
                os.replace(self.checkpoint, self.path / PREVIOUS)
            os.replace(fresh, self.checkpoint)
        except OSError as error:
            raise RunError(f"cannot write {self.checkpoint}: {error.strerror}") from error

    def saved(self, spec: Spec) -> Saved | None:
        """The newest whole checkpoint of the run; None if none was ever written.

        Raises:
            InputError: there are checkpoints, but not one is whole and of this spec.
        """
        refused = []
        for path in (self.checkpoint, self.path / PREVIOUS):
            if not path.exists():
                continue
            try:
                tensors, data = load_checkpoint(path)
                if data.get("fingerprint") != spec.fingerprint():
                    raise InputError(f"{path} belongs to another spec than {self.path / SPEC}")
            except InputError as error:
                refused.append(str(error))
            else:
                return Saved(path, tensors, data, tuple(refused))
        if refused:
            raise InputError("; ".join(refused))
        return None

    def spec(self) -> Spec:
        """The resolved spec of the run.

        Raises:
            InputError: this is not a run's directory, or its spec is not valid.
        """
        if not (self.path / SPEC).is_file():
            raise InputError(f"{self.path} is not a run: it has no {SPEC}")
        try:
            return load_spec(self.path / SPEC)
        except InputError as error:
            raise InputError(f"the spec of the run {self.path}: {error}") from error

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())

    def load(self, device: torch.device | str = "cpu") -> tuple[Spec, Experiment, int]:
        """Builds the run's components with the weights of its last checkpoint.

        Returns:
            The spec, the components on the device, and the number of updates behind the weights.

        Raises:
            InputError: not a run, a checkpoint that is missing, damaged, or of another spec, or the data
                have changed.
        """
        spec = self.spec()
        saved = self.saved(spec)
        if saved is None:
            raise InputError(f"there is no checkpoint {self.checkpoint}: the run has not come that far")
        experiment = build(spec)
        self.check_data(experiment.data)
        saved.restore(experiment)
        experiment.model.to(device)
        experiment.guide.to(device)
        experiment.data.to(torch.device(device))
        return spec, experiment, saved.step


@dataclass(frozen=True)
class Saved:
    """A checkpoint as it was read.

    Args:
        path: its file.
        tensors: weights, optimiser and running estimates, by prefixed name.
        data: ``step`` and other plain data.
        refused: newer checkpoints that were passed over, with the reason.
    """

    path: Path
    tensors: dict[str, Tensor]
    data: dict[str, Any]
    refused: tuple[str, ...]

    @property
    def step(self) -> int:
        return int(self.data["step"])

    def restore(self, experiment: Experiment) -> None:
        """Loads the weights and the objective's running estimates.

        Raises:
            InputError: names or shapes do not fit.
        """
        load_tensors(experiment.model, self.tensors, "model.")
        load_tensors(experiment.guide, self.tensors, "guide.")
        experiment.objective.load_state_dict(strip(self.tensors, "objective."))


def strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name starts with the prefix, without it."""
    return {name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)}


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Loads a module's weights from a checkpoint's tensors.

    Raises:
        InputError: names or shapes do not fit the module.
    """
    try:
        module.load_state_dict(strip(tensors, prefix))
    except RuntimeError as error:
        raise InputError(
            f"the checkpoint does not fit the {prefix.rstrip('.')}: {' '.join(str(error).split())}"
        ) from error


class MetricsLog:
    """Rows of ``metrics.csv``, and the same numbers as TensorBoard events.

    One row per measurement: ``step``, ``split`` (``train`` on the current minibatch, ``eval`` on
    held-out data), then the columns given.

    Args:
        run: where to write.
        columns: names of the numbers that a row may have; a row leaves the others empty.
        after: the number of updates behind the checkpoint that the run goes on from: rows up to
            there are kept, later ones (which will come again) are dropped.
    """

    def __init__(self, run: RunDirectory, columns: Iterable[str], after: int = 0) -> None:
        from wsram_ppl.runs.events import EventLog  # needs tensorboard, which reading a run does not

        path = run.path / METRICS
        header, rows = _rows_until(path, after) if after else ([], [])
        self._columns = list(dict.fromkeys([*header, "step", "split", *columns]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._rows = csv.DictWriter(self._file, self._columns)
        self._events = EventLog(run.path / "tensorboard", after)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds a row; numbers are written with six significant digits."""
        row = {name: f"{value:.6g}" for name, value in values.items() if name in self._columns}
        self._rows.writerow({"step": step, "split": split, **row})
        self._file.flush()
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._events.add(step, {f"{split}/{name}": value for name, value in finite.items()})

    def close(self) -> None:
        self._file.close()
        self._events.close()


def _rows_until(path: Path, step: int) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of ``metrics.csv`` and its whole rows up to an update."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if None not in row.values() and int(row["step"]) <= step]
            if any(None in row for row in rows):
                raise ValueError("a row is longer than the header")
            return list(reader.fieldnames or []), rows
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({one_line(error)}): remove it to go on without its rows"
        ) from error
