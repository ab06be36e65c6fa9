import re
from typing import Any

from kombu_cfqueues import __version__

project = "kombu_cfqueues"
author = "The kombu_cfqueues developers"
copyright = f"2026, {author}"
release = version = __version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"kombu_cfqueues {version}"
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_show_sourcelink = False
html_show_copyright = False


def name_what_is_elsewhere(app: Any, page: str, source: list[str]) -> None:
    """Turn links to files outside of docs/, which only a checkout can follow, into their names."""
    source[0] = re.sub(r"\[([^\]]+)\]\((?:\.\./)+([^)]+)\)", r"\1 (`\2`)", source[0])


def setup(app: Any) -> None:
    app.connect("source-read", name_what_is_elsewhere)
