"""Runs tutorials in full, and stores in them what they print and draw; the site shows that.

    python scripts/run_tutorials.py                # all of them, some minutes
    python scripts/run_tutorials.py study          # one

Each runs in a folder of its own, which is empty at first.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
#: The tag of the cell that holds a tutorial's budget.
PARAMETERS = "parameters"

#: tqdm asks for widgets, which no cell uses.
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found"}


def execute(
    notebook: nbformat.NotebookNode, folder: Path, parameters: Mapping[str, Any] | None = None
) -> nbformat.NotebookNode:
    """What a notebook becomes when it is run from its beginning, on one thread.

    Args:
        folder: where it runs and leaves its files.
        parameters: in place of those in its cell of parameters.

    Raises:
        CellExecutionError: a cell fails.
    """
    notebook = copy.deepcopy(notebook)
    if parameters:
        (cell,) = (c for c in notebook.cells if PARAMETERS in c.metadata.get("tags", []))
        cell.source = "\n".join(f"{name} = {value!r}" for name, value in parameters.items())
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for `wsram`
    client = NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **QUIET})
    notebook.metadata.language_info = {"name": "python"}  # not which patch release it was
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    names = parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            done = execute(nbformat.read(path, as_version=4), Path(folder))
        nbformat.write(done, path)
        print(f"{name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
