"""Acknowledgements and retries, sent in groups by background threads.

Settling a message never blocks its caller.  The acknowledgements of a queue share a request.  The
request leaves once it is full, or `ACK_HOLD_SECONDS` after its first acknowledgement and at least
`SPACING_SECONDS` after the previous request.  A retry leaves at once, because a consumer may be
waiting for the message.  A request that fails is repeated until the leases end.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from ..api.client import Client
from ..api.passing_refusals import is_passing
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
from ..runtime.condition import Condition
from ..runtime.fork import renew_in_child
from ..runtime.locks import new_lock
from ..runtime.thread_pool import Job, ThreadPool
from .delivery import Delivery
from .poll_interval import PollInterval
from .pulse import Pulse
from .vitals import Settling

logger = logging.getLogger(__name__)

MAX_LEASES: Final = 100
"""Maximum number of leases in one request.  Cloudflare documents no limit; a pull returns at most
this many."""

ACK_HOLD_SECONDS: Final = 0.05
"""How long the first acknowledgement waits for others to share its request."""

SPACING_SECONDS: Final = 0.1
"""Minimum time between two requests for acknowledgements of one queue, unless one is full: a slow
stream of acknowledgements takes at most ten requests per second."""

REQUESTS_PER_QUEUE: Final = 2
"""Maximum number of requests in flight for one queue."""

FULL_REQUESTS_PER_QUEUE: Final = 5
"""The same while full requests wait: as many as full pulls are made ahead (`MAX_PULLS_AHEAD`)."""

SENDERS: Final = 8
"""Maximum number of sending threads.  With several, a request that hangs does not delay the other
queues."""

MAX_UNSENT: Final = 2 * MAX_LEASES
"""A queue is not pulled while more than this number of its leases wait.  An application may
acknowledge faster than the requests leave, and waiting leases take memory."""

ACK_REQUEST_SECONDS: Final = 10.0
"""Maximum duration of one request."""

GIVE_UP_SECONDS: Final = ACK_REQUEST_SECONDS
"""After a flush has failed, flushes return at once for this long.  A connection that closes many
channels then waits for an unreachable server once, and not for each channel."""

#: Errors that concern the token or the account, and not the messages of a request.
_NOT_ABOUT_MESSAGES = (
    AuthenticationFailed,
    ConfigurationError,
    PermissionDenied,
    PlanLimitReached,
    PullNotEnabled,
)


class _PendingLease(NamedTuple):
    """A lease to be settled.

    Attributes:
        delivery: The leased message.
        delay: Seconds after which Cloudflare redelivers it; None to acknowledge it.
        fresh: Whether no request has carried it yet.
    """

    delivery: Delivery
    delay: int | None
    fresh: bool = True

    @property
    def returns(self) -> bool:
        """Whether it makes its message available at once, so that a pull should wait for it."""
        return self.fresh and self.delay == 0


class _Outbox:
    """The leases of one queue that are to be settled.  Times are seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self.waiting: deque[_PendingLease] = deque()
        self.urgent = 0  # how many of `waiting` a pull waits for
        self.returning = 0  # the same, including those that a request in flight carries
        self.first_at = 0.0  # when the oldest of `waiting` was added
        self.sent_at = 0.0  # when the last request left
        self.in_flight = 0  # requests
        self.backoff = PollInterval(0.0, 0.0, 0.0)  # of requests that fail
        self.last_error: CFQueuesError | None = None  # what the last request failed with
        self.pulse = Pulse()
        self.name = ""  # of the queue

    def due(self) -> float:
        """When the next request should leave."""
        at = 0.0
        if not self.urgent and len(self.waiting) < MAX_LEASES:
            at = max(self.first_at + ACK_HOLD_SECONDS, self.sent_at + SPACING_SECONDS)
        return max(at, self.backoff.due)

    @property
    def backs_off(self) -> bool:
        """Whether requests fail."""
        return self.backoff.due > time.monotonic()

    @property
    def may_send(self) -> bool:
        """Whether one more request may be in flight."""
        full = len(self.waiting) >= MAX_LEASES
        most = FULL_REQUESTS_PER_QUEUE if full else REQUESTS_PER_QUEUE
        return bool(self.waiting) and self.in_flight < most

    @property
    def is_used(self) -> bool:
        """Whether leases are left to settle."""
        return bool(self.waiting or self.in_flight)

    def is_idle(self, now: float) -> bool:
        """Whether no request would leave earlier if the outbox were forgotten."""
        return not self.is_used and now >= max(self.sent_at + SPACING_SECONDS, self.backoff.due)


