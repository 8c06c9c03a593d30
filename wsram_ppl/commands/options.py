"""Arguments and options that several commands take."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _PathType(click.Path):
    """A path that is valid for the file system, whether or not it exists."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = super().convert(value, param, ctx)
        try:
            os.lstat(path)
        except OSError as error:
            if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
                self.fail(f"{str(path)[:40]!r}...: {error.strerror}", param, ctx)
        return path


class _Finite(click.FloatRange):
    """A finite number within bounds."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number", param, ctx)
        return number


path_type = _PathType()

existing_run = click.argument("run", type=path_type)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Override any key of the experiment; may be repeated.",
)
places = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="data.KEY=PATH",
    help="Where RUN's data are now (data.root=DIR), if they have moved since training; may be repeated.",
)
other_data = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="data.KEY=VALUE",
    help="Measure on other data (data.root=DIR, data.test_seed=777, ...); may be repeated.",
)
seed = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Seed of the samples.",
)
device = click.option(
    "--device", default="cpu", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)
run_device = click.option(
    "--device", help="auto, cpu, cuda, cuda:N or mps; by default RUN's training device, if available."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def out(help: str) -> Callable[[_Command], _Command]:
    """Where to write."""
    return click.option("--out", type=path_type, help=help)


def decoding(command: _Command) -> _Command:
    """How captions are decoded: the fields of :class:`wsram_ppl.captions.evaluation.Decoding`."""
    for option in reversed(_DECODING):
        command = option(command)
    return command


def given(*names: str) -> list[str]:
    """Those of a command's options that its user has given, as they are written."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return [
        f"--{name.replace('_', '-')}"
        for name in names
        if context.get_parameter_source(name) is not default
    ]


_DECODING = [
    click.option(
        "--beam",
        type=click.IntRange(min=0),
        default=3,
        show_default=True,
        help="Captions: sentences kept per picture during the search; 0: draw one at random.",
    ),
    click.option(
        "--paths",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Captions: sampled paths of looks to average over; 0: the most probable looks.",
    ),
    click.option(
        "--length-penalty",
        type=_Finite(min=0),
        default=0.7,
        show_default=True,
        help="Captions: 0 prefers short sentences, 1 the best mean per word.",
    ),
    click.option(
        "--longest",
        type=click.IntRange(min=1),
        default=20,
        show_default=True,
        help="Captions: maximum number of words.",
    ),
]
