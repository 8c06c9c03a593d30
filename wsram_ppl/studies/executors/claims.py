"""Who is at work on which run: one claim per run, for processes and machines that share a folder.

``claims/NAME.N`` is the N-th claim on a run. It is made exclusively, so of all that ask for it one gets
it, and the newest counts: to take over a dead process's claim is to make the next one. Nothing is ever
removed, so nobody can take a claim away by mistake.

Whose owner lives holds a lock on the file, which the run's process inherits. On the owner's machine a
claim without its lock is free. On another machine, where locks may not be seen, it is free once neither
the claim nor the run's metrics have moved while this process watched.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from wsram_ppl.errors import RunError
from wsram_ppl.files import lock, make_folder
from wsram_ppl.runs.metrics import METRICS

__all__ = ["Claims"]

#: Seconds between signs of life, and without one after which a process on another machine is dead.
#: A file system may show a sign up to a minute late.
_BEAT: Final = 15.0
_PATIENCE: Final = 150.0


@dataclass
class Claims:
    """The claims of this process on the runs of a study; given back when left.

    Args:
        folder: of the study.
        patience: seconds without a sign of life after which a process on another machine is dead.
    """

    folder: Path
    patience: float = _PATIENCE
    _held: dict[str, tuple[int, IO[bytes]]] = field(default_factory=dict)
    _before: dict[str, int] = field(default_factory=dict)
    _signs: dict[Path, tuple[object, float]] = field(default_factory=dict)
    _next: float = 0.0

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._held):
            self.give_back(name)

    def watch(self, names: Iterable[str]) -> None:
        """From now on another process's failures of these runs count."""
        for name in names:
            newest = self._newest(name)
            ended = _read(self._path(name, newest)).get("ended")
            self._before[name] = newest if ended else newest - 1

    def take(self, name: str) -> bool:
        """Claims a run; whether that was possible.

        Raises:
            RunError: the folder cannot be written.
        """
        newest = self._newest(name)
        if newest and self._is_alive(name, newest):
            return False
        path = self._path(name, newest + 1)
        make_folder(path.parent)
        try:
            file = open(path, "x+b")  # noqa: SIM115
        except FileExistsError:
            return False
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from error
        lock(file, wait=True)
        _write(file, {"machine": _MACHINE, "host": socket.gethostname(), "process": os.getpid()})
        self._held[name] = newest + 1, file
        return True

    def file_of(self, name: str) -> int:
        """The descriptor of a claim that is held, for the run's process to inherit."""
        return self._held[name][1].fileno()

    def give_back(self, name: str, failure: str | None = None) -> None:
        """Lets go of a run.

        Args:
            failure: why it failed, for others that have waited for it.
        """
        _, file = self._held.pop(name)
        with file, suppress(OSError):  # no space: it is free with its lock
            _write(file, {"ended": True, "failure": failure})

    def failed_elsewhere(self, name: str) -> str | None:
        """Why a run has failed in another process since :meth:`watch`; None if it has not."""
        newest = self._newest(name)
        if newest <= self._before.get(name, newest):
            return None
        found = _read(self._path(name, newest)).get("failure")
        return None if found is None else str(found)

    def failure(self, name: str) -> str | None:
        """Why a run failed when it was last claimed; None if it did not."""
        found = _read(self._path(name, self._newest(name))).get("failure")
        return None if found is None else str(found)

    def owner(self, name: str) -> str:
        """Who has the newest claim on a run."""
        found = _read(self._path(name, self._newest(name)))
        return f"{found.get('host', 'another machine')} (process {found.get('process', 'unknown')})"

    def beat(self) -> list[str]:
        """Gives a sign of life, where it is time for one.

        Returns:
            Claims that others have taken over, for this process seemed dead: they are no longer held.
        """
        if time.monotonic() < self._next:
            return []
        self._next = time.monotonic() + _BEAT
        lost = []
        for name, (number, file) in list(self._held.items()):
            if self._path(name, number + 1).exists():
                lost.append(name)
                self._held.pop(name)[1].close()
            else:
                with suppress(OSError):  # not worth to end a run for
                    os.utime(file.fileno())
        return lost

    def _path(self, name: str, number: int) -> Path:
        return self.folder / "claims" / f"{name}.{number}"

    def _newest(self, name: str) -> int:
        """The number of the newest claim; 0 where there is none."""
        number = self._held[name][0] if name in self._held else 0
        while self._path(name, number + 1).exists():
            number += 1
        return number

    def _is_alive(self, name: str, number: int) -> bool:
        path = self._path(name, number)
        try:
            with open(path, "r+b") as file:
                found = _parsed(file.read())
                if found.get("ended"):
                    return False
                free = lock(file)
                if free is False:
                    return True
                if free and found.get("machine") == _MACHINE:
                    return False
                claim = os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            raise RunError(f"cannot read {path}: {error.strerror}") from error
        run = 0
        with suppress(OSError):
            run = (self.folder / name / METRICS).stat().st_mtime_ns
        sign = claim, run
        before, since = self._signs.get(path, (None, 0.0))
        if sign != before:
            self._signs[path] = sign, time.monotonic()
            return True
        return time.monotonic() < since + self.patience


def _machine() -> str:
    """What tells apart machines that may have the same name, and a machine from itself before it was
    started anew."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


_MACHINE: Final = _machine()


def _write(file: IO[bytes], record: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(record).encode())
    file.flush()


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError):
        return _parsed(path.read_bytes())
    return {}


def _parsed(text: bytes) -> dict[str, Any]:
    """What a claim says; nothing while it is being written."""
    with suppress(ValueError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}
