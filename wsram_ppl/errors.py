"""The kinds of failure that a user can meet, each reported in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # errors do not need torch
    from torch import Tensor


class InputError(ValueError):
    """The user's input is wrong (config, option, file, device). The command line exits with 2."""


class RunError(RuntimeError):
    """The work itself failed (no space, a non-finite loss, a dead process). The exit code is 1."""


class Diverged(RunError):
    """A loss or gradient is not finite; ``tensors`` and ``data`` hold the state at that point.

    Args:
        has_cause: whether the message names a cause, not only the resulting gradient.
    """

    def __init__(
        self, message: str, tensors: dict[str, Tensor], data: dict[str, Any], has_cause: bool = True
    ) -> None:
        super().__init__(message, tensors, data, has_cause)  # all of them, so that it can be sent
        self.tensors, self.data, self.has_cause = tensors, data, has_cause

    def __str__(self) -> str:
        return str(self.args[0])


class Interrupted(RunError):
    """A signal ended the work, which was saved first. The exit code is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return str(self.args[0])


class SourceError(RunError):
    """A data source failed: always between two updates, so that the weights are consistent."""


class WorkerExit(RunError):
    """One of several processes ends because of an error that the first of them reports."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("see the error of the first process")
        self.exit_code = exit_code


def exit_code(error: BaseException) -> int:
    """The exit code of the command line."""
    if isinstance(error, (Interrupted, WorkerExit)):
        return error.exit_code
    return 2 if isinstance(error, InputError) else 1


def one_line(error: BaseException) -> str:
    """An exception's type and text in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def nearest(word: str, options: Iterable[str]) -> str:
    """``" did you mean 'x'?"`` with the nearest of ``options``, or "" if none is near."""
    by_lower = {option.lower(): option for option in options}
    found = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.5)
    return f" did you mean {by_lower[found[0]]!r}?" if found else ""
