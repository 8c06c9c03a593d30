"""The table, the figures and the page of a study, against the files of a real one."""

from __future__ import annotations

import csv
import html
import html.parser
import io
import json
import math
import re
import shutil
import statistics
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.studies.tiny_study import ROOT, finished_study, write_study
from wsram_ppl.errors import InputError, RunError
from wsram_ppl.runs.environment import environment
from wsram_ppl.runs.metrics import Numbers, Rows
from wsram_ppl.studies.comparison import Comparison, compare
from wsram_ppl.studies.definition import load_study
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.figures import COLOURS, Line, draw
from wsram_ppl.studies.figures.axes import Range, fit
from wsram_ppl.studies.figures.curves import mean_curve
from wsram_ppl.studies.report import write_report
from wsram_ppl.studies.results import Reached, Summary, smoothed, summarize, updates_to_reach
from wsram_ppl.studies.statistics import Mean
from wsram_ppl.studies.tables import differences_table, results_table, settings_table, table_csv

RESULTS = ROOT / "docs" / "results"

# ---------------------------------------------------------------- numbers


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(1, 12))
def test_smoothing_is_the_mean_of_the_last_values(values: list[float], window: int) -> None:
    found = smoothed(np.array(values), window)
    expected = [statistics.fmean(values[max(0, i - window + 1) : i + 1]) for i in range(len(values))]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@given(st.lists(st.floats(0, 1), max_size=25), st.integers(1, 6), st.floats(0, 1))
def test_the_first_update_with_a_mean_at_the_threshold(
    errors: list[float], window: int, threshold: float
) -> None:
    steps = [1, *range(50, 50 * len(errors), 50)]
    rows = Rows(np.array(steps[: len(errors)], dtype=float), {"error": np.array(errors)})
    found = updates_to_reach(rows, threshold, window)
    means = {
        steps[i]: statistics.fmean(errors[i - window + 1 : i + 1])
        for i in range(window - 1, len(errors))
    }
    if found is None:
        assert all(mean > threshold - 1e-9 for mean in means.values())
    else:
        assert means[int(found)] <= threshold + 1e-9
        assert all(mean > threshold - 1e-9 for step, mean in means.items() if step < found)


def test_one_lucky_minibatch_is_not_yet_a_training_error() -> None:
    rows = Rows(np.array([1.0, 50.0, 100.0, 150.0]), {"error": np.array([0.1, 0.9, 0.5, 0.1])})
    assert updates_to_reach(rows, 0.5, 3) == 100
    assert updates_to_reach(rows, 0.5, 5) is None
    assert updates_to_reach(Rows(rows.steps, {}), 0.5, 1) is None


def write_run(
    folder: Path,
    errors: Sequence[float] = (),
    summary: Mapping[str, object] | None = None,
    probes: Sequence[float] = (),
    scales: bool = True,
) -> Path:
    """A finished run's files, made by hand: training errors at 10, 20, ..., probes at 100, 200, ..."""
    folder.mkdir(parents=True)
    with open(folder / "metrics.csv", "w", newline="") as file:
        rows = csv.writer(file)
        names = ["error", "ess", "variance"] + (["scale_1", "scale_4", "scale_12"] if scales else [])
        rows.writerow(["step", "split", *names])
        for number, error in enumerate(errors, 1):
            shares = [0.5, 0.3, 0.2] if scales else []
            rows.writerow([10 * number, "train", error, 1 + error, "", *shares])
        for number, variance in enumerate(probes, 1):
            rows.writerow([100 * number, "probe", "", "", variance, *[""] * (3 if scales else 0)])
    (folder / "summary.json").write_text(json.dumps({"updates": 1, **(summary or {"ess": 2.0})}))
    return folder


def row(
    runs: Sequence[Path] | Mapping[int, Path], failed: int = 0, missing: int = 0, label: str = "x"
) -> Summary:
    by_seed = runs if isinstance(runs, Mapping) else dict(enumerate(runs))
    return summarize(label, label, 0.0162, by_seed, failed, missing, window=2)


