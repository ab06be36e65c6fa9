"""How long the server takes to accept a request of this process."""

from __future__ import annotations

from typing import Final

from ..runtime.fork import renew_in_child

FIRST_REQUEST_SECONDS: Final = 1.0
"""The first request of a process counts as at most this long.  It loads the HTTP client and
connects, and on a machine that starts many processes at once it took 2.5 seconds."""


class RequestTime:
    """The time of an accepted request, for all queues: they have the same server."""

    def __init__(self) -> None:
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start anew: the first request of this process loads the HTTP client, and connects."""
        self._last = self._last_but_one = 0.0

    @property
    def seconds(self) -> float:
        """How long a request takes; 0 if none was accepted.

        It is the shorter one of the last two, because a single slow answer says nothing of the next
        one, and would leave every caller less time.
        """
        return min(self._last, self._last_but_one or FIRST_REQUEST_SECONDS)

    def note(self, seconds: float) -> None:
        """Note that a request was accepted after *seconds*."""
        self._last_but_one, self._last = self._last, seconds
