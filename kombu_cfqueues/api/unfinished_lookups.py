"""Look-ups of queues that ended early, and where the next one goes on."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from ..errors import CFQueuesError
from ..runtime.recent import Recent

RESUME_SECONDS: Final = 3_600.0
"""A look-up goes on where an earlier one stopped within this time.  After it, queues may have been
created on the pages that were read."""


class Position(NamedTuple):
    """Where the look-up of a name goes on.

    Attributes:
        page: The page to read next; None if all were read.
        ids: The queues on the pages before it.
        conflict: Why the queue could not be created.  Then the pages are read again, for a name
            that differs in upper and lower case.
    """

    page: int | None = 1
    ids: frozenset[str] = frozenset()
    conflict: CFQueuesError | None = None

    def after(self, ids: frozenset[str], *, has_more: bool) -> Position:
        """Return the position after a page with these queues."""
        # A server that ignores `page` would repeat the first page for ever.
        is_last = not has_more or ids <= self.ids
        page = None if is_last or self.page is None else self.page + 1
        return self._replace(page=page, ids=self.ids | ids)


class UnfinishedLookups:
    """The positions of look-ups, by the queue's name at Cloudflare.

    A look-up may take more requests than the request allowance gives to one caller.  If each caller
    began with the first page, none would reach the last.
    """

    def __init__(self) -> None:
        self._positions: Recent[str, tuple[Position, float]] = Recent()  # and when it was noted

    def position(self, name: str, deadline: float) -> Position:
        """Return where to go on, for a look-up that ends at *deadline* (monotonic seconds).

        A caller with much time has a low rate, and comes back after as much time.
        """
        found, now = self._positions.get(name), time.monotonic()
        if found is None or now - found[1] > max(RESUME_SECONDS, deadline - now):
            return Position()
        return found[0]

    def note(self, name: str, position: Position) -> None:
        """Go on at *position*, if the look-up ends early."""
        self._positions.put(name, (position, time.monotonic()))

    def end(self, name: str) -> None:
        """Begin the next look-up with the first page, because this one has its result."""
        self._positions.pop(name)
