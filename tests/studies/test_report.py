"""The table, the figures and the page of a study, against the files of a real one."""

from __future__ import annotations

import csv
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

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.studies.tiny_study import finished_study
from wsram_ppl.errors import RunError
from wsram_ppl.runs.metrics import Rows
from wsram_ppl.studies.comparison import Comparison, compare
from wsram_ppl.studies.definition import load_study
from wsram_ppl.studies.executors import Job
from wsram_ppl.studies.figures import COLOURS, Line, _mean_curve, draw
from wsram_ppl.studies.report import environment, write_report
from wsram_ppl.studies.results import Mean, Reached, Summary, smoothed, summarize, updates_to_reach
from wsram_ppl.studies.tables import table_cells, table_csv, table_markdown

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


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_mean_and_standard_error(values: list[float]) -> None:
    mean = Mean.of(values)
    assert mean is not None and mean.se is not None
    assert mean.value == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert mean.se == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)


def test_one_seed_has_no_standard_error() -> None:
    assert Mean.of([3.0]) == Mean(3.0, None, 1)
    assert Mean.of([]) is None


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


def row(runs: Sequence[Path], failed: int = 0, missing: int = 0, label: str = "x") -> Summary:
    return summarize(label, label, 0.0162, runs, failed, missing, window=2)


def test_thresholds_count_only_if_every_seed_reached_them(tmp_path: Path) -> None:
    quick = write_run(tmp_path / "quick", [0.9, 0.6, 0.4, 0.1, 0.1])
    slow = write_run(tmp_path / "slow", [0.9, 0.9, 0.5, 0.5, 0.5])
    both = row([quick, slow]).reached
    assert both[0.5] == Reached(Mean(35.0, 5.0, 2), 2, 2)  # at 30 (.6 and .4) and 40 (.5 and .5)
    assert both[0.2] == Reached(None, 1, 2)
    head, (cells,) = table_cells([row([quick, slow])])
    assert "updates to 50%" not in head  # no error, so this is no classifier
    summary = {"error": 0.1, "ess": 2.0, "particles": 5}
    quick, slow = (
        write_run(tmp_path / f"{n}-2", e, summary)
        for n, e in (("q", [0.6, 0.4, 0.1, 0.1]), ("s", [0.5] * 3))
    )
    head, (cells,) = table_cells([row([quick, slow])])
    shown = dict(zip(head, cells, strict=True))
    assert shown["updates to 50%"] == "20 ± 0"
    assert shown["updates to 20%"] == "not reached (1 of 2 seeds did)"
    assert shown["validation error"] == "10.00 ± 0.00%"
    assert shown["paper's error"] == "1.62%"
    assert shown["ESS (of 5)"] == "2.00 ± 0.00"
    summary = {"bound": -1.25, "ess": 2.0, "particles": 5}
    head, (cells,) = table_cells([row([write_run(tmp_path / "bound", summary=summary)])])
    assert cells[head.index("bound (nats, M = 5)")] == "−1.250"


def test_rows_without_results(tmp_path: Path) -> None:
    done = write_run(tmp_path / "done", [0.3] * 4, {"error": 0.25, "bound": -1.25, "ess": 2.0})
    head, body = table_cells(
        [row([done]), row([], 2, 0, "dead"), row([], 0, 1, "later"), row([done], 1, 3)]
    )
    runs = [cells[head.index("runs")] for cells in body]
    assert runs == ["1", "2 failed", "1 not run", "1, 1 failed, 3 not run"]
    assert [cells[head.index("validation error")] for cells in body] == ["25.00%", "", "", "25.00%"]
    assert body[0][head.index("bound (nats)")] == "−1.250"
    assert [cells[head.index("updates to 20%")] for cells in body] == [
        "not reached",
        "",
        "",
        "not reached",
    ]


def test_the_table_in_markdown_survives_its_labels() -> None:
    head, separator, line, _, caption = table_markdown([row([], 1, label="a|b\\")], "Why.").splitlines()
    assert line.startswith("| a\\|b\\\\ |")
    assert head.count("|") == separator.count("|") == line.replace("\\|", "").count("|")
    assert caption == "Why."


def test_the_table_as_csv_is_plain_numbers(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(e), [e] * 3, {"error": e, "particles": 5}) for e in (0.25, 0.5)]
    (read,) = csv.DictReader(io.StringIO(table_csv([row(runs, label='with, "signs"')])))
    assert read["label"] == 'with, "signs"'
    assert (float(read["error_mean"]), float(read["error_se"])) == (0.375, 0.125)
    assert read["bound_mean"] == read["bound_se"] == ""
    assert (read["particles"], read["paper_error"]) == ("5", "0.0162")
    assert (read["updates_to_50_mean"], read["updates_to_50_reached"]) == ("20", "2")
    assert (read["updates_to_20_mean"], read["updates_to_20_reached"]) == ("", "0")


