"""Facts that the processes of a machine share, so that not every process asks the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class KnownQueue(NamedTuple):
    """A queue that a process has looked up.

    Attributes:
        id: Its id at Cloudflare.
        retention_seconds: How long it keeps messages; None if the API did not say.
    """

    id: str
    retention_seconds: int | None


class SharedFacts(Protocol):
    """Facts that are valid for a few minutes.  They only save requests.

    No method raises, or blocks for longer than a moment.  A fact that cannot be read is unknown.
    Names are names at Cloudflare.
    """

    def token_works(self) -> bool:
        """Whether the API has accepted the token recently, from any process."""

    def forget_token(self) -> None:
        """Forget in all processes that the token works."""

    def queue(self, name: str) -> KnownQueue | None:
        """Return the queue with this name; None if it is unknown."""

    def note_queue(self, name: str, queue: KnownQueue) -> None:
        """Share a queue that this process has looked up."""

    def forget_queue(self, name: str, queue_id: str) -> None:
        """Forget in all processes that *name* has this id, because it is no longer true."""

    def next_page(self) -> int | None:
        """Return the first page of the list of queues that is still unread; None if none is."""

    def note_page(self, page: int, queues: Mapping[str, KnownQueue], *, has_more: bool) -> None:
        """Share a page of the list, which the API gave to the token.

        Args:
            page: Its number.
            queues: Its queues, by name.
            has_more: Whether another page follows.
        """

    def unfinished(self, name: str) -> int | None:
        """Return the page at which to continue an unfinished look-up of *name*.

        Returns 0 if all pages of the answer were read, and None if no look-up is unfinished.
        """

    def note_unfinished(self, name: str, page: int) -> None:
        """Share the page at which to continue the look-up of *name*; see `unfinished`."""

    def begin(self, question: str) -> bool:
        """Note that this process asks the API a *question*, for the whole machine.

        Returns:
            Whether this thread may ask; False if another process or thread is asking.
        """

    def end(self, question: str) -> None:
        """Note that this process no longer asks a *question*."""


class Unneeded(Exception):
    """The request is not needed: its answer became known while it waited for a permit."""
