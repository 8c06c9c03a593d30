"""How fast training is, as ratios measured in one run: ``make bench``.

Groups of contestants, each a process of its own, take turns in blocks of updates; whole updates, their
minibatches included. A ratio is the median over rounds, with a 95% interval by bootstrap. (One step of
an objective alone, and particles: ``steps.py``.)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from machine import describe
from turns import CannotRun, Contestant, Worker, ratio, take_turns

COMPILED, RECORDED = "training.compile=true", "training.cuda_graph=true"
NO_PREFETCH = "training.prefetch=false"
#: What the best-known port of the recurrent attention model (Mnih et al. 2014) trains on 28 x 28 digits.
RAM = (
    *("data.canvas=28", "data.scale=[1.0, 1.0]", "model.num_glimpses=6", "model.patch=8"),
    *("model.scales=[1]", "model.hidden=256", "guide.name=prior", "objective.name=variational"),
    *("objective.num_particles=1", "objective.baseline=site", "training.batch_size=128"),
)
BY_SITE = ("objective.name=variational", "objective.baseline=site", "exploration.entropy=0")


@dataclass
class Found:
    """What was measured of a contestant.

    Args:
        times: milliseconds of an update, by round.
        first: seconds of its first update.
        memory: MiB at most, of the process or of its GPU.
    """

    times: list[float]
    first: float
    memory: float
    batch_size: int

    @property
    def median(self) -> float:
        return statistics.median(self.times)


@dataclass
class Bench:
    """How to measure.

    Args:
        rounds: blocks of each contestant.
        threads: numbers of threads to try.
        device: where all compute.
        cache: torch's folder of compiled programs.
        mnist: where all of MNIST lies; None: the embedded sample.
    """

    rounds: int
    threads: list[int]
    device: str
    cache: Path
    mnist: str | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    @contextmanager
    def worker(self, contestant: Contestant) -> Iterator[Worker]:
        placed = replace(contestant, device=self.device, mnist=self.mnist)
        with Worker(placed, self.cache) as worker:
            yield worker

    def measure(self, title: str, contestants: Mapping[str, Contestant]) -> dict[str, Found]:
        """A table of the contestants; what was found of those that can run."""
        print(f"\n**{title}**\n")
        print("| contestant | ms an update | examples/s | first update, s | peak MiB |")
        print("| --- | --- | --- | --- | --- |", flush=True)
        with ExitStack() as alive:
            workers = {}
            for name, contestant in contestants.items():
                try:
                    workers[name] = alive.enter_context(self.worker(contestant))
                except CannotRun as error:
                    print(f"| {name} | cannot run: {str(error)[:160]} | | | |", flush=True)
            times = take_turns(workers, self.rounds)
            found = {
                name: Found(times[name], worker.first, worker.memory(), worker.batch_size)
                for name, worker in workers.items()
            }
        for name, each in found.items():
            speed = f"{each.median:.2f} | {1e3 * each.batch_size / each.median:,.0f}"
            print(f"| {name} | {speed} | {each.first:.1f} | {each.memory:.0f} |")
        return found


def compare(found: Mapping[str, Found], *pairs: tuple[str, str]) -> None:
    """A table of how many times as fast the first of each pair is as the second."""
    print("\n| what | against | times as fast | 95% |\n| --- | --- | --- | --- |")
    for ours, theirs in pairs:
        if ours in found and theirs in found:
            middle, low, high = ratio(found[theirs].times, found[ours].times)
            print(f"| {ours} | {theirs} | **{middle:.2f}** | {low:.2f} to {high:.2f} |", flush=True)


def digits(bench: Bench) -> None:
    """``experiments/digits.toml`` against the plain loop, each at its better number of threads."""
    kinds = {
        "a plain loop": Contestant("plain"),
        "torch.compile of it": Contestant("plain, compiled"),
        "ours": Contestant("ours"),
        "ours without prefetch": Contestant("ours", overrides=(NO_PREFETCH,)),
        "ours compiled": Contestant("ours", overrides=(COMPILED,)),
    }
    contestants = {"ours by default": Contestant("ours", 0)}
    for count in bench.threads:
        for kind, contestant in kinds.items():
            contestants[f"{kind}, {count} thread(s)"] = replace(contestant, threads=count)
    if bench.on_gpu:
        contestants["ours recorded"] = Contestant("ours", overrides=(RECORDED,))
        contestants["ours recorded and compiled"] = Contestant("ours", overrides=(RECORDED, COMPILED))
    found = bench.measure("experiments/digits.toml", contestants)

    def better(kind: str) -> str:
        names = [f"{kind}, {count} thread(s)" for count in bench.threads]
        return min(filter(found.__contains__, names), key=lambda name: found[name].median, default=kind)

    plain, torchs, compiled = map(better, ("a plain loop", "torch.compile of it", "ours compiled"))
    ours = (compiled, "ours by default", "ours recorded", "ours recorded and compiled")
    compare(found, *((name, anchor) for name in ours for anchor in (plain, torchs)), (compiled, ours[1]))


def pyro(bench: Bench) -> None:
    """``VariationalBound("site")`` against Pyro's objectives on the same model and guide."""
    anchors = ("TraceGraph_ELBO", "JitTraceGraph_ELBO", "JitTrace_ELBO")
    contestants = {
        "ours": Contestant("ours", overrides=(*BY_SITE, NO_PREFETCH)),
        "ours compiled": Contestant("ours", overrides=(*BY_SITE, NO_PREFETCH, COMPILED)),
        **{anchor: Contestant(anchor) for anchor in anchors},
    }
    found = bench.measure("digits, VariationalBound('site') and Pyro's objectives", contestants)
    compare(found, *((name, anchor) for name in ("ours", "ours compiled") for anchor in anchors))


