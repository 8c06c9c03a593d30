"""Reading from a data source, with its name in every error."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch import Tensor

from wsram_ppl.errors import InputError, RunError, SourceError, one_line
from wsram_ppl.interfaces import DataSource, HeldOut

__all__ = ["has_splits", "held_out", "reading", "some_of_each_class"]

#: Held-out data of which some are chosen to be looked at.
_CANDIDATES: Final = 128


@contextmanager
def reading(source: str) -> Iterator[None]:
    """A context for reading from a data source.

    Args:
        source: its name.

    Raises:
        SourceError: for whatever the source raises, unless it is an error meant for the user already.
            The message names the file, if there is one.
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


def has_splits(data: DataSource) -> bool:
    """Whether a source has test data besides the validation data."""
    return "split" in inspect.signature(data.evaluation_batches).parameters


def held_out(
    data: DataSource, source: str, size: int, limit: int | None = None, split: HeldOut | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """The held-out batches of a source (:meth:`~wsram_ppl.interfaces.DataSource.evaluation_batches`).

    Args:
        split: None for the source's default, validation data.

    Raises:
        InputError: there are none, or the source has no such split.
        SourceError: they cannot be read.
    """
    if split is not None and not has_splits(data):
        raise InputError(
            f"data {source!r} has one held-out set: leave out --split, or give its evaluation_batches a "
            'keyword split, "validation" or "test"'
        )
    empty = True
    with reading(source):
        chosen = {} if split is None else {"split": split}
        for batch in data.evaluation_batches(size, limit, **chosen):
            empty = False
            yield batch
    if empty:
        raise InputError(f"data {source!r} has no held-out data: its evaluation_batches yields nothing")


def some_of_each_class(data: DataSource, source: str, count: int) -> tuple[Tensor, ...]:
    """The first held-out data of each class in turn, ``count`` in all, where the second part is labels.

    Raises:
        InputError, SourceError: as :func:`held_out`.
    """
    candidates = max(count, _CANDIDATES)
    batch = next(held_out(data, source, candidates, candidates))
    labels = batch[1] if len(batch) > 1 else batch[0]
    if labels.dim() != 1 or labels.is_floating_point():
        return tuple(part[:count] for part in batch)
    # Which of its class each one is.
    before = (labels[:, None] == labels).tril(-1).sum(1)
    chosen = before.argsort(stable=True)[:count].sort().values
    return tuple(part[chosen] for part in batch)
