"""What a command does while a request of it fails and is retried: it says so, or gives up."""

from __future__ import annotations

import time
from typing import Final

import click

from ..errors import NothingListens, TransientError

WORDLESS_SECONDS: Final = 1.0
"""For how long a command retries without a word: most failures pass sooner."""


class Patience:
    """For one call with its retries.

    Args:
        deadline: When the call gives up, in seconds of `time.monotonic`.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._began = time.monotonic()
        self._has_told = False

    def is_over(self, error: TransientError) -> bool:
        """Return whether *error* is to be raised at once; else it is told, once for a call.

        A server that is not started on this machine starts by a person's hand, whom waiting keeps
        from it.
        """
        if isinstance(error, NothingListens):
            return True
        now = time.monotonic()
        if not self._has_told and now - self._began >= WORDLESS_SECONDS:
            self._has_told = True
            left = max(0.0, self._deadline - now)
            click.echo(f"{error}; trying again for up to {left:.0f} s", err=True)
        return False
