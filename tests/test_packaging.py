"""What is installed, what it needs, which way dependencies point, and what the README promises."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import cli
from wsram_ppl.config import load_spec

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

#: Names of modules, where they are not those of the distribution.
MODULES = {
    "pyro-ppl": "pyro",
    "pillow": "PIL",
    "tomli-w": "tomli_w",
    "lightning-fabric": "lightning_fabric",
}


def modules(requirements: list[str]) -> set[str]:
    names = {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}
    return {MODULES.get(name, name) for name in names}


def imports(path: Path) -> Iterator[str]:
    """The top-level package of everything that a file imports, now or when a function runs."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path}: relative import"
            yield node.module.partition(".")[0]


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


# The wheel.


def test_the_wheel_holds_the_library_alone() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "check_wheel.py")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"wheel: \d+ files, [\d.]+ MiB, only wsram_ppl\n", done.stdout)


# Dependencies.


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("wsram_ppl", {"models", "guides", "cli", "tests", "examples", "benchmarks"}),
        ("models", {"guides", "cli", "tests", "examples", "benchmarks"}),
        ("guides", {"cli", "tests", "examples", "benchmarks"}),
    ],
)
def test_dependencies_point_one_way(folder: str, forbidden: set[str]) -> None:
    for path in sources(folder):
        for name in imports(path):
            assert name not in forbidden, f"{path} imports {name}"


def test_everything_imported_is_declared() -> None:
    """In the core dependencies, or in an extra for users."""
    extras = [text for name, extra in EXTRAS.items() if name != "test" for text in extra]
    declared = modules(PROJECT["dependencies"] + extras)
    ours = {"wsram_ppl", "models", "guides", "cli"}
    for path in [ROOT / "cli.py", *sources("wsram_ppl", "models", "guides")]:
        for name in imports(path):
            known = name in declared or name in ours or name in sys.stdlib_module_names
            assert known, f"{path} imports {name}, which pyproject.toml lacks"


CORE_ONLY = """
import sys

class Absent:
    # As on a machine where the extras are not installed.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import wsram_ppl.objectives, wsram_ppl.objectives.exploration, wsram_ppl.objectives.diagnostics, wsram_ppl.training.evaluation
import wsram_ppl.primitives.handlers, wsram_ppl.primitives.glimpses, wsram_ppl.data, wsram_ppl.config, wsram_ppl.runs.directory
print(sorted({absent!r} & set(sys.modules)))
"""


def test_the_library_needs_no_extras() -> None:
    """The objectives and what belongs to them, with the core dependencies alone."""
    absent = modules(EXTRAS["cli"] + EXTRAS["mnist"]) - modules(PROJECT["dependencies"])
    absent -= {"tqdm"}  # Pyro itself needs it
    assert {"click", "lightning_fabric", "tensorboard", "PIL", "torchvision"} <= absent
    done = subprocess.run(
        [sys.executable, "-c", CORE_ONLY.format(absent=absent)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# The README.

README = ROOT / "README.md"


@pytest.fixture(scope="module")
def readme() -> str:
    if not README.exists():
        pytest.skip("there is no README.md yet")
    return README.read_text()


def commands(readme: str) -> list[list[str]]:
    """The commands in indented blocks and in fenced ones."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (\S.*)$", readme, re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()] + indented
    found = []
    for line in lines:
        if re.match(r"(python|make|pip) ", line.strip()):
            found.append(shlex.split(line, comments=True))
    return found


def test_make_targets_of_the_readme_exist(readme: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in commands(readme) if words[0] == "make"}
    assert {"demo", "test"} <= named <= targets


def test_commands_of_the_readme_are_commands(readme: str) -> None:
    """Every command and option exists, and every experiment can be read with the overrides given."""
    calls = [words[2:] for words in commands(readme) if words[:2] == ["python", "cli.py"]]
    assert {"train", "evaluate", "glimpses", "list"} <= {words[0] for words in calls}
    # Below the whole, whose settings a command takes over; click remembers those that it saw first.
    top = click.Context(cli.main, info_name="cli.py", **cli.main.context_settings)
    for words in calls:
        command = cli.main.commands[words[0]]
        context = command.make_context(words[0], words[1:], parent=top)
        if words[0] == "train" and context.params["resume"] is None:
            given = context.params
            shorthands = {"model", "guide", "objective", "control_variate", "device", "seed"}
            load_spec(
                ROOT / given["experiment"],
                given["overrides"],
                **{name: given[name] for name in shorthands},
            )
        for parameter in command.params:
            value = context.params[parameter.name or ""]
            if isinstance(parameter, click.Argument) and str(value).endswith(".toml"):
                assert (ROOT / value).is_file(), value


def test_scripts_and_extras_of_the_readme_exist(readme: str) -> None:
    for words in commands(readme):
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words[1]
    for names in re.findall(r"\.\[([\w,]+)\]", readme):
        assert set(names.split(",")) <= set(EXTRAS)


def test_links_of_the_readme_lead_somewhere(readme: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", readme):
        if not target.startswith(("http:", "https:", "#")):
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_names_in_the_readme_are_those_that_are_registered(readme: str) -> None:
    from wsram_ppl.config.catalogue import DATA_SOURCES, GUIDES, MODELS, OBJECTIVES

    for registry in (MODELS, GUIDES, OBJECTIVES, DATA_SOURCES):
        for name in registry.names():
            if name.startswith("test-"):  # of another test
                continue
            assert f"`{name}`" in readme, f"{registry.kind} {name}"