def cells(rows: Sequence[Summary], of: int = 0) -> dict[str, str]:
    """A row of the table for people."""
    table = results_table(rows, 2)
    return dict(zip(table.head, table.body[of], strict=True))


def test_thresholds_count_only_if_every_seed_reached_them(tmp_path: Path) -> None:
    quick = write_run(tmp_path / "quick", [0.9, 0.6, 0.4, 0.1, 0.1])
    slow = write_run(tmp_path / "slow", [0.9, 0.9, 0.5, 0.5, 0.5])
    both = row([quick, slow]).reached
    assert both[0.5] == Reached(Mean.of([30.0, 40.0]), 2, 2)  # .6 and .4, .5 and .5
    assert both[0.2] == Reached(None, 1, 2)
    assert "updates to 50%" not in cells([row([quick, slow])])  # no error, so this is no classifier
    summary = {"error": 0.1, "ess": 2.0, "particles": 5}
    quick, slow = (
        write_run(tmp_path / f"{n}-2", e, summary)
        for n, e in (("q", [0.6, 0.4, 0.1, 0.1]), ("s", [0.5] * 3))
    )
    shown = cells([row([quick, slow])])
    short = write_run(tmp_path / "short", [0.1], summary)
    assert "updates to 50%" not in cells([row([short])])  # too few to smooth
    assert shown["updates to 50%"] == "20 [20, 20]"
    assert shown["updates to 20%"] == "not reached (1 of 2 seeds did)"
    assert shown["validation error"] == "10.00% [10.00, 10.00]"
    assert shown["paper's error"] == "1.62%"
    assert shown["ESS (of 5)"] == "2.00 [2.00, 2.00]"
    summary = {"bound": -1.25, "ess": 2.0, "particles": 5}
    alone = row([write_run(tmp_path / "bound", summary=summary)])
    assert cells([alone])["bound (nats, M = 5)"] == "−1.250"


