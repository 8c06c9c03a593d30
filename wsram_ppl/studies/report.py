"""The report of a study: tables, figures, glimpses, and one HTML page that holds them all.

The page needs no network and no scripts: pictures are embedded as data URIs.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2

from wsram_ppl.config import ExperimentConfig
from wsram_ppl.drawing.glimpses import draw_gaze
from wsram_ppl.errors import one_line
from wsram_ppl.files import make_folder, write_atomically
from wsram_ppl.interfaces import Gazes
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.environment import environment
from wsram_ppl.studies.comparison import Comparison
from wsram_ppl.studies.definition import Variant
from wsram_ppl.studies.figures import Drawn, Line, draw
from wsram_ppl.studies.results import Summary, read_summary, summarize
from wsram_ppl.studies.run_folders import VariantRun
from wsram_ppl.studies.tables import (
    Table,
    differences_table,
    duration,
    results_table,
    settings_table,
    table_csv,
)
from wsram_ppl.training.reading import held_out

__all__ = ["Written", "write_report"]

_TEMPLATE: Final = Path(__file__).with_name("report.html.jinja")

#: Held-out images in the picture of a variant's glimpses.
_IMAGES: Final = 8


@dataclass(frozen=True)
class Written:
    """What a report says first, and where it is.

    Attributes:
        tables: of the results, and of the differences to the reference if there is one.
        page: the HTML file.
    """

    tables: list[Table]
    page: Path


def write_report(comparison: Comparison) -> Written:
    """Writes ``table.csv``, ``table.md``, ``search.csv``, ``figures/``, ``glimpses/``, ``report.html``.

    All of them go into the study's folder.

    Raises:
        InputError: a finished run's files are damaged.
        RunError: a file cannot be written.
    """
    study, folder = comparison.study, comparison.folder
    rows = [_row(comparison, variant, comparison.of(variant)) for variant in study.variants]
    tables = [results_table(rows, study.smoothing)]
    differences = differences_table(rows, study.reference) if study.reference else None
    if differences is not None:
        tables.append(differences)
    write_atomically(folder / "table.csv", table_csv(_by_seed(comparison), study.reference).encode())
    write_atomically(folder / "table.md", "\n".join(table.markdown() for table in tables).encode())
    if comparison.trials:
        write_atomically(folder / "search.csv", _search_csv(comparison).encode())
    lines = []
    for variant in study.variants:
        runs = [folder / run.name for run in comparison.of(variant) if run.finished]
        lines.append(Line(variant.title, runs, variant.paper))
    figures = draw(study.figures, lines, folder / "figures", study.smoothing)
    glimpses = [_draw_glimpses(comparison, variant) for variant in study.variants]
    page = folder / "report.html"
    text = _page(comparison, tables, figures, [g for g in glimpses if g is not None])
    write_atomically(page, text.encode(errors="replace"))  # paths need not be UTF-8
    return Written(tables, page)


def _row(
    comparison: Comparison, variant: Variant, runs: Sequence[VariantRun], seed: int | None = None
) -> Summary:
    return summarize(
        variant.name,
        variant.title,
        variant.paper,
        {run.seed: comparison.folder / run.name for run in runs if run.finished},
        failed=sum(run.failure is not None for run in runs),
        missing=sum(run.failure is None and not run.finished for run in runs),
        window=comparison.study.smoothing,
        seed=seed,
    )


def _by_seed(comparison: Comparison) -> list[Summary]:
    """For each variant a row of each seed, then that of all: rows read by variant end in that."""
    rows = []
    for variant in comparison.study.variants:
        runs = comparison.of(variant)
        rows += [_row(comparison, variant, [run], run.seed) for run in runs]
        rows.append(_row(comparison, variant, runs))
    return rows


def _search_csv(comparison: Comparison) -> str:
    assert comparison.study.search is not None
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["variant", "candidate", comparison.study.search.metric, "chosen", "failure"])
    for trial in comparison.trials:
        value = "" if trial.value is None else f"{trial.value:.6g}"
        writer.writerow(
            [trial.variant.name, trial.candidate.name, value, int(trial.chosen), trial.failure or ""]
        )
    return file.getvalue()


@dataclass(frozen=True)
class _Glimpses:
    label: str
    run: str
    file: Path | None
    problem: str = ""


def _draw_glimpses(comparison: Comparison, variant: Variant) -> _Glimpses | None:
    """The picture of a variant's first finished run; None without one, or for a model without gaze."""
    run = next((run for run in comparison.of(variant) if run.finished), None)
    if run is None:
        return None
    file = comparison.folder / "glimpses" / f"{variant.name}.png"
    make_folder(file.parent)
    # The model may be the user's own, and its data may be gone by now: still write the report.
    try:
        with pyro_settings(validate=False):
            config, parts, _ = RunDirectory(comparison.folder / run.name).load()
            if not isinstance(parts.model, Gazes):
                return None
            batch = next(held_out(parts.data, config.data.name, _IMAGES, _IMAGES))
            draw_gaze(parts.model.gaze(*batch), file)
    except Exception as error:
        return _Glimpses(variant.title, run.name, None, one_line(error))
    return _Glimpses(variant.title, run.name, file)


