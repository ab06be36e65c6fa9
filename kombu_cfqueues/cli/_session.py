"""An account as commands use it: queues by name, and retries of transient failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar

from .. import envelope, retry
from ..account import Account
from ..api.models import PullConsumer, Queue
from ..api.permits import RequestPermits
from ..consume.delivery import may_be_retried
from ..envelope import Address, Packed
from ..errors import CFQueuesError, PullNotEnabled, QueueNotFound
from ..options import Options
from ..rate_limit import parse_ratelimit
from ._patience import Patience

T = TypeVar("T")

NEW_CONSUMER_SECONDS: Final = 20.0
"""Longest time for which a pull retries an HTTP 405, because a new pull consumer takes some
seconds to take effect."""

NEW_CONSUMER_PAUSE_SECONDS: Final = 0.5
"""Pause between two of these pulls."""

ACK_LEASES: Final = 100
"""Maximum number of leases in one acknowledgement request: what one pull can return.  No limit is
documented."""


class Session:
    """The operations of commands on one account.

    Every request, with its retries, takes at most the option ``publish_timeout``.  Each method may
    raise a `CFQueuesError`.

    Args:
        options: The settings of the command.

    Attributes:
        retries: Whether calls retry transient failures.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.retries = True
        self._account = Account.open(options)
        self.client = self._account.client
        self.directory = self._account.directory

    @property
    def gate(self) -> RequestPermits:
        """The request allowance that the command shares with other processes."""
        return self._account.budget

    def requests_left(self) -> tuple[int, int] | None:
        """Return the requests left, and the seconds until the count resets; None if unknown.

        Both come from the latest response of the API.
        """
        return parse_ratelimit(self.client.latest_headers.get("Ratelimit") or "")

    def close(self) -> None:
        """Close the connections."""
        self._account.close()

    def deadline(self) -> float:
        """Return the monotonic time at which a call that starts now gives up."""
        return time.monotonic() + self.options.publish_timeout

    def call(self, method: Callable[..., T], *args: Any, **named: Any) -> T:
        """Call a method with a deadline, and retry it after each transient failure if `retries`.

        Args:
            method: A method of ``client`` or ``directory`` that takes a *deadline*.
            *args: Positional arguments of the method.
            **named: Keyword arguments of the method.
        """
        deadline = self.deadline()
        if not self.retries:
            return method(*args, **named, deadline=deadline)
        patience = Patience(deadline)
        return retry.until(
            deadline, lambda: method(*args, **named, deadline=deadline), patience.is_over
        )

    # Queues

    def queues(self) -> list[Queue]:
        """Return every queue of the account, sorted by name, with one request per page."""
        found: dict[str, Queue] = {}
        page, more = 1, True
        while more:
            answer = self.call(self.client.list_queues, page=page)
            new = {queue.id: queue for queue in answer.queues if queue.id not in found}
            found |= new
            # A server that ignores `page` returns the first page for ever.
            more, page = answer.has_more and bool(new), page + 1
        return sorted(found.values(), key=lambda queue: queue.name)

    def queue(self, name: str) -> Queue:
        """Return the queue of that name.  Never creates one: the name may be mistyped.

        Raises:
            QueueNotFound: The queue does not exist.
        """
        found = self.find(name)
        if found is None:
            raise QueueNotFound(
                f"queue {name!r} does not exist: see 'cfqueues queues list', or create it with "
                f"'cfqueues queues create {name}'"
            )
        return found

    def find(self, name: str) -> Queue | None:
        """Return the queue of that name as it is now, or None."""
        found = self.call(self.directory.find, name, self.options, anew=True)
        if found is not None:
            self.client.remember_name(found.id, name)
        return found

    def cloudflare_name(self, name: str) -> str:
        """Return the name at Cloudflare of queue *name*, with its prefix."""
        return self.directory.address(name, self.options).name

    def pull_consumer(self, queue: Queue, *, dead_letter_queue: str | None = None) -> PullConsumer:
        """Return the queue's pull consumer, and create one if it has none.

        Args:
            queue: The queue.
            dead_letter_queue: Dead-letter queue of a new consumer, instead of the option of the
                same name.

        Raises:
            PullNotEnabled: A Worker consumes the queue.
        """
        options = self.options
        if dead_letter_queue:
            options = replace(options, dead_letter_queue=dead_letter_queue)
        return self.call(self.directory.enable_pull, queue, options)

    # Messages

    def publish(self, queue: Queue, messages: Sequence[Packed]) -> list[CFQueuesError | None]:
        """Publish messages, and return for each its error, or None if it is accepted."""
        try:
            return self._account.publisher.submit_many(
                Address.of_id(queue.id), messages, deadline=self.deadline()
            )
        except CFQueuesError as error:
            return [error] * len(messages)

    def pull(self, queue: Queue, limit: int, *, lease_seconds: float) -> list[dict[str, Any]]:
        """Lease up to *limit* messages of a queue that has a pull consumer."""
        give_up_at = time.monotonic() + NEW_CONSUMER_SECONDS
        while True:
            try:
                return self.call(
                    self.client.pull,
                    queue.id,
                    batch_size=limit,
                    visibility_timeout_ms=int(lease_seconds * 1000),
                )
            except PullNotEnabled:
                if time.monotonic() > give_up_at:
                    raise
            time.sleep(NEW_CONSUMER_PAUSE_SECONDS)

    def ack(self, queue: Queue, raws: Sequence[Mapping[str, Any]]) -> None:
        """Acknowledge pulled messages."""
        self._settle_leases(queue, acks=[raw["lease_id"] for raw in raws])

    def give_back(
        self, queue: Queue, consumer: PullConsumer, raws: Sequence[Mapping[str, Any]]
    ) -> None:
        """Return pulled messages to their queue, for redelivery at once.

        Cloudflare deletes a message after its last retry.  A message that may be at its last retry
        is therefore published again, and acknowledged once the copy is accepted.
        """
        last_tries = [raw for raw in raws if not may_be_retried(raw, consumer)]
        copies = [envelope.repack(raw) for raw in last_tries]
        outcomes = self.publish(queue, copies) if copies else []
        copied = [raw for raw, error in zip(last_tries, outcomes, strict=True) if error is None]
        retries = [raw["lease_id"] for raw in raws if may_be_retried(raw, consumer)]
        # A message whose copy was refused is redelivered when its lease expires.
        self._settle_leases(queue, acks=[raw["lease_id"] for raw in copied], retries=retries)

    def _settle_leases(
        self, queue: Queue, *, acks: Sequence[str], retries: Sequence[str] = ()
    ) -> None:
        leases = [(lease, True) for lease in acks] + [(lease, False) for lease in retries]
        for start in range(0, len(leases), ACK_LEASES):
            part = leases[start : start + ACK_LEASES]
            self.call(
                self.client.ack,
                queue.id,
                acks=[lease for lease, done in part if done],
                retries={lease: 0 for lease, done in part if not done},
            )


@contextmanager
def open_session(options: Options) -> Iterator[Session]:
    """Open a session, and close it at the end of the block."""
    session = Session(options)
    try:
        yield session
    finally:
        session.close()
