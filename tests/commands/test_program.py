"""The command as it is called: by which name, from which folder, and with what installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


def test_by_its_path_it_is_the_package_that_it_is_in(tmp_path: Path) -> None:
    """As a study calls it for its runs: whatever else the folder has, or Python would find first."""
    for name in ("wsram_ppl", "files", "config"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('another module')")
    args = ["train", "digits", *SMALL, "--out", "run"]
    done = python(ROOT / "wsram_ppl" / "__main__.py", *args, cwd=tmp_path, path=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("run: 1 updates in")


def test_what_is_shipped_goes_by_its_name_from_any_folder(tmp_path: Path) -> None:
    done = python(ROOT / "cli.py", "train", "digits", *SMALL, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("runs/digits: 1 updates in")
    done = python(ROOT / "cli.py", "compare", "table1", "--report-only", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: there is no folder studies/table1 to report on\n"
    done = python(ROOT / "cli.py", "train", "digit", cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*did you mean 'digits'\?.*\n", done.stderr)


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
def test_what_to_install_is_said_in_one_line(absent: str, command: list[str], tmp_path: Path) -> None:
    done = python("-c", WITHOUT.format(absent=absent), *command, cwd=tmp_path, path=str(ROOT))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "wsram needs its command-line extra: pip install 'wsram_ppl[cli]'\n"
