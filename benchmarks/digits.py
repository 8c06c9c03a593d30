"""How fast training is, as ratios measured in one run: ``make bench``.

Each row times its candidates in turn, round after round, and compares medians, so that other load on
the machine affects all of them equally. One thread, unless ``--threads`` says otherwise; a second one
prepares the next minibatch where that is done ahead.
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from plain import PlainLoop, by_hand
from pyro import poutine
from pyro.infer import ELBO, ReweightedWakeSleep, TraceGraph_ELBO
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsram_ppl.config import load_config
from wsram_ppl.data.digits.files import read_mnist, read_sample
from wsram_ppl.objectives import VariationalBound, WakeSleep
from wsram_ppl.primitives.handlers import pyro_settings
from wsram_ppl.training.trainer import Trainer

EXPERIMENT = Path(__file__).resolve().parent.parent / "experiments" / "digits.toml"
Contestants = dict[str, Callable[[], object]]


def medians(contestants: Contestants, rounds: int, block: int = 1) -> dict[str, float]:
    """Median milliseconds of each, measured in turns after a few warm-up rounds.

    Args:
        block: consecutive calls that are timed together.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 3):
        for name, work in contestants.items():
            start = time.perf_counter()
            for _ in range(block):
                work()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start) / block)
            time.sleep(0.02)  # its prefetching thread should not slow down the next candidate
    return {name: statistics.median(found) for name, found in times.items()}


def backward(loss: Callable[[], Tensor], trainer: Trainer) -> Callable[[], None]:
    """One evaluation of a loss and its gradient."""
    parameters = [*trainer.components.model.parameters(), *trainer.components.guide.parameters()]

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        loss().backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="measurements of each (default: 60)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.add_argument("--device", default="cpu", help="where all candidates compute (default: cpu)")
    parser.add_argument("--mnist", metavar="DIR", help="place all of MNIST, not the embedded sample")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 5, 20, 50], metavar="M")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    logging.getLogger("pyro").setLevel(logging.WARNING)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    versions = f"torch {torch.__version__}, pyro {pyro.__version__}, {where}"
    print(f"{versions}, {options.threads} thread(s), {options.rounds} rounds\n")
    print("| what | milliseconds | against | milliseconds | ratio |")
    print("| --- | --- | --- | --- | --- |")
    with pyro_settings(validate=False):
        _whole_update(options.rounds, device, options.mnist)
        _objective_alone(options.rounds, device)
        _pyro_objectives(options.rounds, device)
        _particles(options.rounds, device, options.counts)


def _row(what: str, ours: float, against: str, theirs: float) -> None:
    print(f"| {what} | {ours:.1f} | {against} | {theirs:.1f} | {theirs / ours:.2f} |", flush=True)


def _start(device: torch.device, *overrides: str) -> Trainer:
    return Trainer.start(load_config(EXPERIMENT, [f"training.device={device}", *overrides]))


