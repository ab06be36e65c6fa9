"""Tells the user that a failed request is retried, or ends its retries."""

from __future__ import annotations

import time
from typing import Final

import click

from ..errors import NothingListens, TransientError

WORDLESS_SECONDS: Final = 1.0
"""How long a command retries without a message: most failures are over sooner."""


class Patience:
    """Decides about the retries of one call.

    Args:
        deadline: When the call gives up, in seconds of `time.monotonic`.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._began = time.monotonic()
        self._has_told = False

    def is_over(self, error: TransientError) -> bool:
        """Return whether to raise *error* at once; if not, print it, at most once per call.

        If nothing listens on this machine, the user must start the server first, so a retry cannot
        help.
        """
        if isinstance(error, NothingListens):
            return True
        now = time.monotonic()
        if not self._has_told and now - self._began >= WORDLESS_SECONDS:
            self._has_told = True
            left = max(0.0, self._deadline - now)
            click.echo(f"{error}; trying again for up to {left:.0f} s", err=True)
        return False
