"""Files and folders, with every failure reported in one line."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any, Final

from wsram_ppl.errors import InputError, RunError, one_line

#: The end of the name of a file that is being written.
_PARTIAL: Final = ".partial"


def read_text(path: str | PathLike[str]) -> str:
    """The text of a user's file, in UTF-8 (without a byte order mark), with its line ends unchanged.

    Raises:
        InputError: missing, not readable or not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"there is no file {str(path)!r}") from None
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or an invalid path
        raise InputError(f"cannot read {str(path)!r}: {one_line(error)}") from None


def make_folder(path: Path) -> None:
    """Creates a folder and its parents, if they do not exist.

    Raises:
        InputError: its name is too long.
        RunError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_create(path, error) from error


def make_next_folder(path: Path) -> Path:
    """Creates a new folder: PATH, or the first free one of PATH-2, PATH-3, ...

    If several processes ask at once, each gets its own.

    Returns:
        Its path.

    Raises:
        InputError: its name is too long.
        RunError: it cannot be created.
    """
    make_folder(path.parent)
    for count in itertools.count(1):
        free = path if count == 1 else path.with_name(f"{path.name}-{count}")
        try:
            free.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise _cannot_create(free, error) from error
        return free
    raise AssertionError("there is always a next number")


def _cannot_create(path: Path, error: OSError) -> InputError | RunError:
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"cannot create {str(path)[:60]}...: the name is too long: choose another")
    return RunError(f"cannot create {path}: {error.strerror}")


def to_json(data: Any, indent: int | None = None) -> str:
    """Strictly valid JSON: a number that is not finite is null, and a warning names it."""
    lost: list[str] = []
    text = json.dumps(_finite(data, "", lost), indent=indent, allow_nan=False)
    if lost:
        warnings.warn(f"not finite, so null in JSON: {', '.join(lost)}", stacklevel=2)
    return text


def _finite(value: Any, name: str, lost: list[str]) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(f"{name} ({value})")
        return None
    if isinstance(value, Mapping):
        return {key: _finite(v, f"{name}.{key}" if name else str(key), lost) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v, f"{name}[{place}]", lost) for place, v in enumerate(value)]
    return value


def is_partial(path: Path) -> bool:
    """Whether it is what a process that was killed left of a file that it was writing."""
    return path.name.startswith(".") and path.name.endswith(_PARTIAL)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces the file by one with this content; readers see either the old or the complete new file.

    Raises:
        RunError: the file cannot be written (no space, no permission); the old one is intact.
    """
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):  # where nothing can be written nothing can be removed
            partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error


def lock(file: IO[bytes], *, wait: bool = False) -> bool | None:
    """Locks an open file for this process and every child that inherits it, until all have closed it.

    Args:
        wait: whether to wait for another process that holds the lock.

    Returns:
        Whether it is locked now; None on Windows, and in a file system without locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            return None
        raise
    return True


@contextmanager
def locked(path: Path, busy: str) -> Iterator[int]:
    """Keeps other processes out until this one and every child that inherits the lock have ended.

    The lock ends with its processes, however they end; its empty file stays.

    Args:
        path: the lock's file, created if necessary.
        busy: the message if another process holds the lock.

    Yields:
        The file descriptor, for children to inherit; -1 if no one can be kept out: on Windows, and,
        with a warning, in a file system without locks.

    Raises:
        RunError: another process holds the lock, or the file cannot be written.
    """
    with _opened(path) as file:
        free = _lock(file, path)
        if free is False:
            raise RunError(busy)
        if free is None and sys.platform != "win32":
            warnings.warn(
                f"the file system of {path.parent} has no locks: make sure that no other process "
                "works there",
                stacklevel=3,
            )
        yield file.fileno() if free else -1


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Waits until no other process has its turn, as far as the file system has locks.

    Args:
        path: the lock's file, created if necessary.

    Raises:
        RunError: the file cannot be written.
    """
    with _opened(path) as file:
        _lock(file, path, wait=True)
        yield


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "ab")
    except OSError as error:
        raise RunError(f"cannot write to {path.parent}: {error.strerror}") from error


def _lock(file: IO[bytes], path: Path, wait: bool = False) -> bool | None:
    try:
        return lock(file, wait=wait)
    except OSError as error:
        raise RunError(f"cannot write to {path.parent}: {error.strerror}") from error