def test_rows_without_results(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", [0.3] * 4, {"error": 0.25, "bound": -1.25, "ess": 2.0})
    rows = [row([done]), row([], 2, 0, "dead"), row([], 0, 1, "later"), row([done], 1, 3)]
    shown = [cells(rows, number) for number in range(4)]
    runs = [each["runs"] for each in shown]
    assert runs == ["1", "2 failed", "1 not run", "1, 1 failed, 3 not run"]
    assert [each["validation error"] for each in shown] == ["25.00%", "", "", "25.00%"]
    assert shown[0]["bound (nats)"] == "−1.250"
    assert [each["updates to 20%"] for each in shown] == ["not reached", "", "", "not reached"]


def test_a_winner_is_bold_only_where_no_interval_overlaps(tmp_path: Path) -> None:
    def variant(name: str, errors: Sequence[float]) -> Summary:
        folders = [
            write_run(tmp_path / name / str(seed), [0.3] * 4, {"error": error, "bound": -error})
            for seed, error in enumerate(errors)
        ]
        return row(folders, label=name)

    good, near = variant("good", [0.01, 0.02, 0.03]), variant("near", [0.025, 0.04, 0.05])
    far, two = variant("far", [0.2, 0.3, 0.4]), variant("two", [0.5, 0.6])
    table = results_table([far, good], 2)
    assert {(i, table.head[j]) for i, j in table.best} == {(1, "validation error")}
    assert "| **2.00% [1.00, 3.00]** |" in table.markdown() and "Bold: better" in table.caption
    for rows in ([far, good, near], [far, good, two], [good]):  # overlap; two seeds; nobody to beat
        table = results_table(rows, 2)
        assert not table.best and "**" not in table.markdown() and "Bold" not in table.caption


def test_the_table_in_markdown_survives_its_labels() -> None:
    lines = results_table([row([], 1, label="a|b\\")], 2).markdown().splitlines()
    head, separator, line, _, caption = lines
    assert line.startswith("| a\\|b\\\\ |")
    assert head.count("|") == separator.count("|") == line.replace("\\|", "").count("|")
    assert caption.startswith("Mean over seeds, and in brackets its 95% bootstrap interval")


def test_the_table_as_csv_is_plain_numbers(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(e), [e] * 3, {"error": e, "particles": 5}) for e in (0.25, 0.5)]
    (read,) = csv.DictReader(io.StringIO(table_csv([row(runs, label='with, "signs"')])))
    assert read["label"] == 'with, "signs"'
    assert (float(read["error_mean"]), float(read["error_se"])) == (0.375, 0.125)
    assert (float(read["error_low"]), float(read["error_high"])) == (0.25, 0.5)
    assert read["bound_mean"] == read["bound_se"] == read["bound_low"] == ""
    assert (read["particles"], read["paper_error"]) == ("5", "0.0162")
    assert (read["updates_to_50_mean"], read["updates_to_50_reached"]) == ("20", "2")
    assert (read["updates_to_20_mean"], read["updates_to_20_reached"]) == ("", "0")
    assert read["seed"] == read["reference"] == read["error_difference"] == ""


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*/table.csv")), ids=lambda file: file.parent.name)
def test_columns_of_tables_that_were_published_are_still_written(file: Path) -> None:
    """Who reads those reads new ones; log_likelihood was the bound's name before 0.2."""
    with open(file, newline="") as text:
        published = csv.DictReader(text).fieldnames or []
    assert published
    now = table_csv([]).strip().split(",")
    assert {name.replace("log_likelihood", "bound") for name in published} <= set(now)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """Seeds that only one has are named, and do not count."""

    def variant(name: str, errors: Mapping[int, float]) -> Summary:
        folders = {
            seed: write_run(tmp_path / name / str(seed), summary={"error": error, "bound": -error})
            for seed, error in errors.items()
        }
        return row(folders, label=name)

    rows = [
        variant("old", {0: 0.5, 1: 0.25, 2: 0.125}),
        variant("new", {0: 0.25, 1: 0.125, 3: 0.75}),
        variant("worse", {0: 0.5, 1: 0.5, 2: 0.0625}),
        variant("none", {}),
    ]
    table = differences_table(rows, "old")
    assert table is not None and table.title == "Differences to old"
    shown = [dict(zip(table.head, line, strict=True)) for line in table.body]
    assert [line["validation error (points)"] for line in shown] == [
        "−18.75 [−25.00, −12.50], 2 of 2 seeds",
        "+6.25 [−6.25, +25.00], 1 of 3 seeds",
        "",
    ]
    assert shown[0]["bound (nats)"] == "+0.188 [+0.125, +0.250], 2 of 2 seeds"
    assert [line["left out"] for line in shown] == ["seeds 2, 3", "", ""]
    assert "ESS" not in table.head
    assert table.caption.endswith("Left out: seeds that only one of the two has.")
    found = list(csv.DictReader(io.StringIO(table_csv(rows, "old"))))
    assert [line["reference"] for line in found] == ["old"] * 4
    assert found[0]["error_difference"] == found[3]["error_difference"] == ""
    line = found[1]
    assert (line["error_difference"], line["error_difference_low"]) == ("-0.1875", "-0.25")
    assert (line["error_difference_agreeing"], line["error_difference_pairs"]) == ("2", "2")
    assert differences_table([rows[0], rows[3]], "old") is None


