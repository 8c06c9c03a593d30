"""The group of all commands, which turns a failure into one line and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

import click

from wsram_ppl import __version__
from wsram_ppl.commands import captions, extra, listing, measuring, pictures, studies, training
from wsram_ppl.commands.shared import print_notes
from wsram_ppl.commands.streams import mend_streams
from wsram_ppl.distributed.environment import end_with_launcher, is_worker
from wsram_ppl.errors import InputError, Interrupted, RunError, WorkerExit, exit_code


class _Commands(click.Group):
    """Turns every failure into one line and an exit code: 2 for wrong input, 1 for failed work."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            _ctrl_c.watch()
            mend_streams()
            end_with_launcher()
            return super().__call__(*args, **kwargs)
        except KeyboardInterrupt:
            _stop()

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except KeyboardInterrupt:  # click would turn it into something else
            _stop()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # click's own report takes three lines
            click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            _stop()
        except Exception as error:
            if _ctrl_c.came or _interrupted(error):
                _stop()
            if os.environ.get("WSRAM_TRACEBACK"):
                raise
            if extra.is_missing(error):
                extra.advise()
                ctx.exit(2)
            # Pyro appends a table of shapes to errors raised inside a program.
            text = " ".join(str(error).partition("\nTrace Shapes:")[0].split())
            if not isinstance(error, (InputError, RunError)):
                text = f"{type(error).__name__}: {text} (WSRAM_TRACEBACK=1 shows where)"
            if not isinstance(error, WorkerExit):
                click.echo(text if isinstance(error, Interrupted) else f"error: {text}", err=True)
            ctx.exit(exit_code(error))


class _CtrlC:
    """Handles Ctrl-C while the command has nothing to save.

    During an import it ends the process at once: C++ extensions may not survive an exception there.
    Otherwise it is remembered, since libraries turn it into errors of their own.

    Attributes:
        came: whether Ctrl-C was received.
    """

    came = False

    def watch(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> NoReturn:
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                if not is_worker():
                    with suppress(OSError):
                        os.write(2, b"stopped\n")
                os._exit(128 + number)
            frame = frame.f_back
        self.came = True
        raise KeyboardInterrupt


_ctrl_c = _CtrlC()


def _stop() -> NoReturn:
    """Ends the process when there is nothing to save."""
    if not is_worker():
        click.echo("stopped", err=True)
    raise SystemExit(128 + signal.SIGINT)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error was caused by a ``KeyboardInterrupt``, such as a stopped import of a library."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsram_ppl")
def main() -> None:
    """Train hard-attention models, networks that sample where to look, by wake-sleep and other methods.

    Exit codes: 0 for success, 1 for a failure, 2 for wrong input, 128 + n if stopped by signal n.
    """
    warnings.showwarning = _one_line
    log = logging.getLogger("wsram_ppl")
    log.setLevel(logging.WARNING if is_worker() else logging.INFO)
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes())


class _Notes(logging.Handler):
    """Shows the library's log messages."""

    def emit(self, record: logging.LogRecord) -> None:
        print_notes([" ".join(record.getMessage().split())])


def _one_line(message: Warning | str, *where: object, **more: object) -> None:
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


for _command in (
    training.train,
    measuring.evaluate,
    measuring.variance,
    pictures.glimpses,
    pictures.look,
    pictures.caption,
    captions.features,
    captions.score,
    studies.compare,
    listing.list_components,
):
    main.add_command(_command)
