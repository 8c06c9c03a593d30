"""The command as it is called: by which name, from which folder, and with what installed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--set", "training.steps=1", "--set", "training.eval_examples=8", "--set", "model.hidden=8"]


def python(*args: str | Path, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with the checkout importable only where ``path`` says so."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (["cli.py"], "cli.py"),
        (["-m", "wsram_ppl"], "python -m wsram_ppl"),
        (["wsram_ppl/__main__.py"], "__main__.py"),
    ],
)
def test_the_program_is_called_what_the_user_called_it(how: list[str], name: str) -> None:
    done = python(*how, "train", "--help", cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {name} train [OPTIONS] [EXPERIMENT]\n")


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from wsram_ppl.commands import main\n"
    code += "main(['--help'], standalone_mode=False); print('torch' in sys.modules)"
    done = python("-c", code, cwd=ROOT)
    assert done.stdout.endswith("\nFalse\n"), done.stdout + done.stderr


Trained = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run, not to be changed; its folder has modules of other people's, under the package's names."""
    folder = tmp_path_factory.mktemp("program")
    for name in ("wsram_ppl", "files", "config"):
        (folder / f"{name}.py").write_text("raise SystemExit('another module')")
    program = ROOT / "wsram_ppl" / "__main__.py"
    done = python(program, "train", "digits", *SMALL, cwd=folder, path=str(folder))
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits", done


@pytest.fixture(scope="module")
def run(trained: Trained) -> Path:
    return trained[0]


def test_by_its_path_it_is_the_package_that_it_is_in(trained: Trained) -> None:
    """As a study calls it for its runs: whatever else the folder has, or Python would find first."""
    assert trained[1].stderr == ""


