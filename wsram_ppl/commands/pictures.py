"""``wsram glimpses``, ``look`` and ``caption``: what a trained run looks at, in pictures."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsram_ppl.commands import options
from wsram_ppl.commands.shared import opened, print_notes, quieten, run_device
from wsram_ppl.errors import InputError, RunError

if TYPE_CHECKING:
    from torch import nn

#: Photos that are described together.
_AT_ONCE = 16


@click.command()
@options.existing_run
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Held-out images to draw, equally many of each class.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Draw this many sampled sequences of each image in a row instead of the most probable one.",
)
@options.out("The PNG to write (with a GIF beside it); by default RUN/glimpses.png.")
@options.seed
@options.run_device
@options.places
def glimpses(
    run: Path,
    count: int,
    samples: int | None,
    out: Path | None,
    seed: int,
    device: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Draw where the trained RUN looks: a PNG with all glimpses, and a GIF that shows their order.

    Frames are the glimpses of the most probable choices, numbered in order; their size is the scale.
    """
    out = out or run / "glimpses.png"
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: should end in .png")
    with opened(run, device, seed, overrides) as (config, parts, _):
        from wsram_ppl.drawing.glimpses import draw_gaze
        from wsram_ppl.interfaces import check_batch
        from wsram_ppl.training.reading import some_of_each_class

        model = _gazing(parts.model, config.model.name, samples)
        batch = some_of_each_class(parts.data, config.data.name, count)
        check_batch(parts.model, batch, "the held-out batch")
        gaze = model.gaze(*batch) if samples is None else model.gaze(*batch, samples=samples)
    try:
        files = draw_gaze(gaze, out, columns=4 if samples is None else samples)
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror or error}") from error
    click.echo("drew " + " and ".join(str(file) for file in files))


def _gazing(model: nn.Module, name: str, samples: int | None) -> Any:
    """The model, if it can report where it looks.

    Raises:
        InputError: it cannot, or it cannot sample sequences.
    """
    from wsram_ppl.interfaces import Gazes

    if not isinstance(model, Gazes):
        raise InputError(f"model '{name}' has no method 'gaze' to draw its glimpses from")
    if samples is not None and "samples" not in inspect.signature(model.gaze).parameters:
        raise InputError(f"model '{name}' cannot sample sequences: its 'gaze' has no keyword 'samples'")
    return model