class Acknowledger:
    """Settles the leases of one account, for all threads of a process.

    Args:
        client: Sends the requests.
        on_returned: Called with the id of a queue once messages were given back to it.
    """

    def __init__(self, client: Client, on_returned: Callable[[str], None]) -> None:
        self._client = client
        self._on_returned = on_returned
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty: the parent settles the leases that it holds."""
        lock = new_lock()
        # Guards all fields below; never held during a request.
        self._lock = lock
        self._settled = Condition(lock)
        self._outboxes: dict[str, _Outbox] = {}  # by queue id
        self._threads = ThreadPool("cfqueues-ack", SENDERS, lock, self._next_job)
        self._gave_up_at = float("-inf")
        self._settled_at: float | None = None  # when a request was last answered

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a message, so that it is never redelivered.  Returns at once."""
        self._add(_PendingLease(delivery, None))

    def retry(self, delivery: Delivery, delay: int) -> None:
        """Have Cloudflare redeliver a message after *delay* seconds.  Returns at once."""
        self._add(_PendingLease(delivery, delay))

    def returning(self, queue_id: str) -> bool:
        """Whether messages of the queue are being given back, so that a pull now would miss them.

        False while requests fail, because a pull should not wait for an outage to end.
        """
        outbox = self._outboxes.get(queue_id)
        return outbox is not None and outbox.returning > 0 and not outbox.backs_off

    def delays_pull(self, queue_id: str) -> bool:
        """Whether a pull of the queue should wait for requests, unless these fail."""
        outbox = self._outboxes.get(queue_id)
        if outbox is None or outbox.backs_off:
            return False
        return outbox.returning > 0 or len(outbox.waiting) > MAX_UNSENT

    def await_returns(self, queue_id: str, deadline: float) -> None:
        """Block until no message of the queue is being given back, or until *deadline*.

        The deadline is in seconds of `time.monotonic`.
        """
        with self._lock:
            while self.returning(queue_id) and time.monotonic() < deadline:
                self._settled.wait(deadline - time.monotonic())

    def flush(self, deadline: float) -> None:
        """Send everything that waits, in this thread, and wait for the requests in flight.

        Stops at the first failure, except a refusal of the token that may pass.  What is left is
        sent later if the process continues.  Never raises, and blocks until *deadline* (seconds of
        `time.monotonic`) at most.
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
                outbox = self._outboxes.get(queue_id)  # None: another thread has sent it meanwhile
                if outbox is None:
                    continue
                if not is_passing(outbox.last_error):
                    self.give_up()
                    return
                time.sleep(max(0.0, min(outbox.backoff.due, deadline) - time.monotonic()))

    def give_up(self) -> None:
        """Note that the server is unreachable or too slow for channels that close now."""
        self._gave_up_at = time.monotonic()

    def gave_up(self) -> bool:
        """Whether `give_up` was called within the last 10 seconds."""
        return time.monotonic() - self._gave_up_at < GIVE_UP_SECONDS

    def settling(self) -> Settling:
        """Return whether requests are answered, for a health check."""
        with self._lock:
            busy = [box for box in self._outboxes.values() if box.is_used]
            return Settling([(box.name, box.pulse.copy()) for box in busy], self._settled_at)

    # -- what waits

    def _add(self, lease: _PendingLease) -> None:
        with self._lock:
            queue_id = lease.delivery.queue.id
            outbox = self._outboxes.get(queue_id)
            if outbox is None:
                self._forget_idle()
                outbox = self._outboxes[queue_id] = _Outbox()
            if not outbox.waiting:
                outbox.first_at = time.monotonic()
            outbox.waiting.append(lease)
            if lease.returns:
                outbox.urgent += 1
                outbox.returning += 1
            # Otherwise a thread already waits for this queue, or is about to look at it.
            changes_due = lease.returns or len(outbox.waiting) in (1, MAX_LEASES)
            if changes_due or self._threads.absent:
                self._threads.call()

    def _forget_idle(self) -> None:
        """Forget the outboxes that are not used.  The caller holds the lock."""
        now = time.monotonic()
        for queue_id in [q for q, outbox in self._outboxes.items() if outbox.is_idle(now)]:
            del self._outboxes[queue_id]

    def _next_job(self) -> Job:
        """Return the request that is due first.  The caller holds the lock."""
        now = time.monotonic()
        ready = [
            (outbox.due(), queue_id)
            for queue_id, outbox in self._outboxes.items()
            if outbox.may_send
        ]
        if not ready:
            return Job()
        due, queue_id = min(ready)
        if due > now:
            return Job(wait=due - now)
        batch = self._take(queue_id)
        # This request may hang, so another thread should wait for the other queues.
        more = len(ready) > 1 or bool(self._outboxes[queue_id].waiting)
        return Job(lambda: self._post(queue_id, batch), more=more)

    def _take(self, queue_id: str) -> list[_PendingLease]:
        """Remove and return the leases of one request.  The caller holds the lock, and sends it."""
        outbox = self._outboxes[queue_id]
        batch = [outbox.waiting.popleft() for _ in range(min(len(outbox.waiting), MAX_LEASES))]
        outbox.first_at = outbox.sent_at = time.monotonic()
        outbox.urgent -= sum(lease.returns for lease in batch)
        outbox.in_flight += 1
        outbox.name = batch[0].delivery.queue.name
        outbox.pulse.asked()
        return batch

    # -- requests

    def _post(self, queue_id: str, batch: list[_PendingLease]) -> None:
        self._send(queue_id, batch, time.monotonic() + ACK_REQUEST_SECONDS)

    def _send(self, queue_id: str, batch: list[_PendingLease], deadline: float) -> bool:
        """Send a batch; return False if part of it must be sent again."""
        failed = batch  # if anything else ends this thread, nothing of the batch is lost
        error: CFQueuesError | None = None
        try:
            failed, error = self._settle(queue_id, batch, deadline)
        finally:
            self._conclude(queue_id, batch, failed, error)
        if any(lease.delay == 0 for lease in batch) and not failed:
            self._on_returned(queue_id)
        return error is None

    def _settle(
        self, queue_id: str, batch: list[_PendingLease], deadline: float
    ) -> tuple[list[_PendingLease], CFQueuesError | None]:
        """Make the request; return the leases that must be sent again, and why."""
        acks = [one.delivery.lease_id for one in batch if one.delay is None]
        retries = {one.delivery.lease_id: one.delay for one in batch if one.delay is not None}
        name = batch[0].delivery.queue.name
        now = time.monotonic()
        late = sum(lease.delivery.leased_until <= now for lease in batch)
        try:
            warnings = self._client.ack(queue_id, acks=acks, retries=retries, deadline=deadline)
        except (TransientError, *_NOT_ABOUT_MESSAGES) as error:
            return batch, error
        except QueueNotFound:
            logger.debug(
                "queue %r was deleted, and with it %d messages that were to be settled",
                name,
                len(batch),
            )
        except PermanentError as error:
            # One lease that the server refuses fails the whole request.
            if len(batch) > 1:
                return self._settle_halves(queue_id, batch, deadline)
            logger.warning(
                "a message of queue %r could not be settled and may be redelivered: %s", name, error
            )
        else:
            _log_refusals(name, batch, warnings)
            metrics.expired(name, late)
        return [], None

    def _settle_halves(
        self, queue_id: str, batch: list[_PendingLease], deadline: float
    ) -> tuple[list[_PendingLease], CFQueuesError | None]:
        half = len(batch) // 2
        failed, error = self._settle(queue_id, batch[:half], deadline)
        if error is not None:
            return failed + batch[half:], error
        return self._settle(queue_id, batch[half:], deadline)

    def _conclude(
        self,
        queue_id: str,
        batch: Sequence[_PendingLease],
        failed: Sequence[_PendingLease],
        error: CFQueuesError | None,
    ) -> None:
        """Note the end of a request, and put back what must be sent again."""
        name, now = batch[0].delivery.queue.name, time.monotonic()
        # A message whose lease has ended is redelivered, whatever another request says.
        again = [
            lease._replace(fresh=False) for lease in failed if lease.delivery.leased_until > now
        ]
        with self._lock:
            outbox = self._outboxes[queue_id]
            outbox.in_flight -= 1
            outbox.returning -= sum(lease.returns for lease in batch)
            outbox.waiting.extendleft(reversed(again))
            before, outbox.last_error = outbox.last_error, error
            outbox.pulse.concluded(error)
            if error is None:
                self._settled_at = now
                outbox.backoff.reset(0.0)
            else:
                outbox.backoff.failed(now, error.retry_after)
            others_fail = self._others_fail(outbox)
            self._settled.notify_all()
            if outbox.waiting:
                self._threads.call()
        if again and error is not None:
            metrics.retried(error)
        if len(again) < len(failed):
            metrics.expired(name, len(failed) - len(again))
            _log_expired(name, len(failed) - len(again), error)
        if not others_fail:
            _log_outage(name, before, error)

    def _others_fail(self, outbox: _Outbox) -> bool:
        """Whether the outage is that of another queue as well, so that it is logged already.

        A queue whose leases have all ended does not count.  The caller holds the lock.
        """
        return any(
            box.last_error and box.is_used for box in self._outboxes.values() if box is not outbox
        )


def _log_expired(queue: str, count: int, error: CFQueuesError | None) -> None:
    logger.warning(
        "%d messages of queue %r could not be settled within their lease and will be redelivered: "
        "%s",
        count,
        queue,
        error,
    )


def _log_refusals(queue: str, batch: Sequence[_PendingLease], warnings: Mapping[str, str]) -> None:
    """Log a warning if the server did not settle leases of a batch."""
    # If the response to a request is lost, the server answers the repeated request with warnings
    # about the leases that the first request settled.
    asked = {lease.delivery.lease_id for lease in batch if lease.fresh}
    refusals = [text for lease_id, text in warnings.items() if lease_id in asked]
    if refusals:
        logger.warning(
            "Cloudflare did not settle %d of %d messages of queue %r, so it redelivers those that "
            "were not deleted: %s (raise visibility_timeout if tasks take longer than it)",
            len(refusals),
            len(batch),
            queue,
            refusals[0],
        )


def _log_outage(queue: str, before: CFQueuesError | None, now: CFQueuesError | None) -> None:
    """Log the beginning and the end of an outage, once each."""
    if is_passing(before):
        before = None
    if is_passing(now):
        logger.debug("messages of queue %r cannot be settled: %s", queue, now)
    elif before is None and isinstance(now, TransientError):
        logger.warning(
            "messages of queue %r cannot be settled now; retrying until their leases end: %s",
            queue,
            now,
        )
    elif before is None and now is not None:
        # For example, the token is refused.  The next pull raises that in the application's thread.
        logger.debug("messages of queue %r cannot be settled: %s", queue, now)
    elif isinstance(before, TransientError) and now is None:
        logger.info("messages of queue %r are settled again", queue)
