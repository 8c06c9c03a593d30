"""Standard output and error, which may be closed, unread, or unable to encode some characters."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, Final

import click

#: A pipe without a reader, and a terminal that was closed.
_UNREAD: Final = (errno.EPIPE, errno.EIO)


def mend_streams() -> None:
    """Makes writing to standard output and error safe for the rest of the process.

    Output that nobody reads any more is dropped, so that the command continues and ends with its own
    exit code. Characters that a stream cannot encode are replaced. A closed stream is redirected to the
    null device, so that no other file takes its number. Streams that a program has replaced are kept.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: its number is now the lowest free one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if sys.platform == "win32" and stream is not None and stream.isatty():
            stream.reconfigure(errors="replace")  # that console takes text, not bytes
            continue
        encoding = stream.encoding if stream is not None else "utf-8"
        lines = number == 2 or (stream is not None and stream.line_buffering)
        raw = io.BufferedWriter(_Output(number))
        setattr(sys, name, io.TextIOWrapper(raw, encoding, errors="replace", line_buffering=lines))


class _Unwritable(click.ClickException):
    """Ends the command with 1, wherever it prints, also before it runs, as for ``--help``."""

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


class _Output(io.FileIO):
    """The bytes of a standard stream, dropped from the first that cannot be written."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        self._lost = False

    def write(self, data: Any, /) -> int:
        if not self._lost:
            try:
                return super().write(data)
            except OSError as error:
                self._lost = True
                if self.fileno() == 1 and error.errno not in _UNREAD:
                    raise _Unwritable(f"cannot write the output: {error.strerror}") from error
        return len(data)