@click.command()
@options.existing_run
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Decide by this many sampled sequences of looks, and draw a map of where they looked.",
)
@options.out("Folder for the pictures; by default RUN/look.")
@options.seed
@options.run_device
@options.as_json
def look(
    run: Path,
    images: tuple[str, ...],
    samples: int | None,
    out: Path | None,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Print what the trained RUN sees in IMAGES, and draw where it looked.

    \b
    IMAGES are image files of any size; the data that RUN was trained on are not needed.

    \b
    Example:
      wsram look pretrained/digits photo.png --samples 100
    """
    from wsram_ppl.runs.directory import RunDirectory

    config = RunDirectory(run).config()

    # Slow to import: wrong arguments are reported first.
    import torch

    from wsram_ppl.drawing.glimpses import draw_look
    from wsram_ppl.drawing.pages import distinct
    from wsram_ppl.files import make_folder, to_json
    from wsram_ppl.interfaces import Classifies, ReadsPictures
    from wsram_ppl.primitives.handlers import evaluating, pyro_settings

    quieten("pyro")
    source = config.data.cls
    if not isinstance(source, ReadsPictures):
        raise InputError(f"data source '{config.data.name}' cannot read your own images")
    with pyro_settings(validate=False):
        loaded = RunDirectory(run).load_model(run_device(run, config, device))
        model, classifier = _gazing(loaded.model, config.model.name, samples), loaded.model
        if not isinstance(classifier, Classifies):
            raise InputError(
                f"model '{config.model.name}' is not a classifier: it lacks probabilities or class_names"
            )
        pixels, notes = source.read_pictures(images, config.data.options, loaded.record)
        print_notes(notes)
        folder = out or run / "look"
        make_folder(folder)
        results = []
        torch.manual_seed(seed)
        with evaluating(loaded.model):
            for name, stem, image in zip(
                images, distinct(Path(name).stem for name in images), pixels.split(1), strict=True
            ):
                image = image.to(next(loaded.model.parameters()))
                found = classifier.probabilities(image, samples)[0]
                if len(found) != len(classifier.class_names):
                    raise InputError(
                        f"model '{config.model.name}' gives {len(found)} probabilities, but has "
                        f"{len(classifier.class_names)} class_names"
                    )
                sampled = None if samples is None else model.gaze(image, samples=samples).windows
                file = folder / f"{stem}.png"
                try:
                    draw_look(model.gaze(image), file, sampled)
                except OSError as error:
                    raise RunError(f"cannot write {file}: {error.strerror or error}") from error
                results.append(
                    (name, dict(zip(classifier.class_names, found.tolist(), strict=True)), file)
                )
    if as_json:
        click.echo(to_json([{"image": n, "probabilities": p, "picture": str(f)} for n, p, f in results]))
        return
    for name, probabilities, file in results:
        best = sorted(probabilities.items(), key=lambda each: -each[1])[:3]
        first, *others = (f"{what} ({share:.0%})" for what, share in best if share >= 0.005)
        click.echo(f"{name}: {first}" + (f"; or {', '.join(others)}" if others else ""))
        click.echo(f"  {file}")


@click.command()
@options.existing_run
@click.argument("photos", nargs=-1, required=True)
@options.decoding
@options.out("Folder for the pictures; by default RUN/captions.")
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
    """Describe PHOTOS with the trained RUN, and draw where it looked for each word.

    \b
    PHOTOS are files; for a run on generated scenes, numbers of held-out scenes. The data that RUN was
    trained on are not needed, but the weights of its conv net are.
    Each picture shows, for each word, the layer and the part of the photo that the model looked at.

    \b
    Example:
      wsram caption runs/flickr8k photo1.jpg photo2.jpg
    """
    from wsram_ppl.runs.directory import RunDirectory

    config = RunDirectory(run).config(overrides)

    # Slow to import: wrong arguments are reported first.
    import torch

    from wsram_ppl.captions.evaluation import Decoding, describe
    from wsram_ppl.data.captions.batches import CaptionSource
    from wsram_ppl.drawing.captions import draw_captions
    from wsram_ppl.drawing.pages import distinct
    from wsram_ppl.primitives.handlers import pyro_settings

    quieten("pyro")
    if CaptionSource not in getattr(config.data.cls, "__mro__", ()):
        raise InputError(f"data source '{config.data.name}' has no captions: {run} cannot write any")
    with pyro_settings(validate=False):
        loaded = RunDirectory(run).load_model(run_device(run, config, device), config)
        source = config.data.cls.for_pictures(config.data.options, loaded.record)
        source.to(next(loaded.model.parameters()).device)
        torch.manual_seed(seed)
        how, stems = Decoding(**decoding), distinct(Path(photo).stem for photo in photos)
        files = [(out or run / "captions") / f"{stem}.png" for stem in stems]
        for first in range(0, len(photos), _AT_ONCE):
            part = slice(first, first + _AT_ONCE)
            found = source.look_up(photos[part])
            print_notes(found.notes)
            sentences = describe(loaded.model, found, how)
            drawn = draw_captions(source, found.names, sentences, files[part])
            said = map(source.vocabulary.decode, sentences.words.tolist())
            for name, text, file in zip(photos[part], said, files[part], strict=True):
                click.echo(f"{name}: {text}")
                if drawn:
                    click.echo(f"  {file}")
    if not drawn:
        print_notes([f"model '{config.model.name}' does not report where it looks: nothing is drawn"])
