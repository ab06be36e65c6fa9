"""Messages that leave by a copy: dead letters, and those that have no retries left.

The API moves no messages, so one is published where it is to go, and acknowledged where it was.
If the process ends between the two, it is in both places; it is never in none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from .. import envelope
from ..api.models import Queue
from ..envelope import Packed
from ..errors import CFQueuesError, PublishTimeout, TransientError
from ..runtime.fork import renew_in_child
from ..runtime.thread_pool import Job, ThreadPool
from .delivery import Delivery

logger = logging.getLogger(__name__)

COPY_SECONDS: Final = 30.0
"""Longest that one copy may take; it waits for the request allowance like any publisher."""


PAUSE_SECONDS: Final = 1.0
"""After a copy that failed, before the next."""


class Publish(Protocol):
    """How a copy is published; blocks until it is accepted."""

    def __call__(self, queue_id: str, packed: Packed, *, deadline: float) -> None: ...  # noqa: D102


class _Copy(NamedTuple):
    delivery: Delivery
    delay: int
    grave: str  # name at Cloudflare of the dead-letter queue; "": back to where it was


class Forwarder:
    """Copies messages in a thread of its own, because publishing waits and acknowledging must not.

    Args:
        publish: Publishes.
        find: A queue by its name at Cloudflare, made if it is missing.
        ack: Acknowledges what was copied.
        on_returned: Told the id of a queue that a copy came to.
    """

    def __init__(
        self,
        publish: Publish,
        find: Callable[[str, float], Queue],
        ack: Callable[[Delivery], None],
        on_returned: Callable[[str], None],
    ) -> None:
        self._publish = publish
        self._find = find
        self._ack = ack
        self._on_returned = on_returned
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty: what the parent holds is the parent's to copy."""
        lock = threading.Lock()
        self._lock = lock  # guards all that follows; never held over a request
        self._done = threading.Condition(lock)
        self._waiting: deque[_Copy] = deque()
        self._busy = 0
        self._threads = ThreadPool("cfqueues-copy", 1, lock, self._next_job)

    def dead_letter(self, delivery: Delivery) -> None:
        """Move the message to its queue's dead-letter queue.  Returns at once."""
        self._add(_Copy(delivery, 0, delivery.consumer.dead_letter_queue))

    def renew(self, delivery: Delivery, delay: int) -> None:
        """Put a fresh copy in the message's place, due after *delay* seconds.  Returns at once."""
        logger.warning(
            "message %s of queue %r was delivered %s times, and one more retry could have "
            "Cloudflare delete it (max_retries is %d): a copy takes its place",
            delivery.raw.get("id"),
            delivery.queue.name,
            delivery.raw.get("attempts"),
            delivery.consumer.max_retries,
        )
        self._add(_Copy(delivery, delay, ""))

    def await_copies(self, deadline: float) -> None:
        """Block until nothing waits to be copied, or until *deadline* (monotonic seconds)."""
        with self._lock:
            while (self._waiting or self._busy) and time.monotonic() < deadline:
                self._done.wait(deadline - time.monotonic())

    def _add(self, copy: _Copy) -> None:
        with self._lock:
            self._waiting.append(copy)
            self._threads.call()

    def _next_job(self) -> Job:
        if not self._waiting:
            return Job()
        copy = self._waiting.popleft()
        self._busy += 1
        return Job(lambda: self._copy(copy))

    def _copy(self, copy: _Copy) -> None:
        try:
            self._publish_copy(copy)
        except CFQueuesError as error:
            if isinstance(error, (TransientError, PublishTimeout)) and self._put_back(copy):
                return
            # Not acknowledged: it is still in its queue, and comes when its lease is over.
            logger.error(
                "message %s of queue %r could not be copied, and stays until its lease is over: %s",
                copy.delivery.raw.get("id"),
                copy.delivery.queue.name,
                error,
            )
        else:
            self._ack(copy.delivery)
        finally:
            with self._lock:
                self._busy -= 1
                self._done.notify_all()

    def _publish_copy(self, copy: _Copy) -> None:
        deadline = time.monotonic() + COPY_SECONDS
        queue = self._find(copy.grave, deadline) if copy.grave else copy.delivery.queue
        packed = envelope.repack(copy.delivery.raw, delay_seconds=copy.delay)
        self._publish(queue.id, packed, deadline=deadline)
        if not copy.grave:
            self._on_returned(queue.id)

    def _put_back(self, copy: _Copy) -> bool:
        """Try it again later, if its lease lasts that long."""
        if copy.delivery.leased_until < time.monotonic():
            return False
        time.sleep(PAUSE_SECONDS)
        with self._lock:
            self._waiting.append(copy)
        return True
