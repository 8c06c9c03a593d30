"""The tutorials of the site run, on a tiny budget, and hold the outputs of a full run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from scripts.run_tutorials import FOLDER, PARAMETERS, execute

#: In place of each tutorial's parameters.
TINY: dict[str, dict[str, Any]] = {
    "control_variates": {"problems": 1, "shares": [0.0, 0.5]},
    "mixed_program": {"steps": 10, "grid": 5},
    "own_images": {"pictures": 24, "steps": 4},
    "study": {"steps": 4, "seeds": [0]},
    "wake_sleep": {"steps": 10},
}
TUTORIALS = pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.ipynb")))


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cells: list[nbformat.NotebookNode]) -> list[bool]:
    """Of each cell, whether it shows something."""
    return [bool(cell.outputs) for cell in cells]


def names(source: str) -> list[str]:
    return re.findall(r"^(\w+) =", source, re.MULTILINE)


@TUTORIALS
def test_a_tutorial_runs(name: str, tmp_path: Path) -> None:
    """Every cell; what shows something in the stored run shows something here."""
    stored = read(name)
    done = execute(stored, tmp_path, TINY[name])
    assert kinds(code_cells(done)) == kinds(code_cells(stored))


@TUTORIALS
def test_a_tutorial_holds_the_outputs_of_a_full_run(name: str) -> None:
    cells = code_cells(read(name))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr"
        assert str(Path.home()) not in str(output) and "error: " not in output.get("text", "")
    (budget,) = (cell for cell in cells if PARAMETERS in cell.metadata.get("tags", []))
    assert names(budget.source) == list(TINY[name])


@TUTORIALS
def test_a_tutorial_is_on_the_site_and_can_be_run_on_colab(name: str) -> None:
    assert f"\ntutorials/{name}\n" in (FOLDER.parent / "index.md").read_text()
    assert '%pip install --quiet "wsram_ppl[cli]"' in code_cells(read(name))[0].source


def test_a_cell_that_fails_ends_the_run(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%%bash\nwsram nothing")])
    with pytest.raises(CellExecutionError, match="No such command 'nothing'"):
        execute(notebook, tmp_path)