def test_what_is_shipped_goes_by_its_name_from_any_folder(trained: Trained, tmp_path: Path) -> None:
    assert trained[1].stdout.startswith("runs/digits: 1 updates in")
    done = python(ROOT / "cli.py", "compare", "table1", "--report-only", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: there is no folder studies/table1 to report on\n"
    done = python(ROOT / "cli.py", "train", "digit", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*did you mean 'digits'\?.*\n", done.stderr)


#: The command with each of several values of --set, and whether it has imported torch.
WITHOUT_TORCH = """
import sys
from wsram_ppl.commands import main
for text in {texts!r}:
    try: main([*sys.argv[1:], "--set", text])
    except SystemExit as end: print(end.code, "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "command",
    [
        "train digits",
        "train --resume run",
        "compare table1",
        "features flickr8k",
        "evaluate run",
        "variance run",
        "glimpses run",
        "caption run 1",
    ],
)
def test_a_mistyped_key_is_told_before_torch_is_imported(
    command: str, run: Path, tmp_path: Path
) -> None:
    """By every command that takes --set; and a run that is none, or a name of nothing."""
    (tmp_path / "run").symlink_to(run)
    keys = ("model.hiden", "data.roott", "training.stepz", "exploration.entropi")
    kinds = {f"{key}=3": f"unknown key {key};" for key in keys}
    kinds["trainning.seed=3"] = r"(--set 'trainning.seed=3': no such table|unknown key trainning);"
    kinds["objective.name=3"] = "objective.name = 3: should be a string"
    kinds["guide.name=x"] = "guide.name: unknown guide 'x'"

    def told(*texts: str) -> list[str]:
        code = WITHOUT_TORCH.format(texts=texts)
        done = python("-c", code, *command.split(), cwd=tmp_path, path=str(ROOT))
        assert done.stdout == "2 False\n" * len(texts), done.stderr
        return done.stderr.splitlines()

    for line, said in zip(told(*kinds), kinds.values(), strict=True):
        assert re.match(rf"error: (variant 'VAR': )?{said}", line), line
    if "run" in command:
        (tmp_path / "run").unlink()
        assert told("model.hidden=3") == ["error: run is not a run: it has no config.toml"]


# Standard streams, and Ctrl-C.


def test_a_run_is_read_by_a_program_that_has_imported_nothing_else(run: Path) -> None:
    code = (
        f"from wsram_ppl.runs.directory import RunDirectory; print(RunDirectory({str(run)!r}).load()[2])"
    )
    done = python("-c", code, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash, in which $WSRAM is the command; the exit code of a pipe is its first failure's."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WSRAM": f"{sys.executable} {ROOT}/cli.py",
    } | environment
    command = ["bash", "-c", f"set -o pipefail; {line}"]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, timeout=120)


on_unix = pytest.mark.skipif(sys.platform == "win32", reason="in the words of bash")
TRAIN = f"$WSRAM train digits {' '.join(SMALL)} --out run"


@on_unix
@pytest.mark.parametrize(
    ("line", "code", "out", "err"),
    [
        ("$WSRAM --help | true", 0, "", ""),
        ("$WSRAM list | true", 0, "", ""),
        ("$WSRAM score said said | true", 0, "", ""),
        ("$WSRAM score said said --json | head -c 1", 0, "{", ""),
        ("$WSRAM score said missing 2>&1 | true", 2, "", ""),
        ("$WSRAM score said missing 2>&-", 2, "", ""),
        ("$WSRAM score said said >&- 2>&- <&-", 0, "", ""),
        (f"{TRAIN} | true; echo $?; ls run/summary.json", 0, "0\nrun/summary.json\n", ""),
        (f"{TRAIN} 2>&- | head -c 4; ls run/summary.json", 0, "run:run/summary.json\n", ""),
        (f"{TRAIN} 2>&1 >&- | true; ls run/summary.json", 0, "run/summary.json\n", ""),
        ("$WSRAM --help >/dev/full", 1, "", "error: cannot write the output: No space left on device\n"),
        (
            "$WSRAM score said said >/dev/full",
            1,
            "",
            "error: cannot write the output: No space left on ",
        ),
    ],
)
def test_streams_that_are_closed_unread_or_full(
    line: str, code: int, out: str, err: str, tmp_path: Path
) -> None:
    """The work is done and ends with its own exit code, whoever listens."""
    if "/dev/full" in line and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (tmp_path / "said").write_text("a man on a horse\n")
    done = shell(line, tmp_path)
    assert (done.returncode, done.stdout.decode()) == (code, out), done.stderr
    assert done.stderr.decode().startswith(err) and done.stderr.count(b"\n") == bool(err)


@on_unix
def test_characters_that_cannot_be_shown_are_replaced(tmp_path: Path) -> None:
    """Those of a folder that is not UTF-8, and those that a terminal does not know."""
    folder = os.fsencode(tmp_path) + b"/\xff"
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    done = shell(TRAIN.replace("--out run", "--out $'\\xff'/图"), tmp_path, PYTHONIOENCODING="cp1252")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"?/?: 1 updates in ")
    done = shell("$WSRAM evaluate $'\\xff'/图 --examples 4 --particles 2", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc for what is imported")
@pytest.mark.parametrize("command", ["train", "evaluate", "variance"])
def test_ctrl_c_while_a_command_imports(command: str, run: Path, tmp_path: Path) -> None:
    what = ["digits", "--out", str(tmp_path / "new")] if command == "train" else [str(run)]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), command, *what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "stopped\n")
    assert not (tmp_path / "new").exists()


WHILE = """
import os, signal, sys

class Stops:
    # Ctrl-C as soon as a module is looked for.
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stops())
from wsram_ppl.commands import main
main()
"""


@pytest.mark.parametrize(
    "name",
    [
        "wsram_ppl.commands.extra",
        "click",
        "wsram_ppl.commands.program",
        "wsram_ppl.runs.directory",
        "pydantic._internal._validators",
        "torch._C",
        "pyro.distributions",
        "wsram_ppl.guides.classifier",
    ],
)
def test_ctrl_c_at_any_import(name: str, run: Path) -> None:
    """From the command's own first one on."""
    done = python("-c", WHILE.format(name=name), "evaluate", run, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


WITHOUT = """
import sys

class Absent:
    # As on a machine where the extra is not installed.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv[0] = "wsram"
from wsram_ppl.commands import main
main()
"""


@pytest.mark.parametrize(
    ("absent", "command"),
    [
        ("click", []),
        ("click", ["list"]),
        ("tqdm", ["train", "digits"]),
        ("lightning_fabric", ["train", "digits"]),
        ("tensorboard", ["train", "digits", *SMALL]),
        ("PIL", ["glimpses", "run"]),
        ("matplotlib", ["compare", "table1"]),
        ("jinja2", ["compare", "table1"]),
    ],
)
def test_what_to_install_is_said_in_one_line(
    absent: str, command: list[str], run: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").symlink_to(run)
    done = python("-c", WITHOUT.format(absent=absent), *command, cwd=tmp_path, path=str(ROOT))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "wsram needs its command-line extra: pip install 'wsram_ppl[cli]'\n"
