"""The two kinds of failure that a user can meet, each told in one line."""


class InputError(ValueError):
    """What the user gave is wrong (spec, option, file, device). The command line exits with 2."""


class RunError(RuntimeError):
    """The work itself failed (no space, a non-finite loss, a dead process). It exits with 1."""


class Interrupted(RunError):
    """A signal ended the work, which was saved first. It exits with 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
