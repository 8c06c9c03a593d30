"""``metrics.csv``: what a run measured along its way."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from wsram_ppl.errors import InputError, one_line
from wsram_ppl.files import write_atomically

__all__ = ["METRICS", "MetricsLog"]

METRICS = "metrics.csv"


class MetricsLog:
    """Rows of ``metrics.csv``, and the same numbers as TensorBoard events.

    One row per measurement: ``step``, ``split`` (``train`` on the current minibatch, ``eval`` on
    held-out data), then the columns given.

    Args:
        run: the run's directory.
        columns: names of the numbers that a row may have; a row leaves the others empty.
        after: the number of updates behind the checkpoint that the run goes on from: rows up to
            there are kept, later ones (which will come again) are dropped.
    """

    def __init__(self, run: Path, columns: Iterable[str], after: int = 0) -> None:
        from wsram_ppl.runs.events import EventLog  # needs tensorboard, which reading a run does not

        path = run / METRICS
        header, rows = _rows_until(path, after) if after else ([], [])
        self._columns = list(dict.fromkeys([*header, "step", "split", *columns]))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, text.getvalue().encode())
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115
        self._rows = csv.DictWriter(self._file, self._columns)
        self._events = EventLog(run / "tensorboard", after)

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
