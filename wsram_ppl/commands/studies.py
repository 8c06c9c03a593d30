"""``wsram compare``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

import wsram_ppl
from wsram_ppl.commands import options
from wsram_ppl.commands.shared import quieten
from wsram_ppl.errors import InputError, RunError

if TYPE_CHECKING:  # slow to import
    from wsram_ppl.studies.report import Written


@click.command()
@click.argument("study", type=options.path_type)
@options.out("Folder of the study; by default studies/NAME.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    show_default="1; with Ray as many as fit",
    help="Runs at once, each in a process; with several, each on one thread. They share the GPUs.",
)
@click.option("--device", help="Shorthand for --set training.device=... (auto, cpu, cuda, cuda:N, mps)")
@click.option(
    "--executor",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where to run: this machine, or a Ray cluster (extra 'cluster').",
)
@click.option(
    "--ray-address",
    default="",
    metavar="HOST:PORT",
    help="Of the Ray cluster; by default RAY_ADDRESS, or the one on this machine.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="VARIANT/SEED",
    help="Train this run alone, and write no report; may be given often.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the study (steps=2000) or of every run (data.root=DIR); may be repeated.",
)
@click.option("--report-only", is_flag=True, help="Run nothing; report on existing runs.")
@click.pass_context
def compare(
    context: click.Context,
    study: Path,
    out: Path | None,
    jobs: int | None,
    device: str | None,
    executor: str,
    ray_address: str,
    only: tuple[str, ...],
    overrides: tuple[str, ...],
    report_only: bool,
) -> None:
    """Run the comparison in STUDY, a TOML file or the name of a shipped study, and report on it.

    \b
    Each variant and seed is an ordinary run, in OUT/runs. Finished runs are not repeated: call again
    after an interruption, or after adding variants and seeds. A failed run is tried again.
    Writes OUT/report.html, table.csv, table.md and figures; exits with 1 if any run failed.
    Called in several places at once with the same OUT, each takes runs that no other has.

    \b
    Examples:
      wsram compare table1 --out studies/table1 --jobs 2
      wsram compare table1 --out studies/table1 --jobs 12 --device cuda
      wsram compare table1 --out studies/table1 --executor ray --ray-address head:6379
    """
    from wsram_ppl.studies.definition import load_study

    if device is not None:
        overrides = (*overrides, f"training.device={device}")
    described = load_study(study, overrides)
    if ray_address and executor != "ray":
        raise InputError("--ray-address is for --executor ray")

    # Slow to import: errors in the study are reported first.
    from wsram_ppl.studies.comparison import at_turn
    from wsram_ppl.studies.comparison import compare as run_study
    from wsram_ppl.studies.executors.cluster import RayExecutor
    from wsram_ppl.studies.executors.jobs import Executor
    from wsram_ppl.studies.executors.local import LocalExecutor
    from wsram_ppl.studies.progress import StudyBars
    from wsram_ppl.studies.report import write_report

    quieten("pyro")
    quieten("matplotlib")
    # By its path: the children import the same package as this process, wherever they run.
    program = Path(wsram_ppl.__file__).resolve().with_name("__main__.py")

    place: Executor = RayExecutor(jobs, ray_address) if executor == "ray" else LocalExecutor(jobs or 1)
    one_thread = executor == "ray" or (jobs or 1) > 1

    def train_command(config: Path, run: Path) -> list[str]:
        command = [sys.executable, str(program), "train", str(config), "--out", str(run)]
        return [*command, "--set", "training.threads=1"] if one_thread else command

    name = context.find_root().info_name or "wsram"
    call = shlex.join([*(["python"] if name.endswith(".py") else []), *name.split(), *sys.argv[1:]])
    with StudyBars() as bars:
        result = run_study(
            described,
            out or Path("studies") / study.stem,
            train_command,
            bars,
            executor=place,
            only=only,
            run_missing=not report_only,
            call=call,
        )
    if not only:
        with at_turn(result.folder):
            _show(write_report(result))
    if result.failed:
        raise RunError(f"{len(result.failed)} of {len(result.runs) + len(result.trials)} runs failed")


def _show(written: Written) -> None:
    for number, table in enumerate(written.tables):
        if number:
            click.echo(f"\n{table.title}:")
        widths = [max(map(len, column)) for column in zip(table.head, *table.body, strict=True)]
        for line in (table.head, *table.body):
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            click.echo("  ".join(cells).rstrip())
    click.echo(f"report: {written.page}")
