"""Queue name <-> queue id.

The API's routes need ids, but applications know names.  A process keeps what it has learned as long
as it uses it, because every look-up costs a request, and requests are scarce.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Final

from ..envelope import Address
from ..errors import QueueNameConflict, QueueNotFound, TransientError, copy_of
from ..options import Options
from ..rate_limit import NoPermit
from ..runtime.fork import renew_in_child
from ..runtime.recent import Recent
from ..shared_facts import KnownQueue, SharedFacts, Unneeded
from .client import Client
from .models import PullConsumer, Queue
from .pull_consumers import PullConsumers
from .queue_names import QueueNames, id_as_name, is_queue_id, prefixed, to_cloudflare_name
from .single_flight import SingleFlight
from .unfinished_lookups import Position, UnfinishedLookups

logger = logging.getLogger(__name__)

SLOW_PROBE_SECONDS: Final = 0.1
"""A failed probe that took longer than this is not repeated at once.  A faster one may be, because
it costs the caller little time."""

PROBE_FAILURE_SECONDS: Final = 1.5
"""How long the failure of a slow probe is raised again without a request.  This covers the
immediate reconnects of one publish, and is short enough to notice soon that the server is back."""


class Directory:
    """The queues of one account, for all connections and threads of a process.

    A method makes as many requests as it needs and raises what one of them raised; whether to retry
    is for the caller to decide.  Deadlines are in seconds of `time.monotonic`.

    Args:
        client: Makes the requests.
        facts: What other processes of the machine have learned; None if they share nothing.
    """

    def __init__(self, client: Client, facts: SharedFacts | None = None) -> None:
        self._client = client
        self._facts = facts
        self._names = QueueNames()
        self._pull_consumers = PullConsumers(client, self._names)
        self._queues: Recent[str, Queue] = Recent()  # by name at Cloudflare
        self._unfinished = UnfinishedLookups()
        self._is_probed = False
        self._probe_failure: TransientError | None = None  # of the last slow probe
        self._probe_failure_ends = 0.0  # monotonic
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Keep what the parent has learned; wait for no thread of the parent."""
        self._lock = threading.Lock()  # held while _queues changes, never over a request
        self._flights = SingleFlight()

    # Connecting

    def probe(self, options: Options, *, deadline: float) -> None:
        """Make sure that the server answers and accepts the token; one request per process.

        The request reads the first page of the account's queues, which saves their look-ups.

        Raises:
            CFQueuesError: What the request raised.  There is no retry: Kombu retries, and tries
                the next URL of a fail-over list.
        """
        for name, queue_id in options.queues.items():
            self._client.remember_name(queue_id, name)
        self._flights.run(
            "probe",
            known=lambda: self._is_probed or None,
            ask=lambda: self._probe(deadline),
            action="connecting",
            deadline=deadline,
        )

    def _probe(self, deadline: float) -> bool:
        began = time.monotonic()
        if self._probe_failure is not None and began < self._probe_failure_ends:
            raise copy_of(self._probe_failure)
        is_known = None if self._facts is None else self._facts.token_works
        try:
            page = self._client.list_queues(deadline=deadline, is_known=is_known)
        except Unneeded:  # another process has connected: this one would learn nothing else
            self._client.trust_token()
            self._is_probed = True
            return True
        except NoPermit as error:
            # The server has not refused anything.  Other processes use up the allowance, so it
            # answers and accepts the token.
            logger.debug("connecting without a request: %s", error)
            return True
        except TransientError as error:
            ended = time.monotonic()
            if ended - began > SLOW_PROBE_SECONDS:
                # Kombu connects again at once, at least three times, and a publish would wait for
                # as many timeouts in a row.
                self._probe_failure = error
                self._probe_failure_ends = ended + PROBE_FAILURE_SECONDS
            raise
        self._learn(page.queues)
        self._is_probed = True
        if self._facts is not None:
            self._facts.note_token(works=True)
        return True

    def require_probe(self, failure: TransientError | None = None) -> None:
        """Let the next `probe` make a request, because a connection has failed.

        Args:
            failure: What probes raise for `PROBE_FAILURE_SECONDS` instead; None makes the request.
        """
        self._is_probed = False
        if failure is not None:
            self._probe_failure = failure
            self._probe_failure_ends = time.monotonic() + PROBE_FAILURE_SECONDS

    # By Kombu's name

    def queue(self, name: str, options: Options, *, deadline: float) -> Queue:
        """Return Kombu's queue *name* as it is at Cloudflare, and create it if it is missing.

        Blocks for a look-up if the name is new to this process.  Threads that ask for the same name
        share a look-up.

        Args:
            name: Kombu's name.
            options: ``queues``, ``queue_name_prefix`` and ``create_missing_queues`` are used.
            deadline: When to give up.

        Raises:
            QueueNotFound: It is missing, and ``create_missing_queues`` is off.
            QueueNameConflict: Another name of this process is translated to the same name.
            ConfigurationError: Cloudflare allows no character of the name; or it is missing, and
                its name is an id.
            CFQueuesError: What a request raised.
        """
        if name in options.queues:
            return Queue(options.queues[name], name, None)
        cloudflare_name = self._names.reserve(name, options)
        create = options.create_missing_queues and not is_queue_id(name)
        queue = self._find(cloudflare_name, deadline, create=create)
        if queue is None and is_queue_id(name):
            raise id_as_name(name)
        if queue is None:
            raise QueueNotFound(
                f"queue {name!r} does not exist (its name at Cloudflare is {cloudflare_name!r}), "
                "and create_missing_queues is off: create it, or give its id in the option 'queues'"
            )
        return queue

    def find(self, name: str, options: Options, *, deadline: float) -> Queue | None:
        """Return Kombu's queue *name*, or None if it does not exist.

        This creates nothing, and otherwise blocks and raises as `queue` does.
        """
        if name in options.queues:
            return Queue(options.queues[name], name, None)
        cloudflare_name = to_cloudflare_name(prefixed(name, options))
        found = self._find(cloudflare_name, deadline, create=False)
        if found is not None:  # the name of a missing queue stays free for another queue
            self._names.reserve(name, options)
        return found

    def forget(self, name: str, queue_id: str, options: Options) -> bool:
        """Look *name* up again at its next use, because the server does not know *queue_id*.

        Returns:
            Whether a look-up can help.  It cannot if the option ``queues`` gives the id.
        """
        if name in options.queues:
            return False
        self.forget_address(self.address(name, options), queue_id)
        return True

    # By the name at Cloudflare

    def by_cloudflare_name(self, name: str, *, deadline: float) -> Queue:
        """Return the queue with this *name* at Cloudflare, and create it if it is missing.

        Raises:
            CFQueuesError: What a request raised.
        """
        queue = self._find(name, deadline, create=True)
        if queue is None:  # pragma: no cover  (it was created)
            raise QueueNotFound(f"queue {name!r} does not exist at Cloudflare")
        return queue

    def address(self, name: str, options: Options) -> Address:
        """Return where Kombu's queue *name* is, for any process of the machine.  Makes no request.

        Raises:
            QueueNameConflict: Another name of this process is translated to the same name.
            ConfigurationError: Cloudflare allows no character of the name.
        """
        if name in options.queues:
            return Address.of_id(options.queues[name])
        cloudflare_name = self._names.reserve(name, options)
        known = self._queues.get(cloudflare_name)
        return Address(cloudflare_name, options.create_missing_queues, known.id if known else None)

    def spool_address(self, name: str, options: Options) -> Address:
        """Return `address` for a message that is posted later, perhaps by another process.

        Raises:
            ConfigurationError: The name is an id, and this process knows no queue of that name.
        """
        address = self.address(name, options)
        if address.cloudflare_id is None and is_queue_id(name):
            raise id_as_name(name)
        return address

    def resolve(self, address: Address, *, deadline: float) -> str:
        """Return the id of the queue at *address*; blocks for a look-up if it is not known.

        Raises:
            QueueNotFound: The queue is missing, and *address* does not say to create it.
            CFQueuesError: What a request raised.
        """
        known = self._queues.get(address.name)
        if known is not None:
            return known.id
        if address.cloudflare_id is not None:
            return address.cloudflare_id
        found = self._find(address.name, deadline, create=address.creates)
        if found is None:
            raise QueueNotFound(
                f"queue {address.name!r} does not exist at Cloudflare, and create_missing_queues "
                "is off in the process that published to it: create the queue"
            )
        return found.id

    def forget_address(self, address: Address, queue_id: str) -> None:
        """Look the queue up again at its next use, because the server does not know *queue_id*."""
        with self._lock:
            known = self._queues.get(address.name)
            # Another thread may have looked it up in the meantime.
            if known is not None and known.id == queue_id:
                self._queues.pop(address.name)
        if self._facts is not None:
            self._facts.forget_queue(address.name)

    def retention_seconds(self, address: Address) -> int | None:
        """Return how long a queue keeps messages; None if this process does not know it."""
        known = self._queues.get(address.name)
        return known.retention_seconds if known else None

    # Pull consumers

    def enable_pull(self, queue: Queue, options: Options, *, deadline: float) -> PullConsumer:
        """Return the queue's pull consumer as `PullConsumers.enable` does."""
        return self._pull_consumers.enable(queue, options, deadline=deadline)

    def forget_pull(self, queue_id: str) -> None:
        """Look at the consumers of a queue again, because it could not be pulled."""
        self._pull_consumers.forget(queue_id)

    # Below: look-ups

    def _find(self, name: str, deadline: float, *, create: bool) -> Queue | None:
        """Return the queue with this *name* at Cloudflare, or None if it is missing."""

        def ask() -> Queue | None:
            position = self._unfinished.position(name, deadline)
            found = None
            if position.conflict is None:
                found = self._look_up(name, position, deadline)
            if found is None and create:
                found = self._create(name, deadline)
            self._unfinished.end(name)
            if found is not None and self._facts is not None:
                self._facts.note_queue(name, KnownQueue(found.id, found.retention_seconds))
            return found

        return self._queues.get(name) or self._flights.run(
            (name, create),
            known=lambda: self._queues.get(name),
            ask=ask,
            action=f"looking up queue {name!r}",
            deadline=deadline,
        )

    def _look_up(self, name: str, position: Position, deadline: float) -> Queue | None:
        """Read pages of queues until one has that name: the server may ignore the filter."""
        while position.page is not None:
            try:
                page = self._client.list_queues(
                    page=position.page,
                    name=name,
                    deadline=deadline,
                    is_known=None if self._facts is None else lambda: self._is_known(name),
                )
            except Unneeded:
                return self._queues.get(name)
            self._learn(page.queues)
            for queue in page.queues:
                in_any_case = position.conflict is not None and queue.name.lower() == name.lower()
                if queue.name == name or in_any_case:
                    return queue
            ids = frozenset(queue.id for queue in page.queues)
            position = position.after(ids, has_more=page.has_more)
            self._unfinished.note(name, position)
        return None

    def _is_known(self, name: str) -> bool:
        """Learn a queue that another process has looked up; return whether one has."""
        known = None if self._facts is None else self._facts.queue(name)
        if known is None:
            return False
        self._learn([Queue(known.id, name, known.retention_seconds)])
        self._client.remember_name(known.id, name)
        return True

    def _create(self, name: str, deadline: float) -> Queue:
        position = self._unfinished.position(name, deadline)
        if position.conflict is None:
            try:
                queue = self._client.create_queue(name, deadline=deadline)
            except QueueNameConflict as error:
                # Another process was faster, or the server does not distinguish upper and lower
                # case.
                position = Position(conflict=copy_of(error))
                self._unfinished.note(name, position)
            else:
                logger.info("created queue %r at Cloudflare", name)
                self._learn([queue])
                return queue
        found = self._look_up(name, position, deadline)
        if found is None:
            self._unfinished.end(name)
            assert position.conflict is not None  # noqa: S101  set above
            raise copy_of(position.conflict)
        self._names.reserve_alias(found.name, name)
        queue = found._replace(name=name)
        self._learn([queue])
        return queue

    def _learn(self, queues: Iterable[Queue]) -> None:
        with self._lock:
            for queue in queues:
                self._queues.put(queue.name, queue)