# ---------------------------------------------------------------- the page


def _page(
    comparison: Comparison,
    tables: Sequence[Table],
    figures: Sequence[Drawn],
    glimpses: Sequence[_Glimpses],
) -> str:
    study = comparison.study
    finished = [run for run in (*comparison.runs, *comparison.trials) if run.finished]
    summaries = {run.name: read_summary(comparison.folder / run.name) for run in finished}
    configs = _configs(comparison)
    maker = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    maker.filters.update(duration=duration, number=_number, lines=_lines, parts=_parts, short=_short)
    template = maker.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        study=study,
        comparison=comparison,
        finished=sum(run.finished for run in comparison.runs),
        tables=tables,
        settings=settings_table(configs),
        failed=[_failure(comparison, run) for run in comparison.failed],
        search_metric=_METRICS[study.search.metric] if study.search else "",
        figures=[(figure, [_uri(file) for file in figure.files[1:]]) for figure in figures],
        glimpses=[(each, _uri(each.file) if each.file else "") for each in glimpses],
        runs=[(run.name, summaries[run.name]) for run in finished],
        made_with=_made_with(list(summaries.values())),
        environment=environment(),
        training_seconds=sum(float(s.get("seconds", 0.0)) for s in summaries.values()),
        wall_seconds=sum(call.seconds for call in comparison.calls),
        commands=[run.command for run in (*comparison.trials, *comparison.runs) if run.command],
        configs=[(title, config.to_toml()) for title, config in configs],
        study_text=_study_text(comparison),
    )


_RECORDS: Final = (
    "wsram_ppl", "commit", "Python", "torch", "pyro", "numpy", "system", "device", "threads per run",
)  # fmt: skip


def _made_with(summaries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What runs were made with: by name, as far as any has recorded it.

    Where they differ, each value has the number of its runs.
    """
    records = [_record(summary) for summary in summaries]
    found = {}
    for name in _RECORDS:
        values = Counter(record.get(name, "not recorded") for record in records)
        if any(record.get(name) for record in records):
            count = [
                f"{value} ({times} of {len(records)} runs)" for value, times in values.most_common()
            ]
            found[name] = ", ".join(count if len(values) > 1 else values)
    return found


def _record(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a run was made with; one of an earlier version tells of torch, device and threads alone."""
    made: dict[str, str] = summary.get("environment", {})
    device = [str(each) for each in (summary.get("device"), made.get("device")) if each]
    plain = {"torch": summary.get("torch"), "threads per run": summary.get("threads")}
    told = {name: str(value) for name, value in plain.items() if value is not None}
    return {**made, **told, "device": ": ".join(device)}


_METRICS: Final = {
    "bound": "the bound on validation data, in nats per example (higher is better)",
    "error": "the error on validation data (lower is better)",
}


def _failure(comparison: Comparison, run: VariantRun) -> dict[str, Any]:
    log = comparison.folder / "logs" / f"{run.name}.log"
    return {
        "name": run.name,
        "reason": run.failure,
        "log": str(log.relative_to(comparison.folder)) if log.is_file() else "",
    }


def _configs(comparison: Comparison) -> list[tuple[str, ExperimentConfig]]:
    """The config of each variant's first run, with the variant's title."""
    first = [(variant.title, comparison.of(variant)[0].config) for variant in comparison.study.variants]
    return [(title, config) for title, config in first if config is not None]


def _study_text(comparison: Comparison) -> str:
    return comparison.study.text.decode("utf-8-sig", errors="replace")


def _uri(file: Path) -> str:
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[file.suffix]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _lines(cell: str) -> list[str]:
    """A mean and what is known of it, in lines of their own: ``1.2 [1.1, 1.3], 3 of 3 seeds``."""
    return cell.replace(" [", "\n[").replace("], ", "]\n").replace(" (", "\n(").splitlines()


def _parts(name: str) -> list[str]:
    """A dotted key or a path, which may go on in the next line after each part."""
    return re.findall(r"[^._/]+[._/]?|[._/]", name)


def _short(commit: str) -> str:
    """The first figures of a commit, and whether files were changed."""
    return re.sub("^([0-9a-f]{10})[0-9a-f]+", r"\1", commit)


def _number(value: object, form: str) -> str:
    """A measured number, or "" where there is none."""
    return format(value, form).replace("-", "−") if isinstance(value, int | float) else ""