def test_what_differs_between_variants(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    path.write_text(path.read_text().partition('[[variant]]\nname = "fails"')[0])
    study = load_study(path)
    a, b = study.variants
    table = settings_table([(v.title, study.config(v, 0)) for v in (a, b)])
    assert table is not None
    assert table.head == ["key", "VAR + $c$ <i>", "WS-RAM+q+c"]
    shown = {line[0]: line[1:] for line in table.body}
    assert shown["objective.name"] == ["variational", "wake-sleep"]
    assert shown["guide.name"] == ["prior", "inference"]
    assert shown["objective.baseline"] == ["site", ""]
    assert shown["objective.control_variate"] == ["", "self-normalized"]
    assert "objective.num_particles" not in shown and not any("seed" in key for key in shown)
    assert settings_table([("a", study.config(a, 0)), ("b", study.config(a, 0))]) is None


def test_errors_on_test_data_are_taken_from_the_runs(tmp_path: Path) -> None:
    """That were evaluated after the study: what ``evaluate --split test --json`` has printed."""
    runs = [write_run(tmp_path / str(n), summary={"error": 0.5}) for n in (0, 1)]
    (runs[1] / "test.json").write_text('{"split": "test", "updates": 1, "error": 0.25}')
    assert cells([row(runs)])["test error"] == "25.00% (1 of 2 seeds)"
    assert "test error" not in cells([row(runs[:1])])
    for text, said in (
        ("", "Expecting value"),
        ('{"split": "validation", "updates": 1, "error": 0.25}', "it is not of the test split"),
        ('{"split": "test", "updates": 9, "error": 0.25}', "it is of 9 updates, not 1"),
        ("[]", "it is not of the test split"),
    ):
        (runs[1] / "test.json").write_text(text)
        with pytest.raises(
            InputError, match=rf"cannot read .*/1/test.json: {said}.*; wsram evaluate .*1"
        ):
            row(runs)


# ---------------------------------------------------------------- figures


def test_a_curve_is_the_mean_over_seeds_at_common_steps() -> None:
    a = Rows(np.array([1.0, 10, 20, 30]), {"error": np.array([0.8, 0.6, math.nan, 0.2])})
    b = Rows(np.array([1.0, 10, 30]), {"error": np.array([1.0, 0.4, 0.1])})
    curve = mean_curve([a, b], "error", 1)
    assert curve is not None and curve.se is not None
    np.testing.assert_array_equal(curve.steps, [1, 10, 30])
    np.testing.assert_allclose(curve.mean, [0.9, 0.5, 0.15])
    np.testing.assert_allclose(curve.se, [0.1, 0.1, 0.05])  # |a - b| / 2 for two seeds
    halved = mean_curve([a, b], "error", 2)
    assert halved is not None
    # Each run is smoothed over its own rows: .8 .7 .4 and 1. .7 .25.
    np.testing.assert_allclose(halved.mean, [0.9, 0.7, 0.325])
    assert mean_curve([a, b], "ess", 1) is None
    assert mean_curve([], "error", 1) is None
    alone = mean_curve([a], "error", 1)
    assert alone is not None and alone.se is None


def svg_text(path: Path) -> str:
    """matplotlib keeps each text as a comment beside its outlines."""
    text = path.read_text()
    ElementTree.fromstring(text)
    return " ".join(re.findall(r"<!-- (.*?) -->", text))


def test_figures_have_axes_legends_and_captions(tmp_path: Path) -> None:
    lines = [
        Line(
            "$a$",
            [write_run(tmp_path / f"a{i}", [0.9, 0.5, 0.2 + i / 10], probes=[3, 1]) for i in (0, 1)],
        ),
        Line("_b", [write_run(tmp_path / "b0", [0.9, 0.8, 0.7], probes=[0, 0], scales=False)]),
        Line("dead", []),
    ]
    drawn = {figure.name: figure for figure in draw(["error", "variance", "scales"], lines, tmp_path, 2)}
    for figure in drawn.values():
        png, svg, narrow = figure.files
        assert (png.suffix, svg.suffix) == (".png", ".svg")
        assert narrow.name == f"{figure.name}-narrow.svg" and svg_text(narrow)
        with Image.open(png) as image:
            assert image.width >= 600
        assert "updates" in svg_text(svg)
    error = drawn["error"]
    text = svg_text(error.files[1])
    assert all(word in text for word in ("training error", "$a$", "_b", "80%"))
    assert "dead" not in text
    assert "mean of the last 2 logged minibatches" in error.caption
    assert "Mean over 1 to 2 seeds; shading: standard error." in error.caption
    assert error.caption.endswith("for lack of such numbers from finished runs: dead.")
    # A logarithmic axis has no place for zeros.
    assert "total variance of the gradient (nats²)" in svg_text(drawn["variance"].files[1])
    assert drawn["variance"].caption.endswith("finished runs: _b, dead.")
    assert "probe_repeats" in drawn["variance"].caption
    text = svg_text(drawn["scales"].files[1])
    assert re.search("scale 12.*scale 4.*scale 1", text)  # coarse on top, as in the stack
    assert drawn["scales"].caption.endswith("finished runs: _b, dead.")
    assert COLOURS[0] in error.files[1].read_text() and COLOURS[1] in error.files[1].read_text()


def test_the_same_numbers_make_the_same_bytes(tmp_path: Path) -> None:
    summary = {"error": 0.25}
    runs = [write_run(tmp_path / f"a{i}", [0.9, 0.5, 0.2 + i / 10], summary) for i in (0, 1)]
    line = Line("a", runs, 0.0162)
    for name in ("once", "again"):
        draw(["error", "scales", "final_error"], [line], tmp_path / name, 2)
    files = {file.name for file in (tmp_path / "once").iterdir()}
    assert {"error.png", "error.svg", "error-narrow.svg", "scales.png", "final_error.png"} <= files
    for file in files:
        assert (tmp_path / "once" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    line = Line("a", [write_run(tmp_path / "a", [0.5], scales=False)])
    for figure in draw(["variance", "scales", "test_error"], [line], tmp_path, 2):
        assert figure.files == ()
        assert figure.caption.startswith("Not drawn: no finished run has measured it.")


def test_figures_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot create"):
        draw(["error"], [], tmp_path / "file", 1)


def wave(steps: int, low: float, high: float) -> tuple[Numbers, Numbers, Numbers]:
    """A curve that goes up and down between two values."""
    at = np.arange(1.0, steps + 1)
    return at, low + (high - low) * (1 + np.cos(at)) / 2, np.zeros(steps)


def test_an_axis_is_not_squeezed_by_the_beginning() -> None:
    steps, values, spread = wave(1000, -1.0, -0.5)
    assert fit(steps, values, spread, log=False) == Range()
    values[:50] = np.linspace(-9.0, -1.0, 50)
    found = fit(steps, values, spread, log=False)
    assert found.low == pytest.approx(-1.025, abs=1e-3)
    assert found.high == pytest.approx(-0.475, abs=1e-3)
    assert found.note == "The axis leaves out a part of the beginning: all values lie from −9 to −0.5."
    values[500] = -9.0  # later on it is no beginning
    assert fit(steps, values, spread, log=False) == Range()


def test_an_axis_is_logarithmic_where_that_helps() -> None:
    steps, values, spread = wave(1000, 0.5, 0.9)
    assert fit(steps, values, spread, log=None, percent=True) == Range(low=0.0)
    falls = np.linspace(0.9, 0.02, 1000)
    found = fit(steps, falls, spread, log=None, percent=True)
    assert found == Range(0.8 * falls.min(), 1.25 * 0.9, True, "Logarithmic axis.")
    falls[-1] = 0.0  # which has no place there
    assert not fit(steps, falls, spread, log=None, percent=True).log
    assert fit(steps, falls, spread, log=True).low == pytest.approx(0.8 * falls[-2])
    early = values.copy()
    early[:50] = 0.9
    found = fit(steps, 0.1 * early + (early == 0.9), spread, log=None, percent=True)
    assert (found.low, found.high) == (0.0, pytest.approx(0.09 * 1.05, rel=0.01))
    assert found.note.endswith("from 0% to 109%.")


@given(
    st.lists(st.tuples(st.floats(allow_nan=True), st.floats(0, 1e6)), min_size=1, max_size=20),
    st.sampled_from([True, False, None]),
    st.booleans(),
)
def test_an_axis_has_ends_in_order_whatever_was_measured(
    measured: list[tuple[float, float]], log: bool | None, percent: bool
) -> None:
    means, spread = (np.array(each) for each in zip(*measured, strict=True))
    if log:
        means = np.abs(means) + 1e-9
    steps = np.arange(1.0, len(means) + 1)
    with np.errstate(over="ignore"):
        found = fit(steps, means, spread, log=log, percent=percent)
    if found.low is not None and found.high is not None:
        assert found.low < found.high or not math.isfinite(found.high - found.low)


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedProcess[str]]:
    return finished_study(tmp_path_factory.getbasetemp() / "tiny-study")


class Page(html.parser.HTMLParser):
    """The text and the tags of a page; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "wbr" and self.words:
            self.words[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_table_of_a_real_study_recomputed(finished: tuple[Path, CompletedProcess[str]]) -> None:
    out, done = finished
    with open(out / "table.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    of_seeds = {(line["variant"], line["seed"]): line for line in lines if line["seed"]}
    assert list(of_seeds) == [(n, s) for n in ("VAR+c", "WS-RAM+q+c", "fails") for s in ("0", "3")]
    rows = {line["variant"]: line for line in lines}  # the last of a variant is of all its seeds
    assert list(rows) == ["VAR+c", "WS-RAM+q+c", "fails"]
    assert {line["seed"] for line in rows.values()} == {""}
    for name in ("VAR+c", "WS-RAM+q+c"):
        summaries = [
            json.loads((out / f"runs/{name}/seed-{seed}/summary.json").read_text()) for seed in (0, 3)
        ]
        line = rows[name]
        assert (line["finished"], line["failed"], line["missing"]) == ("2", "0", "0")
        for measure in ("error", "bound", "ess", "updates_per_second"):
            a, b = (float(summary[measure]) for summary in summaries)
            assert float(line[f"{measure}_mean"]) == pytest.approx((a + b) / 2, rel=1e-5)
            assert float(line[f"{measure}_se"]) == pytest.approx(abs(a - b) / 2, rel=1e-5)
            for seed, value in (("0", a), ("3", b)):
                assert float(of_seeds[name, seed][f"{measure}_mean"]) == pytest.approx(value, rel=1e-5)
                assert of_seeds[name, seed][f"{measure}_low"] == ""
        a, b = (float(summary["error"]) for summary in summaries)
        shown = f"{50 * (a + b):.2f}% [{100 * min(a, b):.2f}, {100 * max(a, b):.2f}]"
        assert shown in (out / "table.md").read_text() and shown in done.stdout
        if name == "VAR+c":
            first = a, b
        else:
            low, high = sorted(100 * (x - y) for x, y in zip((a, b), first, strict=True))
            agree = 2 if low * high > 0 else 1
            difference = f"{(low + high) / 2:+.2f} [{low:+.2f}, {high:+.2f}], {agree} of 2 seeds"
            if low * high:
                assert difference.replace("-", "−") in done.stdout
    assert "Differences to VAR + $c$ <i>:" in done.stdout
    assert [of_seeds["fails", seed]["failed"] for seed in ("0", "3")] == ["1", "1"]
    assert (rows["fails"]["finished"], rows["fails"]["failed"], rows["fails"]["error_mean"]) == (
        "0",
        "2",
        "",
    )
    assert rows["WS-RAM+q+c"]["paper_error"] == "0.0162" and rows["VAR+c"]["paper_error"] == ""


def test_the_page_holds_everything_and_needs_nothing(
    finished: tuple[Path, CompletedProcess[str]],
) -> None:
    out, _ = finished
    text = (out / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(?!data:)[a-z/.]""", text)
    images = page.all("img")
    assert len(images) == 7 + 2  # figures, and the glimpses of two variants
    assert [source["media"] for source in page.all("source")] == ["(max-width: 36rem)"] * 7
    assert all(str(source["srcset"]).startswith("data:image/svg") for source in page.all("source"))
    assert all(str(image["src"]).startswith("data:image/") and image["alt"] for image in images)
    assert page.all("html") == [{"lang": "en"}]
    assert {cell.get("scope") for cell in page.all("th")} == {"row", "col"}
    # What could be taken for tags is text.
    assert "<h1>Tiny &amp; &lt;b&gt;quick&lt;/b&gt;</h1>" in text
    for words in (
        "Made to be run by a test.",
        "4 of 6 runs finished: 3 variants, 2 seeds each (0, 3), 12 updates per run.",
        "runs/fails/seed-0 RuntimeError: the third update is <too> much",
        "logs/runs/fails/seed-3.log",
        "VAR + $c$ <i>",
        "1.62%",
        "Note: VAR+c: objective.control_variate of 'wake-sleep' is left out",
        f"torch {environment()['torch']}",
        f"device cpu: {environment()['device']}",
        "this report wsram_ppl",
        "cores",
        "Differences to VAR + $c$ <i>",
        "objective.control_variate",
        "runs/VAR+c/seed-3",
        "python cli.py compare study.toml --out out --jobs 2",
        "wsram_ppl/__main__.py train out/configs/runs/WS-RAM+q+c/seed-3.toml",
        'base = "base.toml"',
        "From runs/WS-RAM+q+c/seed-0.",
    ):
        assert words in page.text, words
    titles = ["Training error", "Validation error", "Bound on validation data", "Effective sample size"]
    for title in [*titles, "Gradient variance", "Chosen scales", "Where the models look"]:
        assert title in page.text


