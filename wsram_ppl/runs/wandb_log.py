"""A run in Weights & Biases, online or offline as its own settings say (``WANDB_MODE``)."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import wandb
from wandb.proto import wandb_internal_pb2 as protobuf

from wsram_ppl.config import ExperimentConfig
from wsram_ppl.runs.tracked import TrackedRun

if TYPE_CHECKING:
    from PIL import Image

#: Of a .wandb file, which is a LevelDB log: bytes before the first block, and of a block.
_START, _BLOCK = 7, 32768
#: Checksum, length and kind of a piece; kinds that end a record.
_PIECE: Final = struct.Struct("<IHB")
_LAST: Final = (1, 4)


class WandbLog:
    """The run of a project, which goes on under its id; its files are in the run's directory.

    W&B's steps are updates. Offline, each process writes a file of its own, which goes on where the
    earlier ones end; ``wandb sync`` puts them together.

    Args:
        run: what it is called. The project is ``WANDB_PROJECT``, or else the run's project.
        config: the resolved one.
        folder: the run's directory.

    Raises:
        wandb.Error: W&B cannot be used; so does every method.
    """

    def __init__(self, run: TrackedRun, config: ExperimentConfig, folder: Path) -> None:
        earlier = sorted((folder / "wandb").glob(f"offline-run-*-{run.id}/*.wandb"))
        if earlier:  # W&B names a file by the second, and would overwrite one of this second
            second = int(earlier[-1].parent.stat().st_mtime)
            time.sleep(max(second + 1 - time.time(), 0.0))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or run.project,
            id=run.id,
            name=run.name,
            group=run.group,
            dir=folder,
            config=config.tables(),
            allow_val_change=True,
            resume="allow",
            reinit="create_new",  # another run of the same program is left alone
            settings=wandb.Settings(console="off"),
        )
        self._known: dict[str, int] = {}
        for file in earlier if self._run.offline else ():
            for row in history(file):
                self._known |= {item.nested_key[0]: row.step.num for item in row.item}
        # W&B's server takes nothing more for updates that it has.
        self._begun = 0 if self._run.offline else self._run.starting_step - 1

    def known(self, name: str) -> int:
        """The update of the last value there was when this was opened; online, of the last of any."""
        return self._known.get(name, self._begun)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs numbers; W&B's own process does the rest."""
        self._run.log(dict(numbers), step=step)

    def show(self, step: int, name: str, picture: Image.Image) -> None:
        """Logs a picture."""
        self._run.log({name: wandb.Image(picture)}, step=step)

    def close(self, code: int) -> None:
        """Says how the run has ended, and waits until all is written or sent."""
        self._run.finish(exit_code=code)


def history(file: Path) -> Iterator[Any]:
    """The rows (protobuf's ``HistoryRecord``) in a .wandb file, which may be cut short."""
    data, place, record = file.read_bytes(), _START, b""
    while place + _PIECE.size <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _PIECE.size:  # no piece begins so near to the end of a block
            place += left
            continue
        _, length, kind = _PIECE.unpack_from(data, place)
        place += _PIECE.size + length
        if place > len(data):
            return
        record += data[place - length : place]
        if kind in _LAST:
            found = protobuf.Record.FromString(record)  # type: ignore[attr-defined]
            record = b""
            if found.HasField("history"):
                yield found.history
