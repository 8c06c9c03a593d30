"""``wsram compare``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

import wsram_ppl
from wsram_ppl.commands import options
from wsram_ppl.commands.shared import quieten
from wsram_ppl.errors import RunError


@click.command()
@click.argument("study", type=options.path_type)
@options.out("Folder of the study; by default studies/NAME.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at once, each in its own process; with several, each on one thread.",
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
    jobs: int,
    overrides: tuple[str, ...],
    report_only: bool,
) -> None:
    """Run the comparison in STUDY, a TOML file or the name of a shipped study, and report on it.

    \b
    Each variant and seed is an ordinary run, in OUT/runs. Finished runs are not repeated: call again
    after an interruption, or after adding variants and seeds. A failed run is tried again.
    Writes OUT/report.html, table.csv, table.md and figures; exits with 1 if any run failed.

    \b
    Example:
      wsram compare table1 --out studies/table1 --jobs 2
    """
    from wsram_ppl.studies.definition import load_study

    described = load_study(study, overrides)

    # Slow to import: errors in the study are reported first.
    from wsram_ppl.studies.comparison import compare as run_study
    from wsram_ppl.studies.progress import StudyBars
    from wsram_ppl.studies.report import write_report

    quieten("pyro")
    quieten("matplotlib")
    # By its path: the children import the same package as this process, wherever they run.
    program = Path(wsram_ppl.__file__).resolve().with_name("__main__.py")

    def train_command(config: Path, run: Path) -> list[str]:
        command = [sys.executable, str(program), "train", str(config), "--out", str(run)]
        return command if jobs == 1 else [*command, "--set", "training.threads=1"]

    name = context.find_root().info_name or "wsram"
    call = shlex.join([*(["python"] if name.endswith(".py") else []), *name.split(), *sys.argv[1:]])
    with StudyBars() as bars:
        result = run_study(
            described,
            out or Path("studies") / study.stem,
            train_command,
            bars,
            jobs=jobs,
            run_missing=not report_only,
            call=call,
        )
    written = write_report(result)
    widths = [max(map(len, column)) for column in zip(written.head, *written.body, strict=True)]
    for line in (written.head, *written.body):
        click.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )
    click.echo(f"report: {written.page}")
    if result.failed:
        raise RunError(f"{len(result.failed)} of {len(result.runs) + len(result.trials)} runs failed")
