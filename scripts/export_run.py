#!/usr/bin/env python3
"""Writes only the weights of a trained run, for others to use: ``scripts/export_run.py RUN OUT``.

The result is a run directory that works with ``evaluate``, ``look`` and ``train --init``, but cannot
be resumed. Put a model card (README.md) into it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wsram_ppl.config import ExperimentConfig, build_data
from wsram_ppl.errors import InputError
from wsram_ppl.files import make_folder, to_json
from wsram_ppl.interfaces import KeepsRecord
from wsram_ppl.runs.checkpoints import save_checkpoint
from wsram_ppl.runs.data_record import DATA
from wsram_ppl.runs.directory import NOTE, WEIGHTS_ONLY, RunDirectory


def export(
    out: Path,
    config: ExperimentConfig,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    step: int,
    note: str = "",
    *,
    half: bool = True,
) -> Path:
    """Writes config, weights and the record of the data into a new directory; returns the checkpoint.

    Args:
        note: shown whenever the weights are measured.
        half: whether weights are rounded to 16 bits.
    """
    make_folder(out)
    run = RunDirectory(out)
    run.write_config(config)
    (out / DATA).write_text(to_json(record, indent=1) + "\n")
    weights = {name: t for name, t in tensors.items() if name.startswith(("model.", "guide."))}
    if half:
        # Scalars are options, which are in the config.
        weights = {name: t.half() if t.dim() else t for name, t in weights.items()}
    data = {"step": step, "seconds": 0.0, "fingerprint": config.fingerprint(), WEIGHTS_ONLY: True}
    save_checkpoint(run.checkpoint, weights, {**data, NOTE: note} if note else data)
    return run.checkpoint


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="the run")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument("--note", default="", help="shown whenever it is measured")
    parser.add_argument("--full", action="store_true", help="keep 32 bits")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="data.KEY=VALUE",
        help="the data that the new config names, such as data.source=sample",
    )  # fmt: skip
    given = parser.parse_args()
    try:
        run = RunDirectory(given.run)
        config = run.config(given.overrides, other_data=True)
        saved = run.weights()
        record = json.loads((given.run / DATA).read_bytes())
        if given.overrides:
            data = build_data(config)
            record = data.record if isinstance(data, KeepsRecord) else {}
        path = export(
            given.out, config, saved.tensors, record, saved.step, given.note, half=not given.full
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
