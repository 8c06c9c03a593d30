"""Studies on a Ray cluster: two nodes, as processes on this machine, one of which is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.studies.test_gpus import Silent
from tests.studies.test_studies import signalled
from tests.studies.tiny_study import BASE, ROOT, killed_when_left
from tests.training.test_resume import assert_same_run
from wsram_ppl.errors import InputError, Interrupted, RunError
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.metrics import last_row
from wsram_ppl.studies.definition import load_study
from wsram_ppl.studies.executors.claims import Claims
from wsram_ppl.studies.executors.cluster import RayExecutor, _share, _train
from wsram_ppl.studies.executors.jobs import Job
from wsram_ppl.studies.executors.loop import run_jobs
from wsram_ppl.training.loop import train

pytest.importorskip("ray", reason="Ray is not installed (pip install 'wsram_ppl[cluster]')")

STUDY = """
base = "base.toml"
seeds = [0, 1]
steps = 40
figures = []
[set]
model.name = "takes_time:TakesTime"
training = { checkpoint_every = 5, log_every = 1, eval_every = 0 }
[[variant]]
name = "a"
"""
MODEL = '''
"""A model of the user's own that takes its time, if asked to."""

import os, time

from wsram_ppl.models import GlimpseClassifier


class TakesTime(GlimpseClassifier):
    def forward(self, images, labels=None):
        if labels is not None and os.path.exists("slow"):
            time.sleep(0.05)
        return super().forward(images, labels)
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors; nodes are added by the tests."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_IMPORT_WARNING="1")
    from ray.cluster_utils import Cluster

    # A node that is silent for three seconds is dead.
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 6}
    options = {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
    made = Cluster(initialize_head=True, head_node_args=options)
    try:
        yield made
    finally:
        made.shutdown()


def compare(folder: Path, *arguments: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """The command at work."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "compare", "study.toml", "--out", "out", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return killed_when_left(process)


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def updates(run: RunDirectory) -> int:
    row = last_row(run.path)
    return row[0] if row else 0


def test_a_killed_node_loses_nothing(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run ends to the bit as one that nothing has disturbed."""
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "takes_time.py").write_text(MODEL)
    (tmp_path / "study.toml").write_text(STUDY)
    monkeypatch.syspath_prepend(tmp_path)
    study = load_study(tmp_path / "study.toml")
    calm = [RunDirectory(tmp_path / f"calm-{seed}") for seed in study.seeds]
    for seed, run in zip(study.seeds, calm, strict=True):
        train(study.config(study.variants[0], seed), run)

    slow = tmp_path / "slow"
    slow.touch()
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    runs = [RunDirectory(tmp_path / "out/runs/a" / f"seed-{seed}") for seed in study.seeds]
    which = "--only", "a/0", "--only", "a/1"  # all, but no report
    with compare(tmp_path, *which, "--executor", "ray", "--ray-address", cluster.address) as process:
        # Both nodes have a run each, with checkpoints.
        wait_until(lambda: all(updates(run) > 5 for run in runs), process)
        cluster.remove_node(nodes[0], allow_graceful=False)
        slow.unlink()
        out, err = process.communicate()
    assert process.returncode == 0, out + err
    print(err)
    lost = r"note: runs/a/seed-\d: its (node|worker) died.*; it resumes from .* \(start 2 of 4\)"
    assert len(re.findall(lost, err)) == 1
    assert sorted(re.findall(r"\] (\S+) finished", out)) == ["runs/a/seed-0", "runs/a/seed-1"]
    for run, undisturbed in zip(runs, calm, strict=True):
        assert_same_run(run, undisturbed)
    cluster.remove_node(nodes[1])


def test_a_stopped_study_lets_its_runs_save(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    code = (
        "import pathlib, signal, sys, time; run = pathlib.Path(sys.argv[1]); run.mkdir()\n"
        "def save(*_): time.sleep(0.5); (run / 'saved').touch(); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, save); (run / 'ready').touch(); time.sleep(60)"
    )
    jobs = []
    for name in "ab":  # the second one is not begun
        run = tmp_path / name
        command = [sys.executable, "-S", "-c", code, str(run)]
        jobs.append(Job(name, command, run, tmp_path / "log" / name, 1))
    before = signal.getsignal(signal.SIGTERM)
    with (
        Claims(tmp_path) as claims,
        pytest.raises(Interrupted, match="stopped by SIGINT"),
        signalled(signal.SIGINT, (tmp_path / "a/ready").exists),
    ):
        run_jobs(jobs, RayExecutor(1, cluster.address), Silent(), claims, lambda job: True, print)
    assert (tmp_path / "a/saved").exists() and not (tmp_path / "b").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    cluster.remove_node(node)


def test_failures_are_told_as_on_this_machine(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2)
    codes = {
        "says": "import sys; sys.exit('noise\\nerror: it is too small')",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "silent": "raise SystemExit(5)",
        "empty": "",
    }
    jobs = [
        Job(name, [sys.executable, "-S", "-c", code], tmp_path / name, tmp_path / "log" / name, 1)
        for name, code in codes.items()
    ]
    jobs.append(Job("absent", ["/no/such/program"], tmp_path / "absent", tmp_path / "log/absent", 1))
    notes: list[str] = []
    with Claims(tmp_path) as claims:
        executor = RayExecutor(None, cluster.address)
        found = run_jobs(jobs, executor, Silent(), claims, lambda job: True, notes.append)
    host = socket.gethostname()
    assert found == {
        "says": "it is too small",
        "killed": "killed by SIGKILL, perhaps out of memory",
        "silent": "exit code 5, and it printed nothing",
        "empty": "it ended without a summary.json",
        "absent": f"cannot start on {host}: [Errno 2] No such file or directory: '/no/such/program'",
    }
    assert notes == ["Ray has room for 2 runs at once"]

    for device, message in [
        ("cuda", "the Ray cluster has no GPU: use --device cpu"),
        ("cuda:1", "x has training.device = 'cuda:1', but Ray chooses the GPU: use --device cuda"),
    ]:
        job = Job("x", [], tmp_path / "x", tmp_path / "log/x", 1, device)
        with Claims(tmp_path) as claims, pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            run_jobs([job], executor, Silent(), claims, lambda job: True, notes.append)
    cluster.remove_node(node)


def test_runs_share_gpus(cluster: Any, tmp_path: Path) -> None:
    """The nodes say that they have GPUs: Ray believes it, and hands them out."""
    node = cluster.add_node(num_cpus=4, num_gpus=2)
    code = (
        "import json, os, pathlib, sys, time; run = pathlib.Path(sys.argv[1]); run.mkdir(); "
        "(run / 'gpu').write_text(os.environ['CUDA_VISIBLE_DEVICES']); "
        "end = time.monotonic() + 20\n"
        "while len(list(run.parent.glob('*/gpu'))) < 4 and time.monotonic() < end: time.sleep(0.05)\n"
        "(run / 'summary.json').write_text('{}')"
    )
    jobs = []
    for number in range(4):
        run = tmp_path / f"run-{number}"
        command = [sys.executable, "-S", "-c", code, str(run)]
        jobs.append(Job(run.name, command, run, tmp_path / "log" / run.name, 1, "cuda"))
    notes: list[str] = []
    with Claims(tmp_path) as claims:
        executor = RayExecutor(4, cluster.address)
        assert not run_jobs(jobs, executor, Silent(), claims, lambda job: True, notes.append)
    assert notes == ["Ray has room for 4 runs at once"]
    assert sorted((job.run / "gpu").read_text() for job in jobs) == ["0", "0", "1", "1"]
    cluster.remove_node(node)


@pytest.mark.parametrize(
    ("jobs", "gpus", "share"), [(1, 1, 1.0), (12, 1, 0.0833), (10, 4, 0.3333), (2, 8, 1.0)]
)
def test_the_share_of_a_gpu(jobs: int, gpus: float, share: float) -> None:
    assert _share(jobs, gpus) == share


def test_a_node_that_does_not_see_the_folder(tmp_path: Path) -> None:
    job = Job("a", [], tmp_path / "a", tmp_path / "nowhere/log", 1)
    host = socket.gethostname()
    for folder, missing in [("/no/folder", "/no/folder"), (str(tmp_path), tmp_path / "nowhere")]:
        assert _train(job, folder) == (
            f"{host} does not see {missing}: every node needs it, shared, at the same path"
        )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1: ConnectionRefusedError"),
        ("no.such.host.invalid:6379", "no Ray cluster answers at no.such.host.invalid:6379: "),
        ("127.0.0.1:99999", "no Ray cluster answers at 127.0.0.1:99999: "),
        ("head", "the Ray cluster's address is 'head': should be HOST:PORT"),
        ("ray://head:10001", "the Ray cluster's address is 'ray://head:10001': should be HOST:PORT"),
    ],
)
def test_a_wrong_address_is_told_at_once(address: str, message: str, tmp_path: Path) -> None:
    job = Job("a", [], tmp_path / "a", tmp_path / "log", 1)
    begun = time.monotonic()
    with Claims(tmp_path) as claims, pytest.raises(InputError, match=re.escape(message)):
        run_jobs([job], RayExecutor(1, address), Silent(), claims, lambda job: True, print)
    assert time.monotonic() < begun + 15


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_at_the_address(says: bytes, tmp_path: Path) -> None:
    """Ray itself would wait for it without end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.sendall(says)
                connection.recv(100)

        answers = threading.Thread(target=answer, daemon=True)
        answers.start()
        job = Job("a", [], tmp_path / "a", tmp_path / "log", 1)
        message = f"no Ray cluster answers at {address}: "
        with Claims(tmp_path) as claims, pytest.raises(InputError, match=message):
            run_jobs([job], RayExecutor(1, address), Silent(), claims, lambda job: True, print)
        answers.join()


@pytest.mark.parametrize(
    ("raised", "kind", "told"),
    [
        (
            ConnectionError("Could not find any running Ray instance.\nPlease specify one."),
            InputError,
            "there is no Ray cluster on this m",
        ),
        (  # another version of Ray
            RuntimeError("Version mismatch:\n  the cluster has 2.1,\n  this process 2.60"),
            RunError,
            "cannot join the Ray cluster: RuntimeError: Version mismatch: the cluster has 2.1, "
            "this proc",
        ),
    ],
)
def test_a_cluster_that_cannot_be_joined(
    raised: Exception,
    kind: type[Exception],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def init(address: str, **options: object) -> None:
        raise raised

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    job = Job("a", [], tmp_path / "a", tmp_path / "log", 1)
    with Claims(tmp_path) as claims, pytest.raises(kind, match=told):
        run_jobs([job], RayExecutor(), Silent(), claims, lambda job: True, print)
