"""How far the pulls of one queue overlap.

While messages flow, the next pull starts before the last one is answered.  A queue that runs dry
answers such pulls with nothing, and an empty pull is billed.  So pulls overlap further only after
the queue has answered several of them in full.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

OVERLAPPING_PULLS: Final = 2
"""Maximum number of pulls in flight for a queue whose last pull was full."""

FLOWING_PULLS: Final = 8
"""The only queue of a process may have this many pulls in flight while its messages flow: one for
each eighth of a small window (`prefetch_window.SMALL_WINDOW`)."""

SHARED_PULLS: Final = 5
"""The same for all queues together if there are several.  Three of `receiver.MAX_PULLS` are left to
queues whose messages do not flow, in case the server hangs."""

FULL_PULLS: Final = 8
"""Messages flow after this number of full pulls in a row."""

FULL_FOR_EACH: Final = 2
"""Full pulls in a row for each pull in flight.  The end of a flow so costs at most half as many
empty pulls as full ones came before."""


class Flow:
    """Whether the messages of one queue flow."""

    def __init__(self) -> None:
        self._full_pulls = 0  # in a row
        self._failed_at = float("-inf")  # in seconds of time.monotonic

    def pulled(self, *, full: bool) -> None:
        """Note a pull that was answered, *full* if with as many messages as it asked for."""
        self._full_pulls = self._full_pulls + 1 if full else 0

    def failed(self, started: float, now: float) -> bool:
        """Note a pull that failed; return whether it is the first of those in flight to fail.

        Pulls that overlap fail together, which is not a reason to back off once for each.  Times
        are seconds of `time.monotonic`.
        """
        before, self._failed_at = self._failed_at, now
        self._full_pulls = 0
        return started > before

    @property
    def may_go_on(self) -> bool:
        """Whether the queue may have more messages: the last pull was full."""
        return self._full_pulls > 0

    @property
    def is_steady(self) -> bool:
        """Whether messages flow."""
        return self._full_pulls >= FULL_PULLS

    def allows(self, in_flight: int, of_all: Iterable[int]) -> bool:
        """Whether another pull of the queue may start.

        Args:
            in_flight: Its pulls that are in flight.
            of_all: The same for every queue, this one included.
        """
        if in_flight < OVERLAPPING_PULLS:
            return self.may_go_on or not in_flight
        if not self.is_steady:
            return False
        pulls = list(of_all)
        most = FLOWING_PULLS if len(pulls) == 1 else SHARED_PULLS
        return sum(pulls) < min(most, self._full_pulls // FULL_FOR_EACH)
