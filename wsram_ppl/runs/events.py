"""Numbers and pictures as TensorBoard reads them."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

if TYPE_CHECKING:
    from PIL import Image

_PREFIX: Final = "events.out.tfevents."


class EventLog:
    """A file of events, written row by row in the caller's thread.

    ``torch.utils.tensorboard`` writes from its own thread, up to two minutes later: a run that is
    killed would lose those events, and on a full disk that thread ends with a traceback.

    Args:
        folder: for the file; created if necessary.
        after: the number of updates after which earlier files' events are void, if any.

    Raises:
        OSError: the file cannot be written; every method may raise it.
    """

    def __init__(self, folder: Path, after: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a folder in order of their names. The clock may have been
        # set back since the last one.
        earlier = sorted(file for file in folder.iterdir() if _number(file.name))
        number = max([time.time_ns(), *(_number(file.name) + 1 for file in earlier)])
        name = f"{_PREFIX}{number:020d}.{socket.gethostname()}.{os.getpid()}"
        self._known = _last_steps(earlier, after)
        self._file = open(folder / name, "wb")  # noqa: SIM115
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if earlier:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=after + 1, session_log=start))

    def known(self, name: str) -> int:
        """The update of the last value in the earlier files, of those that are not void."""
        return self._known.get(name, 0)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of an update, by name."""
        self._summarize(
            step, [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        )

    def show(self, step: int, name: str, picture: Image.Image) -> None:
        """Writes a picture."""
        png = io.BytesIO()
        picture.save(png, "PNG")
        image = Summary.Image(
            width=picture.width, height=picture.height, colorspace=3, encoded_image_string=png.getvalue()
        )
        self._summarize(step, [Summary.Value(tag=name, image=image)])

    def _summarize(self, step: int, values: Sequence[Summary.Value]) -> None:
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def _write(self, event: Event) -> None:
        try:
            self._records.write(event.SerializeToString())
            self._file.flush()
        except OSError:
            with suppress(OSError):  # what is left to be written does not fit either
                self._file.close()
            raise

    def close(self, code: int = 0) -> None:
        """Closes the file; nothing can be added any more."""
        self._file.close()


def _last_steps(files: Iterable[Path], after: int) -> dict[str, int]:
    """The update of the last value of each number and picture, up to an update.

    Args:
        files: in the order in which they were written; the last may be cut short.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    steps: dict[str, list[int]] = {}
    for file in files:
        for event in LegacyEventFileLoader(str(file)).Load():
            if event.session_log.status == SessionLog.START:  # what is later is void
                steps = {name: [s for s in found if s < event.step] for name, found in steps.items()}
            for value in event.summary.value:
                steps.setdefault(value.tag, []).append(event.step)
    return {name: max((s for s in found if s <= after), default=0) for name, found in steps.items()}


def _number(name: str) -> int:
    """The number in the name of a file of events; 0 if it is not one."""
    number = name.removeprefix(_PREFIX).partition(".")[0]
    return int(number) if name.startswith(_PREFIX) and number.isdecimal() else 0
