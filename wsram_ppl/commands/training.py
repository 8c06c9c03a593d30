"""``wsram train``."""

from __future__ import annotations

from pathlib import Path

import click

from wsram_ppl.commands import options
from wsram_ppl.commands.shared import print_measures, print_notes, quieten
from wsram_ppl.errors import InputError


@click.command()
@click.argument("experiment", type=options.path_type, required=False)
@options.out("Run directory; by default the next free one of runs/NAME, runs/NAME-2, ...")
@click.option(
    "--resume",
    type=options.path_type,
    metavar="RUN",
    help="Resume a run that was stopped; replaces EXPERIMENT and --out.",
)
@click.option(
    "--init",
    metavar="RUN",
    help="Start from the weights of RUN; those that do not fit are listed, and newly drawn.",
)
@options.overrides
@click.option("--model", help="Shorthand for --set model.name=...")
@click.option("--guide", help="Shorthand for --set guide.name=...")
@click.option("--objective", help="Shorthand for --set objective.name=...")
@click.option("--control-variate", help="Shorthand for --set objective.control_variate=...")
@click.option("--device", help="Shorthand for --set training.device=... (auto, cpu, cuda, cuda:N, mps)")
@click.option("--seed", type=int, help="Shorthand for --set training.seed=...")
def train(
    experiment: Path | None,
    out: Path | None,
    resume: Path | None,
    overrides: tuple[str, ...],
    **shorthands: str | int | None,
) -> None:
    """Train the experiment in EXPERIMENT, a TOML file or the name of a shipped experiment.

    Called again with the same --out, or with --resume, it resumes a stopped run from its last
    checkpoint, and ends as the run would have ended without the stop. With --resume the number of
    updates may be raised (training.steps), and moved data may be given (data.root).

    \b
    Examples:
      wsram train digits --set training.steps=20000 --out runs/a
      wsram train --resume runs/a
      wsram train --resume runs/a --set training.steps=30000 --set training.schedule_steps=20000
      wsram train digits --init pretrained/digits --set data.source=folder --set data.root=photos
      wsram train my/experiment.toml --objective variational --guide prior
    """
    from wsram_ppl.config import load_config
    from wsram_ppl.distributed.environment import process_rank
    from wsram_ppl.training.progress import RunMeter

    if resume is not None and experiment is None:
        if out is not None:
            raise InputError("--resume continues in the run's own directory: leave out --out")
        from wsram_ppl.runs.directory import RunDirectory

        config = RunDirectory(resume).config(overrides, other_data=False, **shorthands)
    elif experiment is not None and resume is None:
        config = load_config(experiment, overrides, **shorthands)
    else:
        raise InputError("give either an EXPERIMENT to train or a run to --resume")
    first = process_rank(config.training) == 0

    # Slow to import: errors in the config are reported first.
    from wsram_ppl.runs.directory import NewRunDirectory, RunDirectory
    from wsram_ppl.training import loop

    quieten("pyro")
    quieten("lightning_fabric")
    if not first:
        quieten("wsram_ppl")
    if resume is not None:
        run = RunDirectory(resume, moved=True)
    elif out is not None:
        run = RunDirectory(out)
    else:
        assert experiment is not None
        run = NewRunDirectory(Path("runs") / experiment.stem)
    if not first:
        loop.train(config, run)
        return
    print_notes(config.notes)
    if (finished := run.finished(config)) is not None:
        text = f"{run} is finished: to resume it, set more than training.steps = {finished['updates']}"
        print_notes([text])
    with RunMeter(config.training.steps) as meter:
        summary = loop.train(config, run, meter.update)
    pace = summary.get("updates_per_second")  # unknown where all had been done before
    per_second = "" if pace is None else f" ({pace:.1f} per second)"
    click.echo(f"{run}: {summary['updates']} updates in {summary['seconds']:.0f} s{per_second}")
    print_measures(summary)
