"""The report of a study: tables, figures, glimpses, and one HTML page that holds them all.

The page needs no network and no scripts: pictures are embedded as data URIs.
"""

from __future__ import annotations

import base64
import csv
import io
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import pyro
import torch

from wsram_ppl import __version__
from wsram_ppl.drawing.glimpses import draw_gaze
from wsram_ppl.errors import one_line
from wsram_ppl.files import make_folder, write_atomically
from wsram_ppl.interfaces import Gazes
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.studies.comparison import Comparison, VariantRun
from wsram_ppl.studies.definition import Variant
from wsram_ppl.studies.figures import Drawn, Line, draw
from wsram_ppl.studies.results import Summary, read_summary, summarize
from wsram_ppl.studies.tables import table_caption, table_cells, table_csv, table_markdown
from wsram_ppl.training.reading import held_out

__all__ = ["Written", "environment", "write_report"]

_TEMPLATE: Final = Path(__file__).with_name("report.html.jinja")

#: Held-out images in the picture of a variant's glimpses.
_IMAGES: Final = 8


@dataclass(frozen=True)
class Written:
    """The table, and the files of a report.

    Attributes:
        head, body: the table for people, as cells.
        page: the HTML file.
    """

    head: list[str]
    body: list[list[str]]
    page: Path


def write_report(comparison: Comparison) -> Written:
    """Writes ``table.csv``, ``table.md``, ``search.csv``, ``figures/``, ``glimpses/``, ``report.html``.

    All of them go into the study's folder.

    Raises:
        InputError: a finished run's files are damaged.
        RunError: a file cannot be written.
    """
    study, folder = comparison.study, comparison.folder
    rows = [_row(comparison, variant) for variant in study.variants]
    caption = table_caption(study.smoothing)
    head, body = table_cells(rows)
    write_atomically(folder / "table.csv", table_csv(rows).encode())
    write_atomically(folder / "table.md", table_markdown(rows, caption).encode())
    if comparison.trials:
        write_atomically(folder / "search.csv", _search_csv(comparison).encode())
    lines = [
        Line(variant.title, [folder / run.name for run in comparison.of(variant) if run.finished])
        for variant in study.variants
    ]
    figures = draw(study.figures, lines, folder / "figures", study.smoothing)
    glimpses = [_draw_glimpses(comparison, variant) for variant in study.variants]
    page = folder / "report.html"
    text = _page(comparison, head, body, caption, figures, [g for g in glimpses if g is not None])
    write_atomically(page, text.encode(errors="replace"))  # paths need not be UTF-8
    return Written(head, body, page)


def environment() -> dict[str, str]:
    """The versions and the machine, to be recorded."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        usable = os.cpu_count() or 1
    return {
        "wsram_ppl": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(usable),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _row(comparison: Comparison, variant: Variant) -> Summary:
    runs = comparison.of(variant)
    return summarize(
        variant.name,
        variant.title,
        variant.paper,
        [comparison.folder / run.name for run in runs if run.finished],
        failed=sum(run.failure is not None for run in runs),
        missing=sum(run.failure is None and not run.finished for run in runs),
        window=comparison.study.smoothing,
    )


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
    head: Sequence[str],
    body: Sequence[Sequence[str]],
    caption: str,
    figures: Sequence[Drawn],
    glimpses: Sequence[_Glimpses],
) -> str:
    study = comparison.study
    finished = [run for run in comparison.runs if run.finished]
    trials = [trial for trial in comparison.trials if trial.finished]
    summaries = [read_summary(comparison.folder / run.name) for run in (*finished, *trials)]
    maker = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = maker.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        study=study,
        comparison=comparison,
        finished=len(finished),
        head=head,
        body=body,
        caption=caption,
        failed=[_failure(comparison, run) for run in comparison.failed],
        search_metric=_METRICS[study.search.metric] if study.search else "",
        figures=[(figure, _uri(figure.files[1]) if figure.files else "") for figure in figures],
        glimpses=[(each, _uri(each.file) if each.file else "") for each in glimpses],
        environment=environment(),
        torch_versions=sorted({str(s.get("torch")) for s in summaries}),
        threads=sorted({str(s.get("threads")) for s in summaries}),
        devices=sorted({str(s.get("device")) for s in summaries}),
        training_seconds=sum(float(s.get("seconds", 0.0)) for s in summaries),
        wall_seconds=sum(call.seconds for call in comparison.calls),
        duration=_duration,
        commands=[run.command for run in (*comparison.trials, *comparison.runs) if run.command],
        configs=_configs(comparison),
        study_text=_study_text(comparison),
    )


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


def _configs(comparison: Comparison) -> list[tuple[str, str]]:
    """The whole config of each variant's first run."""
    found = []
    for variant in comparison.study.variants:
        config = next((run.config for run in comparison.of(variant) if run.config is not None), None)
        if config is not None:
            found.append((variant.title, config.to_toml()))
    return found


def _study_text(comparison: Comparison) -> str:
    return comparison.study.path.read_text(encoding="utf-8-sig", errors="replace")


def _uri(file: Path) -> str:
    kind = {".png": "image/png", ".svg": "image/svg+xml"}[file.suffix]
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
