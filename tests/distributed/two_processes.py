"""Run by torchrun, in each of two processes: what test_processes.py compares with a single process."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.training.test_loop import make_config
from wsram_ppl import collectives
from wsram_ppl.config import ExperimentConfig, load_config
from wsram_ppl.distributed.processes import Processes
from wsram_ppl.errors import RunError, WorkerExit
from wsram_ppl.models.classifier_network import GlimpseNetwork
from wsram_ppl.objectives.running import RunningMeans
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.runs.directory import RunDirectory
from wsram_ppl.training.loop import train
from wsram_ppl.training.measurements import measure_held_out, measure_minibatch, measure_variance
from wsram_ppl.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 3
#: Plain descent, so that weights stay equal to rounding, and the gradient as it is.
PLAIN = ("training.optimizer=sgd", "training.gradient_clip=0", "training.precision=64-true")
#: Every kind of state and of term that is not a plain sum over data.
OBJECTIVES: dict[str, tuple[str, ...]] = {
    "adaptive": ("objective.control_variate=adaptive",),
    "learned, coverage": ("objective.control_variate=learned", "exploration.coverage=0.5"),
    "sleep, tempered": ("objective.insomnia=0.5", "exploration.temperature=1.5"),
    "one after the other": ("objective.vectorize_particles=false",),
    "site baselines, prior": (
        "objective.name=variational",
        "objective.baseline=site",
        "guide.name=prior",
    ),
    # One held-out digit: nothing to do for the first process.
    "importance": ("objective.name=importance", "training.eval_examples=1"),
}


#: Sentences of different lengths, padded and masked.
CAPTIONS = (
    "model.hidden=8",
    "objective.control_variate=learned",
    "training.batch_size=6",
    "training.eval_examples=5",
    "training.probe_repeats=2",
)
RUNS = (*OBJECTIVES, "captions")


def config_of(name: str) -> ExperimentConfig:
    if name == "captions":
        return load_config(ROOT / "experiments" / "scenes.toml", (*PLAIN, *CAPTIONS))
    return make_config(*PLAIN, *OBJECTIVES[name])


def updates(name: str, processes: Processes | None = None) -> dict[str, Any]:
    """Gradients of some updates, running estimates, measures, and the bytes that an update sends."""
    gradients, sent = [], collectives.traffic
    with pyro_settings(validate=False):
        trainer = Trainer.start(config_of(name), processes)
        before = sent.tensor_bytes, sent.control_bytes
        for _ in range(UPDATES):
            batch = trainer.update(check=True)
            gradients.append([None if p.grad is None else p.grad.clone() for p in trainer.parameters])
        after = sent.tensor_bytes, sent.control_bytes
        return {
            "gradients": gradients,
            "running": trainer.components.objective.state_dict(),
            "bytes": [(b - a) / UPDATES for a, b in zip(before, after, strict=True)],
            "measures": measure_minibatch(trainer, batch),
            "evaluation": measure_held_out(trainer),
            "probe": measure_variance(trainer),
        }


def running_means(rank: int) -> dict[str, Tensor]:
    """Names that one process lacks, as when its program has taken another way."""
    means = RunningMeans()
    for step in range(3):
        values = {"a": torch.tensor(10.0 * rank + step), "b": torch.tensor(float(rank))}
        if rank == 0 and step == 1:
            values |= {"mine": torch.tensor(7.0)}
        means.update(values, decay=0.5)
    means.update({} if rank else {"b": torch.tensor(4.0), "d": torch.tensor(5.0)}, {"b": 0.5, "d": 0.9})
    return means.state_dict()


def poisoned_run(folder: Path, processes: Processes) -> str:
    """A run that fails in the second process alone; its message."""
    classify = GlimpseNetwork.classify

    def poisoned(self: GlimpseNetwork, r1: Tensor) -> Tensor:
        return classify(self, r1) * (math.nan if processes.shard.rank == 1 else 1.0)

    GlimpseNetwork.classify = poisoned  # type: ignore[method-assign]
    Processes.launch = lambda training: processes  # type: ignore[method-assign, assignment]
    try:
        train(make_config(*PLAIN, "training.devices=2"), RunDirectory(folder / "poisoned"))
    except WorkerExit as error:
        return f"exit {error.exit_code}"
    except RunError as error:
        return str(error)
    return "nothing happened"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    processes = Processes.launch(make_config(*PLAIN, "training.devices=2").training)
    rank = processes.shard.rank
    found: dict[str, Any] = {name: updates(name, processes=processes) for name in RUNS}
    found["running means"] = running_means(rank)
    found["poisoned"] = poisoned_run(folder, processes)
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
