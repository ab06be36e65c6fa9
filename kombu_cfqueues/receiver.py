"""Pulling: leases, acknowledgement and retry."""

from __future__ import annotations

from typing import Any, NamedTuple

from .client import Client, Queue
from .options import Options


class Delivery(NamedTuple):
    """A pulled message and the lease that settles it.

    Attributes:
        queue_id: Where it came from.
        lease_id: What an acknowledgement names; opaque.
        raw: The message as the API gave it.
    """

    queue_id: str
    lease_id: str
    raw: dict[str, Any]


class Receiver:
    """Pulls messages for the channels of a process and settles their leases.

    Args:
        client: Where to pull.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def pull(self, queue: Queue, options: Options, *, most: int, deadline: float) -> list[Delivery]:
        """Lease up to *most* messages; often fewer, or none.  Does not wait for any."""
        messages = self._client.pull(
            queue.id,
            batch_size=min(most, options.pull_batch_size),
            visibility_timeout_ms=int(options.visibility_timeout * 1000),
            deadline=deadline,
        )
        return [
            Delivery(queue.id, lease, raw)
            for raw in messages
            if isinstance(lease := raw.get("lease_id"), str)
        ]

    def ack(self, delivery: Delivery, *, deadline: float) -> None:
        """The message is done with: it will not come again."""
        self._client.ack(delivery.queue_id, acks=[delivery.lease_id], deadline=deadline)

    def requeue(self, delivery: Delivery, *, deadline: float) -> None:
        """Give the message back: it may be pulled again at once."""
        self._client.ack(delivery.queue_id, retries={delivery.lease_id: 0}, deadline=deadline)