def chromium(page: Path, profile: Path, *options: str) -> CompletedProcess[str]:
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    quiet = ["gpu", "background-networking", "component-update", "sync", "default-apps", "extensions"]
    command = [program, "--headless", "--no-sandbox", *(f"--disable-{what}" for what in quiet)]
    command += [
        f"--user-data-dir={profile}",
        "--no-first-run",
        "--enable-logging=stderr",
        "--hide-scrollbars",
        "--allow-file-access-from-files",  # one page looks into the other
    ]
    command += [*options, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


#: A screen of a given size, as a browser's own window may not be so narrow; and what is seen there.
SCREEN = """
<!DOCTYPE html>
<body style="margin: 0"><iframe style="border: 0; width: {width}px; height: {height}px" src="{page}"
onload="look(this.contentDocument)"></iframe><pre hidden></pre>
<script>
function look(page) {{
  const all = (query) => [...page.querySelectorAll(query)];
  const shown = (element) => element.checkVisibility();
  const tables = all(".scroll > table").filter(shown);
  document.querySelector("pre").textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    outside: all("main *").filter((e) => shown(e) && !e.closest(".scroll, pre")
      && e.getBoundingClientRect().right > {width} + 1).map((e) => e.outerHTML.slice(0, 80)),
    hidden: tables.filter((t) => t.offsetWidth > t.parentNode.clientWidth).length,
    unhinted: tables.filter((t) => t.offsetWidth > t.parentNode.clientWidth
      && !(t.parentNode.previousElementSibling?.matches(".hint")
        && shown(t.parentNode.previousElementSibling))).length,
    figures: all("picture img").map((i) => i.clientWidth / i.naturalWidth),
    glimpses: all(".scroll > img").map((i) => i.clientWidth),
  }});
}}
</script>
"""


def on_screen(page: Path, folder: Path, width: int, height: int) -> tuple[dict[str, Any], Path]:
    """What is seen of a page on a screen, measured, and a picture of it."""
    screen, picture = folder / "screen.html", folder / f"{width}.png"
    screen.write_text(SCREEN.format(width=width, height=height, page=page.resolve().as_uri()))
    shown = chromium(screen, folder / "profile", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    (text,) = re.findall("<pre[^>]*>(.*?)</pre>", shown.stdout, re.S)
    size = f"--window-size={width},{height}"
    chromium(screen, folder / "profile", f"--screenshot={picture}", size)
    return json.loads(html.unescape(text)), picture


def test_the_page_in_a_browser(finished: tuple[Path, CompletedProcess[str]], tmp_path: Path) -> None:
    out, _ = finished
    shown = chromium(out / "report.html", tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    page = Page(shown.stdout)
    assert "4 of 6 runs finished" in page.text and "the third update is <too> much" in page.text
    assert len(page.all("tr")) == len(Page((out / "report.html").read_text()).all("tr"))
    assert len(page.all("img")) == 9


@pytest.mark.parametrize(("width", "height"), [(1200, 7000), (390, 9000)], ids=["desktop", "phone"])
def test_the_page_on_a_screen(
    finished: tuple[Path, CompletedProcess[str]], tmp_path: Path, width: int, height: int
) -> None:
    """Nothing sticks out; a table that is wider than a phone says so; letters in figures can be read."""
    found, picture = on_screen(finished[0] / "report.html", tmp_path, width, height)
    assert found["width"] == width
    assert found["outside"] == []
    # How much smaller a figure is than drawn, with letters of 10 points.
    assert len(found["figures"]) == 7 and min(found["figures"]) > 0.8
    assert len(found["glimpses"]) == 2 and min(found["glimpses"]) > 700
    phone = width < 400
    assert (found["hidden"] > 0, found["unhinted"]) == (phone, 0)
    with Image.open(picture) as image:
        assert image.width == width
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    # Curves are there in their colours, the black images with glimpses, failures, and a phone's hints.
    for colour in (COLOURS[0], COLOURS[1], "#000000", "#fff4f4", *(["#0550ae"] if phone else [])):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(1) <= 3).sum() > 250, colour


class Silent:
    """A watcher of nothing: no run is started."""

    def noted(self, text: str) -> None: ...

    def planned(self, jobs: Sequence[Job]) -> None: ...

    def started(self, job: Job) -> None: ...

    def progressed(self, job: Job, step: int, numbers: Mapping[str, float]) -> None: ...

    def ended(self, job: Job, failure: str | None) -> None: ...


def look(folder: Path, out: Path) -> Comparison:
    study = load_study(folder / "study.toml")
    return compare(study, out, lambda config, run: ["train"], Silent(), run_missing=False)


def test_glimpses_that_cannot_be_drawn_leave_a_report(
    finished: tuple[Path, CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is gone, and a model that has no gaze: the numbers are still worth a page."""
    folder = finished[0].parent
    monkeypatch.chdir(folder)  # where the failing model is imported from
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "runs/VAR+c/seed-0/last.safetensors").unlink()
    monkeypatch.delattr("wsram_ppl.models.classifier.GlimpseClassifier.gaze")
    written = write_report(look(folder, out))
    assert written.page == out / "report.html"
    page = Page(written.page.read_text())
    assert re.search(
        r"Could not be drawn from runs/VAR\+c/seed-0: InputError: there is no checkpoint", page.text
    )
    assert len(page.all("img")) == 7
    # To look is not to run: what had failed is known from its log.
    assert "runs/fails/seed-3 RuntimeError: the third update is <too> much" in page.text
    assert (out / "table.csv").read_bytes() == (finished[0] / "table.csv").read_bytes()


def test_runs_of_an_earlier_version_are_reported(
    finished: tuple[Path, CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their summaries do not say what they were made with."""
    folder = finished[0].parent
    monkeypatch.chdir(folder)
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)

    def forget(run: str) -> None:
        file = out / "runs" / run / "summary.json"
        summary = json.loads(file.read_text())
        del summary["environment"]
        file.write_text(json.dumps(summary))

    version, torch = environment()["wsram_ppl"], environment()["torch"]
    forget("VAR+c/seed-0")
    some = Page(write_report(look(folder, out)).page.read_text()).text
    assert f"wsram_ppl {version} (3 of 4 runs), not recorded (1 of 4 runs)" in some
    assert f"torch {torch} " in some and f"torch {torch} (" not in some
    for run in ("VAR+c/seed-3", "WS-RAM+q+c/seed-0", "WS-RAM+q+c/seed-3"):
        forget(run)
    none = Page(write_report(look(folder, out)).page.read_text()).text
    assert f"added up over finished runs torch {torch} device cpu threads per run 1 this report" in none
    assert (out / "table.csv").read_bytes() == (finished[0] / "table.csv").read_bytes()


def test_figures_of_a_real_study_are_drawn_again_to_the_byte(
    finished: tuple[Path, CompletedProcess[str]], tmp_path: Path
) -> None:
    out, _ = finished
    lines = [
        Line(label, [out / f"runs/{name}/seed-{seed}" for seed in seeds], paper)
        for label, name, seeds, paper in (
            ("VAR + $c$ <i>", "VAR+c", (0, 3), None),
            ("WS-RAM+q+c", "WS-RAM+q+c", (0, 3), 0.0162),
            ("fails", "fails", (), None),
        )
    ]
    names = ["error", "test_error", "final_error", "bound", "ess", "variance", "scales"]
    for figure in draw(names, lines, tmp_path, 3):
        for file in figure.files:
            assert file.read_bytes() == (out / "figures" / file.name).read_bytes()