def captioner(bench: Bench) -> None:
    """``experiments/scenes.toml``, whose sentences are of one length."""
    _compiled_or_not(bench, "experiments/scenes.toml", Contestant("ours", experiment="scenes"))


def ram(bench: Bench) -> None:
    """At the sizes of the best-known RAM port, with the number of threads that is chosen by default."""
    _compiled_or_not(bench, "at the sizes of the best-known RAM port", Contestant("ours", 0, RAM))


def _compiled_or_not(bench: Bench, title: str, usual: Contestant) -> None:
    choices = {"ours": (), "ours compiled": (COMPILED,)}
    if bench.on_gpu:
        choices |= {"ours recorded": (RECORDED,), "ours recorded and compiled": (RECORDED, COMPILED)}
    contestants = {
        name: replace(usual, overrides=(*usual.overrides, *keys)) for name, keys in choices.items()
    }
    found = bench.measure(title, contestants)
    compare(found, *((name, "ours") for name in list(choices)[1:]))


def overtake(bench: Bench) -> None:
    """After how many updates a compiled run has caught up with one that is not."""
    compiled = Contestant("ours", 1, (COMPILED,))
    print("\n**until a compiled run overtakes one that is not**\n")
    print("| torch's cache | s until the first update is done | ms saved an update | updates |")
    print("| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as empty:
        own = replace(bench, cache=Path(empty))
        with own.worker(Contestant("ours")) as usual:
            for cache in ("empty", "filled"):
                with own.worker(compiled) as worker:
                    times = take_turns({"usual": usual, "compiled": worker}, bench.rounds)
                    saved = statistics.median(
                        a - b for a, b in zip(times["usual"], times["compiled"], strict=True)
                    )
                    late = worker.first - usual.first
                    after = f"{1e3 * late / saved:,.0f}" if saved > 0 else "never"
                    print(f"| {cache} | {worker.first:.1f} | {saved:.1f} | {after} |", flush=True)


GROUPS: dict[str, Callable[[Bench], None]] = {
    "digits": digits,
    "pyro": pyro,
    "captioner": captioner,
    "ram": ram,
    "overtake": overtake,
}


def main() -> None:
    about = {name: (group.__doc__ or "").splitlines()[0] for name, group in GROUPS.items()}
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="groups: " + " ".join(f"{name}: {text}" for name, text in about.items()),
    )
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    parser.add_argument("--rounds", type=int, default=20, help="blocks of ten updates (default: 20)")
    parser.add_argument(
        "--threads", type=int, nargs="+", help="numbers to try (default: 1 2; with a GPU 1)"
    )
    parser.add_argument("--device", default="cpu", help="where all compute (default: cpu)")
    parser.add_argument("--mnist", metavar="DIR", help="place all of MNIST, not the embedded sample")
    parser.add_argument(
        "--cache", metavar="DIR", help="keep compiled programs there (default: compile all anew)"
    )
    options = parser.parse_args()
    threads = options.threads or ([1] if options.device.startswith("cuda") else [1, 2])
    print(f"{describe(options.device)}; {options.rounds} rounds of ten updates in turns")
    with tempfile.TemporaryDirectory() as empty:
        cache = Path(options.cache or empty)
        bench = Bench(options.rounds, threads, options.device, cache, options.mnist)
        for name in options.only:
            GROUPS[name](bench)


if __name__ == "__main__":
    main()
