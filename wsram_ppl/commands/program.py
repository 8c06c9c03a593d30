"""All commands together, and how a failure becomes one line and an exit code."""

from __future__ import annotations

import os
import warnings
from typing import Any

import click

from wsram_ppl import __version__
from wsram_ppl.commands import captions, extra, listing, measuring, pictures, studies, training
from wsram_ppl.errors import InputError, Interrupted, RunError, WorkerExit, exit_code


class _Commands(click.Group):
    """Turns every failure into one line and an exit code: 2 for wrong input, 1 for failed work."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # click's own report takes three lines
            click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsram_ppl")
def main() -> None:
    """Train models that choose where to look, by wake-sleep and other estimators.

    Exit codes: 0, 1 for a failure at work, 2 for wrong input, 128 + n when stopped by signal n.
    """
    warnings.showwarning = _one_line


def _one_line(message: Warning | str, *where: object, **more: object) -> None:
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


for _command in (
    training.train,
    measuring.evaluate,
    measuring.variance,
    pictures.glimpses,
    pictures.caption,
    captions.features,
    captions.score,
    studies.compare,
    listing.list_components,
):
    main.add_command(_command)
