"""Events and replies that wait for the control broker.  A worker never waits for them."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Final, NamedTuple

from ..metrics import metrics

logger = logging.getLogger(__name__)

MAX_MESSAGES: Final = 1000
"""Maximum number of messages that wait.  A worker sends an event every 2 seconds, and with ``-E``
three for each task; events that wait for longer are out of date."""

MAX_TOGETHER: Final = 100
"""Maximum number of messages that are sent together.  A request, for which a caller waits, may have
to wait for them."""


class Publication(NamedTuple):
    """A message for the control broker.

    Attributes:
        message: Kombu's dictionary.
        exchange: Name of the exchange.
        routing_key: The routing key.
    """

    message: Any
    exchange: str
    routing_key: str


class Outbox:
    """A queue that drops its oldest message when it is full.  `OwnerThread.lock` guards it."""

    def __init__(self) -> None:
        self._waiting: deque[Publication] = deque()
        self._latest: dict[str, Publication] = {}
        self._dropped = 0  # since the outbox was full

    def __len__(self) -> int:
        return len(self._waiting) + len(self._latest)

    def put(self, publication: Publication) -> None:
        """Add a message."""
        if len(self._waiting) >= MAX_MESSAGES:
            self._waiting.popleft()
            metrics.control_dropped()
            if not self._dropped:
                logger.warning(
                    "the control broker (control_url) takes no messages: of the events and replies "
                    "that wait for it, only the newest %d are kept; tasks are not affected",
                    MAX_MESSAGES,
                )
            self._dropped += 1
        self._waiting.append(publication)

    def put_latest(self, key: str, publication: Publication) -> None:
        """Add a message; it replaces one with the same *key* that still waits."""
        if key in self._latest or len(self._latest) < MAX_MESSAGES:
            self._latest[key] = publication

    def take(self) -> list[Publication]:
        """Remove and return the oldest messages, `MAX_TOGETHER` at most."""
        if self._waiting:
            count = min(len(self._waiting), MAX_TOGETHER)
            return [self._waiting.popleft() for _ in range(count)]
        if self._dropped:
            logger.warning(
                "the control broker takes messages again; %d events and replies were dropped",
                self._dropped,
            )
            self._dropped = 0
        taken = list(self._latest.values())
        self._latest.clear()
        return taken
