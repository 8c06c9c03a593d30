"""Workflows, hooks, citation, image and checklists, as far as can be told offline."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import wsram_ppl

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
YAML_FILES = [
    *sorted((ROOT / ".github" / "workflows").glob("*.yml")),
    ROOT / ".pre-commit-config.yaml",
    ROOT / ".readthedocs.yaml",
    ROOT / "CITATION.cff",
]


def read_yaml(*parts: str) -> Any:
    return yaml.safe_load(ROOT.joinpath(*parts).read_text())


def check_command(line: str, where: str) -> None:
    """Of a shell command, all that the project itself has to bring."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert {word for word in words[1:] if not word.startswith("-")} <= TARGETS, f"{where}: {line}"
    elif words[0] == ".ci/run":
        assert os.access(ROOT / words[0], os.X_OK), where
    elif words[0].startswith(".venv/bin/"):
        tool = words[words.index("-m") + 1] if "-m" in words else Path(words[0]).name
        named = {re.split(r"[\[<>=]", text)[0] for text in PROJECT["optional-dependencies"]["test"]}
        assert tool in named, f"{where}: {tool} is not among the test extras"


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_files_can_be_read(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


@pytest.mark.parametrize("name", ["ci.yml", "docs.yml"])
def test_workflows_run_commands_that_exist(name: str) -> None:
    workflow = read_yaml(".github", "workflows", name)
    # YAML 1.1 reads the key `on` as true.
    assert workflow["name"] and workflow[True]
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"] > 0
        steps = job["steps"]
        assert all(("uses" in step) != ("run" in step) for step in steps)
        assert all(
            re.fullmatch(r"[\w.-]+/[\w.-]+@v\d+", step["uses"]) for step in steps if "uses" in step
        )
        commands = [line for step in steps for line in step.get("run", "").splitlines()]
        assert commands
        for line in commands:
            check_command(line, name)


def test_read_the_docs_builds_the_same_site() -> None:
    settings = read_yaml(".readthedocs.yaml")
    (install,) = settings["python"]["install"]
    assert settings["version"] == 2 and settings["sphinx"]["fail_on_warning"]
    assert (ROOT / settings["sphinx"]["configuration"]).is_file()
    assert (ROOT / install["path"] / "pyproject.toml").is_file()
    assert set(install["extra_requirements"]) <= set(PROJECT["optional-dependencies"])


def test_the_gate_is_what_the_workflow_calls() -> None:
    steps = read_yaml(".github", "workflows", "ci.yml")["jobs"]["gate"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    for line in (ROOT / ".ci" / "run").read_text().splitlines():
        if line.startswith("make "):
            check_command(line, ".ci/run")


def test_hooks_call_the_tools_of_the_environment() -> None:
    for repository in read_yaml(".pre-commit-config.yaml")["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            assert {"id", "name", "entry", "language"} <= set(hook)
            assert hook["language"] == "system" and hook["entry"].startswith(".venv/bin/")
            check_command(hook["entry"], hook["id"])


def test_the_citation_is_of_this_version() -> None:
    citation = read_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["license"] == PROJECT["license"]
    assert citation["version"] == wsram_ppl.__version__
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Ba",
        "Grosse",
        "Salakhutdinov",
        "Frey",
    ]
    assert paper["url"] == PROJECT["urls"]["Paper"]


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == wsram_ppl.__version__ and len(headings) == len(set(headings))


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/releasing.md"])
def test_what_contributors_are_told_is_there(name: str) -> None:
    """Commands, files and names in code marks, and links."""
    text = (ROOT / name).read_text()
    for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE):
        for command in line.split("&&"):
            check_command(command.strip(), name)
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith((".ci/run", ".venv/", "make ")):
            check_command(code, name)
        elif "/" in code and not re.search(r"[\s*]|^dist|^build", code):
            assert (ROOT / code).exists(), f"{name}: {code}"
        elif code.startswith("wsram_ppl.") and " " not in code:
            assert resolves(code), f"{name}: {code}"
    for target in re.findall(r"\]\(([^)\s#:]+)\)", text):
        assert (ROOT / name).parent.joinpath(target).exists(), f"{name}: {target}"


def resolves(path: str) -> bool:
    """Whether a dotted name leads to a module or to something in one."""
    import pkgutil

    try:
        pkgutil.resolve_name(path)
    except (ImportError, AttributeError):
        return False
    return True


# Dockerfile.

INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "WORKDIR", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its arguments; comments left out, continued lines joined."""
    text = "".join(
        line + "\n"
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if not line.lstrip().startswith("#")
    )
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


def test_the_dockerfile_is_one() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert set(names) <= INSTRUCTIONS
    assert next(name for name in names if name != "ARG") == "FROM" and names.count("FROM") == 1
    declared: set[str] = set()
    for name, rest in found:
        assert rest.strip(), name
        assert set(re.findall(r"\$\{(\w+)\}", rest)) <= declared, f"{name} {rest}"
        if name == "ARG":
            declared.add(rest.partition("=")[0])
        elif name == "FROM":
            declared.clear()  # an ARG before FROM is not known after it
        elif name in ("ENTRYPOINT", "CMD"):
            words = yaml.safe_load(rest)  # a JSON list is YAML
            assert isinstance(words, list) and all(isinstance(word, str) for word in words)
        elif name == "COPY":
            *copied, _ = rest.split()
            assert all((ROOT / path).exists() for path in copied)
        elif name == "RUN":
            for command in rest.split("&&"):
                assert shlex.split(command)
    assert "TORCH" in declared  # a CPU's or CUDA's build


def test_the_image_installs_extras_that_exist() -> None:
    text = (ROOT / "Dockerfile").read_text()
    (extras,) = re.findall(r"wsram_ppl\[([\w,]+)\]", text)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert re.search(r'^ENTRYPOINT \["(\w+)"\]', text, re.MULTILINE)[1] in PROJECT["scripts"]  # type: ignore[index]
    (python,) = re.findall(r"^ARG PYTHON=(\S+)", text, re.MULTILINE)
    assert tuple(map(int, python.split("."))) >= (3, 11)


def test_the_image_gets_no_runs_and_no_environment() -> None:
    """What git ignores does not go into it either, by and large."""
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv", "runs", "studies", "build", "dist", "/data"} <= ignored
