"""Finds queues by their names at Cloudflare, in few requests.

Every look-up costs a request, so a process keeps the queues that it has found while it uses them.
The processes of a machine share them for some minutes.

For a name that is unknown, the order of requests is: the next pages of the list of all queues (see
`ListProgress`), the name itself, and, if the queue is missing and may be created, its creation.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable

from ..errors import QueueNameConflict, copy_of
from ..runtime.fork import renew_in_child
from ..runtime.locks import new_lock
from ..runtime.recent import Recent
from ..shared_facts import KnownQueue, SharedFacts, Unneeded
from .client import Client
from .listing import ListProgress
from .machine_flight import ask_for_machine
from .models import Queue
from .queue_names import QueueNames
from .single_flight import SingleFlight
from .unfinished_lookups import Position, UnfinishedLookups

logger = logging.getLogger(__name__)


class Finder:
    """The queues of one account that are known, and how to find others.

    Deadlines are in seconds of `time.monotonic`.

    Args:
        client: Makes the requests.
        names: The names that this process uses.
        facts: What the processes of the machine share; None if they share nothing.
    """

    def __init__(self, client: Client, names: QueueNames, facts: SharedFacts | None) -> None:
        self._client = client
        self._names = names
        self._facts = facts
        self._queues: Recent[str, Queue] = Recent()  # by name at Cloudflare
        self._listing = ListProgress(facts)
        self._unfinished = UnfinishedLookups(facts)
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Keep what the parent has learned; wait for no thread of the parent."""
        self._lock = new_lock()  # held while _queues changes, never over a request
        self._flights = SingleFlight()

    def known(self, name: str) -> Queue | None:
        """Return the queue with this *name*, if this process knows it."""
        return self._queues.get(name)

    def forget(self, name: str, queue_id: str) -> None:
        """Look *name* up again at its next use, because it does not have this id."""
        with self._lock:
            known = self._queues.get(name)
            # Another thread may have looked it up in the meantime.
            if known is not None and known.id == queue_id:
                self._queues.pop(name)
        if self._facts is not None:
            self._facts.forget_queue(name, queue_id)

    def find(self, name: str, deadline: float, *, create: bool) -> Queue | None:
        """Return the queue with this *name*, or None if it is missing.

        Blocks for a look-up if the queue is unknown.  Only one thread of one process makes it.

        Raises:
            CFQueuesError: A request failed.
        """

        def ask() -> Queue | None:
            found = self._look_up(name, deadline, create=create)
            self._unfinished.end(name)
            return found

        def learned() -> Queue | None:
            return self._queues.get(name) if self._is_known(name) else None

        return self._queues.get(name) or self._flights.run(
            (name, create),
            known=lambda: self._queues.get(name),
            ask=lambda: ask_for_machine(
                self._facts, f"queue {name}", learned=learned, ask=ask, deadline=deadline
            ),
            action=f"looking up queue {name!r}",
            deadline=deadline,
        )

    def find_anew(self, name: str, deadline: float) -> Queue | None:
        """Ask the API for the queue with this *name*, whatever is known; None if it is missing.

        Raises:
            CFQueuesError: A request failed.
        """
        return self._ask_by_name(name, Position(), deadline, anew=True)

    def read_page(
        self,
        page: int,
        deadline: float,
        *,
        wanted: str | None = None,
        is_known: Callable[[], bool] | None,
    ) -> None:
        """Learn a page of the list of queues, for all processes; see `Client.list_queues`.

        Raises:
            Unneeded: The answer became known, as *is_known* says.
            CFQueuesError: The request failed.
        """
        found = self._client.list_queues(
            page=page, deadline=deadline, wanted=wanted, is_known=is_known
        )
        self._learn(found.queues)
        self._listing.note(page, (queue.id for queue in found.queues), has_more=found.has_more)
        if self._facts is not None:
            queues = {queue.name: _as_fact(queue) for queue in found.queues}
            self._facts.note_page(page, queues, has_more=found.has_more)

    def _look_up(self, name: str, deadline: float, *, create: bool) -> Queue | None:
        position = self._unfinished.position(name, deadline, creates=create)
        found = None
        if not position.is_listed and position.conflict is None:
            found, position = self._read_on(name, position, deadline)
        if found is None and position.conflict is None:
            found = self._ask_by_name(name, position, deadline)
        if found is None and create:
            found = self._create(name, deadline)
        return found

    # The list of all queues

    def _read_on(
        self, name: str, position: Position, deadline: float
    ) -> tuple[Queue | None, Position]:
        """Read the next pages of the list; return the queue if it is there, and where to go on."""
        for _ in range(self._listing.pages_per_lookup):
            page = self._listing.next_page()
            if page is None:
                break
            self._share_page(page, name, deadline)
            found = self._queues.get(name)
            if found is not None:
                return found, position
            if self._listing.next_page() is None:  # the list was read, and does not have the name
                position = position._replace(page=None)
                break
        else:
            self._listing.note_miss()
        position = position._replace(is_listed=True)
        self._unfinished.note(name, position)
        return None, position

    def _share_page(self, page: int, name: str, deadline: float) -> None:
        """Read a page of the list, or wait for the thread or process that reads it.

        This ends earlier if the queue *name* becomes known.
        """

        def known() -> bool | None:
            return name in self._queues or self._listing.has_read(page) or None

        def learned() -> bool | None:
            return self._is_known(name) or self._listing.next_page() != page or None

        def ask() -> bool:
            with contextlib.suppress(Unneeded):
                self.read_page(page, deadline, wanted=name, is_known=lambda: bool(learned()))
            return True

        self._flights.run(
            page,
            known=known,
            ask=lambda: ask_for_machine(
                self._facts, question(page), learned=learned, ask=ask, deadline=deadline
            ),
            action=f"looking up queue {name!r}",
            deadline=deadline,
        )

    # One name

    def _ask_by_name(
        self, name: str, position: Position, deadline: float, *, anew: bool = False
    ) -> Queue | None:
        """Read pages of answers until one has that name: the server may ignore the filter."""
        while position.page is not None:
            try:
                page = self._client.list_queues(
                    page=position.page,
                    name=name,
                    deadline=deadline,
                    is_known=None if anew else lambda: self._is_known(name),
                )
            except Unneeded:
                return self._queues.get(name)
            self._learn(page.queues)
            for queue in page.queues:
                in_any_case = position.conflict is not None and queue.name.lower() == name.lower()
                if queue.name == name or in_any_case:
                    self._share(queue)
                    return queue
            ids = frozenset(queue.id for queue in page.queues)
            position = position.after(ids, has_more=page.has_more)
            if not anew:
                self._unfinished.note(name, position)
        return None

    def _create(self, name: str, deadline: float) -> Queue:
        position = self._unfinished.position(name, deadline, creates=True)
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
                self._share(queue)
                return queue
        found = self._ask_by_name(name, position, deadline)
        if found is None:
            self._unfinished.end(name)
            assert position.conflict is not None  # noqa: S101  set above
            raise copy_of(position.conflict)
        self._names.reserve_alias(found.name, name)
        queue = found._replace(name=name)
        self._learn([queue])
        self._share(queue)
        return queue

    def _learn(self, queues: Iterable[Queue]) -> None:
        with self._lock:
            for queue in queues:
                self._queues.put(queue.name, queue)

    # What the machine knows

    def _is_known(self, name: str) -> bool:
        """Learn a queue that another process has looked up; return whether one has."""
        known = None if self._facts is None else self._facts.queue(name)
        if known is None:
            return False
        self._learn([Queue(known.id, name, known.retention_seconds)])
        self._client.remember_name(known.id, name)
        return True

    def _share(self, queue: Queue) -> None:
        """Share a queue that the API has just returned with the other processes."""
        if self._facts is not None:
            self._facts.note_queue(queue.name, _as_fact(queue))


def question(page: int) -> str:
    """Return the name of the question for a page of the list; see `SharedFacts.begin`."""
    return f"list {page}"


def _as_fact(queue: Queue) -> KnownQueue:
    return KnownQueue(queue.id, queue.retention_seconds)
