"""What happens after a pull has failed: what is repaired, and what is logged.

A queue that was deleted and created again has another id, and a pull consumer that was removed is
created again.  An outage is logged when it begins and when it ends, once for all queues.  An error
that another pull does not repair is raised to the application, except to a Celery worker that can
go on with its other queues.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

from ..api.directory import Directory
from ..api.passing_refusals import is_passing
from ..errors import (
    CFQueuesError,
    ConnectionFailed,
    PullNotEnabled,
    QueueDisabled,
    QueueNotFound,
    ServerError,
    TransientError,
)
from .inbox import Subscription
from .source import ENABLE_RETRY_SECONDS

logger = logging.getLogger(__name__)

ENABLE_SECONDS: Final = 30.0
"""How long HTTP 405 counts as an outage that passes: a new pull consumer takes seconds to take
effect.  After this time the error is raised."""

ENABLE_QUIET_SECONDS: Final = 10.0
"""How long HTTP 405 causes no warning: several people saw it last for some seconds."""

LOST_SECONDS: Final = 60.0
"""Pause between two pulls of a queue that was deleted while its worker consumes others.  Each needs
a look-up, which takes a permit that publishing needs."""


class LogLine(NamedTuple):
    """What to log once the lock is released: the arguments of `logging.Logger.log`."""

    level: int
    text: str
    args: tuple[object, ...]

    def write(self) -> None:
        """Log it."""
        logger.log(self.level, self.text, *self.args)


def repair(
    error: CFQueuesError, subscription: Subscription, directory: Directory, *, deadline: float
) -> CFQueuesError | None:
    """Repair what a failed pull shows to be wrong; blocks until *deadline* (monotonic seconds).

    Args:
        error: What the pull failed with.
        subscription: What was pulled.  Gets the new queue or consumer.
        directory: Finds queues and creates pull consumers.
        deadline: When to give up.

    Returns:
        The error that is left; None if the next pull can succeed.
    """
    try:
        if isinstance(error, QueueNotFound):
            return _find_again(error, subscription, directory, deadline)
        if isinstance(error, PullNotEnabled):
            return _enable_again(error, subscription, directory, deadline)
    except CFQueuesError as another:
        return another
    if error.status == HTTPStatus.FORBIDDEN and error.code is None:
        # The API's refusals have a code.  This is the page of a firewall or a proxy, which must not
        # stop a worker that has pulled before and will again.
        return ServerError(str(error), status=error.status, ray_id=error.ray_id)
    return error


def _find_again(
    error: QueueNotFound, subscription: Subscription, directory: Directory, deadline: float
) -> CFQueuesError | None:
    """Look for a queue that was deleted and created again, and so has another id."""
    name, options = subscription.name, subscription.options
    if not directory.forget(name, subscription.queue.id, options):
        return error
    found = directory.find(name, options, deadline=deadline)
    if found is None:
        return error
    subscription.consumer = directory.enable_pull(found, options, deadline=deadline)
    subscription.queue = found
    return None


def _enable_again(
    error: PullNotEnabled, subscription: Subscription, directory: Directory, deadline: float
) -> CFQueuesError:
    """Make sure that a pull consumer exists: it may be new, or have been removed."""
    now, since = time.monotonic(), subscription.not_enabled_since
    if since is None:
        subscription.not_enabled_since = now
    too_long = since is not None and now - since > ENABLE_SECONDS
    if since is None or too_long:
        directory.forget_pull(subscription.queue.id)
        subscription.consumer = directory.enable_pull(
            subscription.queue, subscription.options, deadline=deadline
        )
    if too_long:
        return error
    return ServerError(
        f"{error} A new pull consumer takes some seconds to take effect.",
        status=error.status,
        retry_after=ENABLE_RETRY_SECONDS,
    )


def conclude(
    subscription: Subscription,
    subscriptions: Sequence[Subscription],
    started: float,
    error: CFQueuesError | None,
) -> LogLine | None:
    """Note how a request for *subscription* ended; return what to log.

    Sets what is to be raised to the application, and when to try again.  The caller holds the
    receiver's lock.

    Args:
        subscription: What was pulled, or looked for.
        subscriptions: All subscriptions of the account that are not cancelled.
        started: When the request started, in seconds of `time.monotonic`.
        error: What it failed with, after `repair`.
    """
    if error is not None:
        now = time.monotonic()
        if subscription.flow.failed(started, now) or error.retry_after:
            subscription.poll_interval.failed(now, error.retry_after)
    subscription.pulse.concluded(error)
    line = _note_outcome(subscription, subscriptions, started, error)
    if isinstance(error, TransientError):
        subscription.failure = _failover(subscription, error) or subscription.failure
    if subscription.failure is not None:
        subscription.inbox.notify()
    return line


def _note_outcome(
    subscription: Subscription,
    subscriptions: Sequence[Subscription],
    started: float,
    error: CFQueuesError | None,
) -> LogLine | None:
    """Note in *subscription* whether it has an outage or has failed; return what to log."""
    if error is None:
        return _end_outage(subscription, subscriptions, started)
    if not isinstance(error, TransientError):
        return _note_failure(subscription, error)
    if is_passing(error):
        return LogLine(
            logging.DEBUG, "queue %r cannot be pulled: %s", (subscription.queue.name, error)
        )
    since = subscription.not_enabled_since
    is_405 = error.status == HTTPStatus.METHOD_NOT_ALLOWED and since is not None
    if is_405 and since is not None and time.monotonic() - since < ENABLE_QUIET_SECONDS:
        # Not an outage: one that begins meanwhile must still be logged.
        text = "queue %r cannot be pulled yet: %s"
        return LogLine(logging.DEBUG, text, (subscription.queue.name, error))
    return _begin_outage(subscription, subscriptions, error)


def _end_outage(
    subscription: Subscription, subscriptions: Sequence[Subscription], started: float
) -> LogLine | None:
    text, name = "queue %r is pulled again", subscription.queue.name
    if subscription.lost:
        subscription.lost = False
        return LogLine(logging.INFO, text, (name,))
    # A pull that started before the outage does not prove recovery.
    if subscription.outage is None or started < subscription.outage_since:
        return None
    subscription.outage = None
    if any(other.outage for other in subscriptions):
        return None
    return LogLine(logging.INFO, text, (name,))


def _note_failure(subscription: Subscription, error: CFQueuesError) -> LogLine | None:
    """Have *error* raised, or only logged if it leaves a worker another queue."""
    if subscription.cancelled:
        return None
    was_lost = subscription.lost
    subscription.lost = isinstance(error, (QueueNotFound, PullNotEnabled))
    others_go_on = any(
        not other.lost and other.queue.id != subscription.queue.id
        for other in subscription.inbox.subscriptions
    )
    if not (subscription.found and subscription.lost and subscription.for_worker and others_go_on):
        subscription.failure = error
        return None
    subscription.poll_interval.due = time.monotonic() + LOST_SECONDS
    if was_lost:
        return None
    text = (
        "queue %r cannot be pulled any more: %s The other queues are still consumed, and this one "
        "is tried again every %d seconds."
    )
    return LogLine(logging.ERROR, text, (subscription.queue.name, error, LOST_SECONDS))


def _begin_outage(
    subscription: Subscription, subscriptions: Sequence[Subscription], error: TransientError
) -> LogLine | None:
    # A paused queue concerns that queue; a server that is down concerns all queues.
    paused = isinstance(error, QueueDisabled)
    logged = any(
        other.outage is not None
        and isinstance(other.outage, QueueDisabled) == paused
        and (not paused or other.queue.id == subscription.queue.id)
        for other in subscriptions
    )
    if subscription.outage is None:
        subscription.outage_since = time.monotonic()
    subscription.outage = error
    if logged:
        return None
    text = "queue %r cannot be pulled now; retrying until it can: %s"
    return LogLine(logging.WARNING, text, (subscription.queue.name, error))


def _failover(subscription: Subscription, error: TransientError) -> TransientError | None:
    """Return what to raise so that Kombu goes on to its next URL; None to keep trying.

    A broker is left once none of the connection's queues could be pulled for ``failover_after``,
    unless one of them is paused: then the server answers.  The caller holds the receiver's lock.

    Args:
        subscription: What was pulled, or looked for.
        error: What that failed with; `_note_outcome` has noted it.
    """
    if not subscription.fails_over:
        return None
    seconds = subscription.options.failover_after
    latest = time.monotonic() - seconds
    for other in subscription.inbox.subscriptions:
        if other.outage is None or isinstance(other.outage, QueueDisabled):
            return None
        if other.outage_since > latest:
            return None
    gone = ConnectionFailed(
        f"no queue of this connection could be pulled for {seconds:g} s (failover_after), so the "
        f"next broker URL is tried: {error}",
        status=error.status,
        code=error.code,
        ray_id=error.ray_id,
    )
    gone.__cause__ = error
    return gone
