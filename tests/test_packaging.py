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
from wsram_ppl.commands import main
from wsram_ppl.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

#: Names of modules, where they are not those of the distribution.
MODULES = {
    "pyro-ppl": "pyro",
    "pillow": "PIL",
    "tomli-w": "tomli_w",
    "lightning-fabric": "lightning_fabric",
    "mlflow-skinny": "mlflow",
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


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


# What is built.


def test_what_is_built_is_whole_and_works_far_from_the_checkout() -> None:
    """Contents of sdist and wheel; the wheel, installed with and without its extra, at work."""
    done = run(sys.executable, str(ROOT / "scripts" / "check_distributions.py"))
    assert done.returncode == 0, done.stderr
    sdist, wheel, installed = done.stdout.splitlines()
    assert re.fullmatch(r"sdist: \d+ files, [\d.]+ MiB, the whole project", sdist)
    assert re.fullmatch(r"wheel: \d+ files, [\d.]+ MiB, only wsram_ppl", wheel)
    assert installed == "installed: objectives without the extra; wsram lists and trains, own models too"


def test_links_lead_to_the_folders_at_the_top() -> None:
    """In the sdist they are folders of their own, with the same files."""
    for name in ("models", "guides", "experiments"):
        link, folder = ROOT / "wsram_ppl" / name, ROOT / name
        if link.is_symlink():
            assert link.readlink() == Path("..", name)
        else:
            assert {path.name: path.read_bytes() for path in link.iterdir() if path.is_file()} == {
                path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()
            }


def test_the_folders_at_the_top_hand_on_the_same_objects() -> None:
    import guides
    import models
    import wsram_ppl.guides
    import wsram_ppl.models
    from wsram_ppl.objectives import Prior

    assert guides.Prior is Prior
    for ours, theirs in ((guides, wsram_ppl.guides), (models, wsram_ppl.models)):
        for name in theirs.__all__:
            assert getattr(ours, name) is getattr(theirs, name)


# Dependencies. Which way they point is said, and checked, by the contracts in pyproject.toml.


LINT_IMPORTS = "from importlinter.cli import lint_imports_command as lint; lint()"


def test_import_contracts_are_kept() -> None:
    pytest.importorskip("importlinter")
    done = run(sys.executable, "-c", LINT_IMPORTS, "--no-logo", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_import_graph_has_no_circle_and_no_upward_arrow() -> None:
    pytest.importorskip("grimp")
    done = run(sys.executable, str(ROOT / "scripts" / "import_graph.py"))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no circle, no upward arrow"), (
        done.stdout
    )


LAYERS = """
[tool.importlinter]
root_package = "house"

[[tool.importlinter.contracts]]
type = "layers"
containers = ["house"]
layers = ["roof", "left | right", "cellar"]
"""


@pytest.mark.parametrize(
    ("path", "text", "problems"),
    [
        ("cellar/wine.py", "", ["no circle, no upward arrow"]),
        (
            "cellar/wine.py",
            "def stairs():\n    import house.roof",
            [
                "upward arrow: house.cellar.wine:2 imports house.roof",
                "circle: cellar -> roof -> cellar",
            ],
        ),
        ("left.py", "import house.right", ["sideways arrow: house.left:1 imports house.right"]),
        ("shed.py", "", ["no floor: shed is not among the layers"]),
    ],
)
def test_the_import_graph_names_what_is_wrong(
    tmp_path: Path, path: str, text: str, problems: list[str]
) -> None:
    pytest.importorskip("grimp")
    (tmp_path / "pyproject.toml").write_text(LAYERS)
    house = tmp_path / "house"
    (house / "cellar").mkdir(parents=True)
    for name in ("__init__.py", "cellar/__init__.py", "left.py", "right.py"):
        (house / name).write_text("")
    (house / "roof.py").write_text("from house.cellar import wine\n")
    (house / "cellar" / "wine.py").write_text("")
    (house / path).write_text(text)
    done = run(sys.executable, str(ROOT / "scripts" / "import_graph.py"), str(tmp_path))
    lines = done.stdout.splitlines()
    assert done.returncode == (problems != ["no circle, no upward arrow"]), done.stderr
    assert re.fullmatch(r"roof +1 lines  -> cellar", lines[0])
    assert re.fullmatch(r"house: \d+ lines in \d folders and modules", lines[-len(problems) - 1])
    assert lines[-len(problems) :] == problems


def test_nothing_but_tests_imports_tests() -> None:
    for path in [
        ROOT / "cli.py",
        *sources("wsram_ppl", "models", "guides", "benchmarks", "examples", "scripts"),
    ]:
        assert "tests" not in set(imports(path)), path


def test_everything_imported_is_declared() -> None:
    """In the core dependencies, or in an extra for users."""
    extras = [text for name, extra in EXTRAS.items() if name != "test" for text in extra]
    declared = modules(PROJECT["dependencies"] + extras)
    for path in [ROOT / "cli.py", *sources("wsram_ppl", "models", "guides")]:
        for name in imports(path):
            known = name in declared or name == "wsram_ppl" or name in sys.stdlib_module_names
            assert known, f"{path} imports {name}, which pyproject.toml lacks"


EVERY_MODULE = """
import importlib, pkgutil, sys

package = importlib.import_module({name!r})
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(*sorted(sys.modules))
"""


@pytest.mark.parametrize("name", ["wsram_ppl.objectives", "wsram_ppl.primitives"])
def test_the_mathematics_loads_nothing_of_the_command(name: str) -> None:
    """In a bare process: no settings, no files, no logs, no pictures; nothing of the floors above."""
    done = run(sys.executable, "-c", EVERY_MODULE.format(name=name))
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    known = {"wsram_ppl.objectives", "wsram_ppl.primitives", "wsram_ppl.errors", "wsram_ppl.collectives"}
    ours = {".".join(module.split(".")[:2]) for module in loaded if module.startswith("wsram_ppl.")}
    assert name in ours <= known
    core = modules(PROJECT["dependencies"])
    others = modules([text for extra in EXTRAS.values() for text in extra]) - {
        "wsram_ppl",
        "tqdm",
        "setuptools",
    }
    assert {"pydantic", "tomli_w", "safetensors"} <= core and {"click", "matplotlib", "PIL"} <= others
    assert not loaded & (others | core - {"torch", "pyro", "numpy"})


WITHOUT = """
import runpy, sys

class Absent:
    # As on a machine where these are not installed.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
CORE = """
import wsram_ppl.objectives.exploration, wsram_ppl.objectives.diagnostics, wsram_ppl.training.evaluation
import wsram_ppl.primitives.handlers, wsram_ppl.primitives.glimpses
import wsram_ppl.config, wsram_ppl.data, wsram_ppl.guides, wsram_ppl.models, wsram_ppl.runs.directory
print(sorted({absent!r} & set(sys.modules)))
"""


def absent_without_extras() -> set[str]:
    absent = modules(EXTRAS["cli"] + EXTRAS["mnist"]) - modules(PROJECT["dependencies"])
    absent -= {"tqdm"}  # Pyro itself needs it
    assert {"click", "lightning_fabric", "tensorboard", "PIL", "torchvision"} <= absent
    return absent


def test_the_library_needs_no_extras() -> None:
    """The objectives and what belongs to them, with the core dependencies alone."""
    done = run(sys.executable, "-c", (WITHOUT + CORE).format(absent=absent_without_extras()))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("missing", ["click", None])
def test_without_its_extra_the_command_says_what_to_install(missing: str | None) -> None:
    absent = {missing} if missing else absent_without_extras()
    code = WITHOUT.format(absent=absent) + "runpy.run_module('wsram_ppl', run_name='__main__')"
    done = run(sys.executable, "-c", code)
    said = "wsram needs its command-line extra: pip install 'wsram_ppl[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


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
        if re.match(r"(python|make|pip|wsram) ", line.strip()):
            found.append(shlex.split(line, comments=True))
    return found


def test_make_targets_of_the_readme_exist(readme: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {words[1] for words in commands(readme) if words[0] == "make"}
    assert {"demo", "test"} <= named <= targets


#: The ways to call the command.
CALLS = (["wsram"], ["python", "-m", "wsram_ppl"], ["python", "cli.py"])


def test_commands_of_the_readme_are_commands(readme: str) -> None:
    """Every command and option exists, and every experiment can be read with the overrides given."""
    assert cli.main is main and isinstance(main, click.Group)
    calls = [
        words[len(start) :]
        for words in commands(readme)
        for start in CALLS
        if words[: len(start)] == start
    ]
    assert {"train", "evaluate", "glimpses", "list"} <= {words[0] for words in calls}
    # Below the whole, whose settings a command takes over; click remembers those that it saw first.
    top = click.Context(main, info_name="wsram", **main.context_settings)
    for words in calls:
        command = main.commands[words[0]]
        context = command.make_context(words[0], words[1:], parent=top)
        if words[0] == "train" and context.params["resume"] is None:
            given = context.params
            shorthands = {"model", "guide", "objective", "control_variate", "device", "seed"}
            load_config(
                experiment(str(given["experiment"])),
                given["overrides"],
                **{name: given[name] for name in shorthands},
            )
        for parameter in command.params:
            if parameter.name in ("experiment", "study") and context.params[parameter.name]:
                assert experiment(str(context.params[parameter.name])).is_file()


def experiment(name: str) -> Path:
    """A file, or one that is shipped."""
    return ROOT / name if name.endswith(".toml") else ROOT / "wsram_ppl" / "experiments" / f"{name}.toml"


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
