"""Names and import paths of components."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsram_ppl.errors import InputError, nearest
from wsram_ppl.registry import Registry

ROOT = Path(__file__).parents[1]


class Glimpse:
    """Looks a few times.

    More about it.
    """


class Captioner(Glimpse):
    pass


@pytest.fixture
def registry() -> Registry:
    """One class by its import path, one as it is."""
    return Registry("model", {"glimpse-classifier": f"{__name__}:Glimpse", "captioner": Captioner})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def message(registry: Registry, name: str) -> str:
    with pytest.raises(InputError) as caught:
        registry.resolve(name)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_resolves_and_describes_by_name(registry: Registry) -> None:
    assert registry.resolve("glimpse-classifier").__name__ == "Glimpse"
    assert registry.names() == ["captioner", "glimpse-classifier"]
    # A docstring is not inherited: it would describe another class.
    assert registry.describe() == {"captioner": "", "glimpse-classifier": "Looks a few times."}


def test_a_class_is_imported_when_it_is_asked_for(registry: Registry, here: Path) -> None:
    registry.classes["theirs"] = "their_late_file:Net"
    assert "theirs" in registry.names()
    assert message(registry, "theirs").startswith(
        "model 'their_late_file:Net': there is no module 'their_late_file'"
    )
    (here / "their_late_file.py").write_text("class Net:\n    'Late.'\n")
    assert registry.describe()["theirs"] == "Late."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "glimpse-clasifier",
            "unknown model 'glimpse-clasifier'; did you mean 'glimpse-classifier'? "
            "available: captioner, glimpse-classifier, or an import path package.module:Name",
        ),
        ("Captioner", "did you mean 'captioner'?"),
        ("zzz", "unknown model 'zzz'; available: captioner, glimpse-classifier"),
        ("my_models.Net", "an import path is written package.module:Name, such as 'my_models:Net'"),
        ("", "unknown model ''"),
        ("a\nb", r"unknown model 'a\nb'"),
        (":Name", "model ':Name' is not an import path; write package.module:Name"),
        ("module:", "is not an import path"),
        (".module:Name", "is not an import path"),
        ("a:b:c", "is not an import path"),
        (
            "no_such_package_x:Net",
            "there is no module 'no_such_package_x', neither in the current "
            "directory nor among Python's packages",
        ),
        ("own.py:Net", "model 'own.py:Net' names a file: write own:Net, as seen from the current"),
        ("parts/own.py:Net", "names a file: write parts.own:Net"),
        ("models.mine:Net", "for a file in a checkout of wsram_ppl write wsram_ppl.models.mine:Net"),
        ("collections.no_such:Net", "there is no module 'collections.no_such'"),
        ("collections:ordereddict", "has no 'ordereddict'; did you mean 'OrderedDict'? it has "),
        ("collections:namedtuple", "is a function, but a class is needed"),
    ],
)
def test_messages(registry: Registry, name: str, expected: str) -> None:
    assert expected in message(registry, name)


def test_an_empty_registry_says_so() -> None:
    assert "available: there is none, or" in message(Registry("guide", {}), "prior")


def test_import_path_of_an_installed_class(registry: Registry) -> None:
    assert registry.resolve("collections:OrderedDict") is collections.OrderedDict


def test_import_path_in_the_current_directory(registry: Registry, here: Path) -> None:
    (here / "their_package").mkdir()
    (here / "their_package" / "net.py").write_text(
        "from their_neighbour import Base\nclass Net(Base):\n    pass\n"
    )
    (here / "their_neighbour.py").write_text("class Base:\n    pass\n")
    found = registry.resolve("their_package.net:Net")
    assert found.__mro__[1].__module__ == "their_neighbour"
    assert sys.path[-1] == str(here)
    assert registry.resolve("their_package.net:Net") is found
    assert sys.path.count(str(here)) == 1


def test_a_file_of_theirs_does_not_hide_a_package(registry: Registry, here: Path) -> None:
    (here / "textwrap.py").write_text("raise AssertionError('imported in place of the package')\n")
    assert registry.resolve("textwrap:TextWrapper").__module__ == "textwrap"


def run(folder: Path, *options: str, path: Path = ROOT, code: str) -> str:
    """What a Python process prints that starts in a folder, with another on its path."""
    environment = {**os.environ, "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SAY = "print(Registry('model', {{}}).resolve({!r}).__doc__)"


@pytest.mark.parametrize("options", [(), ("-P",)], ids=["python", "python -P"])
@pytest.mark.parametrize("init", [True, False], ids=["package", "folder"])
@pytest.mark.parametrize("name", ["models", "guides", "their_models"])
def test_their_package_in_a_process_of_its_own(
    tmp_path: Path, options: tuple[str, ...], init: bool, name: str
) -> None:
    """Whatever it is called: with the checkout on Python's path, which has packages of such names."""
    (tmp_path / name).mkdir()
    if init:
        (tmp_path / name / "__init__.py").write_text("from their_base import Base\n")
    (tmp_path / name / "net.py").write_text(
        f"from {name}.parts import Part\nclass Net(Part):\n    'Mine.'\n"
    )
    (tmp_path / name / "parts.py").write_text("from their_base import Base\nclass Part(Base): ...\n")
    (tmp_path / "their_base.py").write_text("class Base: ...\n")
    code = "from wsram_ppl.registry import Registry; " + SAY.format(f"{name}.net:Net")
    assert run(tmp_path, *options, code=code) == "Mine."


