"""Studies: their files, running what is missing, and what becomes of runs that fail."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, get_args

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from cli import main
from scripts.tiny_run import tiny_config
from tests.studies.tiny_study import BASE, ROOT, cli, finished_study, write_study
from wsram_ppl.errors import InputError, Interrupted, RunError
from wsram_ppl.studies.comparison import Comparison, compare
from wsram_ppl.studies.definition import (
    Candidate,
    Figure,
    Metric,
    Search,
    Study,
    Variant,
    _File,
    load_study,
)
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.executors.local import LocalExecutor
from wsram_ppl.studies.overrides import inline, merge
from wsram_ppl.studies.report import write_report


def study(folder: Path, text: str, overrides: Sequence[str] = (), base: str = BASE) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.toml").write_text(base)
    (folder / "study.toml").write_text(text)
    return load_study(folder / "study.toml", overrides)


def loads(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> str:
    """The message with which a study is refused."""
    with pytest.raises(InputError) as caught:
        study(tmp_path, text, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


MINIMAL = 'base = "base.toml"\nsteps = 5\n'
TWO = MINIMAL + 'seeds = [0, 1]\n[[variant]]\nname = "a"\n[[variant]]\nname = "b"\nmodel.hidden = 16\n'


# ---------------------------------------------------------------- the file


def test_overrides_are_merged_from_the_general_to_the_particular(tmp_path: Path) -> None:
    loaded = study(
        tmp_path,
        MINIMAL
        + """
        seeds = [7]
        [set]
        training.learning_rate.start = 1e-2      # the base's end and shape stay
        exploration.entropy = { start = 0.1, end = 0.0 }   # the base has none
        "objective.num_particles" = 4
        [[variant]]
        name = "a"
        [[variant]]
        name = "b"
        objective.num_particles = 6
        exploration.entropy = 0.5
        training.learning_rate.end = 1e-5
        """,
        ["training.batch_size=16", "objective.num_particles=7"],
    )
    a, b = (loaded.config(variant, 7) for variant in loaded.variants)
    assert (a.training.steps, a.training.seed, a.training.batch_size) == (5, 7, 16)
    assert a.training.learning_rate.model_dump() == {
        "start": 1e-2,
        "end": 3e-4,
        "shape": "cosine",
        "from": 0.0,
        "until": 1.0,
    }
    assert b.training.learning_rate.end == 1e-5
    assert (a.exploration.entropy.start, a.exploration.entropy.end) == (0.1, 0.0)
    assert b.exploration.entropy.constant and b.exploration.entropy.start == 0.5
    # The command line has the last word.
    assert a.objective.options["num_particles"] == b.objective.options["num_particles"] == 7


def test_an_exchanged_component_leaves_the_options_of_the_base_behind(tmp_path: Path) -> None:
    loaded = study(
        tmp_path,
        MINIMAL + '[[variant]]\nname = "VAR"\nobjective = { name = "variational", baseline = "site" }',
    )
    config = loaded.config(loaded.variants[0], 0)
    assert config.objective.name == "variational"
    assert config.objective.options["baseline"] == "site"
    assert config.objective.options["num_particles"] == 3  # both have it
    assert "control_variate" not in config.objective.options
    (note,) = config.notes
    assert "objective.control_variate of 'wake-sleep' is left out" in note


def test_a_variant_alone_differs_from_the_base_in_nothing_but_the_budget(tmp_path: Path) -> None:
    from wsram_ppl.config import load_config

    loaded = study(tmp_path, TWO)
    alone = load_config(tmp_path / "base.toml", ["training.steps=5", "training.seed=1"])
    assert loaded.config(loaded.variants[0], 1) == alone


def test_the_studies_keys_can_be_set(tmp_path: Path) -> None:
    text = TWO + "[search]\nkey = 'model.hidden'\nvalues = [4, 8]\nsteps = 3\n"
    loaded = study(tmp_path, text, ["steps=9", "seeds=[5]", "search.steps=2"])
    assert (loaded.steps, loaded.seeds) == (9, (5,))
    assert loaded.search is not None and loaded.search.steps == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"base is missing; steps is missing; variant is missing"),
        (TWO + "[sett]\n", r"unknown key sett; did you mean 'set'\?.*valid keys: base"),
        (
            TWO.replace("hidden", "hiden"),
            r"variant 'b': unknown key model.hiden; did you mean 'hidden'\?",
        ),
        (TWO + "modle.hidden = 1", r"unknown key variant 'b'.modle; did you mean 'model'\?"),
        (TWO.replace('"b"', '"a"'), r"variant name 'a' is taken"),
        (TWO.replace('"b"', '"A"'), r"variant name 'A' is taken \(by 'a': case is ignored\)"),
        (TWO.replace('"b"', '"../b"'), r"variant '../b'.name = '../b': should be usable as .* name"),
        (TWO.replace('"b"', '"-b"'), r"should be usable as a folder name"),
        (TWO.replace('name = "b"', ""), r"variant\[1\].name is missing"),
        (TWO.replace("[0, 1]", "[1, 1]"), r"seeds = \[1, 1\]: holds 1 twice"),
        (TWO.replace("[0, 1]", "[]"), r"seeds = \[\]: .*at least 1 item"),
        (TWO.replace("[0, 1]", "[-1]"), r"seeds\[0\] = -1: should be greater than or equal to 0"),
        (TWO.replace("= 5", "= 0"), r"steps = 0: should be greater than 0"),
        (TWO.replace("= 5", "= true"), r"steps = true"),
        ("figures = ['eror']\n" + TWO, r"figures\[0\] = 'eror': .*; did you mean 'error'\?"),
        ("reference = 'c'\n" + TWO, r"reference = 'c': no such variant; there are a, b"),
        (
            "reference = 'q_prior'\n" + TWO.replace('"b"', '"q-prior"'),
            r"reference = 'q_prior': no such variant; did you mean 'q-prior'\? there are a, q-prior",
        ),
        (
            TWO + "paper = 1.62",
            r"variant 'b'.paper = 1.62: should be a fraction in \[0, 1\], such as 0.0162",
        ),
        (TWO + "training.seed = 3", r"variant 'b'.training.seed: the study's own 'seeds' set it"),
        (TWO + "[set.training]\nsteps = 3", r"set.training.steps: the study's own 'steps' sets it"),
        (TWO + '[set.objective]\nname = "wake-slep"', r"variant 'a': .*did you mean 'wake-sleep'\?"),
        (TWO + "[set]\nmodel = 3", r"set.model = 3: should be a"),
        (TWO + "[set]\nmodel.'a=b' = 3", r"set.model.'a=b' cannot be set: not a plain key"),
        (TWO.replace("base.toml", "other.toml"), r"there is no file '.*other.toml'"),
        (TWO + "x = = 1", r"study.toml: not valid TOML: .*line 9"),
        (TWO + "[search]\nsteps = 2", r"search needs either 'key' and 'values', or 'candidates'"),
        (TWO + "[search]\nsteps = 2\nkey = 'model.hidden'", r"search needs either 'key' and 'values'"),
        (
            TWO + "[search]\nsteps = 2\nkey = 'model'\nvalues = [1]",
            r"search.key = 'model': write table.key",
        ),
        (TWO + "[search]\nsteps = 2\nkey = 'm.h'\nvalues = []", r"search.values = \[\]: "),
        (TWO + "[search]\nkey = 'm.h'\nvalues = [1]", r"search.steps is missing"),
        (TWO + "[search]\nsteps = 2\nkey = 'm.h'\nvalues = [1]", r"unknown key search.values\[0\].m;"),
        (
            TWO + "[search]\nsteps = 2\nkey = 'model.hidden'\nvalues = [0]",
            r"variant 'a': model.hidden = 0",
        ),
        (
            TWO + "[search]\nsteps = 2\nkey = 'training.steps'\nvalues = [1]",
            r"search.values\[0\].training.steps: the study's own 'steps'",
        ),
        (
            TWO + "[search]\nsteps = 2\nmetric = 'ess'\nkey = 'm.h'\nvalues = [1]",
            r"search.metric = 'ess'",
        ),
        (
            TWO + "[search]\nsteps = 2\nmetric = 'log_likelihood'\nkey = 'm.h'\nvalues = [1]",
            r"search.metric = 'log_likelihood': should be 'bound' or 'error'",
        ),
        (
            TWO + "[search]\nsteps = 2\ncandidates = [{ name = 'x' }, { name = 'x' }]",
            r"search.candidates name 'x' is taken",
        ),
        (TWO + 'label = "a\\nb"\n', r"variant 'b'.label = 'a\\nb': should be one line"),
    ],
)
def test_a_wrong_study_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    assert re.search(message, loads(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "write key=value"),
        ("trainin.batch_size=3", "no such table; there are data, model, .* and the study's own keys"),
        ("training.steps=3", "the study's own 'steps' sets it"),
        ("training.seed=3", "the study's own 'seeds' set it"),
        ("model.hiden=3", "variant 'a': unknown key model.hiden; did you mean 'hidden'"),
        ("figues=[]", "unknown key figues; did you mean 'figures'"),
        ("steps=many", "steps = 'many'"),
        ("reference=c", "reference = 'c': no such variant; there are a, b"),
    ],
)
def test_a_wrong_override_is_refused_in_one_line(tmp_path: Path, override: str, message: str) -> None:
    assert re.search(message, loads(tmp_path, TWO, [override]))


def test_a_wrong_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"base 'base.toml': unknown key training.stps; did you mean"):
        study(tmp_path, TWO, base=BASE + "stps = 3")


def test_every_key_of_a_study_is_documented() -> None:
    text = (ROOT / "docs" / "studies.md").read_text()
    written = set(re.findall(r"`([a-z_]+)`", text))
    for table in (_File, Variant, Search, Candidate):
        assert set(table.model_fields) <= written, table
    assert set(get_args(Figure)) <= written
    assert all(f'`"{metric}"`' in text for metric in get_args(Metric))
    # With their defaults.
    for name, field in (_File.model_fields | Search.model_fields).items():
        if isinstance(field.default, int | str | tuple) and (field.default or name == "seed"):
            shown = json.dumps(field.default)
            assert f"| `{shown}` |" in text, name


@pytest.mark.parametrize("name", ["table1", "control_variates", "figure2", "figure3", "beyond"])
def test_the_studies_of_the_paper_are_valid(name: str) -> None:
    loaded = load_study(ROOT / "experiments" / f"{name}.toml")
    configs = [loaded.config(variant, seed) for variant in loaded.variants for seed in loaded.seeds]
    assert len({config.fingerprint() for config in configs}) == len(configs)
    assert {config.objective.options["num_particles"] for config in configs} == {5}
    assert {config.training.steps for config in configs} == {loaded.steps}
    assert {config.data.name for config in configs} == {"mnist"}
    if "variance" in loaded.figures:
        assert all(config.training.probe_every for config in configs)


def test_the_rows_of_table_1() -> None:
    loaded = load_study(ROOT / "experiments" / "table1.toml")
    rows = {}
    for variant in loaded.variants:
        config = loaded.config(variant, 0)
        how = config.objective.options.get("control_variate", config.objective.options.get("baseline"))
        rows[variant.name] = config.objective.name, how, config.guide.name
    assert rows == {
        "VAR": ("variational", "none", "prior"),
        "VAR+c": ("variational", "site", "prior"),
        "WS-RAM": ("wake-sleep", "none", "prior"),
        "WS-RAM+c": ("wake-sleep", "self-normalized", "prior"),
        "WS-RAM+q": ("wake-sleep", "none", "inference"),
        "WS-RAM+q+c": ("wake-sleep", "self-normalized", "inference"),
        "adaptive": ("wake-sleep", "adaptive", "inference"),
        "learned": ("wake-sleep", "learned", "inference"),
    }
    assert loaded.steps == 20_000
    assert {loaded.config(v, 0).training.batch_size for v in loaded.variants} == {64}


plain = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(plain)
def test_values_are_written_in_one_line_of_toml_and_read_back(value: Any) -> None:
    import tomllib

    text = inline(value)
    assert len(text.splitlines()) <= 1 or "\n" not in text
    assert tomllib.loads(f"v = {text}")["v"] == value


tables = st.dictionaries(
    st.sampled_from("ab"), st.integers() | st.dictionaries(st.sampled_from("cd"), st.integers())
)


@given(tables, tables, tables)
def test_merging_is_associative_and_what_is_set_last_wins(a: Any, b: Any, c: Any) -> None:
    assert merge(a, {}) == a == merge({}, a) == merge(a, a)
    for key, value in b.items():
        if not isinstance(value, dict):
            assert merge(a, b)[key] == value
        else:
            assert value.items() <= merge(a, b)[key].items()
    if all(isinstance(value, dict) for table in (a, b, c) for value in table.values()):
        assert merge(merge(a, b), c) == merge(a, merge(b, c))


# ---------------------------------------------------------------- running

#: Trains nothing, but makes a run directory as a real run does. How it ends hangs on the hidden units.
TRAINER = """
import csv, json, os, pathlib, shutil, signal, sys, time, tomllib

