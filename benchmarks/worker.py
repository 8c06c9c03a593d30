"""One contestant's process: reads what to do from stdin and answers on stdout, a line of JSON each.

{"first": 1.2, "batch_size": 64}            told once it is ready: seconds of the first update
["update", 10]  ->  {"milliseconds": 21.3}   the mean of ten
["memory"]      ->  {"mebibytes": 900.0}
{"refused": "..."}                           in place of any answer, and then it ends
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import torch
from plain import PlainLoop
from pyro import poutine
from torch import nn
from torch.distributions import Distribution

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsram_ppl.config import load_config
from wsram_ppl.data.digits.files import read_mnist, read_sample
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.training.threads import use_threads
from wsram_ppl.training.trainer import Trainer

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
Update = Callable[[], object]

#: What stays entered until the process ends.
entered = ExitStack()


def started(spec: dict[str, Any], *overrides: str) -> Trainer:
    own = [f"training.device={spec['device']}", f"training.threads={spec['threads']}"]
    if spec["mnist"] and spec["experiment"] == "digits":
        own += ["data.source=mnist", f"data.root={spec['mnist']}"]
    experiment = EXPERIMENTS / f"{spec['experiment']}.toml"
    return Trainer.start(load_config(experiment, [*own, *overrides, *spec["overrides"]]))


def ours(spec: dict[str, Any]) -> tuple[Update, int]:
    """An update of ``cli.py train``."""
    trainer = started(spec)
    entered.enter_context(use_threads(trainer))
    return trainer.update, trainer.training.batch_size


def plain(spec: dict[str, Any], *, compiled: bool = False) -> tuple[Update, int]:
    """The hand-written loop; compiled without checks of distributions, on which a graph would break."""
    torch.manual_seed(0)
    digits, _ = read_mnist(spec["mnist"]) if spec["mnist"] else read_sample()
    loop = PlainLoop(digits.images.float() / 255, digits.labels).to(spec["device"])
    if compiled:
        Distribution.set_default_validate_args(False)
        loop.loss = torch.compile(loop.loss)  # type: ignore[method-assign]
    return loop.update, 64


def by_pyro(spec: dict[str, Any], *, elbo: str) -> tuple[Update, int]:
    """Pyro's objective on the model and the guide of the experiment, with their data and optimiser.

    Parameters are Pyro's statements here, as its compiler wants.
    """
    pyro.settings.set(module_local_params=False)
    trainer = started(spec, "exploration.entropy=0", "training.prefetch=false")
    model, guide = trainer.components.model, trainer.components.guide
    size, particles = trainer.training.batch_size, trainer.components.objective.num_particles

    def full_shape(site: dict[str, Any]) -> dict[str, Any]:
        """TraceGraph_ELBO wants every baseline in the full shape, the first glimpse included."""
        declared = site["infer"].get("baseline")
        if declared is None:
            return {}
        network = declared["nn_baseline"]
        return {"baseline": {**declared, "nn_baseline": lambda x: network(x).expand(particles, size)}}

    proposal = poutine.infer_config(guide, full_shape)
    options: dict[str, Any] = {"ignore_jit_warnings": True} if elbo.startswith("Jit") else {}
    objective = getattr(pyro.infer, elbo)(
        num_particles=particles, vectorize_particles=True, max_plate_nesting=1, **options
    )

    def update() -> None:
        batch = trainer.components.data.training_batch(trainer.step, size, 0)
        trainer.optimizer.zero_grad()
        objective.loss_and_grads(model, proposal, *batch)
        nn.utils.clip_grad_norm_(trainer.parameters, 5.0 * size)  # of a sum over the minibatch
        trainer.optimizer.step()
        trainer.step += 1

    return update, size


KINDS: dict[str, Callable[[dict[str, Any]], tuple[Update, int]]] = {
    "ours": ours,
    "plain": plain,
    "plain, compiled": partial(plain, compiled=True),
    **{
        elbo: partial(by_pyro, elbo=elbo)
        for elbo in ("TraceGraph_ELBO", "JitTraceGraph_ELBO", "JitTrace_ELBO")
    },
}


def peak_memory(device: str) -> float:
    """MiB at most so far: of the process, or on a GPU what torch has taken there."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_reserved() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    spec = json.loads(sys.argv[1])
    # What libraries print is not an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    logging.getLogger("pyro").setLevel(logging.WARNING)
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])

    def timed(work: Update, times: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        if spec["device"].startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def answer(**found: object) -> None:
        answers.write(json.dumps(found) + "\n")

    with pyro_settings(validate=False):
        try:
            update, batch_size = KINDS[spec["kind"]](spec)
            answer(first=timed(update), batch_size=batch_size)
            for line in sys.stdin:
                what, *arguments = json.loads(line)
                if what == "memory":
                    answer(mebibytes=peak_memory(spec["device"]))
                else:
                    answer(milliseconds=1e3 * timed(update, *arguments) / arguments[0])
        except Exception as error:
            answer(refused=f"{type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
