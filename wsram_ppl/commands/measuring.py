"""``wsram evaluate`` and ``wsram variance``: measurements of a trained run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from wsram_ppl.commands import options
from wsram_ppl.commands.shared import opened, print_measures, print_notes
from wsram_ppl.errors import InputError

if TYPE_CHECKING:
    from wsram_ppl.config import Components
    from wsram_ppl.interfaces import HeldOut
    from wsram_ppl.objectives import Objective

#: Seconds that the gradients of all estimators may take by default.
_SECONDS: Final = 45.0
_SPLITS: Final[dict[str, HeldOut]] = {"validation": "validation", "dev": "validation", "test": "test"}


@click.command()
@options.existing_run
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Glimpse sequences per prediction; by default 20, for captions 10.",
)
@click.option(
    "--particles",
    type=click.IntRange(min=1),
    help="Particles of the bound; by default 100, for captions 10.",
)
@click.option("--examples", type=click.IntRange(min=1), help="Held-out examples; by default all.")
@click.option("--batch-size", type=click.IntRange(min=1), default=100, show_default=True)
@click.option(
    "--split",
    type=click.Choice([*_SPLITS]),
    help="Held-out data to measure on: validation (the default; dev is an alias) or test.",
)
@options.decoding
@options.seed
@options.run_device
@options.other_data
@options.as_json
def evaluate(
    run: Path,
    samples: int | None,
    particles: int | None,
    examples: int | None,
    batch_size: int,
    split: str | None,
    seed: int,
    device: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    **decoding: Any,
) -> None:
    """Measure the trained RUN on validation data, or finally on test data (--split test).

    bound is the importance bound with many particles of the run's guide, in nats per example; ess is
    that sample's effective size. A model that writes captions is also scored by BLEU, with a caption for
    each picture.
    """
    from wsram_ppl.files import to_json

    with opened(run, device, seed, overrides, other_data=True) as (config, parts, step):
        from wsram_ppl.captions import evaluation as captions
        from wsram_ppl.training import evaluation
        from wsram_ppl.training.reading import has_splits, held_out, reading

        source = config.data.name
        if not captions.can_speak(parts.model, parts.data) and (given := options.given(*decoding)):
            raise InputError(f"{given[0]} is for captions, and {run} writes none: leave it out")
        chosen = _SPLITS.get(split or "")
        default = captions.default_counts(parts.model, parts.data)
        result = evaluation.evaluate(
            parts.model,
            parts.guide,
            held_out(parts.data, source, batch_size, examples, chosen),
            samples=samples or default.samples,
            particles=particles or default.particles,
        )
        result["updates"] = step
        if has_splits(parts.data):
            result["split"] = chosen or "validation"
        with reading(source):
            scored = captions.score_held_out(
                parts.model,
                parts.data,
                captions.Decoding(**decoding),
                examples=examples,
                batch_size=batch_size,
                split=chosen or "validation",
            )
    if scored is not None:
        result["bound_per_word"] = result["bound"] / result["words"]
    if as_json:
        click.echo(to_json(result if scored is None else {**result, **scored.to_data(), **decoding}))
        return
    print_measures(result)
    for line in scored.lines() if scored is not None else ():
        click.echo(f"  {line}")


@click.command()
@options.existing_run
@click.option(
    "--repeats",
    type=click.IntRange(min=2),
    help="Gradients drawn; by default 30, or fewer (at least 4) if they would take over a minute.",
)
@click.option(
    "--fit",
    type=click.IntRange(min=0),
    help="Minibatches on which each estimator first fits its coefficients, with the weights fixed; "
    "by default 20, or fewer (at least 2) in the same proportion.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--particles", type=click.IntRange(min=2), help="Particles; by default those of the run.")
@click.option(
    "--pathwise",
    multiple=True,
    metavar="SITE",
    help="Also use pathwise gradients through the samples of this site ('*' matches all); repeatable.",
)
@options.seed
@options.run_device
@options.places
@options.as_json
def variance(
    run: Path,
    repeats: int | None,
    fit: int | None,
    batch_size: int,
    particles: int | None,
    pathwise: tuple[str, ...],
    seed: int,
    device: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare the gradient noise of all estimators at RUN's checkpoint.

    Shows the total variance of the gradient of the loss per example, on one fixed minibatch of training
    data, for the model's parameters and the guide's own (without coefficient networks), with the
    signal-to-noise ratio |mean| / standard deviation, and the time of one gradient.
    """
    from wsram_ppl.files import to_json

    with opened(run, device, seed, overrides) as (config, parts, step):
        import torch

        from wsram_ppl.interfaces import plate_nesting, prepared
        from wsram_ppl.objectives.diagnostics import (
            EstimatorMoments,
            all_estimators,
            compare_estimators,
        )
        from wsram_ppl.training.progress import Meter
        from wsram_ppl.training.reading import reading

        particles = particles or max(2, parts.objective.num_particles)
        estimators = all_estimators(particles, plate_nesting(parts.model), pathwise)
        with reading(config.data.name):
            batches = [parts.data.training_batch(step, batch_size, seed)]
        fixed = prepared(parts.model, batches[0])
        if repeats is None or fit is None:
            timed = all_estimators(
                particles, plate_nesting(parts.model), pathwise
            )  # they keep running means
            affordable = _affordable(timed, parts, fixed)
            repeats, fit = repeats or affordable[0], affordable[1] if fit is None else fit
            torch.manual_seed(seed)
        with reading(config.data.name):
            batches += [parts.data.training_batch(step + i + 1, batch_size, seed) for i in range(fit)]
        found: dict[str, EstimatorMoments] = {}
        with Meter("estimator") as meter:
            for name, objective in estimators.items():
                meter(len(found), len(estimators), {"now": name})
                found |= compare_estimators(
                    {name: objective},
                    parts.model,
                    parts.guide,
                    fixed,
                    repeats=repeats,
                    fit_batches=batches[1:],
                )
            meter(len(found), len(estimators))
    rows: dict[str, dict[str, Any]] = {
        name: {
            group: {"variance": m.variance / batch_size**2, "snr": m.snr}
            for group, m in row.moments.items()
        }
        | {"milliseconds": row.milliseconds}
        for name, row in found.items()
    }
    result = {"updates": step, "guide": config.guide.name, "particles": particles, "repeats": repeats}
    result["fit"] = fit
    if as_json:
        click.echo(to_json({**result, "estimators": rows}))
        return
    click.echo(", ".join(f"{key} {value}" for key, value in result.items()))
    groups = list(next(iter(found.values())).moments)
    head = "".join(f"{group + ' variance':>18}{'snr':>8}" for group in groups)
    click.echo(f"{'estimator':<32}{head}{'ms':>8}")
    for name, row in rows.items():
        cells = "".join(f"{row[group]['variance']:>18.4g}{row[group]['snr']:>8.3f}" for group in groups)
        click.echo(f"{name:<32}{cells}{row['milliseconds']:>8.1f}")


def _affordable(
    estimators: Mapping[str, Objective], parts: Components, batch: tuple[Any, ...]
) -> tuple[int, int]:
    """How many gradients to draw from each estimator, and on how many minibatches to fit it."""
    from wsram_ppl.objectives.diagnostics import gradient_milliseconds

    slowest = list(estimators.values())[-1]
    model, guide = copy.deepcopy((parts.model, parts.guide))
    seconds = gradient_milliseconds(slowest, model, guide, *batch, repeats=3) / 1e3
    repeats, fit, timed = 30, 20, 5
    share = _SECONDS / (seconds * len(estimators) * (repeats + fit + timed))
    if share < 1:
        repeats, fit = max(4, round(repeats * share)), max(2, round(fit * share))
        print_notes(
            [
                f"a gradient takes {seconds:.2g} s: {repeats} are drawn for each estimator, after a fit "
                f"on {fit} minibatches; --repeats 30 --fit 20 takes longer and is more precise"
            ]
        )
    return repeats, fit
