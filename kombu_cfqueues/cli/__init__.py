"""The ``cfqueues`` command.

Each module of this package without a leading underscore is a subcommand and defines ``command``, a
Click command.  A module is imported only when its subcommand runs, so that a subcommand whose
dependencies are not installed does not break the others.
"""

from __future__ import annotations

import importlib.util
import sys

from ..runtime.extras import install_command


def main() -> None:
    """Run the command.  If Click is not installed, print how to install it and exit with 1."""
    if importlib.util.find_spec("click") is None:
        sys.stderr.write(f"The cfqueues command needs Click: {install_command('cli', 'click')}\n")
        raise SystemExit(1)
    from ._commands import commands  # noqa: PLC0415 - needs Click

    commands(prog_name="cfqueues")
