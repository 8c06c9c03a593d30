"""The two kinds of failure that a user can meet, each told in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a reader of errors need not wait for torch
    from torch import Tensor


class InputError(ValueError):
    """What the user gave is wrong (spec, option, file, device). The command line exits with 2."""


class RunError(RuntimeError):
    """The work itself failed (no space, a non-finite loss, a dead process). It exits with 1."""


class Diverged(RunError):
    """A loss or gradient is not finite; ``tensors`` and ``data`` say how things stood."""

    def __init__(self, message: str, tensors: dict[str, Tensor], data: dict[str, Any]) -> None:
        super().__init__(message)
        self.tensors, self.data = tensors, data


class Interrupted(RunError):
    """A signal ended the work, which was saved first. It exits with 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
