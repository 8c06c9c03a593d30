"""What several commands have in common."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsram_ppl.errors import InputError

if TYPE_CHECKING:
    import torch

    from wsram_ppl.config import Components, ExperimentConfig


@contextmanager
def opened(
    run: Path,
    device: str | None = None,
    seed: int = 0,
    overrides: Sequence[str] = (),
    *,
    other_data: bool = False,
) -> Iterator[tuple[ExperimentConfig, Components, int]]:
    """A trained run, loaded onto a device: its config, its components and its number of updates.

    Args:
        device: None for the one on which it was trained, if available.
        overrides: the location of its data.
        other_data: whether overrides may change any key of ``[data]``.

    Inside the context Pyro does not validate arguments, and torch is seeded.
    """
    from wsram_ppl.runs.directory import RunDirectory

    config = RunDirectory(run).config(overrides, other_data=other_data)

    # Slow to import: wrong arguments are reported first.
    import torch

    from wsram_ppl.primitives.handlers import pyro_settings

    quieten("pyro")
    with pyro_settings(validate=False):
        found = RunDirectory(run).load(run_device(run, config, device), config)
        torch.manual_seed(seed)
        yield found


def run_device(run: Path, config: ExperimentConfig, asked: str | None) -> torch.device:
    """The device to use: the one asked for, or the one of training if available."""
    from wsram_ppl.distributed.devices import resolve_device

    if asked is not None:
        return resolve_device(asked)
    trained_on = config.training.device
    try:
        device = resolve_device(trained_on)
    except InputError as error:
        print_notes([f"on the CPU, though {run} was trained on {trained_on!r}: {error}"])
        return resolve_device("cpu")
    if device.type != "cpu":
        print_notes([f"on {device}, as {run} was trained (--device cpu for the CPU)"])
    return device


def quieten(library: str) -> None:
    """Silences a library that has been imported by now (its import sets its own level)."""
    logging.getLogger(library).setLevel(logging.WARNING)


def print_notes(notes: Iterable[str]) -> None:
    """Prints one line for each note, on standard error."""
    for note in notes:
        click.echo(f"note: {note}", err=True)


def print_measures(measures: Mapping[str, Any]) -> None:
    """The most important measures first, then the model's others."""
    lines = {}
    data = measures.get("split", "held-out")
    if "error" in measures:
        lines["error"] = f"{measures['error']:.2%} of {measures['examples']} {data} examples"
    lines["bound"] = f"{measures['bound']:.4f} nats per example ({measures['particles']} particles)"
    lines["ess"] = f"{measures['ess']:.2f} of {measures['particles']}"
    shown = {*lines, "samples", "particles", "examples", "updates", "seconds", "updates_per_second"}
    shown |= {"split", "torch", "device", "threads", "processes", "environment"}
    lines |= {name: f"{value:.4g}" for name, value in measures.items() if name not in shown}
    for name, text in lines.items():
        click.echo(f"  {name:<12} {text}")
