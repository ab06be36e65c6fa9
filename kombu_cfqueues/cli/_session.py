"""An account as commands use it: queues by name, failures that pass tried again."""

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

T = TypeVar("T")

NEW_CONSUMER_SECONDS: Final = 20.0
"""A pull consumer that was just made may take so long to be in force; until then pulls are 405."""

NEW_CONSUMER_PAUSE: Final = 0.5


class Session:
    """What a command does with an account.

    Every call blocks for at most the option ``publish_timeout`` and raises a `CFQueuesError`.

    Args:
        options: What the user said.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self._account = Account.open(options)
        self.client = self._account.client
        self.directory = self._account.directory

    @property
    def gate(self) -> RequestPermits:
        """The request allowance."""
        return self._account.budget

    def left(self) -> tuple[int, int] | None:
        """Requests left, and seconds until the API counts anew, as its latest answer had it."""
        return parse_ratelimit(self.client.latest_headers.get("Ratelimit") or "")

    def close(self) -> None:
        """Close the connections."""
        self._account.close()

    def deadline(self) -> float:
        """When a call that begins now has to end."""
        return time.monotonic() + self.options.publish_timeout

    def call(self, method: Callable[..., T], *args: Any, **named: Any) -> T:
        """Call with a deadline; again after each failure that may pass.

        Args:
            method: Of ``client`` or ``directory``; it is given a *deadline*.
            *args: As the method wants them.
            **named: As the method wants them.
        """
        deadline = self.deadline()
        return retry.until(deadline, lambda: method(*args, **named, deadline=deadline))

    # Queues

    def queues(self) -> list[Queue]:
        """Every queue of the account, one request a page."""
        found: dict[str, Queue] = {}
        page, more = 1, True
        while more:
            answer = self.call(self.client.list_queues, page=page)
            new = {queue.id: queue for queue in answer.queues if queue.id not in found}
            found |= new
            # A server that ignores `page` would repeat the first one for ever.
            more, page = answer.has_more and bool(new), page + 1
        return sorted(found.values(), key=lambda queue: queue.name)

    def queue(self, name: str) -> Queue:
        """The queue of that name; nothing is created, because a name may have been mistyped.

        Raises:
            QueueNotFound: There is none.
        """
        found = self.find(name)
        if found is None:
            raise QueueNotFound(
                f"queue {name!r} does not exist: see 'cfqueues queues list', or create it with "
                f"'cfqueues queues create {name}'"
            )
        return found

    def find(self, name: str) -> Queue | None:
        """The queue of that name, if there is one."""
        found = self.call(self.directory.find, name, self.options)
        if found is not None:
            self.client.remember_name(found.id, name)
        return found

    def title(self, name: str) -> str:
        """The name at Cloudflare of queue *name*, prefix included."""
        return self.directory.address(name, self.options).name

    def pull_consumer(self, queue: Queue, *, dead_letter_queue: str | None = None) -> PullConsumer:
        """The consumer by which the queue is pulled; made if it has none.

        Args:
            queue: The queue.
            dead_letter_queue: Of a consumer that is made, instead of the option's.

        Raises:
            PullNotEnabled: A Worker consumes the queue.
        """
        options = self.options
        if dead_letter_queue:
            options = replace(options, dead_letter_queue=dead_letter_queue)
        return self.call(self.directory.enable_pull, queue, options)

    # Messages

    def publish(self, queue: Queue, messages: Sequence[Packed]) -> list[CFQueuesError | None]:
        """Block until each message is settled; for each, why it was not accepted."""
        try:
            return self._account.publisher.submit_many(
                Address.of_id(queue.id), messages, deadline=self.deadline()
            )
        except CFQueuesError as error:
            return [error] * len(messages)

    def pull(self, queue: Queue, most: int, *, lease_seconds: float) -> list[dict[str, Any]]:
        """Lease up to *most* messages of a queue that has a pull consumer."""
        in_force = time.monotonic() + NEW_CONSUMER_SECONDS
        while True:
            try:
                return self.call(
                    self.client.pull,
                    queue.id,
                    batch_size=most,
                    visibility_timeout_ms=int(lease_seconds * 1000),
                )
            except PullNotEnabled:
                if time.monotonic() > in_force:
                    raise
            time.sleep(NEW_CONSUMER_PAUSE)

    def ack(self, queue: Queue, raws: Sequence[Mapping[str, Any]]) -> None:
        """Be done with pulled messages."""
        self._settle(queue, acks=[raw["lease_id"] for raw in raws])

    def give_back(
        self, queue: Queue, consumer: PullConsumer, raws: Sequence[Mapping[str, Any]]
    ) -> None:
        """Let pulled messages be delivered again at once.

        Cloudflare deletes a message that is given back too often.  One that could be gets a copy
        in its place, and only then is done with.
        """
        last = [raw for raw in raws if not may_be_retried(raw, consumer)]
        copies = [envelope.repack(raw) for raw in last]
        outcomes = self.publish(queue, copies) if copies else []
        copied = [raw for raw, error in zip(last, outcomes, strict=True) if error is None]
        back = [raw["lease_id"] for raw in raws if may_be_retried(raw, consumer)]
        # Those that could not be copied stay until their lease is over.
        self._settle(queue, acks=[raw["lease_id"] for raw in copied], retries=back)

    def _settle(self, queue: Queue, *, acks: Sequence[str], retries: Sequence[str] = ()) -> None:
        leases = [(lease, True) for lease in acks] + [(lease, False) for lease in retries]
        for start in range(0, len(leases), 100):
            some = leases[start : start + 100]
            self.call(
                self.client.ack,
                queue.id,
                acks=[lease for lease, done in some if done],
                retries={lease: 0 for lease, done in some if not done},
            )


@contextmanager
def opened(options: Options) -> Iterator[Session]:
    """A session until the end of the block."""
    session = Session(options)
    try:
        yield session
    finally:
        session.close()
