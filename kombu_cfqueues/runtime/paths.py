"""Paths that people write in options."""

from __future__ import annotations

import os
import re


def is_of_other_system(path: str) -> bool:
    """Whether *path* is written as on Windows, and this is another system.

    It has a drive, or backslashes and no slash.  Here it would be the name of one file.
    """
    of_windows = re.match(r"[A-Za-z]:[\\/]", path) or ("\\" in path and "/" not in path)
    return os.name != "nt" and bool(of_windows)
