"""``wsram features`` prepares the training of a captioner; ``wsram score`` scores any captions."""

from __future__ import annotations

import time
from pathlib import Path

import click

from wsram_ppl.commands import options
from wsram_ppl.commands.shared import print_notes
from wsram_ppl.errors import InputError


@click.command()
@click.argument("experiment", type=options.path_type)
@options.overrides
@options.device
def features(experiment: Path, overrides: tuple[str, ...], device: str) -> None:
    """Compute the conv maps of every photo that EXPERIMENT's [data] names, once.

    \b
    After an interruption the same command continues where it stopped. Problems in the data are
    reported here, one line with a count for each kind.

    \b
    Example:
      wsram features flickr8k --set data.root=DIR
    """
    from wsram_ppl.config import load_config

    config = load_config(experiment, overrides)

    # Slow to import: errors in the config are reported first.
    from wsram_ppl.config.catalogue import DATA_SOURCES
    from wsram_ppl.distributed.devices import resolve_device
    from wsram_ppl.interfaces import ComputesFeatures
    from wsram_ppl.training.progress import Meter

    print_notes(config.notes)
    source = DATA_SOURCES.resolve(config.data.name)
    if not isinstance(source, ComputesFeatures):
        raise InputError(f"data source '{config.data.name}' has no features to compute: train directly")
    begun: tuple[int, float] | None = None
    with Meter("photo") as meter:

        def progress(done: int, total: int) -> None:
            nonlocal begun
            if begun is None:
                begun = done, time.monotonic()
            meter(done, total)

        store, notices = source.compute_features(
            config.data.options, device=resolve_device(device), progress=progress
        )
    print_notes(notices)
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in store.shapes)
    work = "computed before"
    if begun is not None:
        count, seconds = len(store.rows) + len(store.unreadable) - begun[0], time.monotonic() - begun[1]
        work = f"{count:,} computed in {seconds:.0f} s ({count / max(seconds, 1e-9):.1f} per second)"
    click.echo(f"{store.folder}: {len(store.rows):,} photos, maps of {shapes}; {work}")


@click.command()
@click.argument("hypotheses", type=options.path_type)
@click.argument("references", type=options.path_type, nargs=-1, required=True)
@click.option(
    "--tokenisation",
    type=click.Choice(["none", "captions"]),
    default="none",
    show_default=True,
    help="none: split at white space; captions: convert to lower case and drop punctuation first.",
)
@options.as_json
def score(hypotheses: Path, references: tuple[Path, ...], tokenisation: str, as_json: bool) -> None:
    """Score the sentences of a text file by corpus BLEU, line by line.

    \b
    Line n of HYPOTHESES is scored against line n of every file of REFERENCES. A line without a word in
    one of these is a missing reference, so sentences may have different numbers of them.

    \b
    Example:
      wsram score captions.txt references0.txt references1.txt
    """
    from wsram_ppl.captions.bleu import score_files
    from wsram_ppl.files import to_json

    result = score_files(hypotheses, references, tokenisation=tokenisation)
    if as_json:
        click.echo(to_json(result.to_data()))
        return
    for line in result.lines():
        click.echo(f"  {line}")
