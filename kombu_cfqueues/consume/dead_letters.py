"""Dead letters, and messages without retries left: a copy replaces each of them.

The API cannot move a message.  So a copy is published to the destination, and the original is
acknowledged afterwards.  If the process ends between the two, the message is in both queues; it is
never in neither.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple, Protocol

from .. import envelope
from ..envelope import Packed
from ..errors import CFQueuesError, MessageTooLarge, PublishTimeout, TransientError
from ..runtime.condition import Condition
from ..runtime.fork import renew_in_child
from ..runtime.locks import new_lock
from ..runtime.thread_pool import Job, ThreadPool
from .cause import Cause
from .delivery import Delivery

logger = logging.getLogger(__name__)

COPY_SECONDS: Final = 30.0
"""Maximum duration of one copy.  It waits for the request allowance like any publisher, so it gets
the default of ``publish_timeout``."""

COPY_RETRY_SECONDS: Final = 1.0
"""Pause after a copy that failed, so that an outage does not become a busy loop."""


class Publish(Protocol):
    """Publishes a copy; blocks until the queue has accepted it."""

    def __call__(self, queue_id: str, packed: Packed, *, deadline: float) -> None: ...  # noqa: D102


class _Copy(NamedTuple):
    delivery: Delivery
    delay: int  # seconds
    dead_letter_queue: str  # its name at Cloudflare; "" to copy to the message's own queue
    death: Mapping[str, Any] | None = None  # see `_death`


class Forwarder:
    """Copies messages in a background thread, because publishing blocks and settling must not.

    Args:
        publish: Publishes a copy.
        find: Returns the id of the queue with a name at Cloudflare; creates it if it is missing.
        ack: Acknowledges a message that was copied.
        on_returned: Called with the id of a queue once a copy of its own message is in it.
    """

    def __init__(
        self,
        publish: Publish,
        find: Callable[[str, float], str],
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
        """Start empty: the parent copies the messages that it holds."""
        lock = new_lock()
        self._lock = lock  # guards all fields below; never held during a request
        self._done = Condition(lock)
        self._waiting: deque[_Copy] = deque()
        self._running = 0  # copies that are being made
        self._threads = ThreadPool("cfqueues-copy", 1, lock, self._next_job)

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        """Move a message to its queue's dead-letter queue.  Returns at once.

        Args:
            delivery: The message.
            reason: Why, if its cause does not say it.
        """
        death = _death(delivery, reason)
        self._add(_Copy(delivery, 0, delivery.consumer.dead_letter_queue, death))

    def replace(self, delivery: Delivery, delay: int) -> None:
        """Replace a message with a copy that is due after *delay* seconds.  Returns at once."""
        logger.warning(
            "message %s of queue %r was delivered %s times, and after another retry Cloudflare "
            "could give it up (max_retries is %d): a copy replaces it",
            delivery.raw.get("id"),
            delivery.queue.name,
            delivery.raw.get("attempts"),
            delivery.consumer.max_retries,
        )
        self._add(_Copy(delivery, delay, ""))

    def await_copies(self, deadline: float) -> None:
        """Block until no copy is left to be made, or until *deadline* (monotonic seconds).

        Returns at once if no thread can make the copies, because the interpreter is ending.
        """
        with self._lock:
            while (self._waiting or self._running) and time.monotonic() < deadline:
                if self._threads.absent:
                    return
                self._done.wait(deadline - time.monotonic())

    def _add(self, copy: _Copy) -> None:
        with self._lock:
            self._waiting.append(copy)
            self._threads.call()

    def _next_job(self) -> Job:
        if not self._waiting:
            return Job()
        copy = self._waiting.popleft()
        self._running += 1
        return Job(lambda: self._copy(copy))

    def _copy(self, copy: _Copy) -> None:
        try:
            self._publish_copy(copy)
        except CFQueuesError as error:
            if isinstance(error, (TransientError, PublishTimeout)) and self._retry_later(copy):
                return
            # Not acknowledged, so it is still in its queue.
            logger.error(
                "message %s of queue %r could not be copied, so it stays there and is redelivered "
                "when its lease ends: %s",
                copy.delivery.raw.get("id"),
                copy.delivery.queue.name,
                error,
            )
        else:
            self._ack(copy.delivery)
        finally:
            with self._lock:
                self._running -= 1
                self._done.notify_all()

    def _publish_copy(self, copy: _Copy) -> None:
        deadline = time.monotonic() + COPY_SECONDS
        name = copy.dead_letter_queue
        queue_id = self._find(name, deadline) if name else copy.delivery.queue.id
        packed = _packed(copy)
        self._publish(queue_id, packed, deadline=deadline)
        if not name:
            self._on_returned(queue_id)

    def _retry_later(self, copy: _Copy) -> bool:
        """Pause, and add the copy again; return False if the message's lease has ended."""
        if copy.delivery.leased_until < time.monotonic():
            return False
        time.sleep(COPY_RETRY_SECONDS)
        with self._lock:
            self._waiting.append(copy)
        return True


def _packed(copy: _Copy) -> Packed:
    raw = copy.delivery.raw
    try:
        return envelope.repack(raw, delay_seconds=copy.delay, death=copy.death)
    except MessageTooLarge:
        # The message fitted before, and keeping it matters more than the reason.
        return envelope.repack(raw, delay_seconds=copy.delay)


def _death(delivery: Delivery, reason: str) -> dict[str, Any]:
    """Return what a dead letter records about its dead-lettering.

    Args:
        delivery: The message.
        reason: Why it is dead-lettered, if its cause does not say it.
    """
    cause = delivery.cause or Cause()
    return {
        "queue": delivery.queue.name,
        "reason": cause.reason or reason,
        "exception": cause.exception,
        "text": cause.text,
        "hostname": cause.hostname or socket.gethostname(),
        "attempts": delivery.raw.get("attempts"),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
