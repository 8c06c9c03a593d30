"""A run in MLflow, in whatever store MLflow's own settings name (``MLFLOW_TRACKING_URI``)."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from wsram_ppl.config import ExperimentConfig
from wsram_ppl.files import turn
from wsram_ppl.runs.tracked import TrackedRun

if TYPE_CHECKING:
    from PIL import Image

#: The tag by which a run is found again.
_TAG: Final = "wsram_ppl.id"
#: How MLflow names the file of a picture.
_PICTURE: Final = re.compile(r"images/(.+)[+%]step[+%](\d+)[+%]timestamp")


class MlflowLog:
    """The run of an experiment, made or found again by its tag.

    Parameters of MLflow cannot change: they are the config that the run began with. The config as it is
    now is the artifact ``config.toml``.

    Args:
        run: what it is called. The experiment is ``MLFLOW_EXPERIMENT_NAME``, or else the run's project.
        config: the resolved one.

    Raises:
        MlflowException: the store cannot be used; so does every method.
    """

    def __init__(self, run: TrackedRun, config: ExperimentConfig) -> None:
        with _alone():
            self._client = client = MlflowClient()
            experiment = _experiment(client, os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.project)
        tags = {_TAG: run.id} | ({"variant": run.group} if run.group else {})
        earlier = client.search_runs([experiment], f"tags.`{_TAG}` = '{run.id}'", max_results=1)
        found = earlier[0] if earlier else client.create_run(experiment, tags=tags, run_name=run.name)
        self._id = found.info.run_id
        client.update_run(self._id, status="RUNNING")
        settings = {
            f"{section}.{key}": str(value)
            for section, table in config.tables().items()
            for key, value in table.items()
        }
        new = [Param(key, text) for key, text in settings.items() if key not in found.data.params]
        client.log_batch(self._id, params=new, synchronous=True)
        client.log_text(self._id, config.to_toml(), "config.toml")
        self._known = {
            name: max(point.step for point in client.get_metric_history(self._id, name))
            for name in found.data.metrics
        }
        for artifact in client.list_artifacts(self._id, "images"):
            if picture := _PICTURE.match(artifact.path):
                name = picture[1].replace("~", "/")
                self._known[name] = max(self.known(name), int(picture[2]))

    def known(self, name: str) -> int:
        """The update of the last value there was when this was opened."""
        return self._known.get(name, 0)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Logs numbers, and waits until they are in the store."""
        now = int(1000 * time.time())
        points = [Metric(name, value, now, step) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=points, synchronous=True)

    def show(self, step: int, name: str, picture: Image.Image) -> None:
        """Logs a picture, and waits until it is in the store."""
        self._client.log_image(self._id, picture, key=name, step=step, synchronous=True)

    def close(self, code: int) -> None:
        """Says how the run has ended."""
        status = "FINISHED" if code == 0 else "KILLED" if code > 128 else "FAILED"
        self._client.set_terminated(self._id, status)


def _alone() -> AbstractContextManager[Any]:
    """Entered while a store in files may be made, which two runs of a study must not do at once."""
    if mlflow.get_tracking_uri().startswith(("http", "databricks")):
        return nullcontext()
    user = os.getuid() if sys.platform != "win32" else ""
    return turn(Path(tempfile.gettempdir(), f"wsram_ppl-mlflow-{user}.lock"))


def _experiment(client: MlflowClient, name: str) -> str:
    """The id of an experiment, which is made if need be."""
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name)
