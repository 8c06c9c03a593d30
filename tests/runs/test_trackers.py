"""Runs in TensorBoard, MLflow and Weights & Biases: their real clients, stores in files, no network.

Whatever happens on the way, each tracker has every row of ``metrics.csv`` exactly once in the end.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.tiny_run import tiny_config
from wsram_ppl import models
from wsram_ppl.config import ExperimentConfig
from wsram_ppl.errors import InputError
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.runs.events import EventLog
from wsram_ppl.runs.metrics import METRICS, last_row
from wsram_ppl.runs.tracked import TRACKED_AS, tracked_run
from wsram_ppl.runs.trackers import Trackers, check_loggers
from wsram_ppl.training.loop import train

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

#: By name of a number, the updates and values that a tracker has, in its own order.
Points = dict[str, list[tuple[int, float]]]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing of the user's, no network; the folder of MLflow's file store."""
    store = tmp_path / "mlruns"
    settings = {
        "MLFLOW_TRACKING_URI": store.as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONFIG_DIR": str(tmp_path / "wandb-config"),
        "WANDB_CACHE_DIR": str(tmp_path / "wandb-cache"),
        "OMP_NUM_THREADS": "1",
    }
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    yield store
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def config(*names: str, more: tuple[str, ...] = ()) -> ExperimentConfig:
    for name in names:
        pytest.importorskip(name, reason=f"{name} is not installed")
    every = ("training.log_every=2", "training.eval_every=4", "training.checkpoint_every=3")
    return tiny_config(f"training.loggers={json.dumps(names)}", *every, *more)


# What a tracker has.


def in_the_file(run: Path) -> Points:
    found: Points = {}
    with open(run / METRICS, newline="") as file:
        for row in csv.DictReader(file):
            for name, text in row.items():
                if name not in ("step", "split") and text:
                    points = found.setdefault(f"{row['split']}/{name}", [])
                    points.append((int(row["step"]), float(text)))
    return found


