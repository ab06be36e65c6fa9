"""The ``cfqueues`` command.

Each module beside this one is a subcommand: it defines ``command``, a Click command, and is
imported only when it is asked for, so that one that needs more than Click disturbs no other.
"""

from __future__ import annotations

import importlib.util
import sys

_MISSING = "The cfqueues command needs Click: pip install 'kombu-cfqueues[cli]'\n"


def main() -> None:
    """Run the command; without Click, say how to get it and exit with status 1."""
    if importlib.util.find_spec("click") is None:
        sys.stderr.write(_MISSING)
        raise SystemExit(1)
    from ._commands import commands  # noqa: PLC0415 - needs Click

    commands(prog_name="cfqueues")
