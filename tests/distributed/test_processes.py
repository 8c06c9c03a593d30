"""Several processes give what one gives; and end together, whatever ends them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.distributed.two_processes import RUNS, running_means, updates
from tests.training.test_loop import make_config
from tests.training.test_resume import metrics
from wsram_ppl.config import ExperimentConfig, TrainingSettings
from wsram_ppl.distributed.environment import process_rank
from wsram_ppl.distributed.sharding import BatchShard
from wsram_ppl.errors import InputError
from wsram_ppl.runs.checkpoints import load_checkpoint
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
SCALING = ROOT / "docs" / "scaling.md"
CPU = torch.device("cpu")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


# A share of the minibatch, in this process.


@given(size=st.integers(0, 200), count=st.integers(1, 9))
def test_shares_are_a_partition_of_about_equal_parts(size: int, count: int) -> None:
    rows = [BatchShard(rank, count, CPU).rows(size) for rank in range(count)]
    assert [i for part in rows for i in range(size)[part]] == list(range(size))
    lengths = [part.stop - part.start for part in rows]
    assert max(lengths) - min(lengths) <= 1


DISTRIBUTIONS: dict[str, Any] = {
    "normal": lambda x: dist.Normal(x, 0.5),
    "location": lambda x: dist.Normal(torch.stack([x, -x], -1), 0.5).to_event(1),
    "categorical": lambda x: dist.Categorical(logits=torch.stack([x, -x, 0 * x], -1)),
    "probabilities": lambda x: dist.Categorical(probs=torch.softmax(torch.stack([x, -x], -1), -1)),
    "one-hot": lambda x: dist.OneHotCategorical(logits=torch.stack([x, -x, 0 * x], -1)),
    "bernoulli": lambda x: dist.Bernoulli(logits=x),
    "uniform": lambda x: dist.Uniform(x, x + 1),
    "laplace": lambda x: dist.Laplace(x, 1.0),
    "exponential": lambda x: dist.Exponential(x.exp()),
    "masked": lambda x: dist.Normal(x, 0.5).mask(x > 0),
    "the same for all": lambda x: dist.Normal(0.0, 1.0),
}


def program(x: Tensor, make: Any, particles: int = 13) -> tuple[Tensor, ...]:
    with pyro.plate("particles", particles, dim=-2), pyro.plate("data", x.shape[0], dim=-1):
        return tuple(pyro.sample(f"x{n}", make(x)) for n in range(3))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 12), count=st.integers(1, 5), particles=st.integers(13, 20))
def test_a_datum_draws_the_same_however_many_processes(
    name: str, size: int, count: int, particles: int
) -> None:
    """To the bit, at every site, whatever number of data a process has."""
    x = torch.linspace(-2, 2, size)
    whole = BatchShard(0, 1, CPU)
    whole.seed(5, 0)
    with whole.drawing(size):
        expected = program(x, DISTRIBUTIONS[name], particles)
    for rank in range(count):
        share = BatchShard(rank, count, CPU)
        (own,) = share.part((x,))
        if not len(own):
            continue
        share.seed(5, 100 + rank)
        with share.drawing(size):
            drawn = program(own, DISTRIBUTIONS[name], particles)
        for one, all_ in zip(drawn, expected, strict=True):
            assert torch.equal(one, all_[:, share.rows(size)])


def test_what_is_no_site_differs_between_processes_and_leaves_sites_alone() -> None:
    """Dropout masks must not be the same in all of them."""
    x, draws, masks = torch.zeros(8), [], []
    for rank in (0, 1):
        share = BatchShard(rank, 2, CPU)
        share.seed(5, 100 + rank)
        with share.drawing(8):
            masks.append(torch.rand(5))
            draws.append(program(x[:4], DISTRIBUTIONS["normal"]))
    assert not torch.equal(*masks)
    whole = BatchShard(0, 1, CPU)
    whole.seed(5, 0)
    for both, all_ in zip(zip(*draws, strict=True), program(x, DISTRIBUTIONS["normal"]), strict=True):
        assert torch.equal(torch.cat(both, 1), all_)


def test_a_distribution_without_a_rule_gets_a_stream_of_the_processes_own() -> None:
    drawn = []
    for rank in (0, 1):
        share = BatchShard(rank, 2, CPU)
        share.seed(5, 100 + rank)
        with (
            share.drawing(8),
            pyro.plate("data", 4),
            pytest.warns(UserWarning, match="draws site 'x' from its own stream"),
        ):
            drawn.append(pyro.sample("x", dist.Gamma(torch.ones(4), 1.0)))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    ("plates", "message"),
    [
        ({}, r"site 'a' lies in no plate of the minibatch's 4 data.*: use training.devices = 1"),
        ({"words": 7}, r"site 'a' lies in no plate of the minibatch's 4 data"),
        ({"words": 4, "data": 4}, r"site 'a' lies in plates '\w+' and '\w+' of the same size 4, any of"),
        ({"data": (9, 4)}, r"plate 'data' is subsampled.*let the data source choose the minibatch"),
    ],
)
def test_what_cannot_be_split_is_told(plates: dict[str, Any], message: str) -> None:
    share = BatchShard(1, 2, CPU)
    share.seed(0, 1)
    with share.drawing(8), pytest.raises(InputError, match=message), pyro.poutine.trace():
        stack = [
            pyro.plate(name, size[0], subsample_size=size[1], dim=-1 - n)
            if isinstance(size, tuple)
            else pyro.plate(name, size, dim=-1 - n)
            for n, (name, size) in enumerate(plates.items())
        ]
        for plate in stack:
            plate.__enter__()
        try:
            pyro.sample("a", dist.Normal(0.0, 1.0))
        finally:
            for plate in reversed(stack):
                plate.__exit__(None, None, None)


# What cannot be started.


@pytest.mark.parametrize(
    ("overrides", "environment", "gpus", "message"),
    [
        (("batch_size=9",), {}, 0, "batch_size = 9 cannot be divided among 2 processes: choose a mult"),
        (("device=cuda",), {}, 1, "devices = 2, but torch sees 1 CUDA devices: ask for no more"),
        (
            ("device=cuda:0",),
            {},
            2,
            "device = 'cuda:0' names one GPU, but training.devices is 2: use 'cuda'",
        ),
        (("device=mps",), {}, 0, "devices = 2: device 'mps' is one device; use 1, or cpu or cuda"),
        (("num_nodes=2",), {}, 0, "num_nodes = 2: start this command on every node with torchrun"),
        (
            (),
            {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "3"},
            0,
            "torchrun has started 3 processes, but training.devices x training.num_nodes is 2 x 1: make",
        ),
        (
            ("devices=1",),
            {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"},
            0,
            "torchrun has started 2 processes, but training.devices x training.num_nodes is 1 x 1: make",
        ),
    ],
)
def test_processes_that_cannot_be_started(
    overrides: tuple[str, ...],
    environment: dict[str, str],
    gpus: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """One line, before anything is started or written."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    config = make_config("training.devices=2", *(f"training.{text}" for text in overrides))
    with pytest.raises(InputError) as caught:
        train(config, RunDirectory(tmp_path / "run"))
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


