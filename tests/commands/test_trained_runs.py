"""Trained runs, used again: finished, longer, on another device, with their data in another place."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands.test_cli import ENVIRONMENT, ROOT, TINY, call, one_line
from tests.data.digits.test_files import small_mnist
from tests.data.digits.test_files import write as write_mnist
from wsram_ppl.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on MNIST's files, ``mnist`` in its folder; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    write_mnist(folder / "mnist", small_mnist()[1])
    (folder / "tiny.toml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sets = ["--set", "data.source=mnist", "--set", "data.root=mnist"]
        result = call("train", "tiny.toml", *sets, "--out", "run")
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def moved(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run alone, in another folder, with the data in ``elsewhere``."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "run", "run")
    shutil.copytree(trained / "mnist", "elsewhere")
    return tmp_path


SMALL = ("--examples", "4", "--particles", "2")
VARIANCE = ("--repeats", "2", "--fit", "1", "--batch-size", "4")


def test_a_finished_run_says_so(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    result = call("train", "--resume", "run")
    assert result.exit_code == 0
    assert result.stderr == ("note: run is finished: to resume it, set more than training.steps = 2\n")
    assert result.stdout.startswith("run: 2 updates in")


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "run", *SMALL),
        ("variance", "run", *VARIANCE),
        ("glimpses", "run", "--count", "2"),
        ("train", "--resume", "run", "--set", "training.steps=3", "--set", "training.schedule_steps=2"),
    ],
    ids=lambda command: command[0],
)
def test_data_that_have_moved_are_named(command: tuple[str, ...], moved: Path) -> None:
    line = one_line(call(*command), 2)
    assert line.endswith(
        f"; data.root = 'mnist': not found, seen from {moved}: if it is elsewhere, --set data.root=PATH"
    )
    assert call(*command, "--set", "data.root=elsewhere").exit_code == 0
    assert RunDirectory("run").config().data.options["root"] == (
        "elsewhere" if command[0] == "train" else "mnist"
    )


def test_other_data_are_not_the_runs(moved: Path) -> None:
    """Files of the same names, as Fashion-MNIST has; and what is set must not be another run."""
    _, files = small_mnist()
    name = "train-images-idx3-ubyte"
    write_mnist(moved / "fashion", files | {name: files[name][:-1] + bytes([files[name][-1] ^ 1])})
    line = one_line(call("evaluate", "run", *SMALL, "--set", "data.root=fashion"), 2)
    assert line.startswith("the data have changed since run was started (digits not as in run/")
    sets = ("--set", "data.source=mnist", "--set", "data.root=elsewhere")
    (moved / "tiny.toml").write_text(TINY)
    line = one_line(call("train", "tiny.toml", *sets, "--out", "run"), 2)
    assert "trained with data.root mnist, not elsewhere: for the same data in another place use" in line
    line = one_line(call("evaluate", "run", "--set", "model.hidden=9"), 2)
    assert "(model.hidden 8, not 9); those that may change are training.steps" in line
    assert line.endswith(", data.root")


def test_a_run_whose_record_of_its_data_is_gone(moved: Path) -> None:
    (moved / "run" / "data.json").unlink()
    for command in (
        ("evaluate", "run", *SMALL),
        ("train", "--resume", "run", "--set", "training.eval_every=9"),
    ):
        if command[0] == "train":
            (moved / "run" / "summary.json").unlink()
        line = one_line(call(*command, "--set", "data.root=elsewhere"), 2)
        assert line.startswith(
            "there is no run/data.json, which records what data run started with: restore it"
        )


def test_other_data_to_be_measured_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test digits, at other places and with clutter; all but the data stays the run's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    assert call("train", "tiny.toml", "--out", "run").exit_code == 0
    found = []
    for more in (
        (),
        ("--split", "test"),
        ("--split", "test", "--set", "data.test_seed=0"),
        ("--split", "test", "--set", "data.test_seed=777"),
        ("--split", "test", "--set", "data.clutter={pieces=3, size=5}"),
        ("--split", "test", "--set", "data.canvas=40"),
    ):
        result = call("evaluate", "run", "--json", "--examples", "20", "--particles", "2", *more)
        assert result.exit_code == 0, result.stderr
        found.append(json.loads(result.stdout))
    assert [each["split"] for each in found] == ["validation", *["test"] * 5]
    assert found[1] == found[2]
    assert len({each["bound"] for each in found}) == 5
    line = one_line(call("evaluate", "run", "--set", "model.hidden=9"), 2)
    assert "run is a run with other settings (model.hidden 8, not 9)" in line
    line = one_line(call("variance", "run", "--set", "data.test_seed=777"), 2)
    assert "run is a run with other settings (data.test_seed 0, not 777)" in line


def test_a_run_is_measured_where_it_was_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or on the CPU with a note; --device has the last word."""
    monkeypatch.chdir(trained)
    assert call("evaluate", "run", *SMALL).stderr == ""
    shutil.copytree("run", "gpu")
    config = Path("gpu/config.toml")
    config.write_text(config.read_text().replace('device = "cpu"', 'device = "cuda:63"'))
    for command in (("evaluate", "gpu", *SMALL), ("variance", "gpu", *VARIANCE), ("glimpses", "gpu")):
        result = call(*command)
        assert result.exit_code == 0
        assert result.stderr.startswith("note: on the CPU, though gpu was trained on 'cuda:63': device")
        assert "note" not in call(*command, "--device", "cpu").stderr
    line = one_line(call("evaluate", "gpu", "--device", "cuda:62"), 2)
    assert "device 'cuda:62' does not exist" in line


