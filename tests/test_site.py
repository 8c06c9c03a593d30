"""The pages of ``docs/``: programs run, commands exist, and what is wrong with a site is found."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pyro
import pytest

from tests.test_packaging import CALLS
from wsram_ppl.commands import main

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
CHECK = ROOT / "scripts" / "check_site.py"


def program(page: Path) -> str:
    (found,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    return str(found)


def test_the_first_program_runs_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That of the README, which is that of the site."""
    shown = program(ROOT / "README.md")
    assert shown == program(DOCS / "start.md")
    assert len([line for line in shown.splitlines() if line]) < 25
    script = tmp_path / "program.py"
    script.write_text(shown)
    runpy.run_path(str(script))
    pyro.clear_param_store()
    loss, *centres = map(float, re.findall(r"-?\d+\.\d+", capsys.readouterr().out))
    assert loss == pytest.approx(1.5, abs=0.1)
    assert centres == pytest.approx([-2.0, 0.0, 3.0], abs=0.2)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_are_commands(page: Path) -> None:
    """With options that exist, in blocks of code."""
    text = page.read_text().replace("\\\n", " ")
    top = click.Context(main, info_name="wsram", **main.context_settings)
    for line in re.findall(r"^ {4}(\S.*)$", text, re.MULTILINE):
        words = shlex.split(line, comments=True) if line.startswith(("wsram ", "python ")) else []
        for start in CALLS:
            if words[: len(start)] == start:
                name, *rest = words[len(start) :]
                main.commands[name].make_context(name, rest, parent=top)
        if words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line


def check(site: Path) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, str(CHECK), str(site)], capture_output=True, text=True)
    return done.returncode, done.stdout.replace(str(site), "SITE").splitlines()


def test_a_site_without_fault_passes(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="sub/b.html#here">b</a><a href="https://pyro.ai">Pyro</a>')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.html").write_text('<p id="here"><img src="../c%20d.png"><a href="#">top</a>')
    (tmp_path / "c d.png").touch()
    assert check(tmp_path) == (0, ["SITE: no dead link, nothing loaded from elsewhere"])


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ('<a href="b.html">', "a.html: dead link b.html"),
        ('<a href="#there">', "a.html: no such target #there"),
        ('<img src="b.png">', "a.html: dead link b.png"),
        ('<script src="https://cdn.example/x.js"></script>', "a.html loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "a.html loads //cdn.example/x.css"),
    ],
)
def test_a_fault_of_the_site_is_named(page: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(page)
    assert check(tmp_path) == (1, [said])


def test_a_site_that_was_not_built_is_told(tmp_path: Path) -> None:
    assert check(tmp_path / "site") == (1, ["SITE holds no pages: make docs"])


# What the site does with links; where Sphinx is installed (`make docs`).


@pytest.mark.parametrize(
    ("link", "alone", "with_repository"),
    [
        ("[a](data.md#arrays)", "[a](data.md#arrays)", "[a](data.md#arrays)"),
        ("[a](https://pyro.ai)", "[a](https://pyro.ai)", "[a](https://pyro.ai)"),
        ("[a](#arrays)", "[a](#arrays)", "[a](#arrays)"),
        ("![a](images/glimpses.png)", "![a](images/glimpses.png)", "![a](images/glimpses.png)"),
        ("[a](../cli.py)", "a", "[a](https://example.org/r/blob/main/cli.py)"),
        ("[a](../tests)", "a", "[a](https://example.org/r/blob/main/tests)"),
        ("[a](../CHANGELOG.md)", "[a](changelog.md)", "[a](changelog.md)"),
    ],
)
def test_links_that_leave_the_pages(
    link: str, alone: str, with_repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lead to the repository, if its address is known; else their text stands alone."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS))
    from site_extension import rewrite_links

    assert rewrite_links(link, DOCS, DOCS, "") == alone
    assert rewrite_links(link, DOCS, DOCS, "https://example.org/r") == with_repository


def test_a_page_made_of_another_file_links_from_its_own_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS))
    from site_extension import rewrite_links

    assert rewrite_links("[a](docs/data.md)", ROOT, DOCS, "") == "[a](data.md)"
    assert rewrite_links("[a](docs/data.md#b)", ROOT, DOCS / "api", "") == "[a](../data.md#b)"


def test_a_tutorial_can_be_downloaded_and_opened_in_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS))
    from site_extension import add_ways_to_run

    notebook = DOCS / "tutorials" / "study.ipynb"
    alone = add_ways_to_run("# A study\n\nIs it?", notebook, "")
    download = "{nb-download}`Download the notebook <study.ipynb>`"
    assert alone == f"# A study\n\n```{{container}} run\n{download}\n```\n\nIs it?"
    address = "https://colab.research.google.com/github/me/mine/blob/main/docs/tutorials/study.ipynb"
    assert f"[Open in Colab]({address})" in add_ways_to_run(
        "# A study", notebook, "https://github.com/me/mine"
    )
