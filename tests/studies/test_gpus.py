"""GPUs shared among the runs of a study: which process is told to use which, and MPS around them.

NVIDIA's control program is a script here that notes how it was called; the runs are real processes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from wsram_ppl.files import make_folder
from wsram_ppl.studies.executors.claims import Claims
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.executors.local import LocalExecutor
from wsram_ppl.studies.executors.loop import run_jobs
from wsram_ppl.studies.executors.mps import multi_process_service

#: Writes down what it was told of GPUs, and ends when it may.
RUN = """
import json, os, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(parents=True)
keys = "CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
(run / "told.json").write_text(json.dumps([os.environ.get(key) for key in keys]))
end = time.monotonic() + 20
while not pathlib.Path(sys.argv[2]).exists() and time.monotonic() < end:
    time.sleep(0.02)
(run / "summary.json").write_text("{}")
"""

CONTROL = """#!/bin/sh
if [ "$1" = "-d" ]; then
    what="start"
    # The daemon stays, with what it was given as output.
    (trap 'exit 0' TERM; echo $$ > "$CUDA_MPS_PIPE_DIRECTORY/pid"; sleep 30 & wait) &
else
    what="$(cat)"
fi
there="$(test -d "$CUDA_MPS_PIPE_DIRECTORY" && echo yes)"
echo "$what pipe=$CUDA_MPS_PIPE_DIRECTORY log=$CUDA_MPS_LOG_DIRECTORY there=$there" >> CALLS
"""


class Silent:
    """A watcher that nobody reads."""

    def noted(self, text: str) -> None: ...
    def planned(self, jobs: Sequence[Job]) -> None: ...
    def started(self, job: Job) -> None: ...
    def progressed(self, job: Job, step: int, numbers: object) -> None: ...
    def ended(self, job: Job, failure: str | None) -> None: ...
    def waited(self) -> None: ...


class Bench:
    """Runs on a machine with so many GPUs."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, patch
        self.calls, self.go = folder / "calls", folder / "go"
        self.notes: list[str] = []
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
            patch.delenv(name, raising=False)
        self.gpus(1)

    def gpus(self, count: int) -> None:
        self.patch.setattr(torch.cuda, "device_count", lambda: count)

    def control(self, text: str = CONTROL) -> None:
        """Puts a control program on PATH."""
        make_folder(self.folder / "bin")
        program = self.folder / "bin" / "nvidia-cuda-mps-control"
        program.write_text(text.replace("CALLS", str(self.calls)))
        program.chmod(0o755)
        self.patch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    def run(
        self, slots: int, devices: Sequence[str], processes: int = 1
    ) -> list[tuple[str | None, str | None, str | None]]:
        """What each run was told."""
        if slots < len(devices):
            self.go.touch()
        jobs = []
        for number, device in enumerate(devices):
            run = self.folder / f"run-{number}"
            command = [sys.executable, "-S", "-c", RUN, str(run), str(self.go)]
            jobs.append(
                Job(run.name, command, run, self.folder / "log" / run.name, 1, device, processes)
            )

        def ready(job: Job) -> bool:
            if job is jobs[-1]:  # all are at work
                self.go.touch()
            return True

        with Claims(self.folder) as claims:
            executor = LocalExecutor(slots)
            assert run_jobs(jobs, executor, Silent(), claims, ready, self.notes.append) == {}
        return [tuple(json.loads((job.run / "told.json").read_text())) for job in jobs]

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_several_gpus_take_turns(bench: Bench) -> None:
    bench.gpus(3)
    told = bench.run(3, ["cuda", "auto", "cuda"])
    assert told == [("0", None, None), ("1", None, None), ("2", None, None)]
    assert bench.notes == []  # each has one for itself


def test_of_those_that_the_user_has_chosen(bench: Bench) -> None:
    bench.gpus(2)
    bench.patch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5c1d")
    assert [gpu for gpu, *_ in bench.run(2, ["cuda", "cuda"])] == ["3", "GPU-5c1d"]


def test_a_free_gpu_is_taken_again(bench: Bench) -> None:
    """One after the other: each run finds all GPUs free."""
    bench.gpus(2)
    assert [gpu for gpu, *_ in bench.run(1, ["cuda", "cuda", "cuda"])] == ["0", "0", "0"]


def test_a_run_that_chooses_for_itself_sees_all(bench: Bench) -> None:
    bench.gpus(2)
    assert [gpu for gpu, *_ in bench.run(2, ["cuda:1", "cpu"])] == ["0,1", None]


def test_a_run_of_several_processes_sees_all(bench: Bench) -> None:
    bench.gpus(2)
    assert bench.run(1, ["cuda"], processes=2) == [("0,1", None, None)]


def test_runs_on_the_processor_are_told_nothing(bench: Bench) -> None:
    bench.control()
    assert bench.run(2, ["cpu", "cpu"]) == [(None, None, None)] * 2
    assert bench.called() == [] and bench.notes == []


