"""Look-ups of queues that ended early, and where the next look-up continues."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from ..errors import CFQueuesError
from ..runtime.recent import Recent
from ..shared_facts import SharedFacts

RESUME_SECONDS: Final = 3_600.0
"""How long a look-up continues where an earlier one stopped.  Later, queues may have been created
on the pages that were read."""


class Position(NamedTuple):
    """Where the look-up of a name continues.

    Attributes:
        page: The next page of the answer for the name; None if all pages were read.
        ids: The queues on the earlier pages.
        conflict: Why the queue could not be created.  Then the pages are read again, for a name
            that differs in upper and lower case.
        is_listed: Whether the look-up has read its pages of the list of all queues.
    """

    page: int | None = 1
    ids: frozenset[str] = frozenset()
    conflict: CFQueuesError | None = None
    is_listed: bool = False

    def after(self, ids: frozenset[str], *, has_more: bool) -> Position:
        """Return the position after a page with these queues."""
        # A server that ignores `page` would repeat the first page forever.
        is_last = not has_more or ids <= self.ids
        page = None if is_last or self.page is None else self.page + 1
        return self._replace(page=page, ids=self.ids | ids)


class UnfinishedLookups:
    """The positions of look-ups, by the queue's name at Cloudflare.

    A look-up may take more requests than the request allowance gives to one caller, or to one
    process that lives for seconds.  If each began with the first page, none would reach the last.

    Args:
        facts: What the processes of the machine share; None if they share nothing.
    """

    def __init__(self, facts: SharedFacts | None) -> None:
        self._facts = facts
        self._positions: Recent[str, tuple[Position, float]] = Recent()  # and when it was noted

    def position(self, name: str, deadline: float, *, creates: bool) -> Position:
        """Return where to go on.

        Args:
            name: The queue's name at Cloudflare.
            deadline: When the look-up ends, in monotonic seconds.  A caller with a late deadline
                makes few requests, and may try again only after as long a time.
            creates: Whether the queue is created if it is missing.  If not, a look-up starts again
                after it has read all pages: another program may have created the queue since.
        """
        found, now = self._positions.get(name), time.monotonic()
        if found is not None and now - found[1] <= max(RESUME_SECONDS, deadline - now):
            position = found[0]
        else:
            page = None if self._facts is None else self._facts.unfinished(name)
            position = Position() if page is None else Position(page or None, is_listed=True)
        if position.page is None and position.conflict is None and not creates:
            return Position(is_listed=True)
        return position

    def note(self, name: str, position: Position) -> None:
        """Go on at *position*, if the look-up ends early."""
        self._positions.put(name, (position, time.monotonic()))
        if self._facts is not None:
            self._facts.note_unfinished(name, 1 if position.conflict else position.page or 0)

    def end(self, name: str) -> None:
        """Start the next look-up of *name* from the first page, because this one has its result."""
        self._positions.pop(name)
