"""Publishing: packed messages travel in lanes, one a queue, and each caller gets its answer."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Sequence

from .budget import Budget
from .client import Client
from .envelope import Packed
from .errors import (
    CFQueuesError,
    ConnectionFailed,
    InvalidMessage,
    MessageTooLarge,
    TransientError,
)
from .fork import renew_in_child
from .lane import Lane, Verdict
from .options import Options

logger = logging.getLogger(__name__)

#: A thread that had to wait for a permit so many times in a row would be better served by a batch.
WAITS_IN_A_ROW = 20


class Publisher:
    """Posts the messages of all threads of a process to one account's queues.

    Args:
        client: Where to post.
        budget: The request allowance; each post takes a permit from it.
        options: ``max_in_flight``, ``request_rate`` and ``retry_uncertain`` are used.
    """

    def __init__(self, client: Client, budget: Budget, options: Options) -> None:
        self._client = client
        self._budget = budget
        self._options = options
        # A publish that took longer than half the time between two permits has waited for one.
        self._long_wait = 0.5 / options.request_rate if options.request_rate else float("inf")
        self._waits = threading.local()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start with empty lanes: what the parent's threads wait for is the parent's."""
        self._lock = threading.Lock()  # guards _lanes
        self._lanes: dict[tuple[str, bool], Lane[Packed]] = {}

    def submit(
        self, queue_id: str, packed: Packed, *, deadline: float, switches: bool = False
    ) -> None:
        """Block until Cloudflare has accepted the message.

        Args:
            queue_id: The queue.
            packed: The message.
            deadline: When to give up, in seconds of `time.monotonic`.
            switches: Fail at once where surely nothing was sent, so that Kombu can go on to the
                next URL of a fail-over list.

        Raises:
            PublishTimeout: The deadline passed; its cause is the last failure.
            CFQueuesError: The message was refused.
        """
        started = time.monotonic()
        self._lane(queue_id, switches=switches).submit(packed, packed.size, deadline)
        self._count_wait(time.monotonic() - started)

    def submit_many(
        self, queue_id: str, packed: Sequence[Packed], *, deadline: float, switches: bool = False
    ) -> list[CFQueuesError | None]:
        """Block until each message is settled; what `submit` would raise is returned, by message.

        Single messages of other threads go before them.
        """
        items = [(one, one.size) for one in packed]
        return self._lane(queue_id, switches=switches).submit_many(items, deadline)

    def _lane(self, queue_id: str, *, switches: bool) -> Lane[Packed]:
        with self._lock:
            lane = self._lanes.get((queue_id, switches))
            if lane is None:
                lane = self._lanes[queue_id, switches] = Lane(
                    functools.partial(self._post, queue_id),
                    functools.partial(self._budget.acquire, queue=queue_id),
                    _judge_and_switch if switches else _judge,
                    max_in_flight=self._options.max_in_flight,
                    retry_uncertain=self._options.retry_uncertain,
                )
            return lane

    def _post(self, queue_id: str, batch: Sequence[Packed], deadline: float) -> None:
        now = time.time()
        messages = [packed.encode(now) for packed in batch]
        if len(batch) == 1 and batch[0].alone:
            self._client.push(queue_id, messages[0], deadline=deadline)
        else:
            self._client.push_batch(queue_id, messages, deadline=deadline)

    def _count_wait(self, seconds: float) -> None:
        if seconds < self._long_wait:
            self._waits.in_a_row = 0
            return
        self._waits.in_a_row = getattr(self._waits, "in_a_row", 0) + 1
        if self._waits.in_a_row == WAITS_IN_A_ROW:
            _advise_to_batch()


def _judge(error: CFQueuesError) -> Verdict:
    if isinstance(error, TransientError):
        return Verdict.NOT_NOW
    if isinstance(error, (InvalidMessage, MessageTooLarge)):
        return Verdict.THE_ITEMS
    return Verdict.NEVER


def _judge_and_switch(error: CFQueuesError) -> Verdict:
    if isinstance(error, ConnectionFailed) and error.delivered == "no":
        return Verdict.NEVER
    return _judge(error)


@functools.cache  # once a process: it is advice, not news
def _advise_to_batch() -> None:
    logger.warning(
        "a thread publishes one message after the other and waits for the request allowance each "
        "time, about 4 messages a second: 'with producer.batch():' sends 100 messages a request"
    )
