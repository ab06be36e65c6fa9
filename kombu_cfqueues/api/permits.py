"""The part of the request allowance that the client needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import CFQueuesError


class RequestPermits(Protocol):
    """The request allowance of one API token."""

    def acquire(
        self,
        deadline: float,
        *,
        for_message: bool = False,
        is_known: Callable[[], bool] | None = None,
    ) -> None:
        """Block until one more request may leave.

        Args:
            deadline: When to give up, in monotonic seconds.
            for_message: Whether a message waits for the request, which then ranks as that message.
            is_known: Returns whether another process has learned what the request asks for.

        Raises:
            RateLimited: No request may leave before *deadline*.
            Unneeded: The request is not needed, because *is_known* says so.
        """

    def observe(self, ratelimit: str | None) -> None:
        """Adapt to the ``Ratelimit`` header of a response; None if it had none."""

    def refused(self, error: CFQueuesError, *, queue: str | None = None) -> None:
        """Stop what *error* stops: *queue* (an id), publishing, or all calls of the token."""
