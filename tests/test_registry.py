"""Names and import paths of components."""

from __future__ import annotations

import collections
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsram_ppl.errors import InputError, nearest
from wsram_ppl.registry import Registry


@pytest.fixture
def registry() -> Registry:
    registry = Registry("model")

    @registry.register("glimpse-classifier")
    class Glimpse:
        """Looks a few times.

        More about it.
        """

    @registry.register("captioner")
    class Captioner(Glimpse):
        pass

    return registry


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


def test_register_returns_the_class() -> None:
    class Thing:
        pass

    assert Registry("guide").register("thing")(Thing) is Thing


def test_a_name_belongs_to_one_class(registry: Registry) -> None:
    class Other:
        pass

    with pytest.raises(InputError, match=r"the model name 'captioner' is taken by .*Captioner"):
        registry.register("captioner")(Other)
    # A reloaded module defines its class again, under the same path.
    registry.register("other")(Other)
    again = type("Other", (), {"__module__": Other.__module__, "__qualname__": Other.__qualname__})
    registry.register("other")(again)
    assert registry.resolve("other") is again


@pytest.mark.parametrize("name", ["", "  ", "package:Name"])
def test_impossible_names(registry: Registry, name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of a model"):
        registry.register(name)


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
        ("my_models.Net", "an import path is written package.module:Name, as in 'my_models:Net'"),
        ("", "unknown model ''"),
        ("a\nb", r"unknown model 'a\nb'"),
        (":Name", "model ':Name' is not an import path; write package.module:Name"),
        ("module:", "is not an import path"),
        (".module:Name", "is not an import path"),
        ("a:b:c", "is not an import path"),
        ("no_such_package_x:Net", "there is no module 'no_such_package_x', neither among"),
        ("collections.no_such:Net", "there is no module 'collections.no_such'"),
        ("collections:ordereddict", "has no 'ordereddict'; did you mean 'OrderedDict'? it has "),
        ("collections:namedtuple", "is a function, but a class is needed"),
    ],
)
def test_messages(registry: Registry, name: str, expected: str) -> None:
    assert expected in message(registry, name)


def test_an_empty_registry_says_so() -> None:
    assert "available: none is registered" in message(Registry("guide"), "prior")


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
        assert isinstance(Registry("model").resolve(name), type)
    except InputError as error:
        assert len(str(error).splitlines()) == 1


def test_nearest() -> None:
    assert nearest("steps", ["stop", "step"]) == " did you mean 'step'?"
    assert nearest("HIDDEN", ["hidden"]) == " did you mean 'hidden'?"
    assert nearest("abc", ["xyz"]) == nearest("abc", []) == ""