config, run, trace = map(pathlib.Path, sys.argv[1:4])
tables = tomllib.loads(config.read_text())
with open(trace, "a") as file:
    file.write(f"{run.parent.name}/{run.name}\\n")
run.mkdir(parents=True, exist_ok=True)
shutil.copy(config, run / "config.toml")
training, hidden = tables["training"], tables["model"]["hidden"]
rate, steps = training["learning_rate"], training["steps"]
rate = rate["start"] if isinstance(rate, dict) else rate
with open(run / "metrics.csv", "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["step", "split", "error", "ess"])
    for step in range(1, steps + 1):
        rows.writerow([step, "train", 1 / step, 2.5])
if hidden == 1:
    sys.exit("some noise\\n\\nerror: it is too small\\n")
if hidden == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if hidden == 3:
    sys.exit(0)
if hidden == 4:
    sys.exit(5)
if hidden == 5:
    time.sleep(600)
if hidden == 6:
    time.sleep(1)
if hidden == 9:
    while not trace.with_name("go").exists():
        time.sleep(0.05)
    sys.exit("error: it is too slow")
threads = os.environ.get("OMP_NUM_THREADS")
summary = {"error": abs(rate - 0.004) * 100, "bound": rate, "ess": 2.0, "particles": 3}
if hidden == 7:
    summary["error"] = summary["bound"] = float("nan")
if hidden == 10:
    del summary["error"]
summary |= {"updates": steps, "updates_per_second": 10.0, "seconds": 1.0, "torch": "0", "device": "cpu"}
summary["threads"] = threads
(run / "summary.json").write_text(json.dumps(summary))
"""


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.forecasts: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.numbers: dict[str, tuple[int, Mapping[str, float]]] = {}
        self.most = 0

    def noted(self, text: str) -> None:
        plan = re.match(r"\d+ (run|trial)s? of |timing ", text)
        (self.forecasts if plan else self.notes).append(text)

    def planned(self, jobs: Sequence[Job]) -> None:
        self.events.append(("planned", str(len(jobs))))

    def started(self, job: Job) -> None:
        self.events.append(("started", job.name))
        running = sum(e == "started" for e, _ in self.events) - sum(e == "ended" for e, _ in self.events)
        self.most = max(self.most, running)

    def progressed(self, job: Job, step: int, numbers: Mapping[str, float]) -> None:
        self.numbers[job.name] = step, numbers

    def ended(self, job: Job, failure: str | None) -> None:
        self.events.append(("ended", job.name))

    def waited(self) -> None:
        pass


class Bench:
    """A study that the script above trains, and what it was asked to train."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.trace = folder, folder / "out", folder / "trace"
        (folder / "trainer.py").write_text(TRAINER)
        self.watcher = Recorder()

    def command(self, config: Path, run: Path) -> list[str]:
        return [
            sys.executable,
            "-S",
            str(self.folder / "trainer.py"),
            str(config),
            str(run),
            str(self.trace),
        ]

    def run(
        self, text: str, overrides: Sequence[str] = (), jobs: int = 2, run_missing: bool = True
    ) -> Comparison:
        loaded = study(self.folder, text, overrides)
        self.watcher = Recorder()
        return compare(
            loaded,
            self.out,
            self.command,
            self.watcher,
            executor=LocalExecutor(jobs),
            run_missing=run_missing,
            call="here",
        )

    def trained(self) -> list[str]:
        """What was trained since the last look, sorted."""
        lines = self.trace.read_text().splitlines() if self.trace.exists() else []
        self.trace.unlink(missing_ok=True)
        return sorted(lines)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_runs_what_is_missing_and_nothing_twice(bench: Bench) -> None:
    first = bench.run(TWO)
    assert bench.trained() == ["a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1"]
    assert all(run.finished and run.failure is None for run in first.runs)
    assert bench.watcher.most == 2 and ("planned", "4") in bench.watcher.events
    # The processes were told to use one thread.
    summary = json.loads((bench.out / "runs/a/seed-0/summary.json").read_text())
    assert summary["threads"] == "1"

    again = bench.run(TWO, jobs=1)
    assert bench.trained() == [] and bench.watcher.events == []
    assert all(run.finished for run in again.runs)
    # More seeds and variants: just these.
    bench.run(
        TWO.replace("[0, 1]", "[0, 1, 2]") + '[[variant]]\nname = "c"\nmodel.hidden = 32\n', jobs=3
    )
    assert bench.trained() == ["a/seed-2", "b/seed-2", "c/seed-0", "c/seed-1", "c/seed-2"]
    assert bench.watcher.most == 3
    calls = json.loads((bench.out / "calls.json").read_text())
    assert [(call["command"], call["trained"], call["jobs"]) for call in calls] == [
        ("here", 4, 2),
        ("here", 5, 3),
    ]


def test_progress_is_read_from_the_metrics(bench: Bench) -> None:
    bench.run(TWO.replace("16", "6"))
    step, numbers = bench.watcher.numbers["runs/b/seed-0"]
    assert step == 5
    assert numbers == {"error": pytest.approx(1 / 5), "ess": 2.5}


def test_failures_have_their_reasons_and_leave_the_others_alone(bench: Bench) -> None:
    text = MINIMAL + "".join(
        f'[[variant]]\nname = "h{hidden}"\nmodel.hidden = {hidden}\n' for hidden in (1, 2, 3, 4, 8)
    )
    found = bench.run(text, jobs=3)
    reasons = {run.variant.name: run.failure for run in found.runs}
    assert reasons == {
        "h1": "it is too small",
        "h2": "killed by SIGKILL, perhaps out of memory",
        "h3": "it ended without a summary.json",
        "h4": "exit code 5, and it printed nothing",
        "h8": None,
    }
    assert [run.variant.name for run in found.failed] == ["h1", "h2", "h3", "h4"]
    assert [run.finished for run in found.runs] == [False] * 4 + [True]
    bench.trained()

    # Only to look, and no work.
    seen = bench.run(text, run_missing=False)
    assert bench.trained() == []
    assert {run.variant.name: run.failure for run in seen.runs} == reasons

    # They are tried again, from where they were.
    bench.run(text)
    assert bench.trained() == ["h1/seed-0", "h2/seed-0", "h3/seed-0", "h4/seed-0"]
    assert bench.watcher.notes == [
        f"runs/h{n}/seed-0 was not finished: it resumes from its last checkpoint" for n in (1, 2, 3, 4)
    ]


def test_an_unfinished_run_of_another_config_is_put_aside(bench: Bench) -> None:
    """And goes on when the study has its config again."""
    moved = "runs/a/seed-0 was not finished and has another config: it is now in {}"
    aside = bench.out / "interrupted/runs/a/seed-0"
    second = aside.with_name("seed-0-2")
    expected: dict[int, list[str]] = {1: [], 2: [moved.format(aside)], 3: [moved.format(second)]}
    for hidden, notes in expected.items():
        bench.run(MINIMAL + f'[[variant]]\nname = "a"\nmodel.hidden = {hidden}\n')
        assert bench.watcher.notes == notes
    assert "hidden = 1" in (aside / "config.toml").read_text()
    assert "hidden = 2" in (second / "config.toml").read_text()
    bench.run(MINIMAL + '[[variant]]\nname = "a"\nmodel.hidden = 2\n')
    assert bench.watcher.notes == [
        moved.format(aside.with_name("seed-0-3")),
        f"runs/a/seed-0 was set aside in {second}, and goes on",
        "runs/a/seed-0 was not finished: it resumes from its last checkpoint",
    ]
    assert not second.exists()


def test_a_program_that_is_not_there(bench: Bench) -> None:
    loaded = study(bench.folder, TWO)
    with pytest.raises(RunError, match=r"cannot start runs/a/seed-0: .*No such file"):
        compare(loaded, bench.out, lambda config, run: ["/no/such/program"], Recorder())


def test_a_finished_run_of_another_config_is_in_the_way(bench: Bench) -> None:
    bench.run(TWO)
    bench.trained()
    with pytest.raises(InputError) as caught:
        bench.run(TWO.replace("16", "32").replace("steps = 5", "steps = 6"))
    message = str(caught.value)
    assert (
        "runs/a/seed-0 is a finished run of another config (training.steps 5, not 6, with training.learn"
        in message
    )
    with pytest.raises(InputError, match=r"runs/b/seed-0 is .* \(model.hidden 16, not 32\)"):
        bench.run(TWO.replace("16", "32"))
    assert bench.trained() == []


def test_more_steps_extend_what_is_finished(bench: Bench) -> None:
    """Where the schedules of the past stay what they were; and fewer steps are refused."""
    bench.run(TWO)
    bench.trained()
    found = bench.run(TWO.replace("steps = 5", "steps = 6"), ["training.schedule_steps=5"])
    assert bench.trained() == ["a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1"]
    assert not found.failed
    assert json.loads((bench.out / "runs/a/seed-0/summary.json").read_text())["updates"] == 6
    assert bench.watcher.notes[0] == (
        "runs/a/seed-0 has fewer updates than the study now needs: it resumes from its last checkpoint"
    )
    with pytest.raises(
        InputError, match=r"runs/a/seed-0 has 6 updates, more than the study's steps = 5"
    ):
        bench.run(TWO, ["training.schedule_steps=5"])


def test_how_often_was_measured_is_no_other_config(bench: Bench) -> None:
    bench.run(TWO)
    bench.trained()
    bench.run(TWO, ["training.probe_every=2", "training.threads=1", "training.loggers=[]"])
    assert bench.trained() == []
    assert "runs/a/seed-0 is kept, though it was run with training.probe_every 0, not 2" in (
        bench.watcher.notes
    )


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_run_is_left_alone(bench: Bench, kind: str) -> None:
    path = bench.out / "runs/a/seed-0"
    if kind == "file":
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    else:
        path.mkdir(parents=True)
        (path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"runs/a/seed-0 is in the way: it is not a run"):
        bench.run(TWO)
    assert bench.trained() == []


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_summary(bench: Bench, text: str) -> None:
    bench.run(TWO)
    (bench.out / "runs/a/seed-1/summary.json").write_text(text)
    with pytest.raises(InputError, match=r"runs/a/seed-1/summary.json: .*remove the run to do it again"):
        bench.run(TWO)


def test_a_damaged_record_of_calls(bench: Bench) -> None:
    bench.run(TWO)
    (bench.out / "calls.json").write_text("[1]")
    with pytest.raises(InputError, match=r"calls.json is damaged: remove it"):
        bench.run(TWO)


def test_nothing_to_report_on(bench: Bench) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*out to report on"):
        bench.run(TWO, run_missing=False)


SEARCH = """
[search]
key = "training.learning_rate.start"
values = [1e-3, 3e-3, 8e-3]
steps = 2
seed = 9
"""


def test_values_that_are_no_names_of_folders(tmp_path: Path) -> None:
    """The number of a value is not taken for another value."""
    text = TWO + SEARCH.replace("training.learning_rate.start", "exploration.entropy")
    loaded = study(tmp_path, text.replace("1e-3, 3e-3, 8e-3", "2, { start = 1.0, end = 0.0 }"))
    assert [candidate.name for candidate in loaded.candidates] == ["2", "value-2"]


@pytest.mark.parametrize(("metric", "best"), [("bound", 8e-3), ("error", 3e-3)])
def test_every_variant_takes_the_best_of_its_search(bench: Bench, metric: str, best: float) -> None:
    text = TWO + SEARCH + f'metric = "{metric}"\n'
    found = bench.run(text)
    trials = [f"{name}/{value}" for name in "ab" for value in ("0.001", "0.003", "0.008")]
    assert bench.trained() == sorted([*trials, "a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1"])
    for run in found.runs:
        assert run.config is not None
        assert run.config.training.learning_rate.start == best
        assert (run.config.training.learning_rate.end, run.config.training.steps) == (3e-4, 5)
    for trial in found.trials:
        assert trial.config is not None
        assert (trial.config.training.steps, trial.config.training.seed) == (2, 9)
        start = trial.config.training.learning_rate.start
        assert trial.value == pytest.approx(start if metric == "bound" else 100 * abs(start - 4e-3))
        assert trial.chosen == (start == best)
    # The same again trains nothing and chooses the same.
    again = bench.run(text)
    assert bench.trained() == []
    assert [t.chosen for t in again.trials] == [t.chosen for t in found.trials]


def test_candidates_may_be_tables_and_failed_ones_never_win(bench: Bench) -> None:
    found = bench.run(
        MINIMAL
        + """
        [[variant]]
        name = "a"
        [[variant]]
        name = "b"
        objective.num_particles = 4
        [search]
        steps = 2
        [[search.candidates]]
        name = "dies"
        model.hidden = 1
        training.learning_rate.start = 0.9
        [[search.candidates]]
        name = "nan"
        model.hidden = 7
        training.learning_rate.start = 0.8
        [[search.candidates]]
        model.hidden = 12
        """
    )
    assert [run.config.model.options["hidden"] for run in found.runs if run.config] == [12, 12]
    states = [(t.candidate.name, t.chosen, t.failure) for t in found.trials[:3]]
    assert states == [
        ("dies", False, "it is too small"),
        ("nan", False, "its summary has no finite 'bound'"),
        ("3", True, None),
    ]
    assert len(found.failed) == 4 and all(run.finished for run in found.runs)


def test_a_variant_whose_search_fails_fails_alone(bench: Bench) -> None:
    found = bench.run(TWO.replace("16", "1") + SEARCH)
    assert [run.failure for run in found.runs] == [None, None] + [
        "none of the candidates of its search could be trained"
    ] * 2
    assert sum(name.startswith("b/seed") for name in bench.trained()) == 0


def test_before_the_search_is_done_nothing_is_chosen(bench: Bench) -> None:
    bench.run(TWO + SEARCH)
    shutil.rmtree(bench.out / "search/a/0.003")
    shutil.rmtree(bench.out / "runs/a")
    found = bench.run(TWO + SEARCH, run_missing=False)
    assert [run.finished for run in found.runs] == [False, False, True, True]
    assert found.failed == []


def test_a_choice_is_kept_once_its_runs_have_begun(bench: Bench) -> None:
    """Whatever trials are missing, have failed, or would win now: runs of one variant are alike."""
    search = SEARCH.replace("training.learning_rate.start", "model.hidden")
    tried = MINIMAL + '[[variant]]\nname = "a"\n' + search.replace("1e-3, 3e-3, 8e-3", "1, 8")
    found = bench.run(tried)
    assert [(t.chosen, t.failure) for t in found.trials] == [(False, "it is too small"), (True, None)]
    assert bench.trained() == ["a/1", "a/8", "a/seed-0"] and len(found.failed) == 1

    more = MINIMAL + "seeds = [0, 1]\n" + '[[variant]]\nname = "a"\n'
    for text, overrides in (
        (tried, ["seeds=[0, 1]"]),
        (more + search.replace("1e-3, 3e-3, 8e-3", "1, 8, 16"), []),
    ):
        for run_missing in (False, True, False):
            found = bench.run(text, overrides, run_missing=run_missing)
            assert found.runs[0].finished and not found.failed
            assert [t.chosen for t in found.trials[:2]] == [False, True]
            assert found.trials[0].failure == "it is too small"
            assert bench.watcher.notes == [
                "a: its runs have begun with 8, which they keep; to search again choose another --out, "
                "or remove them"
            ]
    assert bench.trained() == ["a/seed-1"]


def test_a_metric_that_is_not_measured_is_told_after_one_trial(bench: Bench) -> None:
    text = TWO.replace("16", "10") + SEARCH + 'metric = "error"\n'
    found = bench.run(text, jobs=1)
    told = "search.metric = 'error': search/b/0.001 has finished without one; it measures bound"
    assert [trial.failure for trial in found.trials[3:]] == [
        "its summary has no finite 'error'",
        told,
        told,
    ]
    assert "search/b/0.001: its summary has no finite 'error'" in bench.watcher.notes
    assert [name for name in bench.trained() if name.startswith("b")] == ["b/0.001"]
    assert [run.finished for run in found.runs] == [True, True, False, False]


def test_the_file_may_change_meanwhile(bench: Bench) -> None:
    """What was read counts, for the folder and the page."""
    loaded = study(bench.folder, TWO)
    loaded.path.unlink()
    found = compare(loaded, bench.out, bench.command, Recorder())
    assert (bench.out / "study.toml").read_text() == TWO
    assert TWO.splitlines()[0] in html.unescape(write_report(found).page.read_text())


def test_runs_of_one_study_have_the_same_data(tmp_path: Path) -> None:
    """Pictures that are added between two calls."""
    pictures = np.random.default_rng(0).integers(0, 255, (40, 12, 12), np.uint8)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "a.npz", images=pictures[:30], labels=labels[:30])
    (tmp_path / "base.toml").write_text(tiny_config().to_toml())
    base = tiny_config("data.source=arrays", f"data.path={tmp_path / 'a.npz'}").to_toml()
    text = MINIMAL.replace("5", "1") + '[[variant]]\nname = "a"\n'

    def command(config: Path, run: Path) -> list[str]:
        return [sys.executable, "-m", "wsram_ppl", "train", str(config), "--out", str(run)]

    compare(study(tmp_path, text, base=base), tmp_path / "out", command, Recorder())
    np.savez(tmp_path / "a.npz", images=pictures, labels=labels)
    loaded = study(tmp_path, text, ["seeds=[0, 1]"], base)
    message = r"variant 'a': the data have changed since .*runs/a/seed-0 was started \(.*training"
    with pytest.raises(InputError, match=message):
        compare(loaded, tmp_path / "out", command, Recorder())
    assert not (tmp_path / "out/runs/a/seed-1").exists()


