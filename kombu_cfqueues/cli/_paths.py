"""Paths of options: made absolute, which is said, and refused if they are those of Windows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click


def absolute(option: str, path: Path | None) -> Path | None:
    """Return *path* as an absolute path; print that it was relative.

    Raises:
        click.UsageError: It is a path of Windows, and this is another system.
    """
    if path is None:
        return None
    if os.name != "nt" and is_of_windows(str(path)):
        raise click.UsageError(
            f"{option} {str(path)!r} is a path of Windows, and would be one file name here: write "
            "it with /"
        )
    path = path.expanduser()
    if path.is_absolute():
        return path
    click.echo(f"{option} is {path.absolute()}", err=True)
    return path.absolute()


def is_of_windows(path: str) -> bool:
    """Whether *path* has a drive, or backslashes and no slash."""
    return bool(re.match(r"[A-Za-z]:[\\/]", path)) or ("\\" in path and "/" not in path)
