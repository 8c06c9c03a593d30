"""What a run was made with: versions, commit, machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyro
import pytest
import torch

import wsram_ppl
from wsram_ppl.runs.environment import _commit, environment


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", *who, "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_versions_and_machine() -> None:
    found = environment()
    assert found["wsram_ppl"] == wsram_ppl.__version__
    assert (found["torch"], found["pyro"]) == (torch.__version__, pyro.__version__)
    assert found["device"] == found["processor"] != ""
    assert int(found["cores"]) >= 1
    assert environment(torch.device("cpu")) == found


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    found = environment(torch.device("cuda:1"))
    assert found["device"] == "GPU 1" and found["processor"] == environment()["processor"]


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    assert _commit(tmp_path) is None  # nothing is committed yet
    _commit.cache_clear()
    file = tmp_path / "file"
    file.write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    (tmp_path / "untracked").write_text("")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert _commit(tmp_path) == commit
    file.write_text("b")
    assert _commit(tmp_path) == commit  # as it was when this process looked first
    _commit.cache_clear()
    assert _commit(tmp_path) == f"{commit}-dirty"


def test_a_package_within_another_checkout_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "site-packages").mkdir()
    assert _commit(tmp_path / "site-packages") is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _commit(tmp_path) is None
