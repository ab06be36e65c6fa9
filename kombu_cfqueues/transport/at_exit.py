"""What a process still does when it ends and has not closed its connections.

It sends its acknowledgements, gives back the messages that it holds, and deletes the queues that
only it could use.  Otherwise these messages would stay leased, and these queues would stay
forever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar
from weakref import WeakSet

from ..account import Account
from ..consume.receiver import Receiver
from ..errors import CFQueuesError
from ..runtime.exits import call_at_exit
from ..runtime.fork import living, notice_fork, renew_in_child
from .session import Session

logger = logging.getLogger(__name__)

T = TypeVar("T")

SETTLING_EXIT_SECONDS: Final = 3.0
"""How long the end of a process may take to settle messages and delete queues.  Well below the time
after which process managers kill it (Docker: 10 seconds)."""

_Queue = tuple[str, str, str, str]
"""Base URL, account id, prefix, and Kombu's name of a queue."""


class _ExitWork:
    """What this process has to settle and to delete.

    Each access to its fields is a single step, so there is no lock.
    """

    def __init__(self) -> None:
        self._queues: dict[_Queue, Session] = {}
        self._inherited: set[_Queue] = set()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Start empty: the parent settles its messages and deletes its queues."""
        self._inherited.update(self._queues)
        self._queues = {}
        self._receivers: WeakSet[Receiver] = WeakSet()
        self._is_registered = False

    def settle(self, receiver: Receiver) -> None:
        """Settle at exit what this process has received through *receiver*."""
        self._receivers.add(receiver)
        self._register()

    def delete(self, session: Session, queue: str) -> None:
        """Delete Kombu's *queue* at exit, unless it belongs to a process that forked this one."""
        key = _key(session, queue)
        if key not in self._inherited and key not in self._queues:
            # Not the connection's own session, which would keep alive everything it consumes.
            self._queues[key] = Session(session.options, has_alternates=False)
            self._register()

    def keep(self, session: Session, queue: str) -> bool:
        """Do not delete *queue* at exit; return whether it would have been deleted."""
        return self._queues.pop(_key(session, queue), None) is not None

    def _register(self) -> None:
        if not self._is_registered:
            self._is_registered = True
            call_at_exit(finish)

    def finish(self) -> None:
        """Settle and delete everything; blocks for `SETTLING_EXIT_SECONDS` at most.

        An account that does not answer uses up only its share of the time.
        """
        deadline = time.monotonic() + SETTLING_EXIT_SECONDS
        for receiver, until in _shares(living(self._receivers), deadline):
            receiver.finish(until)
        queues, self._queues = self._queues, {}
        unreachable: set[Account] = set()
        for (key, session), until in _shares(list(queues.items()), deadline):
            account = session.account
            if account not in unreachable and not delete(session, key[-1], until):
                unreachable.add(account)
            session.close()


def delete(session: Session, queue: str, deadline: float) -> bool:
    """Delete a queue; log it if that fails, and return whether it succeeded."""
    try:
        session.delete_queue(queue, deadline)
    except CFQueuesError as error:
        logger.warning(
            "queue %r (auto_delete) could not be deleted, so delete it by hand: %s", queue, error
        )
        return False
    return True


def _shares(things: Sequence[T], deadline: float) -> Iterator[tuple[T, float]]:
    """Yield each thing, and the deadline of its share of the time."""
    for index, thing in enumerate(things):
        now = time.monotonic()
        yield thing, now + (deadline - now) / (len(things) - index)


def _key(session: Session, queue: str) -> _Queue:
    options = session.options
    return options.base_url, options.account_id, options.queue_name_prefix, queue


exit_work: Final = _ExitWork()


def finish() -> None:
    """Do what `exit_work` holds, unless it belongs to the parent of this process."""
    notice_fork()
    exit_work.finish()
