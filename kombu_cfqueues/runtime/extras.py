"""How to install an optional part of this package, from where the package itself came from.

The package may not be on an index.  A command that names it there would then install nothing, or
another package of the same name.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Final

PACKAGE: Final = "kombu-cfqueues"

_ROOT: Final = Path(__file__).parents[2]
"""The checkout, if the package is not installed in a folder of its own."""


def install_command(extra: str, package: str) -> str:
    """Return the shell command that installs an extra.

    Args:
        extra: The extra, such as ``emulator``.
        package: The package that is missing; named alone if the origin is not known.
    """
    if (_ROOT / "setup.cfg").is_file():
        return f"pip install '{_ROOT}[{extra}]'"
    try:
        origin = metadata.distribution(PACKAGE).read_text("direct_url.json")
        if origin is None:  # from an index
            return f"pip install '{PACKAGE}[{extra}]'"
        return f"pip install '{PACKAGE}[{extra}] @ {_requirement(json.loads(origin))}'"
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return f"pip install {package}"


def missing(what: str, extra: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Return *error* with a text that says how to install what is missing.

    Args:
        what: What needs the module, such as ``the emulator``.
        extra: The extra that brings it.
        error: What the import raised.
    """
    package = (error.name or "a package").partition(".")[0]
    return ModuleNotFoundError(
        f"{what} needs {package}: {install_command(extra, package)}", name=error.name
    )


def _requirement(origin: dict[str, dict[str, str]]) -> str:
    """Return the URL for pip of what ``direct_url.json`` says."""
    vcs = origin.get("vcs_info")
    url = str(origin["url"])
    return f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url