def test_their_module_goes_before_one_on_the_path(tmp_path: Path) -> None:
    installed, here = tmp_path / "installed", tmp_path / "here"
    for folder in installed, here:
        folder.mkdir()
        for name in "same_name", "neighbour":
            (folder / f"{name}.py").write_text(f"class Net: {folder.name!r}\n")
    (installed / "library.py").write_text("import neighbour\n")
    (installed / "wsram_ppl").symlink_to(ROOT / "wsram_ppl")
    code = (
        "from wsram_ppl.registry import Registry; " + SAY.format("same_name:Net") + "\n"
        "import library; print(library.neighbour.Net.__doc__)"
    )
    # What is named by its path is theirs; what a library imports is not.
    assert run(here, "-P", path=installed, code=code).split() == ["here", "installed"]


def test_the_path_is_left_alone_when_nothing_is_found(registry: Registry, here: Path) -> None:
    before = list(sys.path)
    message(registry, "no_such_file_here:Net")
    assert sys.path == before


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise RuntimeError('first\\nsecond')", "failed: RuntimeError: first second"),
        ("raise KeyError", "failed: KeyError"),
        ("import sys; sys.exit(3)", "failed: SystemExit: 3"),
        ("def broken(:", "failed: SyntaxError: invalid syntax"),
        ("import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
        ("from math import nothing_of_the_kind", "failed: ImportError: cannot import name"),
        ("def __getattr__(name): raise OSError('no')", "OSError: no"),
        ("pass", "has no 'Net'; it has no classes"),
    ],
)
def test_a_module_that_fails(registry: Registry, here: Path, code: str, expected: str) -> None:
    (here / "their_broken_file.py").write_text(code + "\n")
    text = message(registry, "their_broken_file:Net")
    assert text.startswith("model 'their_broken_file:Net'")
    assert expected in text


def test_an_interrupt_is_not_swallowed(registry: Registry, here: Path) -> None:
    (here / "their_slow_file.py").write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        registry.resolve("their_slow_file:Net")


def test_a_deleted_current_directory(
    registry: Registry, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = here / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "there is no module 'their_file'" in message(registry, "their_file:Net")


@given(st.text() | st.text("zqx.:- \n", max_size=12))
def test_any_text_gives_a_class_or_one_line(name: str) -> None:
    try:
        assert isinstance(Registry("model", {}).resolve(name), type)
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_nearest() -> None:
    assert nearest("steps", ["stop", "step"]) == " did you mean 'step'?"
    assert nearest("HIDDEN", ["hidden"]) == " did you mean 'hidden'?"
    assert nearest("abc", ["xyz"]) == nearest("abc", []) == ""
