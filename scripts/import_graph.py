"""Prints the folders of the package layer by layer, with their lines and what each imports.

    python scripts/import_graph.py [PROJECT]

The layers are those in the project's pyproject.toml, top layer first. Exits with 1 if an import leads
upwards or sideways, if folders import each other in a cycle, or if a folder has no layer.
"""

from __future__ import annotations

import graphlib
import re
import sys
import tomllib
from pathlib import Path

import grimp

Folders = dict[str, set[str]]


def read_floors(project: Path) -> tuple[str, list[list[str]]]:
    """The package's name, and the folders (or modules) of each layer, top layer first."""
    settings = tomllib.loads((project / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (
        contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"
    )
    return settings["root_package"], [re.findall(r"\w+", layer) for layer in layers]


def read_imports(package: str) -> tuple[Folders, list[tuple[str, str, str]]]:
    """What each folder imports; and every import between two folders as (folder, folder, where)."""
    graph = grimp.build_graph(package, cache_dir=None)
    names = sorted(child.removeprefix(f"{package}.") for child in graph.find_children(package))
    folders: Folders = {name: set() for name in names}
    arrows = []
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            start, end = (f"{module}.".split(".")[1] for module in (importer, imported))
            if start and end and start != end:
                (details, *_) = graph.get_import_details(importer=importer, imported=imported)
                folders[start].add(end)
                arrows.append((start, end, f"{importer}:{details['line_number']} imports {imported}"))
    return folders, arrows


def count_lines(path: Path) -> int:
    """The lines of a folder's Python files, or of the module of that name."""
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return sum(len(file.read_text().splitlines()) for file in files)


def main(project: Path) -> int:
    package, floors = read_floors(project)
    sys.path.insert(0, str(project))
    folders, arrows = read_imports(package)
    lines = {name: count_lines(project / package / name) for name in folders}
    floor_of = {name: number for number, floor in enumerate(floors) for name in floor}

    for floor in floors:
        for name in sorted(set(floor) & set(folders)):
            imported = sorted(folders[name], key=lambda other: (floor_of.get(other, -1), other))
            print(f"{name:14}{lines[name]:7,} lines  -> {', '.join(imported) or 'nothing'}")
        print("---")
    print(f"{package}: {sum(lines.values()):,} lines in {len(folders)} folders and modules")

    problems = [f"no floor: {name} is not among the layers" for name in folders if name not in floor_of]
    for start, end, where in arrows:
        if start in floor_of and end in floor_of and floor_of[start] >= floor_of[end]:
            direction = "sideways" if floor_of[start] == floor_of[end] else "upward"
            problems.append(f"{direction} arrow: {where}")
    try:
        graphlib.TopologicalSorter({name: sorted(folders[name]) for name in folders}).prepare()
    except graphlib.CycleError as error:
        problems.append("circle: " + " -> ".join(reversed(error.args[1])))
    print("\n".join(problems) if problems else "no circle, no upward arrow")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()))
