"""All commands together, and how a failure becomes one line and an exit code."""

from __future__ import annotations

import logging
import os
import signal
import warnings
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
        mend_streams()
        end_with_launcher()
        return super().__call__(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # click's own report takes three lines
            click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            _stopped(ctx)
        except Exception as error:
            if _interrupted(error):
                _stopped(ctx)
            if os.environ.get("WSRAM_TRACEBACK"):
                raise
            if extra.is_missing(error):
                extra.advise()
                ctx.exit(2)
            text = " ".join(str(error).split())
            if not isinstance(error, (InputError, RunError)):
                text = f"{type(error).__name__}: {text} (WSRAM_TRACEBACK=1 shows where)"
            if not isinstance(error, WorkerExit):
                click.echo(text if isinstance(error, Interrupted) else f"error: {text}", err=True)
            ctx.exit(exit_code(error))


def _stopped(ctx: click.Context) -> NoReturn:
    """Ctrl-C where there is nothing to be saved."""
    if not is_worker():
        click.echo("stopped", err=True)
    ctx.exit(128 + signal.SIGINT)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error comes of Ctrl-C, as where a library makes its own of what stops its import."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsram_ppl")
def main() -> None:
    """Train models that choose where to look, by wake-sleep and other estimators.

    Exit codes: 0, 1 for a failure at work, 2 for wrong input, 128 + n when stopped by signal n.
    """
    warnings.showwarning = _one_line
    log = logging.getLogger("wsram_ppl")
    log.setLevel(logging.WARNING if is_worker() else logging.INFO)
    if not any(isinstance(handler, _Notes) for handler in log.handlers):
        log.addHandler(_Notes())


class _Notes(logging.Handler):
    """Shows what the library has to say."""

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