def test_runs_that_share_a_gpu_do_so_under_mps(bench: Bench) -> None:
    bench.control()
    begun = time.monotonic()
    told = bench.run(3, ["cuda", "cuda", "cuda"])
    assert time.monotonic() < begun + 20  # the daemon, which keeps its output open, is not waited for
    (folder,) = {pipe for _, pipe, _ in told}
    assert folder is not None and told == [("0", folder, folder)] * 3
    assert bench.called() == [
        f"{what} pipe={folder} log={folder} there=yes" for what in ("start", "quit")
    ]
    assert bench.notes == [
        f"the runs share the GPU by NVIDIA's MPS, started in {folder} and ended with them"
    ]
    assert not Path(folder).exists()
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ


def test_mps_counts_the_gpus_that_it_sees(bench: Bench) -> None:
    """Its server has CUDA_VISIBLE_DEVICES too, so a process that said 3 would ask for a fourth one."""
    bench.control()
    bench.gpus(2)
    bench.patch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5c1d")
    told = bench.run(4, ["cuda", "cuda", "cuda:1", "cuda"])
    assert [gpu for gpu, *_ in told] == ["0", "GPU-5c1d", "0,GPU-5c1d", "0"]


def test_one_run_at_a_time_needs_no_mps(bench: Bench) -> None:
    bench.control()
    bench.run(1, ["cuda", "cuda"])
    assert bench.called() == []


def test_without_the_program_a_note_says_what_it_would_bring(bench: Bench) -> None:
    bench.patch.setenv("PATH", str(bench.folder))
    assert bench.run(2, ["cuda", "cuda"]) == [("0", None, None)] * 2
    assert bench.notes == [
        "the runs take turns on the GPU: NVIDIA's MPS is not there (no nvidia-cuda-mps-control; six "
        "runs on an H200 made 1,570 updates per second with it, 537 without)"
    ]


def test_the_users_own_mps_is_left_alone(bench: Bench) -> None:
    bench.control()
    bench.patch.setenv("CUDA_MPS_PIPE_DIRECTORY", "/users/own")
    assert bench.run(2, ["cuda", "cuda"]) == [("0", "/users/own", None)] * 2
    assert bench.called() == []
    assert bench.notes == ["MPS of CUDA_MPS_PIPE_DIRECTORY = /users/own is used as it is"]


def test_mps_that_does_not_start(bench: Bench) -> None:
    bench.control("#!/bin/sh\necho some noise\necho An instance is running already\nexit 1\n")
    assert bench.run(2, ["cuda", "cuda"]) == [("0", None, None)] * 2
    (note,) = bench.notes
    assert note.startswith(
        "the runs take turns on the GPU: NVIDIA's MPS did not start (An instance is running already; six"
    )


def test_mps_that_does_not_end(bench: Bench) -> None:
    bench.control('#!/bin/sh\n[ "$1" = "-d" ]\n')
    with multi_process_service(bench.notes.append) as variables:
        folder = variables["CUDA_MPS_PIPE_DIRECTORY"]
    assert bench.notes[1] == (
        "NVIDIA's MPS did not end (exit code 1): this ends it: "
        f"echo quit | CUDA_MPS_PIPE_DIRECTORY={folder} nvidia-cuda-mps-control"
    )
    Path(folder).rmdir()


def test_mps_ends_with_a_failure(bench: Bench) -> None:
    bench.control()
    with pytest.raises(RuntimeError), multi_process_service(bench.notes.append):
        raise RuntimeError
    assert [call.split()[0] for call in bench.called()] == ["start", "quit"]


STUDY = """
import os, pathlib, sys, torch
from tests.studies.test_gpus import Silent
from wsram_ppl.studies.executors.claims import Claims
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.executors.local import LocalExecutor
from wsram_ppl.studies.executors.loop import run_jobs
torch.cuda.device_count = lambda: 1
folder = pathlib.Path(sys.argv[1])
jobs = [Job(f"run-{n}", ["sleep", "60"], folder / f"run-{n}", folder / "log", 1, "cuda") for n in "ab"]
class Told(Silent):
    def started(self, job):
        print(job.name, flush=True)
with Claims(folder) as claims:
    run_jobs(jobs, LocalExecutor(2), Told(), claims, lambda job: True, lambda text: None)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_mps_ends_after_a_signal(bench: Bench, number: int) -> None:
    bench.control()
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", STUDY, str(bench.folder)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert [process.stdout.readline() for _ in "ab"] == ["run-a\n", "run-b\n"]
        process.send_signal(number)
        assert re.search(r"Interrupted: stopped by SIG\w+", process.stderr.read())
    assert [call.split()[0] for call in bench.called()] == ["start", "quit"]
    (folder,) = {call.split()[1].removeprefix("pipe=") for call in bench.called()}
    assert not Path(folder).exists()
