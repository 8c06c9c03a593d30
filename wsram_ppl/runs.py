"""A run's directory: the resolved spec, metrics, TensorBoard events, checkpoints and the summary."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsram_ppl.checkpoints import load_checkpoint, write_atomically
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.spec import Experiment, Spec, build, load_spec

SPEC, METRICS, SUMMARY, CHECKPOINT = "spec.toml", "metrics.csv", "summary.json", "last.safetensors"


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

    def create(self, spec: Spec) -> None:
        """Makes the directory and writes the spec.

        Raises:
            InputError: the directory holds something already.
            RunError: it cannot be made.
        """
        try:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise InputError(
                    f"{self.path} exists and is not empty: choose another --out, or remove it"
                )
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"cannot create {self.path}: {error.strerror}") from error
        write_atomically(self.path / SPEC, spec.to_toml().encode())

    def spec(self) -> Spec:
        """The resolved spec of the run.

        Raises:
            InputError: this is not a run's directory, or its spec is not valid.
        """
        if not (self.path / SPEC).is_file():
            raise InputError(f"{self.path} is not a run: it has no {SPEC}")
        return load_spec(self.path / SPEC)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_atomically(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())

    def load(self, device: torch.device | str = "cpu") -> tuple[Spec, Experiment, int]:
        """Builds the run's components with the weights of its last checkpoint.

        Returns:
            The spec, the components on the device, and the number of updates behind the weights.

        Raises:
            InputError: not a run, or a checkpoint that is missing, damaged, or of another spec.
        """
        spec = self.spec()
        tensors, data = load_checkpoint(self.checkpoint)
        if data.get("fingerprint") != spec.fingerprint():
            raise InputError(f"{self.checkpoint} belongs to another spec than {self.path / SPEC}")
        experiment = build(spec)
        load_tensors(experiment.model, tensors, "model.")
        load_tensors(experiment.guide, tensors, "guide.")
        experiment.objective.load_state_dict(strip(tensors, "objective."))
        experiment.model.to(device)
        experiment.guide.to(device)
        experiment.data.to(torch.device(device))
        return spec, experiment, int(data["step"])


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
    """

    def __init__(self, run: RunDirectory, columns: Iterable[str]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._columns = ["step", "split", *columns]
        self._file = open(run.path / METRICS, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._rows = csv.DictWriter(self._file, self._columns)
        self._rows.writeheader()
        self._events = SummaryWriter(str(run.path / "tensorboard"))

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds a row; numbers are written with six significant digits."""
        row = {name: f"{value:.6g}" for name, value in values.items() if name in self._columns}
        self._rows.writerow({"step": step, "split": split, **row})
        self._file.flush()
        for name, value in values.items():
            if math.isfinite(value):
                self._events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        self._file.close()
        self._events.close()
