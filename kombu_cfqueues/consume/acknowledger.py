"""Acknowledgements and retries: whoever settles a message does not wait for the request.

Each queue collects what is settled.  Acknowledgements leave at 100, or 50 ms after the first (and
then no more often than every 100 ms); retries leave at once, because the message they give back is
wanted.  What fails is sent again as long as the lease lasts.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from ..api.client import Client
from ..errors import (
    AuthenticationFailed,
    CFQueuesError,
    ConfigurationError,
    PermanentError,
    PermissionDenied,
    PlanLimitReached,
    PullNotEnabled,
    QueueNotFound,
    TransientError,
)
from ..metrics import metrics
from ..runtime.fork import renew_in_child
from ..runtime.thread_pool import Job, ThreadPool
from .delivery import Delivery
from .poll_interval import PollInterval

logger = logging.getLogger(__name__)

MOST_LEASES: Final = 100
"""Leases of one request.  Cloudflare documents no number; a pull has at most so many."""

HOLD_SECONDS: Final = 0.05
"""How long the first acknowledgement waits for others."""

SPACING_SECONDS: Final = 0.1
"""Least time between two requests for acknowledgements of one queue, unless one is full."""

REQUESTS_PER_QUEUE: Final = 2
"""Requests on their way for one queue: one alone would not keep up with full pulls."""

SENDERS: Final = 4
"""Threads that send.  More than one, so that a request that hangs does not hold off the others."""

REQUEST_SECONDS: Final = 10.0
"""Longest that one request may take."""

EXIT_SECONDS: Final = 3.0
"""How long the end of the interpreter waits for what was not closed."""

#: These say something of the token or the account, and nothing of a message.
_NOT_ABOUT_MESSAGES = (
    AuthenticationFailed,
    ConfigurationError,
    PermissionDenied,
    PlanLimitReached,
    PullNotEnabled,
)


class _Settlement(NamedTuple):
    """How one delivery ends.

    Attributes:
        delivery: What.
        delay: Seconds after which it is delivered again; None: never, it is done with.
        fresh: Whether no request has carried it yet.
    """

    delivery: Delivery
    delay: int | None
    fresh: bool = True

    @property
    def returns(self) -> bool:
        """Whether a pull has to wait for it, because it would bring it."""
        return self.fresh and self.delay == 0


class _Outbox:
    """What is to be sent for one queue."""

    def __init__(self) -> None:
        self.waiting: deque[_Settlement] = deque()
        self.urgent = 0  # of them, those that a pull waits for
        self.returning = 0  # the same, with those that a request carries now
        self.first_at = 0.0  # when the oldest of `waiting` came
        self.sent_at = 0.0
        self.in_flight = 0
        self.poll_interval = PollInterval(
            0.0, 0.0, 0.0
        )  # of tries that fail; due at once without any
        self.trouble: CFQueuesError | None = None  # what the last request failed with

    def due(self) -> float:
        """When its next request is to leave, in seconds of `time.monotonic`."""
        at = 0.0
        if not self.urgent and len(self.waiting) < MOST_LEASES:
            at = max(self.first_at + HOLD_SECONDS, self.sent_at + SPACING_SECONDS)
        return max(at, self.poll_interval.due)


class Acknowledger:
    """Settles the leases of one account, for all threads of a process.

    Args:
        client: Where to.
        on_returned: Told the id of a queue that messages were given back to, once they are there.
    """

    def __init__(self, client: Client, on_returned: Callable[[str], None]) -> None:
        self._client = client
        self._on_returned = on_returned
        self.renew_after_fork()
        renew_in_child(self)
        # A script that ends without closing its connection has acknowledged all the same.
        atexit.register(_flush_at_exit, weakref.ref(self))

    def renew_after_fork(self) -> None:
        """Start empty: what the parent holds is the parent's to settle."""
        lock = threading.Lock()
        # Guards all that follows; never held over a request.
        self._lock = lock
        self._settled = threading.Condition(lock)
        self._outboxes: dict[str, _Outbox] = {}  # by queue id
        self._threads = ThreadPool("cfqueues-ack", SENDERS, lock, self._next_job)
        self._gave_up_at = float("-inf")

    def ack(self, delivery: Delivery) -> None:
        """The message is done with.  Returns at once."""
        self._add(_Settlement(delivery, None))

    def retry(self, delivery: Delivery, delay: int) -> None:
        """Give the message back, to be delivered after *delay* seconds.  Returns at once."""
        self._add(_Settlement(delivery, delay))

    def returning(self, queue_id: str) -> bool:
        """Whether messages of the queue are on their way back, so that a pull would miss them.

        Those that have to wait because requests fail now are not: a pull does not wait as long.
        """
        outbox = self._outboxes.get(queue_id)
        if outbox is None or not outbox.returning:
            return False
        return outbox.poll_interval.due <= time.monotonic()

    def await_returns(self, queue_id: str, deadline: float) -> None:
        """Block until no message of the queue is on its way back, or until *deadline*."""
        with self._lock:
            while self.returning(queue_id) and time.monotonic() < deadline:
                self._settled.wait(deadline - time.monotonic())

    def flush(self, deadline: float) -> None:
        """Send all that waits, in this thread; nothing is tried again, or begun after a failure.

        What is left then is sent later, if the process lives on.  Returns when nothing is on its
        way any more, or at *deadline* (seconds of `time.monotonic`).  Never raises.
        """
        if self.gave_up():
            return
        while time.monotonic() < deadline:
            with self._lock:
                queue_id = next((q for q, box in self._outboxes.items() if box.waiting), None)
                batch = self._take(queue_id) if queue_id is not None else None
                if batch is None:
                    if not any(box.in_flight for box in self._outboxes.values()):
                        return
                    self._settled.wait(deadline - time.monotonic())
                    continue
            if queue_id is not None and not self._send(queue_id, batch, deadline):
                self.give_up()
                return

    def give_up(self) -> None:
        """The server is gone, or too slow: nobody who closes waits for it in the next 10 s."""
        self._gave_up_at = time.monotonic()

    def gave_up(self) -> bool:
        """Whether that was said within the last 10 s."""
        return time.monotonic() - self._gave_up_at < REQUEST_SECONDS

    # -- what waits

    def _add(self, settlement: _Settlement) -> None:
        with self._lock:
            queue_id = settlement.delivery.queue.id
            outbox = self._outboxes.get(queue_id)
            if outbox is None:
                outbox = self._outboxes[queue_id] = _Outbox()
            if not outbox.waiting:
                outbox.first_at = time.monotonic()
            outbox.waiting.append(settlement)
            if settlement.returns:
                outbox.urgent += 1
                outbox.returning += 1
            # Else a thread waits for this queue already, or is about to look.
            due = settlement.returns or len(outbox.waiting) in (1, MOST_LEASES)
            if due or self._threads.absent:
                self._threads.call()

    def _next_job(self) -> Job:
        """The queue whose time has come.  The caller holds the lock."""
        now = time.monotonic()
        ready = [
            (outbox.due(), queue_id)
            for queue_id, outbox in self._outboxes.items()
            if outbox.waiting and outbox.in_flight < REQUESTS_PER_QUEUE
        ]
        if not ready:
            return Job()
        due, queue_id = min(ready)
        if due > now:
            return Job(wait=due - now)
        batch = self._take(queue_id)
        # Somebody else is to wait for the other queues' time: this request may hang.
        more = len(ready) > 1 or bool(self._outboxes[queue_id].waiting)
        return Job(lambda: self._post(queue_id, batch), more=more)

    def _take(self, queue_id: str) -> list[_Settlement]:
        """Take a request's worth of what waits.  The caller holds the lock, and posts it."""
        outbox = self._outboxes[queue_id]
        batch = [outbox.waiting.popleft() for _ in range(min(len(outbox.waiting), MOST_LEASES))]
        outbox.first_at = outbox.sent_at = time.monotonic()
        outbox.urgent -= sum(one.returns for one in batch)
        outbox.in_flight += 1
        return batch

    # -- requests

    def _post(self, queue_id: str, batch: list[_Settlement]) -> None:
        self._send(queue_id, batch, time.monotonic() + REQUEST_SECONDS)

    def _send(self, queue_id: str, batch: list[_Settlement], deadline: float) -> bool:
        """Send what was taken; return whether the server has settled it, or never will."""
        failed: list[_Settlement] = batch  # whatever ends this thread, they are not lost
        error: CFQueuesError | None = None
        try:
            failed, error = self._settle(queue_id, batch, deadline)
        finally:
            self._conclude(queue_id, batch, failed, error)
        if any(one.delay == 0 for one in batch) and not failed:
            self._on_returned(queue_id)
        return error is None

    def _settle(
        self, queue_id: str, batch: list[_Settlement], deadline: float
    ) -> tuple[list[_Settlement], CFQueuesError | None]:
        """Return what is to be sent again, and why."""
        acks = [one.delivery.lease_id for one in batch if one.delay is None]
        retries = {one.delivery.lease_id: one.delay for one in batch if one.delay is not None}
        name = batch[0].delivery.queue.name
        now = time.monotonic()
        late = sum(one.delivery.leased_until <= now for one in batch)
        try:
            warnings = self._client.ack(queue_id, acks=acks, retries=retries, deadline=deadline)
        except (TransientError, *_NOT_ABOUT_MESSAGES) as error:
            return batch, error
        except QueueNotFound:
            logger.debug(
                "queue %r is gone, and with it the %d messages to be settled", name, len(batch)
            )
        except PermanentError as error:
            # One lease that the server does not like fails the whole call.
            if len(batch) > 1:
                half = len(batch) // 2
                failed, why = self._settle(queue_id, batch[:half], deadline)
                if why is not None:
                    return failed + batch[half:], why
                return self._settle(queue_id, batch[half:], deadline)
            logger.warning(
                "a message of queue %r could not be settled, and may come again: %s", name, error
            )
        else:
            _tell_of_warnings(name, batch, warnings)
            metrics.expired(name, late)
        return [], None

    def _conclude(
        self,
        queue_id: str,
        batch: Sequence[_Settlement],
        failed: Sequence[_Settlement],
        error: CFQueuesError | None,
    ) -> None:
        name, now = batch[0].delivery.queue.name, time.monotonic()
        # Once the lease has run out the message comes again, whatever is said of it.
        again = [one._replace(fresh=False) for one in failed if one.delivery.leased_until > now]
        with self._lock:
            outbox = self._outboxes[queue_id]
            outbox.in_flight -= 1
            outbox.returning -= sum(one.returns for one in batch)
            outbox.waiting.extendleft(reversed(again))
            if error is None:
                outbox.poll_interval = PollInterval(0.0, 0.0, 0.0)
            else:
                outbox.poll_interval.failed(now, error.retry_after)
            before, outbox.trouble = outbox.trouble, error
            # One queue tells for all of them.
            told = any(box.trouble for box in self._outboxes.values() if box is not outbox)
            self._settled.notify_all()
            if outbox.waiting:
                self._threads.call()
        if again and error is not None:
            metrics.retried(error)
        if len(again) < len(failed):
            metrics.expired(name, len(failed) - len(again))
            logger.warning(
                "%d messages of queue %r could not be settled within their lease, and come again: "
                "%s",
                len(failed) - len(again),
                name,
                error,
            )
        if not told:
            _tell_of_trouble(name, before, error)