def _whole_update(rounds: int, device: torch.device, mnist: str | None) -> None:
    digits, _ = read_mnist(mnist) if mnist else read_sample()
    data_of = ("data.source=mnist", f"data.root={mnist}") if mnist else ()
    plain = PlainLoop(digits.images.float() / 255, digits.labels).to(device)
    contestants: Contestants = {"plain": plain.update}
    trainers = {
        ahead: _start(device, f"training.prefetch={str(ahead).lower()}", *data_of)
        for ahead in (True, False)
    }
    for ahead, trainer in trainers.items():
        contestants[f"ahead {ahead}"] = trainer.update
    if device.type == "cuda":
        contestants["recorded"] = _start(device, "training.cuda_graph=true", *data_of).update
    data = trainers[False].components.data
    minibatches = {
        "ours": lambda: data.training_batch(trainers[False].step, 64, 0),
        "plain": lambda: plain.batch(64),
    }
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        # In blocks, so that each finds the caches as it left them.
        found = medians(contestants, max(rounds // 2, 5), block=10)
        end = "" if precision == "highest" else ", matmul_precision medium on both sides"
        _row(f"one update of `cli.py train`{end}", found["ahead True"], "a plain loop", found["plain"])
        _row(f"without prefetch{end}", found["ahead False"], "a plain loop", found["plain"])
        if "recorded" in found:
            _row(f"with cuda_graph{end}", found["recorded"], "a plain loop", found["plain"])
    torch.set_float32_matmul_precision("highest")
    batch = medians(minibatches, rounds)
    _row("its minibatch", batch["ours"], "by affine_grid, grid_sample", batch["plain"])
    share = _data_share(trainers[False], 10 * rounds)
    print(f"\ndata preparation: {share:.1%} of an update without prefetch\n")
    print("| what | milliseconds | against | milliseconds | ratio |")
    print("| --- | --- | --- | --- | --- |")


def _data_share(trainer: Trainer, updates: int) -> float:
    """The fraction of an update's time spent on its minibatch, with realistic caches."""
    make, spent = trainer.components.data.training_rows, 0.0

    def timed(*args: Any) -> object:
        nonlocal spent
        start = time.perf_counter()
        made = make(*args)
        spent += time.perf_counter() - start
        return made

    trainer.components.data.training_rows = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    for _ in range(updates):
        trainer.update()
    return spent / (time.perf_counter() - start)


def _objective_alone(rounds: int, device: torch.device) -> None:
    trainer = _start(device, "exploration.entropy=0")
    model, guide = trainer.components.model, trainer.components.guide
    batch = trainer.components.data.training_batch(0, 64, 0)
    objective = WakeSleep(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    found = medians(
        {
            "ours": backward(lambda: objective.differentiable_loss(model, guide, *batch), trainer),
            "hand": backward(lambda: by_hand(model, guide, *batch, 5), trainer),
        },
        rounds,
    )
    _row("WakeSleep step (guide, model, backward)", found["ours"], "the same by hand", found["hand"])


def _pyro_objectives(rounds: int, device: torch.device) -> None:
    trainer = _start(device, "exploration.entropy=0")
    model, guide = trainer.components.model, trainer.components.guide
    batch = trainer.components.data.training_batch(0, 64, 0)
    common = {"num_particles": 5, "vectorize_particles": True, "max_plate_nesting": 1}
    ours = {"wake": WakeSleep("none", **common), "site": VariationalBound("site", **common)}
    graph, rws = TraceGraph_ELBO(**common), ReweightedWakeSleep(**common)

    def full_shape(site: dict[str, Any]) -> dict[str, Any]:
        """TraceGraph_ELBO needs every baseline in the full shape, including the first glimpse."""
        declared = site["infer"].get("baseline")
        if declared is None:
            return {}
        network = declared["nn_baseline"]
        return {"baseline": {**declared, "nn_baseline": lambda x: network(x).expand(5, 64)}}

    guide_of_graph = poutine.infer_config(guide, full_shape)

    def by_pyro(objective: ELBO) -> Callable[[], object]:
        proposal = guide_of_graph if objective is graph else guide
        return lambda: objective.loss_and_grads(model, proposal, *batch)

    found = medians(
        {
            name: backward(lambda o=objective: o.differentiable_loss(model, guide, *batch), trainer)
            for name, objective in ours.items()
        }
        | {"rws": by_pyro(rws), "graph": by_pyro(graph)},
        max(rounds // 2, 10),
    )
    _row("WakeSleep('none') step", found["wake"], "pyro ReweightedWakeSleep", found["rws"])
    _row(
        "VariationalBound('site') step", found["site"], "pyro TraceGraph_ELBO, baseline", found["graph"]
    )


def saved_bytes(loss: Callable[[], Tensor]) -> int:
    """Bytes that a loss keeps for its backward pass, each storage once."""
    storages: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        value = loss()
    del value
    return sum(storages.values())


def _particles(rounds: int, device: torch.device, counts: list[int]) -> None:
    trainer = _start(device, "exploration.entropy=0")
    model, guide = trainer.components.model, trainer.components.guide
    batch = trainer.components.data.training_batch(0, 64, 0)
    steps, memory = {}, {}
    for m in counts:
        objective = WakeSleep(num_particles=m, vectorize_particles=True, max_plate_nesting=1)

        def loss(objective: WakeSleep = objective) -> Tensor:
            return objective.differentiable_loss(model, guide, *batch)

        steps[str(m)], memory[m] = backward(loss, trainer), saved_bytes(loss) / 2**20
    found = medians(steps, max(rounds // 4, 8))
    print("\n| particles | milliseconds | per particle | MiB kept for backward | per particle |")
    print("| --- | --- | --- | --- | --- |")
    for m in counts:
        time_, size = found[str(m)], memory[m]
        print(f"| {m} | {time_:.1f} | {time_ / m:.2f} | {size:.1f} | {size / m:.2f} |")
    few, many = counts[1], counts[-1]
    more = many - few
    slopes = (found[str(many)] - found[str(few)]) / more, (memory[many] - memory[few]) / more
    print(f"\nslope from {few} to {many}: {slopes[0]:.3f} ms and {slopes[1]:.2f} MiB a particle")


if __name__ == "__main__":
    main()
