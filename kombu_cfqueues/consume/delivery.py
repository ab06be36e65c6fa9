"""A pulled message and the lease that settles it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..api.models import PullConsumer, Queue
from .cause import Cause


class Delivery(NamedTuple):
    """A message that this process has leased.

    Attributes:
        queue: The queue that it was pulled from.
        consumer: That queue's pull consumer.
        lease_id: Names the lease in an acknowledgement; opaque.
        leased_until: When the lease ends, in seconds of `time.monotonic`.  Counted from before the
            pull, so that it is never later than the server's own time.
        raw: The message as the API returned it.
        message: Kombu's dictionary of the message.
        leased_at: When the lease began, on the same clock.
        failed: Whether the application's callback raised an exception for it.
        cause: Why the application gives it up; None if it did not say so.
    """

    queue: Queue
    consumer: PullConsumer
    lease_id: str
    leased_until: float
    raw: dict[str, Any]
    message: dict[str, Any]
    leased_at: float = 0.0
    failed: bool = False
    cause: Cause | None = None

    @property
    def is_last(self) -> bool:
        """Whether the message was delivered as often as ``max_retries`` allows.

        After another retry, Cloudflare would move it to the dead-letter queue, or delete it.
        """
        attempts = self.raw.get("attempts")
        return isinstance(attempts, int) and attempts >= self.consumer.max_retries

    @property
    def may_be_retried(self) -> bool:
        """Whether Cloudflare certainly redelivers the message after a retry."""
        return may_be_retried(self.raw, self.consumer)


def may_be_retried(raw: Mapping[str, Any], consumer: PullConsumer) -> bool:
    """Whether Cloudflare certainly redelivers a pulled message after a retry.

    Cloudflare deletes a message after ``max_retries`` retries.  It is not certain whether the first
    attempt counts as 0 or 1, nor whether the last is ``max_retries`` or one more; the answer is
    safe in each case.
    """
    attempts = raw.get("attempts")
    if not isinstance(attempts, int):
        return True
    return attempts + 1 < consumer.max_retries
