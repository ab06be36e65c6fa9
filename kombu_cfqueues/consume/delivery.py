"""A pulled message and the lease that settles it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..api.models import PullConsumer, Queue


class Delivery(NamedTuple):
    """A message that this process holds.

    Attributes:
        queue: Where it came from.
        consumer: That queue's pull consumer.
        lease_id: What an acknowledgement names; opaque.
        leased_until: When the lease ends, in seconds of `time.monotonic`; counted from before the
            pull, so that it is never later than the server's.
        raw: The message as the API gave it.
        message: Kombu's dictionary of it.
    """

    queue: Queue
    consumer: PullConsumer
    lease_id: str
    leased_until: float
    raw: dict[str, Any]
    message: dict[str, Any]

    @property
    def may_be_retried(self) -> bool:
        """Whether giving the lease back surely brings the message again."""
        return may_be_retried(self.raw, self.consumer)


def may_be_retried(raw: Mapping[str, Any], consumer: PullConsumer) -> bool:
    """Whether a pulled message that is given back surely comes again.

    Past the consumer's ``max_retries`` Cloudflare deletes it.  Whether the first attempt is 0 or 1,
    and whether the last is ``max_retries`` or one more, is not certain, so this is on the safe side
    of both.
    """
    attempts = raw.get("attempts")
    if not isinstance(attempts, int):
        return True
    return attempts + 1 < consumer.max_retries
