"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

path_type = click.Path(path_type=Path)

existing_run = click.argument("run", type=path_type)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Override any key of the experiment; may be given often.",
)
seed = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the samples drawn."
)
device = click.option(
    "--device", default="cpu", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
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


_DECODING = [
    click.option(
        "--beam",
        type=click.IntRange(min=0),
        default=3,
        show_default=True,
        help="Captions: sentences kept per picture while searching; 0: draw one at random.",
    ),
    click.option(
        "--paths",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Captions: sampled paths of looks whose mean counts; 0: the most probable looks.",
    ),
    click.option(
        "--length-penalty",
        type=click.FloatRange(min=0),
        default=0.7,
        show_default=True,
        help="Captions: 0 prefers short sentences, 1 the best mean per word.",
    ),
    click.option(
        "--longest",
        type=click.IntRange(min=1),
        default=20,
        show_default=True,
        help="Captions: words at most.",
    ),
]
