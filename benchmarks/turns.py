"""Contestants that take turns: each a process of its own, timed block by block.

Whatever else the machine does falls on all of them alike, and none is slowed by what another has left
in its process: threads, caches of the allocator, settings.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Contestant:
    """What a process does again and again.

    Args:
        kind: a key of ``worker.KINDS``.
        threads: of torch; 0: as the contestant itself chooses.
        overrides: keys of the experiment, as ``KEY=VALUE``.
        experiment: the name of one that is shipped.
        device: where it computes.
        mnist: where all of MNIST lies; None: the embedded sample.
    """

    kind: str
    threads: int = 1
    overrides: tuple[str, ...] = ()
    experiment: str = "digits"
    device: str = "cpu"
    mnist: str | None = None


class CannotRun(Exception):
    """Why a contestant takes no part."""


class Worker:
    """A contestant's process. Use as a context manager.

    Args:
        cache: torch's folder of compiled programs.

    Attributes:
        first: seconds of its first update, in which programs are compiled.
        batch_size: examples per update.

    Raises:
        CannotRun: it has told why.
    """

    def __init__(self, contestant: Contestant, cache: Path) -> None:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        environment.pop("OMP_NUM_THREADS", None)
        if contestant.threads:
            environment["OMP_NUM_THREADS"] = str(contestant.threads)
        command = [sys.executable, "-W", "ignore", str(WORKER), json.dumps(asdict(contestant))]
        self._process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.first, self.batch_size = float(ready["first"]), int(ready["batch_size"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, times: int) -> float:
        """Mean milliseconds of so many updates in a row."""
        return float(self._ask("update", times)["milliseconds"])

    def memory(self) -> float:
        """MiB at most so far, of the process or of its GPU."""
        return float(self._ask("memory")["mebibytes"])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _ask(self, *question: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise CannotRun(f"its process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise CannotRun(answer["refused"])
        return answer


def take_turns(workers: Mapping[str, Worker], rounds: int, block: int = 10) -> dict[str, list[float]]:
    """Milliseconds of an update by contestant and round, after three rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(rounds + 3):
        for name, worker in workers.items():
            milliseconds = worker.update(block)
            if turn >= 3:
                times[name].append(milliseconds)
            time.sleep(0.03)  # what a thread of its still prepares is not the next one's burden
    return times


def ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios of each round, and its 95% interval by bootstrap over rounds."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return statistics.median(ratios), medians[25], medians[974]