@contextmanager
def signalled(number: int, when: Callable[[], bool]) -> Iterator[None]:
    """Sends this process a signal as soon as something holds."""

    def wait() -> None:
        end = time.monotonic() + 20
        while not when() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_study_leaves_no_process_and_goes_on_later(bench: Bench, number: int) -> None:
    def hangs() -> bool:
        runs = [bench.out / "runs" / "b" / name for name in ("seed-0", "seed-1")]
        return all((run / "metrics.csv").is_file() for run in runs)

    before = signal.getsignal(signal.SIGTERM)
    text = TWO.replace("16", "5")
    name = signal.Signals(number).name
    with (
        pytest.raises(
            Interrupted, match=f"stopped by {name}: 2 of 4 runs are finished; the same"
        ) as caught,
        signalled(number, hangs),
    ):
        bench.run(text)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) is before
    assert bench.trained() == ["a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1"]
    assert not list(processes_of(bench.out))
    (bench.folder / "trainer.py").write_text(TRAINER.replace("hidden == 5", "False"))
    found = bench.run(text)
    assert bench.trained() == ["b/seed-0", "b/seed-1"]
    assert all(run.finished for run in found.runs)
    assert len(bench.watcher.notes) == 2


def test_a_second_signal_kills(bench: Bench) -> None:
    """A process that is saving may take its time, but the user need not."""
    ignores = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    (bench.folder / "trainer.py").write_text(ignores + TRAINER)
    begun = time.monotonic()

    def hangs() -> bool:
        return (bench.out / "runs/a/seed-0/metrics.csv").is_file()

    def waits() -> bool:
        return hangs() and time.monotonic() > begun + 3

    text = MINIMAL + '[[variant]]\nname = "a"\nmodel.hidden = 5\n'
    with (
        pytest.raises(KeyboardInterrupt),
        signalled(signal.SIGINT, waits),
        signalled(signal.SIGINT, hangs),
    ):
        bench.run(text)
    assert time.monotonic() < begun + 20
    assert not list(processes_of(bench.out))


