"""``wsram glimpses`` and ``wsram caption``: what a trained run looks at, in pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from wsram_ppl.commands import options
from wsram_ppl.commands.shared import opened, print_notes
from wsram_ppl.errors import InputError, RunError


@click.command()
@options.existing_run
@click.option(
    "--count", type=click.IntRange(min=1), default=16, show_default=True, help="Held-out images to draw."
)
@options.out("The PNG to write (the GIF goes beside it); by default RUN/glimpses.png.")
@options.run_device
@options.places
def glimpses(
    run: Path, count: int, out: Path | None, device: str | None, overrides: tuple[str, ...]
) -> None:
    """Draw where the trained RUN looks: a PNG with all glimpses, and a GIF of their order.

    Frames are glimpses at the most probable choices, numbered in order; their size is the scale.
    """
    out = out or run / "glimpses.png"
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: should end in .png")
    with opened(run, device, overrides=overrides) as (config, parts, _):
        from wsram_ppl.drawing.glimpses import draw_gaze
        from wsram_ppl.interfaces import Gazes, check_batch
        from wsram_ppl.training.reading import held_out

        if not isinstance(parts.model, Gazes):
            raise InputError(
                f"model '{config.model.name}' has no method 'gaze' to draw its glimpses from"
            )
        batch = next(held_out(parts.data, config.data.name, count, count))
        check_batch(parts.model, batch, "the held-out batch")
        gaze = parts.model.gaze(*batch)
    try:
        files = draw_gaze(gaze, out)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from error
    click.echo("drew " + " and ".join(str(file) for file in files))


@click.command()
@options.existing_run
@click.argument("photos", nargs=-1, required=True)
@options.decoding
@options.out("Folder of the pictures; by default RUN/captions.")
@options.seed
@options.run_device
@options.places
def caption(
    run: Path,
    photos: tuple[str, ...],
    out: Path | None,
    seed: int,
    device: str | None,
    overrides: tuple[str, ...],
    **decoding: Any,
) -> None:
    """Describe PHOTOS by the trained RUN, and draw where it looked for each word.

    \b
    PHOTOS are files; for a run on generated scenes, numbers of held-out scenes.
    A picture shows, for each word, the layer and the part of the photo that were looked at.

    \b
    Example:
      wsram caption runs/flickr8k photo1.jpg photo2.jpg
    """
    with opened(run, device, seed, overrides) as (config, parts, _):
        from wsram_ppl.captions.evaluation import Decoding, describe
        from wsram_ppl.data.captions.batches import CaptionSource
        from wsram_ppl.drawing.captions import draw_captions

        source = parts.data
        if not isinstance(source, CaptionSource):
            raise InputError(f"data source '{config.data.name}' has no captions: {run} writes none")
        found = source.look_up(photos)
        print_notes(found.notes)
        sentences = describe(parts.model, found, Decoding(**decoding))
        files = draw_captions(source, found.names, sentences, out or run / "captions")
    for name, words, file in zip(photos, sentences.words.tolist(), files, strict=True):
        click.echo(f"{name}: {source.vocabulary.decode(words)}")
        click.echo(f"  {file}")