def _tell_of_warnings(
    queue: str, batch: Sequence[_Settlement], warnings: Mapping[str, str]
) -> None:
    """Say so if the server did not do what it was asked for."""
    # A second try is told of leases that the first, whose answer was lost, has settled.
    asked = {one.delivery.lease_id for one in batch if one.fresh}
    told = [text for lease_id, text in warnings.items() if lease_id in asked]
    if told:
        logger.warning(
            "Cloudflare did not settle %d of %d messages of queue %r, which come again if they are "
            "not deleted: %s (were they held for longer than visibility_timeout?)",
            len(told),
            len(batch),
            queue,
            told[0],
        )


def _tell_of_trouble(queue: str, before: CFQueuesError | None, now: CFQueuesError | None) -> None:
    """Log the begin and the end of a time in which nothing can be settled, once each."""
    if before is None and isinstance(now, TransientError):
        logger.warning(
            "messages of queue %r cannot be settled now; it is tried again until they can: %s",
            queue,
            now,
        )
    elif before is None and now is not None:
        # A token that is refused: the next pull raises that in the application's own thread.
        logger.debug("messages of queue %r cannot be settled: %s", queue, now)
    elif isinstance(before, TransientError) and now is None:
        logger.info("messages of queue %r are settled again", queue)


def _flush_at_exit(acknowledger: weakref.ref[Acknowledger]) -> None:
    alive = acknowledger()
    if alive is not None:
        alive.flush(time.monotonic() + EXIT_SECONDS)
