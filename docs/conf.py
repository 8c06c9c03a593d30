"""The site: Sphinx with MyST-NB, built by ``make docs``. Building and reading it need no network."""

from __future__ import annotations

import os
import sys
from importlib.metadata import distribution
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import wsram_ppl  # noqa: E402

project = "wsram_ppl"
author = "the wsram_ppl authors"
project_copyright = author
version = release = wsram_ppl.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "site_extension",
]
nitpicky = True
# Names from other packages, whose pages are elsewhere; and annotations that are more than a name.
nitpick_ignore_regex = [(r"py:.*", r"(?!wsram_ppl\.).*|.*\[.*")]
smartquotes_action = "D"  # only dashes
default_role = "code"

# Markdown, as GitHub shows it.
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
myst_dmath_allow_space = False
myst_dmath_allow_digits = False
# Tutorials are shown as they were last run (scripts/run_tutorials.py).
nb_execution_mode = "off"
nb_render_markdown_format = "myst"  # tables
# An attribute of several classes has several targets.
suppress_warnings = ["ref.python"]

# Equations: one file from a package instead of a server.
_mathjax = distribution("sphinx-mathjax-offline").locate_file(
    "sphinx-mathjax-offline/static/mathjax/tex-svg.js"
)
mathjax_path = "tex-svg.js"

# Docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 60
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# The target of links to files outside docs/; without an address only their text is shown.
site_repository = os.environ.get("WSRAM_REPOSITORY", "")

html_theme = "furo"
html_title = f"wsram_ppl {release}"
html_static_path = [str(_mathjax), "site.css"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1d5f8a", "color-brand-content": "#1d5f8a"},
    "dark_css_variables": {"color-brand-primary": "#7fc1ee", "color-brand-content": "#7fc1ee"},
}
copybutton_exclude = ".linenos, .gp, .go"
