"""What a run keeps of its data: without it the weights mean nothing, such as the numbers of words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsram_ppl.errors import InputError
from wsram_ppl.files import to_json, write_atomically

if TYPE_CHECKING:  # reading a run's settings does not need torch
    from wsram_ppl.interfaces import DataSource

DATA = "data.json"
#: The key of a record that matters only when training is resumed.
TRAINING = "training"


class DataRecord:
    """The file ``data.json`` in a run's directory: the ``record`` of its data source, if it has one.

    Args:
        run: the directory.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = run, run / DATA

    def keep(self, data: DataSource) -> None:
        """Writes the file, unless it is there.

        Raises:
            InputError: it is there, and an earlier part of the run used other data.
            RunError: it cannot be written.
        """
        record = _record(data)
        if record is not None and not self.path.exists():
            write_atomically(self.path, (to_json(record, indent=1) + "\n").encode())
        self.check(data)

    def check(self, data: DataSource, *, other: bool = False) -> None:
        """Makes sure that the data match the record, if there is one.

        Args:
            other: whether they are meant to differ from those that the run was trained on. If so, the
                record's ``training`` part does not count, nor does what the data lack.

        Raises:
            InputError: they do not, or the file cannot be read.
        """
        record, kept = _record(data), self.read()
        if kept is None:
            if record is not None:
                raise InputError(
                    f"there is no {self.path}, which records what data {self.run} started with: restore "
                    "it, or train again"
                )
            return
        now = json.loads(to_json(record or {}))
        compared = [key for key in kept if key in now and key != TRAINING] if other else {**kept, **now}
        changed = [key for key in compared if kept.get(key) != now.get(key)]
        if changed:
            raise InputError(
                f"the data have changed since {self.run} was started ({', '.join(changed)} not as "
                f"in {self.path}): its weights have no meaning for them; restore the old data, or train "
                "again"
            )

    def read(self) -> dict[str, Any] | None:
        """The record; None if there is none.

        Raises:
            InputError: it cannot be read.
        """
        try:
            kept: dict[str, Any] = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.path}: {error}") from error
        return kept


def _record(data: DataSource) -> Mapping[str, Any] | None:
    from wsram_ppl.interfaces import KeepsRecord

    return data.record if isinstance(data, KeepsRecord) else None
