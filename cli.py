"""Command line: train, evaluate and look at models of stochastic attention.

The only place that wires models, guides and the library together.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from wsram_ppl import __version__
from wsram_ppl.errors import Elsewhere, InputError, Interrupted, RunError, exit_code

# Arguments and options of several commands.
_EXISTING_RUN = click.argument("run", type=click.Path(path_type=Path))
_OVERRIDES = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    help="Override any key of the experiment; may be given often.",
)
_SEED = click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the samples drawn."
)
_DEVICE = click.option(
    "--device", default="cpu", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


class _Commands(click.Group):
    """Turns every failure into one line and an exit code: 2 for wrong input, 1 for failed work."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # click's own report takes three lines
            click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if os.environ.get("WSRAM_TRACEBACK"):
                raise
            text = " ".join(str(error).split())
            if not isinstance(error, (InputError, RunError)):
                text = f"{type(error).__name__}: {text} (WSRAM_TRACEBACK=1 shows where)"
            if not isinstance(error, Elsewhere):
                click.echo(text if isinstance(error, Interrupted) else f"error: {text}", err=True)
            ctx.exit(exit_code(error))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="wsram_ppl")
def main() -> None:
    """Train models that choose where to look, by wake-sleep and other estimators.

    Exit codes: 0, 1 for a failure at work, 2 for wrong input, 128 + n when stopped by signal n.
    """
    warnings.showwarning = _one_line


def _one_line(message: Warning | str, *where: object) -> None:
    click.echo(f"warning: {' '.join(str(message).split())}", err=True)


@main.command()
@click.argument("experiment", type=click.Path(path_type=Path), required=False)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run directory; by default the next free runs/NAME."
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with a run that was stopped; in place of EXPERIMENT and --out.",
)
@_OVERRIDES
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
    model: str | None,
    guide: str | None,
    objective: str | None,
    control_variate: str | None,
    device: str | None,
    seed: int | None,
) -> None:
    """Train what the TOML file EXPERIMENT describes.

    Called again with the same --out, or with --resume, it goes on from the last checkpoint of a run that
    was stopped, and ends where the run would have ended without the stop.

    \b
    Examples:
      python cli.py train experiments/digits.toml --set training.steps=20000 --out runs/a
      python cli.py train --resume runs/a
      python cli.py train experiments/digits.toml --objective variational --guide prior
    """
    _register()
    from wsram_ppl.config import load_spec
    from wsram_ppl.distributed.processes import first_process
    from wsram_ppl.progress import RunBar
    from wsram_ppl.runs.directory import SPEC, RunDirectory
    from wsram_ppl.training.loop import loop as training

    _quieten("lightning_fabric")
    if (experiment is None) == (resume is None):
        raise InputError("name an EXPERIMENT to train, or a run to --resume, not both and not neither")
    if resume is not None:
        if out is not None:
            raise InputError("--resume goes on in the run's own directory: leave out --out")
        RunDirectory(resume).spec()  # says if it is not a run
        experiment, out = resume / SPEC, resume
    assert experiment is not None
    spec = load_spec(
        experiment,
        overrides,
        model=model,
        guide=guide,
        objective=objective,
        control_variate=control_variate,
        device=device,
        seed=seed,
    )
    run = RunDirectory(out or _free_directory(experiment.stem))
    if not first_process():
        training.train(spec, run)
        return
    _print_notes(spec.notes)
    with RunBar(spec.training.steps) as bar:
        summary = training.train(spec, run, bar.update)
    click.echo(
        f"{run}: {summary['updates']} updates in {summary['seconds']:.0f} s "
        f"({summary['updates_per_second']:.1f} per second)"
    )
    _print_measures(summary)


