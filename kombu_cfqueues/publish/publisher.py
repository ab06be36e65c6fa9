"""Publishing: packed messages travel in shared requests, and each caller gets its answer.

Which callers share them: the threads of the process, through a room in memory for each queue; or
all processes of the machine, through the spool, where the requests are limited.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Sequence
from math import inf
from typing import Final

from vine import promise

from ..api.client import Client
from ..api.directory import Directory
from ..envelope import Address, Packed
from ..errors import (
    CFQueuesError,
    ConfigurationError,
    ConnectionFailed,
    InvalidMessage,
    MessageTooLarge,
    PublishTimeout,
    QueueNotFound,
    SpoolFull,
    SpoolUnavailable,
)
from ..options import Options
from ..rate_limit import Budget
from ..retry import Verdict
from ..runtime.fork import renew_in_child
from ..runtime.recent import Recent
from ..spool import Place, SharedBudget, Spool, Spooled
from ..waiting_room import RoomBusy, WaitingRoom
from .group_commit import GroupCommit
from .memory_room import MemoryRoom
from .relay import Relay
from .sender import Sender, verdict_of

logger = logging.getLogger(__name__)

ADVISE_AFTER: Final = 20
"""Publishes of a thread, one after the other, that waited for a permit: then the log advises it to
use a batch."""


LOOKUP_PERMITS: Final = 3
"""Requests that finding or creating a queue takes: a look-up, a creation, and one in reserve."""

UNUSED_SECONDS: Final = 3_600.0
"""How long a queue to which nothing is published is remembered, where the process is alone."""


class Publisher:
    """Posts the messages of all threads of a process to one account's queues.

    Args:
        client: Where to post.
        directory: Finds the queues of messages that other processes have spooled.
        budget: The request allowance; each post takes a permit from it.
        options: ``connect_timeout``, ``max_in_flight``, ``read_timeout``, ``request_rate`` and
            ``retry_uncertain`` are used.
        spool: The machine's; None: this system cannot have one.
    """

    def __init__(
        self,
        client: Client,
        directory: Directory,
        budget: Budget | SharedBudget,
        options: Options,
        spool: Spool | None = None,
    ) -> None:
        self._client = client
        self._directory = directory
        self._budget = budget
        self._options = options
        # A publish that took longer than half the time between two permits has waited for one.
        self._long_wait = 0.5 / options.request_rate if options.request_rate else float("inf")
        self._waits = threading.local()
        self._spool_of_machine = spool
        self._shared: GroupCommit | None = None
        self._relay: Relay | None = None
        if spool is not None:
            sender = Sender(
                spool.room,
                self._post_for_all,
                post_seconds=post_seconds(options),
                lookup_seconds=lookup_seconds(options),
            )
            self._shared = self._commit(spool.room, sender)
            self._relay = Relay(spool, self._shared)
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start with empty rooms: what the parent's threads wait for is the parent's."""
        self._lock = threading.Lock()  # guards _alone
        self._alone: Recent[str, GroupCommit] = Recent(UNUSED_SECONDS)  # by queue id

    def submit(
        self, address: Address, packed: Packed, *, deadline: float, switches: bool = False
    ) -> None:
        """Block until Cloudflare has accepted the message.

        Args:
            address: The queue; its id is known.
            packed: The message.
            deadline: When to give up, in seconds of `time.monotonic`.
            switches: Fail at once where surely nothing was sent, so that Kombu can go on to the
                next URL of a fail-over list.

        Raises:
            PublishTimeout: The deadline passed; its cause is the last failure.
            CFQueuesError: The message was refused.
        """
        started = time.monotonic()
        judge = _judge_and_switch if switches else None
        shared = self._shared_commit()
        try:
            if shared is not None:
                shared.submit(address, packed, deadline=deadline, judge=judge)
        except (SpoolUnavailable, SpoolFull) as error:
            self._go_alone(error)
            shared = None
        if shared is None:
            self._commit_alone(address).submit(address, packed, deadline=deadline, judge=judge)
        self._count_wait(time.monotonic() - started)

    def submit_many(
        self, address: Address, packed: Sequence[Packed], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Block until each message is settled; what `submit` would raise is returned, by message.

        Single messages of other threads go before them.
        """
        shared = self._shared_commit()
        if shared is not None:
            try:
                return shared.submit_many(address, packed, deadline=deadline)
            except (SpoolUnavailable, SpoolFull) as error:
                self._go_alone(error)
        return self._commit_alone(address).submit_many(address, packed, deadline=deadline)

    def spool(
        self, messages: Sequence[Spooled], *, max_bytes: int, deadline: float = inf
    ) -> list[Place]:
        """Return once the messages are on this machine's disk; they are posted from there.

        Args:
            messages: All of them are kept, or none.
            max_bytes: Bytes that may wait on this disk.
            deadline: When to give up, in seconds of `time.monotonic`.

        Returns:
            What `promise` takes.

        Raises:
            PublishTimeout: The spool's file was in use until *deadline*.
            SpoolFull: There is no room for them.
            SpoolUnavailable: No place on this machine can hold the spool.
        """
        repeats = self._options.retry_uncertain
        try:
            places = self._spool().keep(
                messages, max_bytes=max_bytes, repeats=repeats, until=deadline
            )
        except RoomBusy as error:
            raise PublishTimeout(
                f"the message could not be spooled in time, and was not: {error}"
            ) from error
        self.relay.notify()
        # Nothing here waits for a network, where a greenlet would make room for others.
        time.sleep(0)
        return places

    def promise(self, places: Sequence[Place]) -> promise:
        """A promise that is kept when the messages are delivered, and broken if one is refused."""
        return self.relay.promise(places)

    @property
    def relay(self) -> Relay:
        """What empties the spool.

        Raises:
            SpoolUnavailable: This system cannot have a spool.
        """
        self._spool()
        assert self._relay is not None  # noqa: S101  it comes with the spool
        return self._relay

    def _spool(self) -> Spool:
        if self._spool_of_machine is None:
            raise SpoolUnavailable("the spool needs locks that this system does not have (fcntl)")
        return self._spool_of_machine

    def _shared_commit(self) -> GroupCommit | None:
        if isinstance(self._budget, SharedBudget) and self._budget.is_shared():
            return self._shared
        return None

    def _go_alone(self, error: CFQueuesError) -> None:
        if isinstance(self._budget, SharedBudget):
            self._budget.give_up(error)

    def _commit_alone(self, address: Address) -> GroupCommit:
        """The callers of this process that publish to a queue without the file."""
        queue_id = address.cloudflare_id or ""

        def make() -> GroupCommit:
            budget = self._budget
            permits = budget.alone if isinstance(budget, SharedBudget) else budget
            room = MemoryRoom(permits, queue_id, extends=self._options.max_in_flight == 1)
            sender = Sender(room, self._post_by_id, post_seconds=post_seconds(self._options))
            return self._commit(room, sender)

        with self._lock:
            return self._alone.get(queue_id, make)

    def _commit(self, room: WaitingRoom, sender: Sender) -> GroupCommit:
        options = self._options
        return GroupCommit(
            room, sender, max_in_flight=options.max_in_flight, repeats=options.retry_uncertain
        )

    def _post_by_id(self, address: Address, batch: Sequence[Packed], deadline: float) -> None:
        self._post(address.cloudflare_id or "", batch, deadline)

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
        try:
            if queue_id is None:
                queue_id = self._resolve(address, deadline)
            self._post(queue_id, batch, deadline)
        except QueueNotFound:
            if queue_id is not None:
                self._directory.forget_address(address, queue_id)
            raise
        except CFQueuesError as error:
            self._stop_others(error, queue_id)
            raise

    def _stop_others(self, error: CFQueuesError, queue_id: str | None) -> None:
        """Let other processes that empty the spool heed a stop."""
        if error.stops is None or isinstance(self._budget, SharedBudget):
            return
        with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):  # they will be told too
            self._spool().stop(error, queue_id)

    def _resolve(self, address: Address, deadline: float) -> str:
        try:
            queue_id = self._directory.resolve(address, deadline=deadline)
        except (InvalidMessage, MessageTooLarge) as error:
            # Whatever the server has against the question, it has nothing against the messages.
            raise ConfigurationError(str(error)) from error
        with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):  # others may ask as well
            self._spool().learn(address._replace(cloudflare_id=queue_id))
        return queue_id

    def _count_wait(self, seconds: float) -> None:
        if seconds < self._long_wait:
            self._waits.in_a_row = 0
            return
        self._waits.in_a_row = getattr(self._waits, "in_a_row", 0) + 1
        if self._waits.in_a_row == ADVISE_AFTER:
            _advise_to_batch()


def lookup_seconds(options: Options) -> float:
    """Most seconds until a queue's look-up has its permits: at a low rate, longer than a post."""
    return LOOKUP_PERMITS / options.request_rate if options.request_rate else 0.0


def post_seconds(options: Options) -> float:
    """Most seconds that one request takes."""
    return options.connect_timeout + options.read_timeout


def _judge_and_switch(error: CFQueuesError) -> Verdict:
    if isinstance(error, ConnectionFailed) and error.delivered == "no":
        return Verdict.NEVER
    return verdict_of(error)


@functools.cache  # once a process: it is advice, not news
def _advise_to_batch() -> None:
    logger.warning(
        "a thread publishes one message after the other and waits for the request allowance each "
        "time, about 4 messages a second: 'with producer.batch():' sends 100 messages a request, "
        "and publish_mode='spool' waits for this machine's disk only"
    )