SLURM = {"SLURM_JOB_NAME": "x", "SLURM_JOB_ID": "1", "SLURM_NODEID": "0", "SLURM_NNODES": "1"}
TWO_TASKS = SLURM | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
SET_BY_OTHERS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", *TWO_TASKS, "SLURM_PROCID"),
)


@pytest.mark.parametrize(
    ("processes", "environment", "rank"),
    [
        (1, {}, 0),
        (2, {}, 0),
        (2, {"LOCAL_RANK": "1", "MASTER_PORT": "1"}, 1),
        (4, {"LOCAL_RANK": "1", "NODE_RANK": "1", "MASTER_PORT": "1"}, 3),
        (2, {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"}, 1),
        (2, TWO_TASKS | {"SLURM_PROCID": "1"}, 1),
        (2, TWO_TASKS | {"SLURM_PROCID": "1", "SLURM_JOB_NAME": "bash"}, 0),
        # One process ignores the cluster.
        (1, TWO_TASKS | {"SLURM_PROCID": "1"}, 0),
        (1, {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, 0),
        # What cannot be.
        (
            1,
            {"RANK": "1"},
            "RANK = 1 in the environment, but training.devices x training.num_no",
        ),
        (1, {"LOCAL_RANK": "1"}, "LOCAL_RANK = 1 and NODE_RANK = 0 in the environment, but"),
        (1, {"WORLD_SIZE": "2"}, "WORLD_SIZE in the environment stands for 2 processes, but"),
        (2, {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "3"}, "torchrun has started 3 processes, but"),
        (2, {"RANK": "1"}, "RANK = 1 in the environment, but"),
        (2, {"RANK": "one"}, "RANK = 'one' in the environment: should be a whole number"),
        (2, {"MASTER_PORT": "-1"}, "MASTER_PORT = '-1' in the environment: should be a whole number"),
        (2, {"LOCAL_RANK": "1"}, "LOCAL_RANK is set, as if the processes had been started already, but"),
        (2, TWO_TASKS, "SLURM has 2 tasks, but SLURM_PROCID is not set: start them with srun --nodes=1"),
        (
            2,
            SLURM | {"SLURM_NTASKS": "4"},
            "SLURM has 4 tasks, but training.devices x",
        ),
        (
            2,
            SLURM | {"SLURM_NTASKS": "1"},
            "SLURM has 1 tasks, but training.devices x",
        ),
    ],
)
def test_which_process_this_is(
    processes: int, environment: dict[str, str], rank: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of the process, or what contradicts the config: in one line."""
    for name in SET_BY_OTHERS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    nodes = max(processes // 2, 1)
    training = TrainingSettings(devices=processes // nodes, num_nodes=nodes)
    if isinstance(rank, int):
        assert process_rank(training) == rank
    else:
        with pytest.raises(InputError) as caught:
            process_rank(training)
        said = str(caught.value)
        assert said.startswith(rank)
        assert sum(bool(re.fullmatch(form, said)) for form in in_the_page()) == 1, said


def in_the_page() -> list[str]:
    """The messages in the table of docs/scaling.md, as patterns."""
    rows = re.findall(r"^\| `(.*?)`", SCALING.read_text(encoding="utf-8"), re.MULTILINE)
    what = "training.devices x training.num_nodes is N x N"
    forms = [re.escape(row.replace("...", what)).replace("NAME", "[A-Z_]+") for row in rows]
    return [re.sub(r"\bN\b", r"\\S+", form) for form in forms]


# Two real processes, started by torchrun.


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], Path]:
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.distributed.two_processes", str(folder)],
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], folder


Two = tuple[list[dict[str, Any]], Path]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_give_the_gradient_of_one(two: Two, name: str) -> None:
    """At several updates, in double precision; running estimates, metrics, evaluation and probe too."""
    single = updates(name)
    # The captioner's coefficient networks give single precision.
    rtol, atol = (1e-6, 1e-7) if name == "captions" else (1e-9, 1e-12)
    for found in (process[name] for process in two[0]):
        for one, other in zip(single["gradients"], found["gradients"], strict=True):
            for a, b in zip(one, other, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
        torch.testing.assert_close(found["running"], single["running"], rtol=rtol, atol=atol)
        for what in ("measures", "evaluation", "probe"):
            assert found[what] == pytest.approx(single[what], rel=rtol, abs=atol), what
    # Among themselves they are equal to the bit.
    one, other = (
        torch.cat([g.flatten() for g in p[name]["gradients"][-1] if g is not None]) for p in two[0]
    )
    assert torch.equal(one, other)


def test_what_an_update_sends(two: Two) -> None:
    """One flat gradient, the running estimates' means, and 32 bytes before each."""
    for name, means in (("importance", 0), ("adaptive", 2)):
        found = two[0][0][name]
        gradient = 8 * sum(g.numel() for g in found["gradients"][0] if g is not None)
        assert found["bytes"] == [gradient + means * 2 * 8, 32 * (1 + (means > 0))]


def test_running_estimates_of_sites_that_only_some_processes_meet(two: Two) -> None:
    first, second = (process["running means"] for process in two[0])
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first["a"].item() == 0.25 * 5 + 0.25 * 6 + 0.5 * 7
    assert first["b"].item() == 0.5 * 0.5 + 0.5 * 4.0
    assert (first["mine"].item(), first["d"].item()) == (7.0, 5.0)
    assert set(running_means(1)) == {"a", "b"}


def test_what_one_process_finds_not_to_be_finite_ends_both(two: Two) -> None:
    found, folder = two
    assert found[0]["poisoned"] == (
        "process 1 of 2: update 1: the parameter 'logits' of site 'label' in the model is not finite; "
        "lower the learning rate (weights, gradients and minibatch are in "
        f"{folder}/poisoned/diverged.safetensors)"
    )
    assert found[1]["poisoned"] == "exit 1"
    tensors = load_checkpoint(folder / "poisoned" / "diverged.safetensors").tensors
    assert tensors["batch.0"].shape == (4, 32, 32)


# The command, with processes of its own.


class Command:
    """A run of two processes, at work."""

    def __init__(self, config: Path, run: RunDirectory, **environment: str) -> None:
        command = [sys.executable, str(ROOT / "cli.py"), "train", str(config), "--out", str(run)]
        self.first = subprocess.Popen(
            command,
            env=ENVIRONMENT | environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.run = run

    def wait_for(self, update: int) -> None:
        deadline = time.monotonic() + 120
        while True:
            rows = metrics(self.run) if (self.run.path / "metrics.csv").exists() else []
            if rows and int(rows[-1]["step"]) >= update:
                return
            assert self.first.poll() is None and time.monotonic() < deadline, self.end()
            time.sleep(0.02)

    def worker(self) -> int:
        """The other process, as soon as there is one; no program that the first asks something."""
        children = Path(f"/proc/{self.first.pid}/task/{self.first.pid}/children")
        deadline = time.monotonic() + 60
        while True:
            for number in children.read_text().split():
                with suppress(OSError):
                    if b"\0LOCAL_RANK=1\0" in b"\0" + Path(f"/proc/{number}/environ").read_bytes():
                        return int(number)
            assert self.first.poll() is None and time.monotonic() < deadline, self.end()
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        out, err = self.first.communicate(timeout=90)
        return self.first.returncode, out, err


LONG = ("training.steps=150", "training.log_every=2", "training.precision=64-true")


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    config = make_config(*LONG, "training.devices=2", "training.checkpoint_every=2")
    (tmp_path / "config.toml").write_text(config.to_toml())
    return config


def ended(process: int) -> bool:
    """Whether it ends at once, but for the moment between the end of its output and its own."""
    for _ in range(100):
        try:
            if "Z" in Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]:
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker in /proc")
def test_a_signal_a_dead_worker_and_another_number_of_processes(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """SIGTERM to the worker stops both after the same update; the death of one ends both, with one line;
    and a single process goes on from there to the end of the run that was never disturbed."""
    run = RunDirectory(tmp_path / "run")
    command = Command(tmp_path / "config.toml", run)
    command.wait_for(4)
    os.kill(command.worker(), signal.SIGTERM)
    code, out, err = command.end()
    assert (code, out) == (143, "")
    assert err.startswith("stopped by SIGTERM after update ") and err.count("\n") == 1, err
    step = load_checkpoint(run.checkpoint).step
    assert f"after update {step}, which is saved" in err

    command = Command(tmp_path / "config.toml", run)
    command.wait_for(step + 4)
    worker = command.worker()
    os.kill(worker, signal.SIGKILL)
    code, out, err = command.end()  # the processes would wait an hour for one that lives
    assert (code, out) == (1, "")
    assert err.startswith("error: process 0 of 2 lost touch with another") and err.count("\n") == 1, err
    assert ended(worker)

    alone = make_config(*LONG)
    train(alone, run)
    reference = RunDirectory(tmp_path / "reference")
    train(alone, reference)
    assert_nearly_same_run(run, reference)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the worker in /proc")
def test_none_is_left_where_one_dies_before_they_have_met(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    """While the second is still importing torch; standard error is let go, too."""
    run = RunDirectory(tmp_path / "run")
    command = Command(tmp_path / "config.toml", run)
    worker = command.worker()
    command.first.kill()
    assert command.end() == (-signal.SIGKILL, "", "")
    assert ended(worker)

    command = Command(tmp_path / "config.toml", run)
    os.kill(command.worker(), signal.SIGKILL)
    code, out, err = command.end()
    assert (code, out) == (1, "")
    assert err.startswith("error: process 1 was killed by SIGKILL: saved check") and err.count("\n") == 1

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = Command(tmp_path / "config.toml", run, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        code, out, err = command.end()
    assert (code, out) == (1, "")
    assert (
        err.startswith("error: the 2 processes could not connect to each other: ")
        and err.count("\n") == 1
    )
    assert not run.path.exists()


def test_one_process_ignores_the_cluster(tmp_path: Path) -> None:
    """Within a batch job of four tasks, of which this process is the only one."""
    config = make_config("training.steps=1")
    (tmp_path / "config.toml").write_text(config.to_toml())
    job = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "x", "SLURM_JOB_ID": "1", "SLURM_PROCID": "0"}
    code, out, err = Command(tmp_path / "config.toml", RunDirectory(tmp_path / "run"), **job).end()
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'run'}: 1 updates in ")


def assert_nearly_same_run(one: RunDirectory, other: RunDirectory) -> None:
    """To rounding, in double precision."""
    a, b = (load_checkpoint(run.checkpoint).tensors for run in (one, other))
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=1e-6, atol=1e-9, msg=name)
    for row, same in zip(metrics(one), metrics(other), strict=True):
        assert row.keys() == same.keys()
        for key, text in row.items():
            assert text == same[key] or float(text) == pytest.approx(float(same[key]), rel=1e-5), key


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_processes_connect_ends_it_at_once(
    number: signal.Signals, config: ExperimentConfig, tmp_path: Path
) -> None:
    """The second one never comes, and the first would wait an hour."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    started = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    started |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started |= {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}
    run = RunDirectory(tmp_path / "run")
    command = Command(tmp_path / "config.toml", run, **started)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:  # until it listens for the second one
        with suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), timeout=1):
            break
        assert command.first.poll() is None
        time.sleep(0.1)
    time.sleep(1.0)
    command.first.send_signal(number)
    assert command.end()[0] == -number


TWICE = """
import sys
from pathlib import Path
from scripts.tiny_run import tiny_config
from wsram_ppl.errors import InputError
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.loop import train

few = ("training.steps=2", "training.threads=1")
for name, devices in (("a", 2), ("b", 1), ("c", 2)):
    try:
        config = tiny_config(*few, f"training.devices={devices}")
        print(name, train(config, RunDirectory(Path(sys.argv[1]) / name))["processes"], flush=True)
    except InputError as error:
        print(error, flush=True)
"""


def test_a_script_that_trains_several_runs(tmp_path: Path) -> None:
    """After one of two processes one of a single process works; another of two cannot, and says so."""
    (tmp_path / "twice.py").write_text(TWICE)
    done = subprocess.run(
        [sys.executable, "twice.py", str(tmp_path)],
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    own = [line for line in done.stdout.splitlines() if not line.startswith("a ")]
    assert own[0] == "b 1" and len(own) == 2
    assert own[1].startswith("training.devices = 2: this script has started processes before, which run")
