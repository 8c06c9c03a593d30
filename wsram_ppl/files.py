"""Files and folders, with every failure told in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

from wsram_ppl.errors import InputError, RunError, one_line


def read_text(path: str | PathLike[str]) -> str:
    """What a file of the user's holds, in UTF-8 (a byte order mark is left out), line ends as they are.

    Raises:
        InputError: not there, not readable or not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or a path that no file can have
        raise InputError(f"cannot read {str(path)!r}: {one_line(error)}") from None


def make_folder(path: Path) -> None:
    """Makes a folder, and those that it is in, where they are not there yet.

    Raises:
        RunError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot create {path}: {error.strerror}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces the file by one with this content; a reader sees the old file or the whole new one.

    Raises:
        RunError: the file cannot be written (no space, no permission); the old one is intact.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error


@contextmanager
def locked(path: Path, busy: str) -> Iterator[int]:
    """Keeps other processes out, until this one and every child that inherits the lock have ended.

    The lock goes with its processes, however they end; its empty file stays.

    Args:
        path: of the lock's file, created if need be.
        busy: what to say where another process holds the lock.

    Yields:
        The file descriptor, for children to inherit; -1 where the system has no such locks (Windows):
        nobody is kept out there.

    Raises:
        RunError: another process holds the lock, or the file cannot be written.
    """
    if sys.platform == "win32":
        yield -1
        return
    import fcntl

    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "ab"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(busy) from None
        except OSError as error:
            raise RunError(f"cannot write to {path.parent}: {error.strerror}") from error
        yield file.fileno()
