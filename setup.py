"""What setup.cfg cannot say: the README and the links of the package, by where the source is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from setuptools import setup


def read(path: str) -> str:
    """Return the text of a file of the repository."""
    return Path(path).read_text(encoding="utf-8")


def source_url() -> str:
    """Return the repository that builds this package in GitHub Actions; "" elsewhere."""
    server, repository = (os.environ.get(f"GITHUB_{name}") for name in ("SERVER_URL", "REPOSITORY"))
    return f"{server}/{repository}" if server and repository else ""


def long_description(source: str, version: str) -> str:
    """Return the README, of which every link leads somewhere on the page of an index too.

    Args:
        source: The repository.  Without it, links within the repository become their texts.
        version: The version, whose tag the links name.
    """
    readme = read("README.md")
    inside = r"\((?!https?://|#)([^)]+)\)"
    if source:
        raw, page = f"{source}/raw/v{version}", f"{source}/blob/v{version}"
        readme = re.sub(rf"(!\[[^]]*\]){inside}", rf"\1({raw}/\2)", readme)
        return re.sub(rf"(?<!!)(\[[^]]*\]){inside}", rf"\1({page}/\2)", readme)
    readme = re.sub(rf"!\[[^]]*\]{inside}\n*", "", readme)
    return re.sub(rf"\[([^]]*)\]{inside}", r"\1", readme)


SOURCE = source_url()
VERSION = re.search(r'__version__ = "(.*)"', read("kombu_cfqueues/__init__.py"))[1]
LINKS = {
    "Source": SOURCE,
    "Documentation": f"{SOURCE}/blob/v{VERSION}/docs/index.md",
    "Changelog": f"{SOURCE}/blob/v{VERSION}/CHANGELOG.md",
    "Issues": f"{SOURCE}/issues",
}

setup(
    long_description=long_description(SOURCE, VERSION),
    long_description_content_type="text/markdown",
    project_urls=LINKS if SOURCE else {},
)
