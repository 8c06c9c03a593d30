"""Reading from a data source, whose failures are told with its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from wsram_ppl.errors import InputError, RunError, SourceError, one_line
from wsram_ppl.interfaces import DataSource

__all__ = ["held_out", "reading"]


@contextmanager
def reading(source: str) -> Iterator[None]:
    """Entered while a data source reads.

    Args:
        source: its name.

    Raises:
        SourceError: for whatever the source raises that does not speak to the user already. The message
            names the file, where there is one.
    """
    try:
        yield
    except (InputError, RunError):
        raise
    except OSError as error:
        file = "" if error.filename is None else f" {error.filename}"
        reason = error.strerror or one_line(error)
        raise SourceError(f"data {source!r} cannot read{file}: {reason}") from error
    except Exception as error:
        text = f"data {source!r}: {one_line(error)} (WSRAM_TRACEBACK=1 shows where)"
        raise SourceError(text) from error


def held_out(
    data: DataSource, source: str, size: int, limit: int | None = None, **split: Any
) -> Iterator[tuple[Tensor, ...]]:
    """The held-out batches of a source (:meth:`~wsram_ppl.interfaces.DataSource.evaluation_batches`).

    Raises:
        InputError: there are none.
        SourceError: they cannot be read.
    """
    empty = True
    with reading(source):
        for batch in data.evaluation_batches(size, limit, **split):
            empty = False
            yield batch
    if empty:
        raise InputError(f"data {source!r} has no held-out data: its evaluation_batches yields nothing")
