"""Publishing: packed messages travel in shared requests, and each caller gets its own outcome.

With a request limit, all processes of the machine share requests, through the spool.  Otherwise the
threads of a process share them, through a room in memory for each queue.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from vine import promise

from .. import limits
from ..api.client import Client
from ..api.directory import Directory
from ..envelope import Address, Packed, retention_error
from ..errors import (
    CFQueuesError,
    ConfigurationError,
    InvalidMessage,
    MessageTooLarge,
    PublishTimeout,
    QueueNotFound,
    SpoolFull,
    SpoolUnavailable,
)
from ..options import POD_ADVICE, Options, frozen_spool_advice, lacks_shared_rate
from ..rate_limit import Budget
from ..runtime.fork import renew_in_child
from ..runtime.once import once
from ..runtime.recent import Recent
from ..spool import Place, SharedBudget, Spool, Spooled
from ..waiting_room import RoomBusy, WaitingRoom
from .group_commit import GroupCommit
from .memory_room import MemoryRoom
from .relay import Relay
from .request_time import RequestTime
from .sender import Sender

logger = logging.getLogger(__name__)

PUBLISHES_BEFORE_ADVICE: Final = 20
"""The log advises a batch after this many publishes of a thread in a row waited for a permit."""


class Publisher:
    """Posts the messages of all threads of a process to one account's queues.

    Args:
        client: Makes the requests.
        directory: Finds the queues of messages that other processes have spooled.
        budget: The request allowance; each request takes a permit from it.
        options: Uses ``connect_timeout``, ``max_in_flight``, ``read_timeout``, ``request_rate`` and
            ``retry_uncertain``.
        spool: The spool of the machine; None if the system does not support one.
        ring: Called with `Address.name` once the server has accepted messages that can be delivered
            at once; must neither block nor raise.
    """

    def __init__(
        self,
        client: Client,
        directory: Directory,
        budget: Budget | SharedBudget,
        options: Options,
        spool: Spool | None,
        *,
        ring: Callable[[str], None],
    ) -> None:
        self._ring = ring
        self._client = client
        self._directory = directory
        self._budget = budget
        self._options = options
        # A publish that takes longer than half the time between two permits has waited for one.
        self._long_wait = 0.5 / options.request_rate if options.request_rate else inf
        self._waits = threading.local()
        self._lacks_shared_rate = lacks_shared_rate(options)
        self._frozen_spool_advice = frozen_spool_advice()
        self._spool_of_machine = spool
        self._request_time = RequestTime()
        self._shared: GroupCommit | None = None
        self._relay: Relay | None = None
        if spool is not None:
            sender = Sender(
                spool.room,
                self._post_for_all,
                post_seconds=post_seconds(options),
                lookup_seconds=options.lookup_seconds,
                request_time=self._request_time,
            )
            self._shared = self._commit(spool.room, sender)
            self._relay = Relay(spool, self._shared)
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start with empty rooms: only the parent posts what its threads wait for."""
        self._alone: Recent[str, GroupCommit] = Recent()  # by queue id

    def submit(
        self, address: Address, packed: Packed, *, deadline: float, switches: bool = False
    ) -> None:
        """Block until Cloudflare has accepted the message.

        Args:
            address: The queue; its id is known.
            packed: The message.
            deadline: When to give up, in seconds of `time.monotonic`.
            switches: Do not repeat a failed request, so that Kombu can try the next broker URL.

        Raises:
            PublishTimeout: The deadline passed; its cause is the last failure.
            CFQueuesError: The message was refused.
        """
        self._warn_in_pod()
        started = time.monotonic()
        shared = self._shared_commit()
        try:
            if shared is not None:
                shared.submit(address, packed, deadline=deadline, switches=switches)
        except (SpoolUnavailable, SpoolFull) as error:
            self._stop_sharing(error)
            shared = None
        if shared is None:
            alone = self._commit_alone(address)
            alone.submit(address, packed, deadline=deadline, switches=switches)
        self._count_wait(time.monotonic() - started)

    def submit_many(
        self, address: Address, packed: Sequence[Packed], *, deadline: float
    ) -> list[CFQueuesError | None]:
        """Block until each message is settled.

        Single messages of other threads leave first.

        Returns:
            The outcome of each: None if it was accepted, else what `submit` would raise.
        """
        self._warn_in_pod()
        shared = self._shared_commit()
        if shared is not None:
            try:
                return shared.submit_many(address, packed, deadline=deadline)
            except (SpoolUnavailable, SpoolFull) as error:
                self._stop_sharing(error)
        return self._commit_alone(address).submit_many(address, packed, deadline=deadline)

    def spool(
        self, messages: Sequence[Spooled], *, max_bytes: int, deadline: float = inf
    ) -> list[Place]:
        """Block until the messages are on this machine's disk; they are posted from there.

        Args:
            messages: Either all of them are spooled, or none.
            max_bytes: Maximum bytes that may wait on this disk.
            deadline: When to give up, in seconds of `time.monotonic`.

        Returns:
            The argument of `promise`.

        Raises:
            PublishTimeout: The spool's file was in use until *deadline*.
            SpoolFull: The spool has no room for them.
            SpoolUnavailable: No directory of this machine can hold the spool.
        """
        self._warn_in_pod()
        if self._frozen_spool_advice:
            _warn(self._frozen_spool_advice)
        places = self._keep(messages, max_bytes, deadline)
        self.relay.notify()
        # Nothing here waits for the network, so let other greenlets run.
        time.sleep(0)
        return places

    def _warn_in_pod(self) -> None:
        if self._lacks_shared_rate:
            _warn(POD_ADVICE)

    def _keep(self, messages: Sequence[Spooled], max_bytes: int, deadline: float) -> list[Place]:
        repeats = self._options.retry_uncertain
        try:
            return self._spool().messages.spool(
                messages, max_bytes=max_bytes, repeats=repeats, until=deadline
            )
        except RoomBusy as error:
            raise PublishTimeout(
                f"the message was not spooled before its deadline; publish it again: {error}"
            ) from error

    def promise(self, places: Sequence[Place]) -> promise:
        """Return a promise for the delivery of the messages; see `Relay.promise`."""
        return self.relay.promise(places)

    @property
    def relay(self) -> Relay:
        """The relay, which empties the spool.

        Raises:
            SpoolUnavailable: The system does not support a spool.
        """
        self._spool()
        assert self._relay is not None  # noqa: S101  `__init__` sets both
        return self._relay

    def _spool(self) -> Spool:
        if self._spool_of_machine is None:
            raise SpoolUnavailable(
                "the spool needs file locks (fcntl), which this system does not have; "
                "set publish_mode='confirm'"
            )
        return self._spool_of_machine

    def _shared_commit(self) -> GroupCommit | None:
        if isinstance(self._budget, SharedBudget) and self._budget.is_shared():
            return self._shared
        return None

    def _stop_sharing(self, error: CFQueuesError) -> None:
        if isinstance(self._budget, SharedBudget):
            self._budget.give_up(error)

    def _commit_alone(self, address: Address) -> GroupCommit:
        """Return the group commit of this process's callers for one queue, in memory."""
        queue_id = address.cloudflare_id or ""

        def make() -> GroupCommit:
            budget = self._budget
            permits = budget.alone if isinstance(budget, SharedBudget) else budget
            room = MemoryRoom(permits, queue_id, extends=self._options.max_in_flight == 1)
            sender = Sender(
                room,
                self._post_by_id,
                post_seconds=post_seconds(self._options),
                request_time=self._request_time,
            )
            return self._commit(room, sender)

        return self._alone.get_or_make(queue_id, make)

    def _commit(self, room: WaitingRoom, sender: Sender) -> GroupCommit:
        options = self._options
        return GroupCommit(
            room, sender, max_in_flight=options.max_in_flight, repeats=options.retry_uncertain
        )

    def _post_by_id(self, address: Address, batch: Sequence[Packed], deadline: float) -> None:
        self._post(address, address.cloudflare_id or "", batch, deadline)

    def _post(
        self, address: Address, queue_id: str, batch: Sequence[Packed], deadline: float
    ) -> None:
        now = time.time()
        messages = [packed.encode(now) for packed in batch]
        if len(batch) == 1 and batch[0].alone:
            self._client.push(queue_id, messages[0], deadline=deadline)
        else:
            self._client.push_batch(queue_id, messages, deadline=deadline)
        if any(packed.due is None or packed.due <= now for packed in batch):
            self._ring(address.name)

    def _post_for_all(self, address: Address, batch: Sequence[Packed], deadline: float) -> None:
        """Post messages of any process; the process that spooled them may not know the queue id."""
        queue_id = address.cloudflare_id
        try:
            if queue_id is None:
                queue_id = self._resolve(address, deadline)
            if not address.is_id:
                # Another process may have looked the queue up, so the client never saw its name.
                self._client.remember_name(queue_id, address.name)
            self._judge_retention(address, batch, deadline)
            self._post(address, queue_id, batch, deadline)
        except QueueNotFound:
            if queue_id is not None:
                self._directory.forget_address(address, queue_id)
            raise
        except CFQueuesError as error:
            self._stop_others(error, queue_id)
            raise

    def _stop_others(self, error: CFQueuesError, queue_id: str | None) -> None:
        """Record a stop in the spool's file, for other processes that empty the spool."""
        if error.stops is None or isinstance(self._budget, SharedBudget):
            return
        with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):  # the API tells them too
            self._spool().allowance.stop(error, queue_id)

    def _judge_retention(self, address: Address, batch: Sequence[Packed], deadline: float) -> None:
        """Refuse messages that the queue would delete before they are due.

        The process that spooled them may not have known how long the queue keeps messages.

        Raises:
            InvalidMessage: A message of the batch is due later than the queue keeps it.
            CFQueuesError: A look-up failed.
        """
        is_late = [
            retention_error(packed, address.name, limits.MIN_RETENTION_SECONDS) for packed in batch
        ]
        if not any(is_late):
            return
        retention = self._directory.retention_seconds(address)
        if retention is None and not address.is_id:
            self._resolve(address._replace(cloudflare_id=None), deadline)
            retention = self._directory.retention_seconds(address)
        for packed in batch:
            error = retention_error(packed, address.name, retention)
            if error is not None:
                raise error

    def _resolve(self, address: Address, deadline: float) -> str:
        try:
            queue_id = self._directory.resolve(address, deadline=deadline)
        except (InvalidMessage, MessageTooLarge) as error:
            # The server refused the look-up and not the messages, so the batch must not be split.
            raise ConfigurationError(str(error)) from error
        with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):  # only saves look-ups
            self._spool().messages.learn(address._replace(cloudflare_id=queue_id))
        return queue_id

    def _count_wait(self, seconds: float) -> None:
        if seconds < self._long_wait:
            self._waits.in_a_row = 0
            return
        self._waits.in_a_row = getattr(self._waits, "in_a_row", 0) + 1
        if self._waits.in_a_row == PUBLISHES_BEFORE_ADVICE:
            _advise_to_batch()


def post_seconds(options: Options) -> float:
    """Return the maximum seconds that one request takes."""
    return options.connect_timeout + options.read_timeout


@once
def _warn(advice: str) -> None:
    logger.warning("%s", advice)


@once
def _advise_to_batch() -> None:
    logger.warning(
        "a thread publishes one message after the other and waits for the request allowance each "
        "time, which limits it to about 4 messages per second: use "
        "'with kombu_cfqueues.batch(app):', which sends 100 messages per request, or "
        "publish_mode='spool', which waits only for the disk"
    )
