"""Locks between real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from wsram_ppl.errors import RunError
from wsram_ppl.files import locked, write_atomically

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks on Windows")

ROOT = Path(__file__).resolve().parents[1]
#: Holds the lock until its input ends, or leaves it to a child; its first line says which process does.
HOLDER = """
import subprocess, sys
from pathlib import Path
from wsram_ppl.files import locked
with locked(Path(sys.argv[1]), "busy") as lock:
    if sys.argv[2] == "alone":
        print("locked", flush=True)
        sys.stdin.read()
    else:
        child = subprocess.Popen(["cat"], pass_fds=[lock] if sys.argv[2] == "inherit" else [])
        print(child.pid, flush=True)
        child.wait()
"""


@contextmanager
def holder(path: Path, how: str = "alone") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds the lock, and what it says."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def freed(path: Path) -> bool:
    """Whether the lock is let go in a while."""
    for _ in range(100):
        with suppress(RunError), locked(path, "busy"):
            return True
        time.sleep(0.1)
    return False


def test_another_process_is_kept_out_until_this_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as (process, said):
        assert said == "locked"
        with pytest.raises(RunError, match=r"^wait for it$"), locked(path, "wait for it"):
            raise AssertionError("entered")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0
        with locked(path, "busy") as lock:
            assert os.fstat(lock).st_ino == path.stat().st_ino
    with holder(path) as (_, said):  # this process has let go
        assert said == "locked"


def test_the_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, "keep") as (process, child):
        process.kill()
        process.wait()
        with locked(path, "busy"):
            os.kill(int(child), 0)  # the child, which did not inherit it, is still there


def test_a_child_that_inherits_the_lock_holds_it_on(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, "inherit") as (process, _):
        process.kill()
        process.wait()
        with pytest.raises(RunError, match="busy"), locked(path, "busy"):
            raise AssertionError("entered")
        assert process.stdin is not None
        process.stdin.close()  # which ends the child
        assert freed(path)


def test_an_error_inside_is_its_own_and_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for error in (BlockingIOError("theirs"), OSError("theirs"), RunError("theirs")):
        with pytest.raises(type(error), match=r"^theirs$"), locked(path, "busy"):
            raise error
    with locked(path, "busy"):
        pass


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "file" / "lock", "Not a directory"),
        (tmp_path / "nowhere" / "lock", "No such file or directory"),
        (tmp_path, "Is a directory"),
    ):
        with (
            pytest.raises(RunError, match=f"^cannot write to {path.parent}: {reason}$"),
            locked(path, "busy"),
        ):
            raise AssertionError("entered")


def test_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with locked(tmp_path / "lock", "busy") as lock:
        assert lock == -1


def test_what_cannot_be_written_is_one_kind_of_error(tmp_path: Path) -> None:
    """Also where the file that was begun cannot be removed."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path / ("a" * 250)):
        with pytest.raises(RunError, match=rf"^cannot write {path}: (Not a dir|File name too long)"):
            write_atomically(path, b"x")
