"""A study that takes seconds, with a variant that fails, run once by the real command."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BASE = """
data = { source = "sample", canvas = 32, scale = [0.6, 1.0] }
model = { name = "glimpse-classifier", hidden = 8, num_glimpses = 2, patch = 4, scales = [1, 2, 4] }
guide.name = "inference"
objective = { name = "wake-sleep", num_particles = 3, control_variate = "self-normalized" }

[training]
batch_size = 8
learning_rate = { start = 3e-3, end = 3e-4, shape = "cosine" }
log_every = 2
eval_every = 6
eval_examples = 40
checkpoint_every = 0
"""

STUDY = """
title = "Tiny & <b>quick</b>"
about = "Made to be run by a test."
base = "base.toml"
seeds = [0, 3]
steps = 12
smoothing = 3
figures = ["error", "test_error", "final_error", "bound", "ess", "variance", "scales"]
reference = "VAR+c"

[set]
training = { probe_every = 4, probe_repeats = 3 }

[[variant]]
name = "VAR+c"
label = "VAR + $c$ <i>"
objective = { name = "variational", baseline = "site" }
guide.name = "prior"

[[variant]]
name = "WS-RAM+q+c"
paper = 0.0162

[[variant]]
name = "fails"
model.name = "failing:Failing"
"""

FAILING = '''
"""A model of the user's own that breaks at its third update."""

from wsram_ppl.models import GlimpseClassifier


class Failing(GlimpseClassifier):
    updates = 0

    def forward(self, images, labels=None):
        if labels is not None:
            self.updates += 1
        if self.updates == 3:
            raise RuntimeError("the third update is <too> much")
        return super().forward(images, labels)
'''


def write_study(folder: Path) -> Path:
    """The study's files; returns the study."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.toml").write_text(BASE)
    (folder / "failing.py").write_text(FAILING)
    (folder / "study.toml").write_text(STUDY)
    return folder / "study.toml"


def cli(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@contextmanager
def killed_when_left(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed when left, if it has not ended."""
    with process:
        try:
            yield process
        finally:
            process.kill()


@functools.cache
def finished_study(folder: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of the study after a first run of ``compare``, and what that said."""
    write_study(folder)
    done = cli("compare", "study.toml", "--out", "out", "--jobs", "2", cwd=folder)
    assert "2 of 6 runs failed" in done.stderr, done.stdout + done.stderr
    return folder / "out", done