@pytest.mark.filterwarnings("always:not finite")
def test_numbers_that_are_not_finite_are_null_in_json(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsram_ppl.models import GlimpseClassifier

    metrics = GlimpseClassifier.metrics
    monkeypatch.setattr(
        GlimpseClassifier, "metrics", lambda self, *args: {**metrics(self, *args), "odd": args[1] / 0.0}
    )
    monkeypatch.chdir(trained)
    result = call("evaluate", "run", *SMALL, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout, parse_constant=pytest.fail)["odd"] is None
    assert result.stderr.startswith("warning: not finite, so null in JSON: odd (")
    for value in ("nan", "inf", "-1"):
        assert "Invalid value for '--length-penalty'" in one_line(
            call("evaluate", "run", "--length-penalty", value), 2
        )


@pytest.mark.parametrize("command", ["evaluate", "glimpses", "train"])
def test_a_name_of_300_letters_is_wrong_input(command: str, tmp_path: Path) -> None:
    name = tmp_path / ("a" * 300)
    args = ("digits", "--out", name) if command == "train" else (name,)
    assert "File name too long" in one_line(call(command, *args), 2)


def test_a_closed_terminal_costs_no_update(tmp_path: Path) -> None:
    """A run at a terminal of its own, which goes away."""
    (tmp_path / "tiny.toml").write_text(TINY.replace("steps = 2", "steps = 100000"))
    terminal, stderr = pty.openpty()
    done = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, str(ROOT / "cli.py"), "train", "tiny.toml", "--out", "run"],
        cwd=tmp_path, env=ENVIRONMENT, stdin=stderr, stdout=stderr, stderr=stderr,
    )  # fmt: skip
    os.close(stderr)
    while not (tmp_path / "run" / "metrics.csv").exists() and done.poll() is None:
        time.sleep(0.05)
    os.close(terminal)
    assert done.wait(timeout=60) == 128 + signal.SIGHUP
    saved = RunDirectory(tmp_path / "run").saved(RunDirectory(tmp_path / "run").config())
    assert saved is not None and saved.step >= 1


def test_two_starts_at_once_get_a_directory_each(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(TINY)
    command = [sys.executable, str(ROOT / "cli.py"), "train", "tiny.toml"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0].partition(":")[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(said) == ["runs/tiny", "runs/tiny-2"]
    for name in said:
        assert (tmp_path / name / "summary.json").is_file()
