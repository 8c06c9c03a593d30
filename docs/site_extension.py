"""What the site needs besides Sphinx: links that leave ``docs/``, languages of code, public names."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import ismock, mock
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
#: Pages whose text is a file of the project.
PAGES = {"changelog": ROOT / "CHANGELOG.md", "contributing": ROOT / "CONTRIBUTING.md"}
GITHUB, COLAB = "https://github.com/", "https://colab.research.google.com/github/"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")

_log = logging.getLogger(__name__)


# Links.


def read_source(app: Sphinx, page: str, source: list[str]) -> None:
    """Takes a page's text from another file, and rewrites its links to files of the project."""
    folder = (HERE / page).parent
    if page in PAGES:
        source[0] = PAGES[page].read_text()
        folder = PAGES[page].parent
        app.env.note_dependency(PAGES[page])
    path = Path(app.env.doc2path(page))
    repository = app.config.site_repository
    if path.suffix == ".md":
        source[0] = rewrite_links(source[0], folder, path.parent, repository)
    elif path.suffix == ".ipynb":
        notebook = json.loads(source[0])
        texts = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
        for cell in texts:
            cell["source"] = rewrite_links("".join(cell["source"]), folder, path.parent, repository)
        texts[0]["source"] = add_ways_to_run(texts[0]["source"], path, repository)
        source[0] = json.dumps(notebook)


def rewrite_links(text: str, folder: Path, page: Path, repository: str) -> str:
    """Makes links relative to the page; those that leave ``docs/`` lead to the repository, if any.

    Args:
        folder: the folder that the links are relative to.
        page: the folder of the page.
        repository: its address; "" shows only the text of links.
    """

    def rewrite(link: re.Match[str]) -> str:
        words, path, anchor = link[1], link[2], link[3] or ""
        target = Path(os.path.normpath(folder / path))
        if not target.exists():
            _log.warning("%s: no such file: %s", page, path)
        if target in PAGES.values():
            target = HERE / next(f"{name}.md" for name, file in PAGES.items() if file == target)
        if target.is_relative_to(HERE) and target.is_file():
            return f"[{words}]({os.path.relpath(target, page)}{anchor})"
        inside = target.relative_to(ROOT).as_posix()
        return f"[{words}]({repository}/blob/main/{inside}{anchor})" if repository else words

    return LINK.sub(rewrite, text)


def add_ways_to_run(text: str, notebook: Path, repository: str) -> str:
    """Puts links to run a notebook below its title: a copy, and Colab where it knows the repository."""
    ways = f"{{nb-download}}`Download the notebook <{notebook.name}>`"
    if repository.startswith(GITHUB):
        place = f"{repository.removeprefix(GITHUB)}/blob/main/{notebook.relative_to(ROOT).as_posix()}"
        ways += f"\n[Open in Colab]({COLAB}{place})"
    title, _, rest = text.partition("\n")
    return f"{title}\n\n```{{container}} run\n{ways}\n```\n{rest}"


# Code.


def name_languages(app: Sphinx, doctree: nodes.document) -> None:
    """The language of blocks that name none, by their start; blocks in docstrings are Python."""
    for block in doctree.findall(nodes.literal_block):
        if block.get("language", "none") in ("none", "default"):
            first = block.astext().lstrip().partition("\n")[0]
            shell = re.match(r"(python|pip|make|wsram|torchrun|git|docker|# )\b ?", first)
            python = re.match(r"(from|import|with|@|pyro\.|svi |loss |numpy\.)", first)
            if shell or python or Path(app.env.doc2path(app.env.docname)).suffix == ".md":
                block["language"] = "shell" if shell else "python" if python else "none"


# The reference.


def is_code(value: object) -> bool:
    return inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))


def public_names(module: ModuleType) -> dict[str, object]:
    """The names in ``__all__``; without it, the classes and functions that the module defines."""
    names = getattr(module, "__all__", None)
    if names is not None:
        return {name: getattr(module, name) for name in names}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not ismock(value)
        and is_code(value)
        and value.__module__ == module.__name__
    }


def modules_of(name: str) -> Iterator[ModuleType]:
    """A module and, if it is a package, those below it."""
    module = import_module(name)
    yield module
    for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
        yield import_module(info.name)


def import_module(name: str) -> ModuleType:
    """A module of the project, without importing clients of trackers and clusters."""
    with mock(["mlflow", "wandb", "ray"]):
        return importlib.import_module(name)


def reference(name: str) -> list[str]:
    """Directives for all names that a module and those below it define, under their shortest paths."""
    lines: list[str] = []
    seen: set[int] = set()
    for module in modules_of(name):
        names = public_names(module)
        if not names and not module.__doc__:
            continue
        title = f"``{module.__name__}``"
        lines += [
            "",
            title,
            "-" * len(title),
            "",
            f".. automodule:: {module.__name__}",
            "   :no-members:",
        ]
        package, _, leaf = module.__name__.rpartition(".")
        if not isinstance(getattr(sys.modules[package], leaf), ModuleType):
            lines.append("   :no-index:")  # a function of the same name shadows it
        documented = ModuleAnalyzer.for_module(module.__name__).find_attr_docs()
        for key, value in names.items():
            if is_code(value):
                if id(value) in seen or not value.__module__.startswith(name):
                    continue
                seen.add(id(value))
            elif ("", key) not in documented:  # of another module
                continue
            kind = "class" if inspect.isclass(value) else "function" if is_code(value) else "data"
            lines += ["", f".. auto{kind}:: {module.__name__}.{key}"]
            if inspect.isclass(value):
                lines += ["   :members:"] + ["   :show-inheritance:"] * (value.__bases__ != (object,))
    return lines


class PublicNames(SphinxDirective):
    """``.. public-names:: PACKAGE ...``: a section for each module, with all its public names."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar[dict[str, Any]] = {}

    def run(self) -> list[nodes.Node]:
        lines = [line for name in self.arguments[0].split() for line in reference(name)]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def keep_as_text(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, words: nodes.TextElement
) -> nodes.TextElement | None:
    """A name that exists but has no entry, such as a type variable, stays text; others are errors."""
    try:
        pkgutil.resolve_name(node["reftarget"])
    except (ImportError, AttributeError, ValueError):
        return None
    return words if node["reftarget"].startswith("wsram_ppl.") else None


def tidy_source_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Removes dead links from pages of source code.

    Links back to the reference name an object where it is defined, not where it is documented; and
    the list of modules includes Python's own.
    """
    if page.startswith("_modules/"):
        back = r'<a class="viewcode-back"[^>]*>.*?</a>|<li><a href="builtins.html">.*?</li>'
        context["body"] = re.sub(back, "", context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_config_value("site_repository", "", "env", str)
    app.add_directive("public-names", PublicNames)
    app.connect("source-read", read_source)
    app.connect("doctree-read", name_languages)
    app.connect("missing-reference", keep_as_text)
    app.connect("html-page-context", tidy_source_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
