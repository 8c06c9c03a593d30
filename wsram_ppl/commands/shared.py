"""What several commands do."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from wsram_ppl.config import Components, ExperimentConfig


@contextmanager
def opened(
    run: Path, device: str = "cpu", seed: int = 0
) -> Iterator[tuple[ExperimentConfig, Components, int]]:
    """A trained run on a device, to be looked at: its config, its components and the updates done.

    Within the context Pyro checks no arguments, and torch draws by the seed.
    """
    import torch

    from wsram_ppl.distributed.devices import resolve_device
    from wsram_ppl.primitives.handlers import pyro_settings
    from wsram_ppl.runs.directory import RunDirectory

    quieten("pyro")
    with pyro_settings(validate=False):
        found = RunDirectory(run).load(resolve_device(device))
        torch.manual_seed(seed)
        yield found


def quieten(library: str) -> None:
    """No notes from a library that is imported by now (its import sets its own level)."""
    logging.getLogger(library).setLevel(logging.WARNING)


def print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(f"note: {note}", err=True)


def print_measures(measures: Mapping[str, Any]) -> None:
    """The measures that a reader looks for first, then the model's others."""
    lines = {}
    if "error" in measures:
        lines["error"] = f"{measures['error']:.2%} of {measures['examples']} held-out examples"
    lines["bound"] = f"{measures['bound']:.4f} nats per example ({measures['particles']} particles)"
    lines["ess"] = f"{measures['ess']:.2f} of {measures['particles']}"
    shown = {*lines, "samples", "particles", "examples", "updates", "seconds", "updates_per_second"}
    shown |= {"torch", "device", "threads", "processes"}
    lines |= {name: f"{value:.4g}" for name, value in measures.items() if name not in shown}
    for name, text in lines.items():
        click.echo(f"  {name:<12} {text}")