def processes_of(out: Path) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(out).encode() in entry.read_bytes():
                yield int(entry.parent.name)
        except OSError:
            continue


def test_a_folder_that_cannot_be_made(bench: Bench) -> None:
    bench.out.write_text("a file")
    with pytest.raises(RunError, match=r"cannot create .*out: "):
        bench.run(TWO)


# ---------------------------------------------------------------- the real thing


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CompletedProcess[str]]:
    return finished_study(tmp_path_factory.getbasetemp() / "tiny-study")


def test_a_real_study(finished: tuple[Path, CompletedProcess[str]]) -> None:
    out, done = finished
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert lines[-1] == "error: 2 of 6 runs failed"
    assert any(
        line.startswith("note: VAR+c: objective.control_variate of 'wake-sleep'") for line in lines
    )
    told = [line for line in lines if line.startswith("update ")]  # no terminal, so no bars
    form = r"update \d+ of 72: runs [0-5] of 6 ended, running [12](, [\d:]+ left)?"
    assert told and all(re.fullmatch(form, line) for line in told), lines
    assert told[-1].endswith(" left")
    for name in ("VAR+c", "WS-RAM+q+c"):
        for seed in (0, 3):
            assert f"runs/{name}/seed-{seed} finished in" in done.stdout
            run = out / "runs" / name / f"seed-{seed}"
            summary = json.loads((run / "summary.json").read_text())
            assert summary["updates"] == 12 and math.isfinite(summary["bound"])
            assert summary["threads"] == 1
    assert "runs/fails/seed-0 failed: RuntimeError: the third update is <too> much" in done.stdout
    assert "\r" not in done.stdout + done.stderr  # no bars where there is no terminal
    # Each run can be repeated by hand: the command stands above its config.
    first = (out / "configs/runs/VAR+c/seed-3.toml").read_text().splitlines()[0]
    assert (
        first.startswith("# ")
        and "wsram_ppl/__main__.py train out/configs/runs/VAR+c/seed-3.toml --out out/runs" in first
    )


