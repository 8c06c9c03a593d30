"""``metrics.csv``: what a run measured during training."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from wsram_ppl.errors import InputError, one_line
from wsram_ppl.files import write_atomically

__all__ = ["METRICS", "MetricsLog", "Numbers", "Rows", "last_row", "read_rows", "rows_until"]

#: The name of the file, in a run's directory.
METRICS: Final = "metrics.csv"

#: A column of the file.
Numbers = NDArray[np.float64]

#: Bytes at the end of a file that hold its last row.
_TAIL: Final = 8192


class MetricsLog:
    """Rows of ``metrics.csv``.

    One row per measurement: ``step``, ``split`` (``train`` on the current minibatch, ``eval`` on
    held-out data), then the columns given.

    Args:
        run: the run's directory.
        columns: names of the numbers that a row may have; a row leaves the others empty.
        after: the number of updates at the checkpoint that the run resumes from: rows up to it are
            kept, later ones (which will be written again) are dropped.

    Attributes:
        columns: all columns of the file.
        measured: the splits that have a row for that number of updates.
    """

    def __init__(self, run: Path, columns: Iterable[str], after: int = 0) -> None:
        path = run / METRICS
        header, rows = _rows_until(path, after) if after else ([], [])
        self.measured = {row["split"] for row in rows if int(row["step"]) == after}
        self.columns = list(dict.fromkeys([*header, "step", "split", *columns]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._rows = csv.DictWriter(self._file, self.columns)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds a row; numbers are written with six significant digits."""
        row = {name: f"{value:.6g}" for name, value in values.items() if name in self.columns}
        self._rows.writerow({"step": step, "split": split, **row})
        self._file.flush()

    def sync(self) -> None:
        """Waits until the rows are on the disk, where not even a power failure loses them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; nothing can be added any more."""
        self._file.close()


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Attributes:
        steps: updates done, ``[T]``, increasing.
        columns: each ``[T]``; NaN where a row is empty.
    """

    steps: Numbers
    columns: Mapping[str, Numbers]

    def measured(self, name: str) -> tuple[Numbers, Numbers] | None:
        """Steps and values of the rows that have this number; None if no row has it."""
        values = self.columns.get(name)
        if values is None or not (known := ~np.isnan(values)).any():
            return None
        return self.steps[known], values[known]


def read_rows(run: Path, split: str) -> Rows:
    """The rows of a split (``train``, ``eval``, ``probe``) of a run; none if it has none.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = run / METRICS
    try:
        names, every = _read(path)
        rows = [row for row in every if row["split"] == split]
        steps = np.array([int(row["step"]) for row in rows], dtype=np.float64)
        columns = {
            name: np.array([float(row[name] or "nan") for row in rows], dtype=np.float64)
            for name in names
            if name not in ("step", "split")
        }
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {one_line(error)}") from error
    return Rows(steps, columns)


def rows_until(run: Path, step: int) -> list[tuple[int, str, dict[str, float]]]:
    """The update, the split and the numbers of every row up to an update, in order.

    Raises:
        InputError: the file is damaged.
    """
    rows = _rows_until(run / METRICS, step)[1]
    return [(int(row["step"]), row["split"], _numbers(row)) for row in rows]


def last_row(run: Path) -> tuple[int, dict[str, float]] | None:
    """The update and the numbers of the last row of a run in progress; None if there is none to read.

    The rows before it are not read.
    """
    try:
        with open(run / METRICS, "rb") as file:
            header = file.readline()
            file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - _TAIL))
            tail = file.read()
        last = tail[: tail.rfind(b"\n") + 1].splitlines()[-1:]  # what follows is an incomplete row
        (row,) = csv.DictReader(io.StringIO(b"\n".join([header.rstrip(), *last]).decode()))
        if None in row or None in row.values():
            return None
        return int(row["step"]), _numbers(row)
    except (OSError, ValueError, KeyError, csv.Error):
        return None


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(text) for name, text in row.items() if name not in ("step", "split") and text}


def _rows_until(path: Path, step: int) -> tuple[list[str], list[dict[str, str]]]:
    """The columns of ``metrics.csv`` and its complete rows up to an update; none without the file.

    Raises:
        InputError: it is damaged.
    """
    try:
        names, rows = _read(path)
        return names, [row for row in rows if int(row["step"]) <= step]
    except FileNotFoundError:
        return [], []
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(
            f"{path} is damaged ({one_line(error)}): remove it to continue without its rows"
        ) from error


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns and the rows; an incomplete row is left out."""
    with open(path, newline="", encoding="utf-8") as file:
        lines = file.readlines()
    whole = [line for line in lines if line.endswith("\n")]
    reader = csv.DictReader(whole, strict=True)
    rows = [row for row in reader if None not in row.values()]
    if any(None in row for row in rows):
        raise ValueError("a row is longer than the header")
    return list(reader.fieldnames or []), rows