def _decoding(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of how captions are decoded (:class:`wsram_ppl.captions.evaluation.Decoding`)."""
    options = [
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
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_EXISTING_RUN
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Glimpse sequences behind each prediction; by default 20, for captions 10.",
)
@click.option(
    "--particles",
    type=click.IntRange(min=1),
    help="Particles of the log-likelihood bound; by default 100, for captions 10.",
)
@click.option("--examples", type=click.IntRange(min=1), help="Held-out examples; by default all.")
@click.option("--batch-size", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--split", type=click.Choice(["dev", "test"]), help="Held-out split of captions.")
@_decoding
@_SEED
@_DEVICE
@_JSON
def evaluate(
    run: Path,
    samples: int | None,
    particles: int | None,
    examples: int | None,
    batch_size: int,
    split: str | None,
    seed: int,
    device: str,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure the trained RUN on held-out data.

    log_likelihood is the importance bound with many particles of the run's guide, in nats per example;
    ess is that sample's effective size. A model that writes captions is also scored by BLEU, with a
    caption for each picture.
    """
    _register()
    import torch

    from wsram_ppl.data.captions import evaluation as captions
    from wsram_ppl.distributed.devices import resolve_device
    from wsram_ppl.runs.directory import RunDirectory
    from wsram_ppl.training.loop import evaluation

    with evaluation.pyro_settings(validate=False):
        _, parts, step = RunDirectory(run).load(resolve_device(device))
        torch.manual_seed(seed)
        speaks = captions.can_speak(parts.model, parts.data)
        chosen = captions.split_of(parts.data, split)
        result = evaluation.evaluate(
            parts.model,
            parts.guide,
            parts.data.evaluation_batches(batch_size, examples, **chosen),
            samples=samples or (10 if speaks else 20),
            particles=particles or (10 if speaks else 100),
        )
        result["updates"] = step
        bleu = None
        if speaks:
            result["log_likelihood_per_word"] = result["log_likelihood"] / result["words"]
            decoding = captions.Decoding(**how)
            described = captions.captions(
                parts.model, parts.data, decoding, examples=examples, batch_size=batch_size, **chosen
            )
            bleu = captions.score(list(described))
    if as_json:
        extra = {**bleu.to_data(), **how} if bleu else {}
        click.echo(json.dumps({**result, **extra}))
        return
    _print_measures(result)
    for line in bleu.lines() if bleu else ():
        click.echo(f"  {line}")


@main.command()
@_EXISTING_RUN
@click.option(
    "--count", type=click.IntRange(min=1), default=16, show_default=True, help="Held-out images to draw."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The PNG to write (the GIF goes beside it); by default RUN/glimpses.png.",
)
def glimpses(run: Path, count: int, out: Path | None) -> None:
    """Draw where the trained RUN looks: a PNG with all glimpses, and a GIF of their order.

    Frames are glimpses at the most probable choices, numbered in order; their size is the scale.
    """
    _register()
    from wsram_ppl.drawing import glimpses as pictures
    from wsram_ppl.runs.directory import RunDirectory
    from wsram_ppl.training.loop import evaluation

    out = out or run / "glimpses.png"
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: should end in .png")
    with evaluation.pyro_settings(validate=False):
        spec, parts, _ = RunDirectory(run).load()
        draw = getattr(parts.model, "gaze", None)
        if draw is None:
            raise InputError(f"model '{spec.model.name}' has no method 'gaze' to draw its glimpses from")
        batch = next(iter(parts.data.evaluation_batches(count, count)))
        try:
            files = pictures.draw_gaze(draw(*batch), out)
        except OSError as error:
            raise RunError(f"cannot write {out}: {error.strerror or error}") from error
    click.echo("drew " + " and ".join(str(file) for file in files))


@main.command()
@_EXISTING_RUN
@click.option(
    "--repeats", type=click.IntRange(min=2), default=200, show_default=True, help="Gradients drawn."
)
@click.option(
    "--fit",
    type=click.IntRange(min=0),
    default=200,
    show_default=True,
    help="Minibatches on which each estimator first fits its coefficients; weights stay as they are.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--particles", type=click.IntRange(min=2), help="By default as many as in the run.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@_JSON
def variance(
    run: Path, repeats: int, fit: int, batch_size: int, particles: int | None, seed: int, as_json: bool
) -> None:
    """Compare the gradient noise of all estimators at RUN's checkpoint.

    Total variance of the gradient of the loss per example, on one fixed minibatch of training data, for
    the model's parameters and the guide's own (coefficient networks left out), with the signal-to-noise
    ratio |mean| / standard deviation, and the time of one gradient.
    """
    _register()
    import torch

    from wsram_ppl.objectives import diagnostics
    from wsram_ppl.runs.directory import RunDirectory
    from wsram_ppl.training.loop import evaluation

    with evaluation.pyro_settings(validate=False):
        spec, parts, step = RunDirectory(run).load()
        particles = particles or max(2, parts.objective.num_particles)
        torch.manual_seed(seed)
        batches = [parts.data.training_batch(step + i, batch_size, seed) for i in range(fit + 1)]
        found = diagnostics.compare_estimators(
            _estimators(particles, getattr(parts.model, "max_plate_nesting", float("inf"))),
            parts.model,
            parts.guide,
            batches[0],
            repeats=repeats,
            fit_batches=batches[1:],
        )
    rows = {
        name: {
            group: {"variance": m.variance / batch_size**2, "snr": m.snr}
            for group, m in row.moments.items()
        }
        | {"milliseconds": row.milliseconds}
        for name, row in found.items()
    }
    result = {"updates": step, "guide": spec.guide.name, "particles": particles, "repeats": repeats}
    if as_json:
        click.echo(json.dumps({**result, "estimators": rows}))
        return
    click.echo(", ".join(f"{key} {value}" for key, value in result.items()))
    groups = list(next(iter(found.values())).moments)
    head = "".join(f"{group + ' variance':>18}{'snr':>8}" for group in groups)
    click.echo(f"{'estimator':<32}{head}{'ms':>8}")
    for name, row in rows.items():
        cells = "".join(f"{row[group]['variance']:>18.4g}{row[group]['snr']:>8.3f}" for group in groups)
        click.echo(f"{name:<32}{cells}{row['milliseconds']:>8.1f}")


def _estimators(particles: int, nesting: int | float) -> dict[str, Any]:
    """Every objective with every choice of control variate or baseline."""
    from wsram_ppl.objectives import ImportanceBound, VariationalBound, WakeSleep
    from wsram_ppl.objectives.wake_sleep import CONTROL_VARIATES

    common = {
        "num_particles": particles,
        "vectorize_particles": True,
        "max_plate_nesting": nesting,
    }
    found: dict[str, Any] = {
        f"variational, {name}": VariationalBound(name, **common)
        for name in ("none", "leave-one-out", "site")
    }
    found["importance (VIMCO)"] = ImportanceBound(**common)
    for name in CONTROL_VARIATES:
        found[f"wake-sleep, {name}"] = WakeSleep(name, **common)
    return found


@main.command()
@click.argument("study", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the study; by default studies/NAME."
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at once, each in a process; with several, each on one thread.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the study (steps=2000) or of every run (data.root=DIR); may be given often.",
)
@click.option("--report-only", is_flag=True, help="Run nothing: report on what has been run.")
def compare(
    study: Path, out: Path | None, jobs: int, overrides: tuple[str, ...], report_only: bool
) -> None:
    """Run what the TOML file STUDY compares, and report on it.

    \b
    Each variant and seed is an ordinary run, under OUT/runs. Finished runs are not repeated: call again
    after an interruption, or after adding variants and seeds. A run that failed is tried again.
    Writes OUT/report.html, table.csv, table.md and figures; exits with 1 if any run failed.

    \b
    Example:
      python cli.py compare experiments/table1.toml --out studies/table1 --jobs 2
    """
    _register()
    from wsram_ppl.progress import StudyBars
    from wsram_ppl.studies.comparison import compare as run_study
    from wsram_ppl.studies.definition import load_study
    from wsram_ppl.studies.report import write_report

    _quieten("matplotlib")

    def train_command(spec: Path, run: Path) -> list[str]:
        command = [sys.executable, str(Path(__file__).resolve()), "train", str(spec), "--out", str(run)]
        return command if jobs == 1 else [*command, "--set", "training.threads=1"]

    loaded = load_study(study, overrides)
    folder = out or Path("studies") / study.stem
    call = shlex.join(["python", *sys.argv])
    with StudyBars() as bars:
        result = run_study(
            loaded, folder, train_command, bars, jobs=jobs, run_missing=not report_only, call=call
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


@main.command("list")
def list_parts() -> None:
    """List every model, guide, objective and data source, one line each."""
    _register()
    from wsram_ppl.config.catalogue import DATA_SOURCES, GUIDES, MODELS, OBJECTIVES

    for registry in (MODELS, GUIDES, OBJECTIVES, DATA_SOURCES):
        for name, summary in registry.describe().items():
            click.echo(f"{registry.kind:<12} {name:<20} {summary}")


def _register() -> None:
    """Imports what registers itself by name. Here, not above: importing torch takes seconds."""
    import wsram_ppl.data
    import wsram_ppl.data.captions
    import wsram_ppl.guides
    import wsram_ppl.models
    import wsram_ppl.objectives  # noqa: F401

    _quieten("pyro")


def _quieten(library: str) -> None:
    """No notes from a library that is imported by now (its import sets its own level)."""
    logging.getLogger(library).setLevel(logging.WARNING)


def _free_directory(name: str) -> Path:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3, ... that is not there."""
    path, count = Path("runs") / name, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{name}-{count}"
    return path


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _print_measures(measures: Mapping[str, Any]) -> None:
    """The measures that a reader looks for first, then the model's others."""
    lines = {}
    if "error" in measures:
        lines["error"] = f"{measures['error']:.2%} of {measures['examples']} held-out examples"
    lines["bound"] = (
        f"{measures['log_likelihood']:.4f} nats per example ({measures['particles']} particles)"
    )
    lines["ess"] = f"{measures['ess']:.2f} of {measures['particles']}"
    shown = {"error", "log_likelihood", "ess", "samples", "particles", "examples"}
    shown |= {"updates", "seconds", "updates_per_second", "torch", "device", "threads", "processes"}
    for name, value in measures.items():
        if name not in shown:
            lines[name] = f"{value:.4g}"
    for name, text in lines.items():
        click.echo(f"  {name:<12} {text}")


@main.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@_OVERRIDES
@_DEVICE
def features(experiment: Path, overrides: tuple[str, ...], device: str) -> None:
    """Compute the conv maps of every photo that EXPERIMENT's [data] names, once.

    \b
    After an interruption the same command goes on where it was. What is wrong with the data is told
    here, in a line with a count for each problem.

    \b
    Example:
      python cli.py features experiments/flickr8k.toml --set data.root=DIR
    """
    _register()
    from tqdm import tqdm

    from wsram_ppl.config import load_spec
    from wsram_ppl.config.catalogue import DATA_SOURCES
    from wsram_ppl.distributed.devices import resolve_device

    spec = load_spec(experiment, overrides)
    _print_notes(spec.notes)
    prepare = getattr(DATA_SOURCES.resolve(spec.data.name), "prepare", None)
    if prepare is None:
        raise InputError(f"data source '{spec.data.name}' has no features to compute: train as it is")
    begun: tuple[int, float] | None = None
    with tqdm(unit="photo", disable=None, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            nonlocal begun
            if begun is None:
                begun = done, time.monotonic()
                bar.reset(total)
                bar.initial = done
            bar.update(done - bar.n)

        store, notices = prepare(spec.data.options, device=resolve_device(device), progress=progress)
    _print_notes(notices)
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in store.shapes)
    work = "computed before"
    if begun is not None:
        count, seconds = len(store.rows) + len(store.unreadable) - begun[0], time.monotonic() - begun[1]
        work = f"{count:,} computed in {seconds:.0f} s ({count / max(seconds, 1e-9):.1f} per second)"
    click.echo(f"{store.folder}: {len(store.rows):,} photos, maps of {shapes}; {work}")


@main.command()
@_EXISTING_RUN
@click.argument("photos", nargs=-1, required=True)
@_decoding
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the pictures; by default RUN/captions."
)
@_SEED
@_DEVICE
def caption(
    run: Path, photos: tuple[str, ...], out: Path | None, seed: int, device: str, **how: Any
) -> None:
    """Describe PHOTOS by the trained RUN, and draw where it looked for each word.

    \b
    PHOTOS are files; for a run on generated scenes, numbers of held-out scenes.
    A picture shows, for each word, the layer and the part of the photo that were looked at.

    \b
    Example:
      python cli.py caption runs/flickr8k photo1.jpg photo2.jpg
    """
    _register()
    import torch

    from wsram_ppl.captions.evaluation import Decoding, describe
    from wsram_ppl.data.captions import CaptionSource
    from wsram_ppl.distributed.devices import resolve_device
    from wsram_ppl.drawing.captions import draw_captions
    from wsram_ppl.runs.directory import RunDirectory
    from wsram_ppl.training.loop import evaluation

    with evaluation.pyro_settings(validate=False):
        spec, parts, _ = RunDirectory(run).load(resolve_device(device))
        if not isinstance(parts.data, CaptionSource):
            raise InputError(f"data source '{spec.data.name}' has no captions: {run} writes none")
        torch.manual_seed(seed)
        pictures = parts.data.look_up(photos)
        sentences = describe(parts.model, pictures, Decoding(**how))
        files = draw_captions(parts.data, pictures.names, sentences, out or run / "captions")
    for name, words, file in zip(photos, sentences.words.tolist(), files, strict=True):
        click.echo(f"{name}: {parts.data.vocabulary.decode(words)}")
        click.echo(f"  {file}")


@main.command()
@click.argument("hypotheses", type=click.Path(path_type=Path))
@click.argument("references", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--tokenisation",
    type=click.Choice(["none", "captions"]),
    default="none",
    show_default=True,
    help="none: words are what white space separates; captions: first to lower case, punctuation off.",
)
@_JSON
def score(hypotheses: Path, references: tuple[Path, ...], tokenisation: str, as_json: bool) -> None:
    """Score the sentences of a text file by corpus BLEU, line by line.

    \b
    Line n of HYPOTHESES is scored against line n of every file of REFERENCES. An empty line in one of
    these is a missing reference, so sentences may have different numbers of them.

    \b
    Example:
      python cli.py score captions.txt references0.txt references1.txt
    """
    from wsram_ppl.captions.bleu import score_files

    result = score_files(hypotheses, references, tokenisation=tokenisation)
    if as_json:
        click.echo(json.dumps(result.to_data()))
        return
    for line in result.lines():
        click.echo(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