def test_a_real_study_goes_on(finished: tuple[Path, CompletedProcess[str]], tmp_path: Path) -> None:
    """The user mends the model and calls again: only what had failed is trained."""
    out, _ = finished
    write_study(tmp_path)
    shutil.copytree(out, tmp_path / "out")
    failing = tmp_path / "failing.py"
    failing.write_text(failing.read_text().replace("== 3", "== 300"))
    kept = tmp_path / "out/runs/VAR+c/seed-0/last.safetensors"
    before = kept.stat().st_mtime_ns
    done = cli("compare", "study.toml", "--out", "out", "--set", "seeds=[0]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\] (\S+) finished", done.stdout) == ["runs/fails/seed-0"]
    assert kept.stat().st_mtime_ns == before
    assert "note: runs/fails/seed-0 was not finished: it resumes from its last checkpoint" in done.stderr
    calls = json.loads((tmp_path / "out/calls.json").read_text())
    assert [call["trained"] for call in calls] == [4, 1]


def test_data_that_are_missing_are_told_once(tmp_path: Path) -> None:
    """Before any run is started; what is finished needs none."""
    path = write_study(tmp_path)
    root = path / "nowhere"  # no folder can be made there, so nothing is downloaded
    missing = ["--set", "data.source=mnist", "--set", f"data.root={root}"]
    done = cli("compare", str(path), "--out", "out", *missing, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("note: "))
    assert line.startswith("error: variant 'VAR+c': data 'mnist': ") and str(root) in line
    assert not (tmp_path / "out/runs").exists() and not (tmp_path / "out/logs").exists()


def test_wrong_input_to_the_command(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    done = CliRunner().invoke(main, ["compare", str(path), "--set", "model.hiden=3"])
    assert done.exit_code == 2
    assert done.stderr.startswith(
        "error: variant 'VAR+c': unknown key model.hiden; did you mean 'hidden'?"
    )
    assert len(done.stderr.splitlines()) == 1
