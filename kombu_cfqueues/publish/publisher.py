"""Publishing: packed messages travel in shared requests, and each caller gets its answer.

Who shares them: the threads of the process, in lanes; or all processes of the machine, through the
spool, where the requests are limited.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from vine import promise

from ..api.client import Client
from ..api.directory import Directory
from ..api.permits import RequestPermits
from ..envelope import Address, Packed
from ..errors import (
    CFQueuesError,
    ConfigurationError,
    InvalidMessage,
    MessageTooLarge,
    QueueNotFound,
    SpoolFull,
    SpoolUnavailable,
    TransientError,
)
from ..options import Options
from ..runtime.fork import renew_in_child
from ..spool.carrier import Carrier
from ..spool.claims import Claims
from ..spool.file import File
from ..spool.gate import SharedBudget
from ..spool.intake import Intake, Spooled
from ..spool.line import Line
from ..spool.relay import Relay
from .group_commit import Lane, Verdict

logger = logging.getLogger(__name__)

#: A thread that had to wait for a permit so many times in a row would be better served by a batch.
WAITS_IN_A_ROW = 20

#: A claim is anybody's so long after its request must have ended.
CLAIM_RESERVE_SECONDS = 5.0


class Budget(RequestPermits, Protocol):
    """The request allowance, as far as publishing needs it."""

    def acquire(self, deadline: float, *, queue: str | None = None) -> None:
        """Block until one more request may leave, to *queue* if it publishes."""


class Publisher:
    """Posts the messages of all threads of a process to one account's queues.

    Args:
        client: Where to post.
        directory: Finds the queues of messages that other processes have spooled.
        budget: The request allowance; each post takes a permit from it.
        options: ``connect_timeout``, ``max_in_flight``, ``read_timeout``, ``request_rate`` and
            ``retry_uncertain`` are used.
        file: The spool's; None: this system cannot have one.
    """

    def __init__(
        self,
        client: Client,
        directory: Directory,
        budget: Budget,
        options: Options,
        file: File | None = None,
    ) -> None:
        self._client = client
        self._directory = directory
        self._budget = budget
        self._options = options
        # A publish that took longer than half the time between two permits has waited for one.
        self._long_wait = 0.5 / options.request_rate if options.request_rate else float("inf")
        self._waits = threading.local()
        self._intake: Intake | None = None
        self._line: Line | None = None
        self._relay: Relay | None = None
        if file is not None:
            self._intake = intake = Intake(file)
            claims = Claims(file, post_seconds(options) + CLAIM_RESERVE_SECONDS)
            carrier = Carrier(
                claims, self._post_for_all, _judge, post_seconds=post_seconds(options)
            )
            self._relay = Relay(file, intake, claims, carrier)
            if isinstance(budget, SharedBudget):
                self._line = Line(
                    intake,
                    claims,
                    carrier,
                    max_in_flight=options.max_in_flight,
                    retry_uncertain=options.retry_uncertain,
                )
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start with empty lanes: what the parent's threads wait for is the parent's."""
        self._lock = threading.Lock()  # guards _lanes
        self._lanes: dict[tuple[str, bool], Lane[Packed]] = {}

    def submit(
        self, address: Address, packed: Packed, *, deadline: float, switches: bool = False
    ) -> None:
        """Block until Cloudflare has accepted the message.

        Args:
            address: The queue; its id is known.
            packed: The message.
            deadline: When to give up, in seconds of `time.monotonic`.
            switches: Do not repeat a request that failed, so that Kombu can go on to the next URL
                of a fail-over list.

        Raises:
            PublishTimeout: The deadline passed; its cause is the last failure.
            CFQueuesError: The message was refused.
        """
        started = time.monotonic()
        line = self._shared_line()
        try:
            if line is not None:
                judge = _judge_and_switch if switches else _judge
                line.submit(address, packed, deadline=deadline, judge=judge)
        except (SpoolUnavailable, SpoolFull) as error:
            self._go_alone(error)
            line = None
        if line is None:
            lane = self._lane(address, switches=switches)
            lane.submit(packed, packed.size, deadline)
        self._count_wait(time.monotonic() - started)

    def submit_many(
        self, address: Address, packed: Sequence[Packed], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Block until each message is settled; what `submit` would raise is returned, by message.

        Single messages of other threads go before them.
        """
        line = self._shared_line()
        if line is not None:
            try:
                return line.submit_many(address, packed, deadline=deadline, judge=_judge)
            except (SpoolUnavailable, SpoolFull) as error:
                self._go_alone(error)
        items = [(one, one.size) for one in packed]
        return self._lane(address, switches=False).submit_many(items, deadline)

    def spool(self, messages: Sequence[Spooled], *, max_bytes: int) -> list[int]:
        """Return once the messages are on this machine's disk; they are posted from there.

        Args:
            messages: All of them are kept, or none.
            max_bytes: Most bytes that may wait on this disk.

        Returns:
            What `promise` takes.

        Raises:
            SpoolFull: There is no room for them.
            SpoolUnavailable: No place on this machine can hold the spool.
        """
        intake, relay = self._spool()
        rows = intake.spool(messages, max_bytes=max_bytes, repeats=self._options.retry_uncertain)
        relay.notify()
        # Nothing here waits for a network, where a greenlet would make room for others.
        time.sleep(0)
        return rows

    def promise(self, rows: Sequence[int]) -> promise:
        """A promise that is kept when the messages are delivered, and broken if one is refused."""
        return self._spool()[1].promise(rows)

    @property
    def relay(self) -> Relay:
        """What empties the spool.

        Raises:
            SpoolUnavailable: This system cannot have a spool.
        """
        return self._spool()[1]

    def _spool(self) -> tuple[Intake, Relay]:
        if self._intake is None or self._relay is None:
            raise SpoolUnavailable("the spool needs locks that this system does not have (fcntl)")
        return self._intake, self._relay

    def _shared_line(self) -> Line | None:
        if isinstance(self._budget, SharedBudget) and self._budget.is_shared():
            return self._line
        return None

    def _go_alone(self, error: CFQueuesError) -> None:
        if isinstance(self._budget, SharedBudget):
            self._budget.give_up(error)

    def _lane(self, address: Address, *, switches: bool) -> Lane[Packed]:
        queue_id = address.cloudflare_id or ""
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

    def _post_for_all(self, address: Address, batch: Sequence[Packed], deadline: float) -> None:
        """Post what any process wants to publish; who spools may not know the queue's id."""
        queue_id = address.cloudflare_id
        if queue_id is None:
            queue_id = self._resolve(address, deadline)
        try:
            self._post(queue_id, batch, deadline)
        except QueueNotFound:
            self._directory.forget_address(address, queue_id)
            raise

    def _resolve(self, address: Address, deadline: float) -> str:
        try:
            queue_id = self._directory.resolve(address, deadline=deadline)
        except (InvalidMessage, MessageTooLarge) as error:
            # Whatever the server has against the question, it has nothing against the messages.
            raise ConfigurationError(str(error)) from error
        self._spool()[0].learn(address._replace(cloudflare_id=queue_id))
        return queue_id

    def _count_wait(self, seconds: float) -> None:
        if seconds < self._long_wait:
            self._waits.in_a_row = 0
            return
        self._waits.in_a_row = getattr(self._waits, "in_a_row", 0) + 1
        if self._waits.in_a_row == WAITS_IN_A_ROW:
            _advise_to_batch()


def post_seconds(options: Options) -> float:
    """Most seconds that one request takes."""
    return options.connect_timeout + options.read_timeout


def _judge(error: CFQueuesError) -> Verdict:
    if isinstance(error, TransientError):
        return Verdict.NOT_NOW
    if isinstance(error, (InvalidMessage, MessageTooLarge)):
        return Verdict.THE_ITEMS
    return Verdict.NEVER


def _judge_and_switch(error: CFQueuesError) -> Verdict:
    if isinstance(error, TransientError):
        return Verdict.NEVER
    return _judge(error)


@functools.cache  # once a process: it is advice, not news
def _advise_to_batch() -> None:
    logger.warning(
        "a thread publishes one message after the other and waits for the request allowance each "
        "time, about 4 messages a second: 'with producer.batch():' sends 100 messages a request, "
        "and publish_mode='spool' waits for this machine's disk only"
    )
