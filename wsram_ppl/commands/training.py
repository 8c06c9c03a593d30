"""``wsram train``."""

from __future__ import annotations

from pathlib import Path

import click

from wsram_ppl.commands import options
from wsram_ppl.commands.shared import print_measures, print_notes, quieten
from wsram_ppl.errors import InputError


@click.command()
@click.argument("experiment", type=options.path_type, required=False)
@options.out("Run directory; by default the next free runs/NAME.")
@click.option(
    "--resume",
    type=options.path_type,
    metavar="RUN",
    help="Go on with a run that was stopped; in place of EXPERIMENT and --out.",
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
    """Train what EXPERIMENT describes: a TOML file, or the name of an experiment that is shipped.

    Called again with the same --out, or with --resume, it goes on from the last checkpoint of a run that
    was stopped, and ends where the run would have ended without the stop.

    \b
    Examples:
      wsram train digits --set training.steps=20000 --out runs/a
      wsram train --resume runs/a
      wsram train my/experiment.toml --objective variational --guide prior
    """
    from wsram_ppl.config import load_config
    from wsram_ppl.distributed.processes import first_process
    from wsram_ppl.runs.directory import CONFIG, RunDirectory
    from wsram_ppl.training import loop
    from wsram_ppl.training.progress import RunBar

    quieten("pyro")
    quieten("lightning_fabric")
    if resume is not None and experiment is None:
        if out is not None:
            raise InputError("--resume goes on in the run's own directory: leave out --out")
        RunDirectory(resume).config()  # says if it is not a run
        path, out = resume / CONFIG, resume
    elif experiment is not None and resume is None:
        path = experiment
    else:
        raise InputError("name an EXPERIMENT to train, or a run to --resume, not both and not neither")
    config = load_config(path, overrides, **shorthands)
    run = RunDirectory(out or _free_directory(path.stem))
    if not first_process():
        loop.train(config, run)
        return
    print_notes(config.notes)
    with RunBar(config.training.steps) as bar:
        summary = loop.train(config, run, bar.update)
    click.echo(
        f"{run}: {summary['updates']} updates in {summary['seconds']:.0f} s "
        f"({summary['updates_per_second']:.1f} per second)"
    )
    print_measures(summary)


def _free_directory(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3, ... that is not there."""
    path, count = Path("runs") / name, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{name}-{count}"
    return path
