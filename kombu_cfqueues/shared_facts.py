"""What the processes of a machine tell each other, so that not each has to ask the API."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class KnownQueue(NamedTuple):
    """A queue that another process has looked up.

    Attributes:
        id: Its id at Cloudflare.
        retention_seconds: How long it keeps messages; None if the API did not say.
    """

    id: str
    retention_seconds: int | None


class SharedFacts(Protocol):
    """Facts that hold for some minutes.  They spare requests, and nothing else depends on them.

    No method raises, or blocks for longer than a moment: a fact that cannot be had is unknown.
    """

    def token_works(self) -> bool:
        """Whether the API has taken the token lately, from any process."""

    def note_token(self, *, works: bool) -> None:
        """Tell the others whether the API takes the token."""

    def queue(self, name: str) -> KnownQueue | None:
        """Return what is known of the queue that has this name at Cloudflare."""

    def note_queue(self, name: str, queue: KnownQueue) -> None:
        """Tell the others of a queue."""

    def forget_queue(self, name: str) -> None:
        """Tell the others that what was known of a queue does not hold any more."""


class Unneeded(Exception):
    """What was to be asked has become known while the question waited for its permit."""
