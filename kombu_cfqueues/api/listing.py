"""How far the list of the account's queues was read, and how many pages a look-up reads.

A page of the list answers for 20 names, and a request for one name only for that name.  So a
look-up first reads the next pages.  After each look-up that does not find its queue on these pages,
later look-ups read one page more.  A process that uses many queues soon has the whole list, and a
process that uses one queue of thousands reads one page too many.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..shared_facts import SharedFacts


class ListProgress:
    """The position in the list.  Threads may share it.

    Args:
        facts: What the processes of the machine share; None if they share nothing.
    """

    def __init__(self, facts: SharedFacts | None) -> None:
        self._facts = facts
        # Each is replaced as a whole.  Threads that note two pages at once may lose one of them,
        # which is read again then.
        self._next: int | None = 1  # the page that this process reads next; None: none is left
        self._ids: frozenset[str] = frozenset()  # the queues on the pages before
        self._misses = 0  # look-ups that did not find their queue on the pages

    @property
    def pages_per_lookup(self) -> int:
        """How many pages a look-up reads before it asks for the name."""
        return 1 + self._misses

    def next_page(self) -> int | None:
        """Return the number of the page to read next; None if no page is left."""
        own = self._next
        if own is None or self._facts is None:
            return own
        shared = self._facts.next_page()
        return None if shared is None else max(own, shared)

    def has_read(self, page: int) -> bool:
        """Whether this process has read *page*."""
        return self._next is None or page < self._next

    def note(self, page: int, ids: Iterable[str], *, has_more: bool) -> None:
        """Note that *page*, with the queues of these *ids*, was read."""
        if self.has_read(page):
            return
        ids = frozenset(ids)
        # A server that ignores the number of the page would repeat the first page forever.
        is_last = not has_more or ids <= self._ids
        self._ids |= ids
        self._next = None if is_last else page + 1

    def note_miss(self) -> None:
        """Note that a look-up did not find its queue on the pages that it read."""
        self._misses += 1