# ---------------------------------------------------------------- figures


def test_a_curve_is_the_mean_over_seeds_at_common_steps() -> None:
    a = Rows(np.array([1.0, 10, 20, 30]), {"error": np.array([0.8, 0.6, math.nan, 0.2])})
    b = Rows(np.array([1.0, 10, 30]), {"error": np.array([1.0, 0.4, 0.1])})
    curve = _mean_curve([a, b], "error", 1)
    assert curve is not None and curve.se is not None
    np.testing.assert_array_equal(curve.steps, [1, 10, 30])
    np.testing.assert_allclose(curve.mean, [0.9, 0.5, 0.15])
    np.testing.assert_allclose(curve.se, [0.1, 0.1, 0.05])  # |a - b| / 2 for two seeds
    halved = _mean_curve([a, b], "error", 2)
    assert halved is not None
    # Each run is smoothed over its own rows: .8 .7 .4 and 1. .7 .25.
    np.testing.assert_allclose(halved.mean, [0.9, 0.7, 0.325])
    assert _mean_curve([a, b], "ess", 1) is None
    assert _mean_curve([], "error", 1) is None
    alone = _mean_curve([a], "error", 1)
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
        png, svg = figure.files
        assert (png.suffix, svg.suffix) == (".png", ".svg")
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
    line = Line("a", [write_run(tmp_path / f"a{i}", [0.9, 0.5, 0.2 + i / 10]) for i in (0, 1)])
    for name in ("once", "again"):
        draw(["error", "scales"], [line], tmp_path / name, 2)
    for file in ("error.png", "error.svg", "scales.png", "scales.svg"):
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
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_table_of_a_real_study_recomputed(finished: tuple[Path, CompletedProcess[str]]) -> None:
    out, done = finished
    with open(out / "table.csv", newline="") as file:
        rows = {line["variant"]: line for line in csv.DictReader(file)}
    assert list(rows) == ["VAR+c", "WS-RAM+q+c", "fails"]
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
        a, b = (float(summary["error"]) for summary in summaries)
        assert f"{50 * (a + b):.2f} ± {50 * abs(a - b):.2f}%" in (out / "table.md").read_text()
        assert f"{50 * (a + b):.2f} ± {50 * abs(a - b):.2f}%" in done.stdout
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
    assert len(images) == 6 + 2  # figures, and the glimpses of two variants
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
        "cores",
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
    ]
    command += [*options, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_the_page_in_a_browser(finished: tuple[Path, CompletedProcess[str]], tmp_path: Path) -> None:
    out, _ = finished
    shown = chromium(out / "report.html", tmp_path / "profile", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    page = Page(shown.stdout)
    assert "4 of 6 runs finished" in page.text and "the third update is <too> much" in page.text
    assert len(page.all("tr")) == len(Page((out / "report.html").read_text()).all("tr"))
    assert len(page.all("img")) == 8

    picture = tmp_path / "page.png"
    shown = chromium(
        out / "report.html", tmp_path / "profile", f"--screenshot={picture}", "--window-size=1200,6000"
    )
    assert "CONSOLE" not in shown.stderr
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    # The curves are there in their colours, and the black images with glimpses.
    for colour in (COLOURS[0], COLOURS[1], "#000000", "#fff4f4"):
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(1) <= 3).sum() > 300, colour


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
    assert len(page.all("img")) == 6
    # To look is not to run: what had failed is known from its log.
    assert "runs/fails/seed-3 RuntimeError: the third update is <too> much" in page.text
    assert (out / "table.csv").read_bytes() == (finished[0] / "table.csv").read_bytes()


def test_figures_of_a_real_study_are_drawn_again_to_the_byte(
    finished: tuple[Path, CompletedProcess[str]], tmp_path: Path
) -> None:
    out, _ = finished
    lines = [
        Line(label, [out / f"runs/{name}/seed-{seed}" for seed in seeds])
        for label, name, seeds in (
            ("VAR + $c$ <i>", "VAR+c", (0, 3)),
            ("WS-RAM+q+c", "WS-RAM+q+c", (0, 3)),
            ("fails", "fails", ()),
        )
    ]
    names = ["error", "test_error", "bound", "ess", "variance", "scales"]
    for figure in draw(names, lines, tmp_path, 3):
        for file in figure.files:
            assert file.read_bytes() == (out / "figures" / file.name).read_bytes()
