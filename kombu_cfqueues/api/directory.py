"""Queue name <-> queue id.

The API's routes need ids, but applications know names.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from ..envelope import Address
from ..errors import QueueNotFound, TransientError, copy_of
from ..options import Options
from ..rate_limit import NoPermit
from ..runtime.fork import renew_in_child
from ..shared_facts import SharedFacts, Unneeded
from .client import Client
from .finder import Finder, question
from .machine_flight import ask_for_machine
from .models import PullConsumer, Queue
from .pull_consumers import PullConsumers
from .queue_names import QueueNames, id_as_name, is_queue_id, prefixed, to_cloudflare_name
from .single_flight import SingleFlight

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

    def __init__(self, client: Client, facts: SharedFacts | None) -> None:
        self._client = client
        self._facts = facts
        self._names = QueueNames()
        self._pull_consumers = PullConsumers(client, self._names)
        self._finder = Finder(client, self._names, facts)
        self._is_probed = False
        self._is_doubted = False  # a connection failed, so facts of other processes do not count
        self._probe_failure: TransientError | None = None  # of the last slow probe
        self._probe_failure_ends = 0.0  # monotonic
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Wait for no thread of the parent."""
        self._flights = SingleFlight()

    # Connecting

    def probe(self, options: Options, *, deadline: float) -> None:
        """Make sure that the server answers and accepts the token; one request per machine.

        The request reads the first page of the account's queues, which saves their look-ups.  No
        request is needed while the machine's facts say that the token works.

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
        if self._probe_failure is not None and time.monotonic() < self._probe_failure_ends:
            raise copy_of(self._probe_failure)
        if self._is_doubted:
            if self._facts is not None:
                self._facts.forget_token()
            return self._connect(deadline)
        return ask_for_machine(
            self._facts,
            question(1),
            learned=self._trust_token,
            ask=lambda: self._connect(deadline),
            deadline=deadline,
        )

    def _trust_token(self) -> bool | None:
        """Connect without a request if another process has just made it."""
        if self._facts is None or not self._facts.token_works():
            return None
        self._client.trust_token()
        self._is_probed = True
        return True

    def _connect(self, deadline: float) -> bool:
        called = time.monotonic()
        self._client.load()
        began = time.monotonic()
        deadline += began - called  # the deadline limits the server, not the import
        is_known = None if self._is_doubted else lambda: bool(self._trust_token())
        try:
            self._finder.read_page(1, deadline, is_known=is_known)
        except Unneeded:
            return True
        except NoPermit as error:
            # The server has not refused anything.  Other processes use up the allowance, so it
            # answers and accepts the token.
            logger.debug("connecting without a request: %s", error)
            return True
        except TransientError as error:
            ended = time.monotonic()
            if ended - began > SLOW_PROBE_SECONDS:
                # Kombu reconnects at once, at least three times, and a publish would wait for that
                # many timeouts in a row.
                self._probe_failure = error
                self._probe_failure_ends = ended + PROBE_FAILURE_SECONDS
            raise
        self._is_probed, self._is_doubted = True, False
        return True

    def require_probe(self, failure: TransientError | None) -> None:
        """Let the next `probe` make a request, because a connection has failed.

        Args:
            failure: What probes raise for `PROBE_FAILURE_SECONDS` instead of making a request.
        """
        self._is_probed, self._is_doubted = False, True
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
            ConfigurationError: Cloudflare allows no character of the name; or the queue does not
                exist and its name is an id.
            CFQueuesError: What a request raised.
        """
        if name in options.queues:
            return Queue(options.queues[name], name, None)
        cloudflare_name = self._names.reserve(name, options)
        create = options.create_missing_queues and not is_queue_id(name)
        queue = self._finder.find(cloudflare_name, deadline, create=create)
        if queue is None and is_queue_id(name):
            raise id_as_name(name)
        if queue is None:
            raise QueueNotFound(
                f"queue {name!r} does not exist (its name at Cloudflare is {cloudflare_name!r}), "
                "and create_missing_queues is off: create it, or give its id in the option 'queues'"
            )
        return queue

    def find(
        self, name: str, options: Options, *, deadline: float, anew: bool = False
    ) -> Queue | None:
        """Return Kombu's queue *name*, or None if it does not exist.

        This creates nothing, and otherwise blocks and raises as `queue` does.

        Args:
            name: Kombu's name.
            options: As for `queue`.
            deadline: When to give up.
            anew: Whether to ask the API even if the queue is known.
        """
        if name in options.queues:
            return Queue(options.queues[name], name, None)
        cloudflare_name = to_cloudflare_name(prefixed(name, options))
        if anew:
            found = self._finder.find_anew(cloudflare_name, deadline)
        else:
            found = self._finder.find(cloudflare_name, deadline, create=False)
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

    def address(self, name: str, options: Options) -> Address:
        """Return where Kombu's queue *name* is, for any process of the machine.  Makes no request.

        Raises:
            QueueNameConflict: Another name of this process is translated to the same name.
            ConfigurationError: Cloudflare allows no character of the name.
        """
        if name in options.queues:
            return Address.of_id(options.queues[name])
        cloudflare_name = self._names.reserve(name, options)
        known = self._finder.known(cloudflare_name)
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
        known = self._finder.known(address.name)
        if known is not None:
            return known.id
        if address.cloudflare_id is not None:
            return address.cloudflare_id
        found = self._finder.find(address.name, deadline, create=address.creates)
        if found is None:
            raise QueueNotFound(
                f"queue {address.name!r} does not exist at Cloudflare, and create_missing_queues "
                "is off in the process that published to it: create the queue"
            )
        return found.id

    def forget_address(self, address: Address, queue_id: str) -> None:
        """Look the queue up again at its next use, because the server does not know *queue_id*."""
        self._finder.forget(address.name, queue_id)

    def retention_seconds(self, address: Address) -> int | None:
        """Return how long a queue keeps messages; None if this process does not know it."""
        known = self._finder.known(address.name)
        return known.retention_seconds if known else None

    # Pull consumers

    def enable_pull(self, queue: Queue, options: Options, *, deadline: float) -> PullConsumer:
        """Return the queue's pull consumer as `PullConsumers.enable` does."""
        return self._pull_consumers.enable(queue, options, deadline=deadline)

    def forget_pull(self, queue_id: str) -> None:
        """Look at the consumers of a queue again, because it could not be pulled."""
        self._pull_consumers.forget(queue_id)
