"""Leases messages of a queue, and finds which of them may be delivered now."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Iterator
from typing import Final

from .. import envelope, limits
from ..api.client import Client
from ..options import Options
from .delivery import Delivery
from .settlement import Settlement
from .source import Source

logger = logging.getLogger(__name__)

MAX_EARLY_SHARE: Final = 1 / 30
"""A message that is due after more than this share of its lease is given back and not delivered.  A
worker that waits with it may be stopped, and the rest of the lease is for the task itself.  With
the default lease this is a minute."""


def lease(
    client: Client,
    name: str,
    source: Source,
    options: Options,
    *,
    count: int,
    deadline: float,
) -> list[Delivery]:
    """Pull up to *count* messages of Kombu's queue *name*.

    Raises:
        CFQueuesError: The request failed.
    """
    leased_at = time.monotonic()
    leased_until = leased_at + options.visibility_timeout
    messages = client.pull(
        source.queue.id,
        batch_size=count,
        visibility_timeout_ms=int(options.visibility_timeout * 1000),
        deadline=deadline,
    )
    return [
        Delivery(*source, lease_id, leased_until, raw, envelope.receive(raw, name), leased_at)
        for raw in messages
        if isinstance(lease_id := raw.get("lease_id"), str) and lease_id
    ]


def deliverable(deliveries: Iterable[Delivery], settlement: Settlement) -> Iterator[Delivery]:
    """Yield what may be delivered now; acknowledge expired and give back early messages."""
    now = time.time()
    for delivery in deliveries:
        if envelope.expired(delivery.message, now):
            logger.debug(
                "message %s of queue %r is dropped: its expiration has passed",
                delivery.raw.get("id"),
                delivery.queue.name,
            )
            settlement.ack(delivery)
            continue
        early = envelope.seconds_until_due(delivery.message, now)
        if early > MAX_EARLY_SHARE * (delivery.leased_until - time.monotonic()):
            delay = min(math.ceil(early), limits.DELAY_SECONDS)
            settlement.give_back(delivery, delay)
            continue
        yield delivery