def in_tensorboard(run: Path) -> Points:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {
        name: [(each.step, each.value) for each in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def mlflow_runs(store: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(store.as_uri())
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def in_mlflow(store: Path) -> Points:
    from mlflow import MlflowClient

    (run,) = mlflow_runs(store)
    client = MlflowClient(store.as_uri())
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }


def wandb_files(run: Path) -> list[Path]:
    """Of each process that worked on the run, in order of time."""
    known_as = (run / TRACKED_AS).read_text().strip()
    return sorted((run / "wandb").glob(f"offline-run-*-{known_as}/run-{known_as}.wandb"))


def in_wandb(run: Path) -> Points:
    from wsram_ppl.runs.wandb_log import history

    found: Points = {}
    for file in wandb_files(run):
        for row in history(file):
            for item in row.item:
                name = ".".join(item.nested_key)
                if "/" in name and "glimpses" not in name:
                    found.setdefault(name, []).append((row.step.num, float(item.value_json)))
    return found


def assert_same(found: Points, run: Path) -> None:
    """Every number exactly once, of the same value but for the digits that the file has."""
    for name, points in in_the_file(run).items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        if not name.endswith(("/seconds", "/updates_per_second")):
            values = [value for _, value in points]
            assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-4), name


def assert_all_have_all(run: Path, store: Path) -> None:
    for found in (in_tensorboard(run), in_mlflow(store), in_wandb(run)):
        assert_same(found, run)


ALL = ("tensorboard", "mlflow", "wandb")


def test_each_has_the_numbers_the_config_and_the_pictures(environment: Path, tmp_path: Path) -> None:
    settings, run = config(*ALL), tmp_path / "run"
    train(settings, RunDirectory(run))
    assert_all_have_all(run, environment)

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [each.step for each in events.Images("eval/glimpses")] == [4, 8]

    (tracked,) = mlflow_runs(environment)
    assert (tracked.info.run_name, tracked.info.status) == ("run", "FINISHED")
    assert tracked.data.params["model.name"] == "glimpse-classifier"
    assert tracked.data.params["training.steps"] == "8"
    artifacts = Path(tracked.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "config.toml").read_text() == settings.to_toml()
    pictures = sorted((artifacts / "images").glob("*.png"))
    assert [file.name.partition("+timestamp")[0] for file in pictures] == [
        "eval~glimpses+step+4", "eval~glimpses+step+8",
    ]  # fmt: skip
    with Image.open(pictures[0]) as picture:
        assert picture.width > 700 and picture.height > 400

    (file,) = wandb_files(run)
    assert len(list(file.parent.glob("files/media/images/eval/glimpses_*.png"))) == 2
    assert b'"glimpse-classifier"' in file.read_bytes()


# However it is stopped.


class Stopped(Exception):
    pass


def stop_at(step: int) -> Callable[[int, Mapping[str, float] | None], None]:
    def progress(done: int, numbers: Mapping[str, float] | None) -> None:
        if done == step:
            raise Stopped

    return progress


def test_a_run_that_goes_on_is_the_same_one_and_has_no_point_twice(
    environment: Path, tmp_path: Path
) -> None:
    settings, run = config(*ALL), tmp_path / "run"
    for step in (2, 5, 8):  # before the first checkpoint; with rows after the last one; before the end
        with pytest.raises(Stopped):
            train(settings, RunDirectory(run), stop_at(step))
        assert mlflow_runs(environment)[0].info.status == "FAILED"
    train(settings, RunDirectory(run))
    assert_all_have_all(run, environment)
    (tracked,) = mlflow_runs(environment)
    assert tracked.info.status == "FINISHED"
    artifacts = Path(tracked.info.artifact_uri.removeprefix("file://"))
    assert len(list((artifacts / "images").glob("*.png"))) == 2
    assert len(wandb_files(run)) == 4

    longer = config(*ALL, more=("training.steps=12", "training.schedule_steps=8"))
    train(longer, RunDirectory(run))
    assert_all_have_all(run, environment)
    (tracked,) = mlflow_runs(environment)
    assert tracked.data.params["training.steps"] == "8"  # with which it began
    assert (artifacts / "config.toml").read_text() == longer.to_toml()


def start(run: Path, settings: ExperimentConfig) -> subprocess.Popen[bytes]:
    """The real command; what it says is in a file beside the run's directory."""
    file = run.with_suffix(".toml")
    file.write_text(settings.to_toml())
    command = [sys.executable, str(ROOT / "cli.py"), "train", str(file), "--out", str(run)]
    with open(run.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)


def last_update(run: Path) -> int:
    """Of the last row; 0 before there is one."""
    row = last_row(run)
    return 0 if row is None else row[0]


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not true():
        assert process.poll() is None, "it ended too early for this test"
        time.sleep(0.005)


def test_after_kill_9_too(environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's own process is so quick here that its file has rows from after the checkpoint."""
    monkeypatch.setenv("WANDB__TRANSACTION_LOG_FLUSH_INTERVAL", "0.1")
    every = ("training.log_every=4", "training.checkpoint_every=30", "training.schedule_steps=100")
    run = tmp_path / "run"

    def begin(steps: int) -> subprocess.Popen[bytes]:
        return start(run, config(*ALL, more=(*every, f"training.steps={steps}")))

    with begin(100_000) as process:
        wait_until(lambda: last_update(run) > 80 and last_update(run) % 30 > 16, process)
        process.kill()
    reached = last_update(run)
    with begin(100_000) as process:  # killed once more, before it has come so far again
        wait_until(lambda: last_update(run) < reached, process)
        process.kill()
    with begin(reached + 20) as process:
        assert process.wait(timeout=120) == 0
    assert_all_have_all(run, environment)
    assert len(wandb_files(run)) == 3


def test_events_of_a_run_that_was_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        log = EventLog(tmp_path / "tensorboard")
        log.add(1, {"x": value})
        log.close()
    assert in_tensorboard(tmp_path) == {"x": [(1, 2.0)]}


def test_a_tracker_that_is_named_later_gets_the_rows_so_far(environment: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        train(config(), RunDirectory(run), stop_at(7))
    assert not (run / "tensorboard").exists() and not (run / TRACKED_AS).exists()
    train(config(*ALL), RunDirectory(run))
    assert_all_have_all(run, environment)


# A tracker that fails.


def test_a_tracker_that_fails_on_the_way_is_told_of_once_and_lacks_nothing_later(
    environment: Path, tmp_path: Path
) -> None:
    settings, run = config("tensorboard", "mlflow"), tmp_path / "run"

    def lose_the_store(step: int, numbers: Mapping[str, float] | None) -> None:
        if step == 3:
            shutil.move(environment, tmp_path / "elsewhere")
        if step == 8:
            raise Stopped

    told = r"^mlflow gets nothing more from here on \(.*\): training goes on, and all numbers are in met"
    with pytest.warns(UserWarning, match=told) as warned, pytest.raises(Stopped):
        train(settings, RunDirectory(run), lose_the_store)
    assert len(warned) == 1
    assert_same(in_tensorboard(run), run)
    shutil.move(tmp_path / "elsewhere", environment)
    train(settings, RunDirectory(run))
    assert_same(in_mlflow(environment), run)
    assert_same(in_tensorboard(run), run)


def test_wandbs_own_process_dies(environment: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(run, config("wandb", "mlflow", more=("training.steps=100000",))) as process:
        wait_until(lambda: last_update(run) > 0, process)
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        children = {pid for task in tasks for pid in (task / "children").read_text().split()}
        (core,) = [pid for pid in children if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(int(core), signal.SIGKILL)
        killed = last_update(run)
        wait_until(lambda: last_update(run) > killed + 20, process)
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    said = run.with_suffix(".log").read_text()
    assert said.count("warning: wandb gets nothing more from here on (ConnectionResetError") == 1
    assert "stopped by SIGTERM after update" in said
    assert_same(in_mlflow(environment), run)
    assert mlflow_runs(environment)[0].info.status == "KILLED"


def test_a_tracker_that_cannot_begin(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match=r"^mlflow gets nothing more .*Connection refused") as warned:
        summary = train(config("mlflow"), RunDirectory(tmp_path / "run"))
    assert len(warned) == 1 and summary["updates"] == 8


def test_a_model_that_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*batch: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(models.GlimpseClassifier, "gaze", broken)
    message = r"^no more pictures \(RuntimeError: shapes do not fit\): training goes on$"
    with pytest.warns(UserWarning, match=message) as warned:
        train(config("tensorboard"), RunDirectory(tmp_path / "run"))
    assert len(warned) == 1
    assert_same(in_tensorboard(tmp_path / "run"), tmp_path / "run")


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny_config(f'training.loggers=["{name}"]')
    monkeypatch.setitem(sys.modules, name, None)
    message = rf"^training.loggers: '{name}' is not installed: pip install 'wsram_ppl\[{name}\]'$"
    with pytest.raises(InputError, match=message):
        check_loggers(settings)


# One among others.


def test_of_several_processes_the_first_one_logs(environment: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with start(run, config("tensorboard", "mlflow", more=("training.devices=2",))) as process:
        assert process.wait(timeout=300) == 0, run.with_suffix(".log").read_text()
    assert_same(in_tensorboard(run), run)
    assert_same(in_mlflow(environment), run)


def test_names_in_a_study_and_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "table1").mkdir()
    (tmp_path / "table1" / "study.toml").touch()

    def named(*parts: str) -> tuple[str, str | None, str]:
        path = tmp_path.joinpath(*parts)
        path.mkdir(parents=True)
        found = tracked_run(path)
        assert tracked_run(path) == found and len(found.id) == 32
        return found.project, found.group, found.name

    assert named("table1", "runs", "ws-ram", "seed-1") == ("table1", "ws-ram", "ws-ram/seed-1")
    tried = ("table1", "search/ws-ram", "search/ws-ram/rate-1")
    assert named("table1", "search", "ws-ram", "rate-1") == tried
    assert named("table1", "kept", "ws-ram", "seed-1") == ("wsram_ppl", None, "seed-1")
    assert named("runs", "digits-2") == ("wsram_ppl", None, "digits-2")


def test_the_runs_of_a_study_stand_together(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once, in the database that is MLflow's own default, which neither has made before."""
    settings = config("mlflow")
    pytest.importorskip("alembic", reason="MLflow's default store needs alembic")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "tiny.toml").write_text(settings.to_toml())
    (tmp_path / "both.toml").write_text(
        'title = "Both"\nbase = "tiny.toml"\nseeds = [0]\nsteps = 4\n'
        '[[variant]]\nname = "quick"\n'
        '[[variant]]\nname = "slow"\ntraining = { learning_rate = 0.001 }\n'
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "compare", "both.toml", "--out", "study", "--jobs", "2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("study")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {(run.info.run_name, run.data.tags["variant"], run.info.status) for run in runs} == {
        ("quick/seed-0", "quick", "FINISHED"),
        ("slow/seed-0", "slow", "FINISHED"),
    }


def test_without_trackers_nothing_is_drawn(tmp_path: Path) -> None:
    with Trackers(tmp_path, tiny_config()) as trackers:
        trackers.show(1, "eval/glimpses", lambda: pytest.fail("drawn for nobody"))
        trackers.add(1, "eval", {"bound": 1.0})
    assert list(tmp_path.iterdir()) == []
