import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes

sys.path.insert(0, str(Path(__file__).parents[1]))  # the docstrings of this checkout

from kombu_cfqueues import __version__

project = "kombu_cfqueues"
author = "The kombu_cfqueues developers"
copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types in signatures, which no page here explains
default_role = "code"  # a docstring's `name` is a name and no reference

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints_format = "short"
napoleon_use_ivar = True
viewcode_line_numbers = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"kombu_cfqueues {version}"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_js_files = ["copy.js"]
html_show_sourcelink = False
html_show_copyright = False


def name_what_is_elsewhere(app: Any, page: str, source: list[str]) -> None:
    """Turn links to files outside of docs/, which only a checkout can follow, into their names."""
    source[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)", r"\1 (`\2`)", source[0])


def anchor_options(app: Any, page: str, source: list[str]) -> None:
    """Give each row of the tables of options an anchor, which its name links to."""
    if page == "options":
        row = r'| <a id="\1" href="#\1">`\1`</a>'
        source[0] = re.sub(r"^\| `(\w+)`", row, source[0], flags=re.MULTILINE)


def let_pages_link_to_anchors(app: Any, doctree: nodes.document) -> None:
    """Make each ``<a id="NAME">`` of a page a target for links of other pages, like a heading."""
    anchors = app.env.metadata[app.env.docname].setdefault("myst_slugs", {})
    for tag in doctree.findall(nodes.raw):
        for name in re.findall(r'<a id="(\w+)"', tag.astext()):
            anchors[name] = (tag.line, name, name)


def setup(app: Any) -> None:
    app.connect("source-read", name_what_is_elsewhere)
    app.connect("source-read", anchor_options)
    app.connect("doctree-read", let_pages_link_to_anchors)
