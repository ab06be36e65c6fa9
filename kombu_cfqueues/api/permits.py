"""What the client needs of the request allowance."""

from __future__ import annotations

from typing import Protocol

from ..errors import CFQueuesError


class RequestPermits(Protocol):
    """The request allowance of one API token."""

    def acquire(self, deadline: float) -> None:
        """Block until one more request may leave.

        Raises:
            RateLimited: No request may leave before *deadline* (monotonic seconds).
        """

    def observe(self, ratelimit: str | None) -> None:
        """Adapt to the ``Ratelimit`` header of a response; None if it had none."""

    def refused(self, error: CFQueuesError, *, queue: str | None = None) -> None:
        """Stop what *error* stops: *queue* (an id), publishing, or all calls of the token."""
