"""The command line as a user meets it: output, files, exit codes and one line for each failure."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import cli
from wsram_ppl import __version__
from wsram_ppl.commands import measuring
from wsram_ppl.errors import RunError
from wsram_ppl.training import loop as training

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "own_model"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
MNIST = ROOT.parent / "shared" / "data" / "mnist"

TINY = """
[data]
source = "sample"
canvas = 32
scale = [1.0, 1.0]

[model]
name = "glimpse-classifier"
hidden = 8
num_glimpses = 2
patch = 4
scales = [1, 2]

[guide]
name = "inference"
hidden = 6

[objective]
name = "wake-sleep"
control_variate = "none"
num_particles = 2

[training]
steps = 2
batch_size = 4
eval_examples = 8
"""


def call(*args: str | Path) -> Result:
    """One command in this process; an unexpected exception is the command's to report."""
    return CliRunner().invoke(cli.main, [str(arg) for arg in args])


def process(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own, from the checkout."""
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, args)]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True, timeout=120
    )


def process_at_a_terminal(*args: str, cwd: Path) -> tuple[int, str]:
    """The same with standard error a terminal: exit code and what the terminal showed."""
    terminal, stderr = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 30, 120, 0, 0))
    command = [sys.executable, str(ROOT / "cli.py"), *args]
    done = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=stderr)
    os.close(stderr)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while chunk := os.read(terminal, 10_000):
            shown += chunk
    os.close(terminal)
    return done.wait(timeout=120), re.sub(r"\x1b\[.*?[A-Za-z]", "", shown.decode())


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, not to be changed."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.toml").write_text(TINY)
    result = call("train", folder / "tiny.toml", "--out", folder / "run")
    assert result.exit_code == 0, result.output
    return folder / "run"


def config_of(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text())


# Processes.


def test_the_example_of_the_readme_where_there_is_no_terminal(tmp_path: Path) -> None:
    """Plain lines on standard error tell how far it has come; none of them is the last update's."""
    out = tmp_path / "own"
    small = ["--set", "training.steps=30", "--set", "training.eval_examples=100"]
    done = process("train", "examples/own_model/own.toml", *small, "--out", out)
    assert done.returncode == 0, done.stderr
    lines, numbers = done.stderr.splitlines(), r"error \d+%, bound -\d+\.\d+, ess \d\.\d+, [\d:]+ left"
    assert [line.partition(":")[0] for line in lines] == [f"update {n} of 30" for n in range(3, 30, 3)]
    assert all(re.fullmatch(rf"update \d+ of 30: {numbers}", line) for line in lines)
    first, *measures = done.stdout.splitlines()
    assert re.fullmatch(rf"{re.escape(str(out))}: 30 updates in \d+ s \([\d.]+ per second\)", first)
    assert [line.split()[0] for line in measures] == ["error", "bound", "ess"]
    assert re.fullmatch(r"  error +[\d.]+% of 100 held-out examples", measures[0])
    assert config_of(out)["model"]["name"] == "examples.own_model.model:WindowClassifier"
    assert {"metrics.csv", "config.toml", "summary.json", "last.safetensors"} <= set(os.listdir(out))


def test_a_model_of_ones_own_outside_of_the_checkout_and_a_progress_bar(tmp_path: Path) -> None:
    """The same files in a folder of the user's, at a terminal, into the default directory."""
    shutil.copy(EXAMPLE / "model.py", tmp_path / "mine.py")
    text = (EXAMPLE / "own.toml").read_text().replace("examples.own_model.model:", "mine:")
    (tmp_path / "own.toml").write_text(text)
    small = ["--set", "training.steps=30", "--set", "training.eval_examples=100"]
    code, bar = process_at_a_terminal("train", "own.toml", *small, cwd=tmp_path)
    assert code == 0, bar
    assert config_of(tmp_path / "runs" / "own")["guide"]["name"] == "mine:LabelledChoice"
    assert "30/30" in bar and re.search(r"update(s|/s)", bar)
    for measure in (r"error=\d+%", r"bound=-\d+\.\d+", r"ess=\d\.\d+"):
        assert re.search(measure, bar), bar


def test_wrong_input_in_a_process() -> None:
    done = process("train", "experiments/digits.toml", "--set", "training.stepz=3")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown key training.stepz; did you mean 'steps'?")


# Training.


def test_the_experiment_of_the_demo_is_valid(tmp_path: Path) -> None:
    """experiments/digits.toml itself, cut down to two updates of small networks."""
    small = ["training.steps=2", "model.hidden=8", "training.batch_size=4", "training.eval_examples=8"]
    overrides = [part for text in small for part in ("--set", text)]
    result = call("train", ROOT / "experiments" / "digits.toml", *overrides, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert config_of(tmp_path / "run")["objective"]["control_variate"] == "adaptive"


def test_overrides_and_shorthands(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--set", "training.steps=1", "--set", "model.location_std={start=0.4, end=0.1}"]
    options += ["--control-variate", "learned", "--seed", "5", "--device", "cpu"]
    result = call("train", tiny, *options, "--out", out)
    assert result.exit_code == 0, result.output
    config = config_of(out)
    assert (config["training"]["steps"], config["training"]["seed"]) == (1, 5)
    assert config["objective"]["control_variate"] == "learned"
    assert config["model"]["location_std"]["start"] == 0.4
    assert json.loads((out / "summary.json").read_text())["updates"] == 1


def test_options_that_another_part_lacks_are_left_out_with_a_note(tiny: Path, tmp_path: Path) -> None:
    result = call(
        "train", tiny, "--objective", "variational", "--guide", "prior", "--out", tmp_path / "run"
    )
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines() == [
        "note: guide.hidden of 'inference' is left out: 'prior' has no such key",
        "note: objective.control_variate of 'wake-sleep' is left out: 'variational' has no such key",
    ]
    assert config_of(tmp_path / "run")["objective"]["name"] == "variational"


def test_the_default_directory_is_the_next_free_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny", "tiny-2", "tiny-3"):
        result = call("train", "tiny.toml", "--set", "training.steps=1")
        assert result.stdout.startswith(f"runs/{name}: 1 updates in"), result.output
        assert (tmp_path / "runs" / name / "summary.json").exists()


def test_all_of_mnist(tiny: Path, tmp_path: Path) -> None:
    if not MNIST.is_dir():
        pytest.skip(f"no copy of MNIST in {MNIST}")
    options = ["--set", "data.source=mnist", "--set", f"data.root={MNIST}"]
    result = call("train", tiny, *options, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert config_of(tmp_path / "run")["data"]["root"] == str(MNIST)


# Evaluating, drawing, listing.


def test_evaluate_as_json(run: Path) -> None:
    options = ["--samples", "3", "--particles", "7", "--examples", "10", "--batch-size", "4", "--json"]
    result = call("evaluate", run, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert {"error", "bound", "ess", "samples", "examples"} <= found.keys()
    assert (found["samples"], found["particles"], found["examples"], found["updates"]) == (3, 7, 10, 2)
    assert 0 <= found["error"] <= 1 <= found["ess"] <= 7
    assert json.loads(call("evaluate", run, *options).stdout) == found
    assert json.loads(call("evaluate", run, *options, "--seed", "1").stdout) != found


def test_evaluate_in_words(run: Path) -> None:
    result = call("evaluate", run, "--examples", "10", "--particles", "7")
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert list(lines)[:3] == ["error", "bound", "ess"]
    assert re.fullmatch(r"  error +[\d.]+% of 10 validation examples", lines["error"])
    assert re.fullmatch(r"  bound +-[\d.]+ nats per example \(7 particles\)", lines["bound"])
    assert re.fullmatch(r"  ess +[\d.]+ of 7", lines["ess"])
    assert {"mode_error", "distance", "scale_1", "scale_2"} <= lines.keys()


def test_glimpses_draws_a_png_and_a_gif(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "where.png"
    result = call("glimpses", run, "--count", "3", "--out", out)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"drew {out} and {tmp_path / 'where.gif'}\n"
    with Image.open(out) as still, Image.open(tmp_path / "where.gif") as moving:
        assert (still.format, moving.format) == ("PNG", "GIF")
        assert still.size == moving.size


def test_glimpses_draws_into_the_run_by_default(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    assert call("glimpses", copy, "--count", "1").exit_code == 0
    assert {"glimpses.png", "glimpses.gif"} <= set(os.listdir(copy))


def test_list_names_every_part() -> None:
    result = call("list")
    assert result.exit_code == 0
    text = result.stdout
    for kind, name in [
        ("model", "glimpse-classifier"),
        ("guide", "inference"),
        ("guide", "prior"),
        ("objective", "importance"),
        ("objective", "variational"),
        ("objective", "wake-sleep"),
        ("data source", "mnist"),
        ("data source", "sample"),
    ]:
        assert re.search(rf"^{kind} +{name} +\S.*\.$", text, re.MULTILINE), (kind, name)


def test_help_and_version() -> None:
    assert __version__ in call("--version").stdout
    top = call("--help")
    for command in ("train", "evaluate", "glimpses", "list"):
        assert re.search(rf"^  {command} ", top.stdout, re.MULTILINE)
        page = call(command, "--help")
        assert page.exit_code == 0 and page.stdout.startswith(f"Usage: main {command}")
    assert "wsram train digits --set" in call("train", "-h").stdout


def test_variance_tells_how_far_it_is(run: Path) -> None:
    result = call("variance", run, "--repeats", "2", "--fit", "1", "--batch-size", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = list(found["estimators"])
    assert (found["updates"], found["repeats"], len(names)) == (2, 2, 11)
    for name, row in found["estimators"].items():
        assert row["model"]["variance"] > 0 and row["milliseconds"] > 0, name
    told = [
        re.fullmatch(r"estimator (\d+) of 11: now (.*), [\d:]+ left", s)
        for s in result.stderr.splitlines()
    ]
    lines = [(int(line[1]), line[2]) for line in told if line]  # one a tenth of the work
    assert set(lines) <= set(enumerate(names)) and len(lines) >= 8 and lines == sorted(lines)


def test_variance_of_pathwise_estimators(run: Path, tmp_path: Path) -> None:
    """Beside the others, where the guide lets gradients through; else one line."""
    few = ("--repeats", "2", "--fit", "1", "--batch-size", "4", "--json", "--pathwise", "location_*")
    result = call("variance", run, *few)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: the guide InferenceNetwork takes earlier")
    (tmp_path / "tiny.toml").write_text(TINY)
    trained = call("train", tmp_path / "tiny.toml", "--guide", "prior", "--out", tmp_path / "prior")
    assert trained.exit_code == 0, trained.output
    result = call("variance", tmp_path / "prior", *few)
    assert result.exit_code == 0, result.output
    names = [name for name in json.loads(result.stdout)["estimators"] if name.endswith(", pathwise")]
    assert names == [
        "variational, none, pathwise",
        "variational, leave-one-out, pathwise",
        "variational, site, pathwise",
        "importance (VIMCO), pathwise",
    ]


def test_variance_draws_by_default_what_fits_into_a_minute(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a note where that is less than 30 gradients; what is asked for is drawn."""

    def numbers(*args: str) -> tuple[dict[str, Any], list[str]]:
        result = call("variance", run, "--batch-size", "4", "--json", *args)
        assert result.exit_code == 0, result.output
        notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
        found = json.loads(result.stdout)
        for row in found["estimators"].values():
            del row["milliseconds"]
        return found, notes

    plenty, notes = numbers()
    assert (plenty["repeats"], plenty["fit"], notes) == (30, 20, [])
    assert numbers("--repeats", "30", "--fit", "20") == (plenty, [])
    monkeypatch.setattr(measuring, "_SECONDS", 0.001)
    few, (note,) = numbers()
    assert (few["repeats"], few["fit"]) == (4, 2)
    assert re.fullmatch(
        r"note: a gradient takes [\d.]+ s: 4 are drawn for each estimator, after a fit on 2 minibatches"
        r"; --repeats 30 --fit 20 takes longer and is more precise",
        note,
    )
    assert numbers("--repeats", "4", "--fit", "2") == (few, [])
    found, _ = numbers("--repeats", "5")
    assert (found["repeats"], found["fit"]) == (5, 2)


# Failures: nothing on standard output, one line on standard error.


def one_line(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "model.hiden=3"], "unknown key model.hiden; did you mean 'hidden'?"),
        (["--set", "training.steps=many"], "training.steps = 'many': should be"),
        (["--set", "steps"], "--set 'steps': write table.key=value"),
        (["--objective", "wake-slep"], "did you mean 'wake-sleep'?"),
        (["--guide", "nobody"], "unknown guide 'nobody'"),
        (["--model", "missing_module:Net"], "there is no module 'missing_module'"),
        (["--model", "json:dumps"], "is a function, but a class is needed"),
        (["--control-variate", "learnt"], "did you mean 'learned'?"),
        (["--device", "tpu"], "training.device = 'tpu': should be auto, cpu, cuda"),
        (["--device", "cuda:63"], "device 'cuda:63' does not exist"),
        (["--seed", "-1"], "training.seed = -1"),
        (["--seed", "x"], "Invalid value for '--seed'"),
        (["--set", "objective.num_particles=1"], "WakeSleep needs num_particles of at least 2"),
        (["--set", "data.canvas=20"], "does not fit on a canvas of 20"),
        (["--set", "training.batch_size=20000"], "choose a smaller batch_size"),
        (["--bogus"], "No such option '--bogus'"),
    ],
)
def test_wrong_input_to_train(options: list[str], message: str, tiny: Path, tmp_path: Path) -> None:
    result = call("train", tiny, *options, "--out", tmp_path / "run")
    assert message in one_line(result, 2)
    assert not (tmp_path / "run" / "last.safetensors").exists()


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("[data\n")
    (tmp_path / "empty.toml").touch()
    for name, message in [
        ("nowhere.toml", "there is no file"),
        ("broken.toml", "not valid TOML"),
        ("empty.toml", "data.source is missing"),
        (".", "cannot read"),
    ]:
        assert message in one_line(call("train", tmp_path / name), 2)
    assert sorted(os.listdir(tmp_path)) == ["broken.toml", "empty.toml"]


def test_a_directory_that_is_taken(tiny: Path, run: Path, tmp_path: Path) -> None:
    """By something else (the experiment's own file lies in it), or by another run."""
    assert "exists and is not empty" in one_line(call("train", tiny, "--out", tmp_path), 2)
    line = one_line(call("train", tiny, "--seed", "1", "--out", run), 2)
    assert f"{run} belongs to another run (training.seed" in line


def test_wrong_input_to_evaluate_and_glimpses(run: Path, tmp_path: Path) -> None:
    for command in ("evaluate", "glimpses"):
        assert "is not a run: it has no config.toml" in one_line(call(command, tmp_path / "no"), 2)
        assert "Missing argument 'RUN'" in one_line(call(command), 2)
    assert "0 is not in the range" in one_line(call("evaluate", run, "--samples", "0"), 2)
    assert "device 'cuda:63' does not exist" in one_line(call("evaluate", run, "--device", "cuda:63"), 2)
    assert "should be auto, cpu, cuda" in one_line(call("evaluate", run, "--device", "tpu"), 2)
    assert "should end in .png" in one_line(call("glimpses", run, "--out", tmp_path / "a.jpg"), 2)
    damaged = shutil.copytree(run, tmp_path / "damaged")
    (damaged / "last.safetensors").write_bytes(b"nonsense")
    assert "is not an intact checkpoint" in one_line(call("evaluate", damaged), 2)


def test_unknown_commands() -> None:
    assert "No such command 'trian'" in one_line(call("trian"), 2)


def test_failures_at_work(
    tiny: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diverging = ["--set", "training.learning_rate=1e38", "--set", "training.gradient_clip=0"]
    result = call("train", tiny, *diverging, "--out", tmp_path / "run")
    assert "lower the learning rate" in one_line(result, 1)
    missing = tmp_path / "missing" / "a.png"
    line = one_line(call("glimpses", run, "--count", "1", "--out", missing), 1)
    assert line == f"cannot write {missing}: No such file or directory"

    def bug(*args: Any) -> None:
        raise ZeroDivisionError("a\nbug")

    monkeypatch.setattr(training, "train", bug)
    line = one_line(call("train", tiny, "--out", tmp_path / "other"), 1)
    assert line == "ZeroDivisionError: a bug (WSRAM_TRACEBACK=1 shows where)"
    monkeypatch.setenv("WSRAM_TRACEBACK", "1")
    assert isinstance(call("train", tiny, "--out", tmp_path / "other").exception, ZeroDivisionError)


def test_an_interrupted_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    result = call("train", tiny, "--out", tmp_path / "run")
    assert (result.exit_code, result.stderr) == (130, "stopped\n")


def test_a_model_without_glimpses_cannot_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--set", "training.steps=1", "--set", "training.eval_examples=8"]
    out = tmp_path / "own"
    monkeypatch.chdir(ROOT)
    assert call("train", EXAMPLE / "own.toml", *small, "--out", out).exit_code == 0
    assert "has no method 'gaze' to draw its glimpses from" in one_line(call("glimpses", out), 2)


def test_messages_of_failures_at_work_keep_to_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: Any) -> None:
        raise RunError("first\nsecond")

    monkeypatch.setattr(training, "train", failing)
    assert one_line(call("train", tiny, "--out", tmp_path / "run"), 1) == "first second"
