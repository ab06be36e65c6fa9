"""Facts that the processes of a machine share, so that not every process asks the API."""

from __future__ import annotations

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
    """Facts that are valid for some minutes.  They only save requests.

    No method raises, or blocks for longer than a moment.  A fact that cannot be read is unknown.
    """

    def token_works(self) -> bool:
        """Whether the API has accepted the token recently, from any process."""

    def note_token(self, *, works: bool) -> None:
        """Share whether the API accepts the token."""

    def queue(self, name: str) -> KnownQueue | None:
        """Return the queue with this name at Cloudflare; None if it is unknown."""

    def note_queue(self, name: str, queue: KnownQueue) -> None:
        """Share a queue that this process has looked up."""

    def forget_queue(self, name: str) -> None:
        """Forget a queue in all processes, because what is known of it is no longer true."""


class Unneeded(Exception):
    """The request is not needed: its answer became known while it waited for a permit."""
