"""Empties the spool, in a daemon thread of each process that spools, or in ``cfqueues relay``.

The processes elect one of them in the file, and only the elected process posts, which keeps the
file less busy.  Correctness does not depend on the election, because permits and claims separate
two posters.  The other processes check regularly whether they are needed: the elected process, or a
publisher whose messages wait, may have been killed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

from vine import promise

from ..errors import SpoolFull, SpoolUnavailable
from ..runtime.clock import Clock
from ..runtime.exits import call_at_exit
from ..runtime.flag import Flag
from ..runtime.fork import notice_fork, renew_in_child
from ..runtime.rng import rng
from ..runtime.threads import threads_can_run
from ..spool import Place, Spool
from ..waiting_room import RoomBusy
from .group_commit import GroupCommit
from .outage_log import OutageLog

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 5.0
"""Poll interval of a process that has spooled and waits for nothing.  Only messages that a killed
publisher left behind wait this long, so it may be long."""

STANDBY_SECONDS: Final = 0.5
"""Maximum poll interval of a process that is not elected, while messages wait.  It bounds the time
until another process takes over, and costs two reads of the file per second."""

BACKLOG_DELAY_SECONDS: Final = 0.1
"""How long a process that has not posted yet leaves a new backlog to a process that has.  Then most
processes of a web server never load the HTTP client or open a connection.  Long enough for another
process to spool a message and see the backlog, and less than half of the 0.27 s between
requests."""

RELAY_SWEEP_SECONDS: Final = STANDBY_SECONDS
"""Interval between two checks whether the processes that post are alive.  The elected process is
checked as often, because either may have been killed."""

PROMISE_POLL_SECONDS: Final = 0.25
"""Poll interval for promises that are still referenced.  A request takes about as long to get its
permit, so a shorter interval would find little more."""

PROMISES_PER_QUERY: Final = 500
"""Number of promises that one SQL statement asks about."""

PROMISES_PER_POLL: Final = 8 * PROMISES_PER_QUERY
"""About how many promises one poll asks about.  A process may keep a hundred thousand."""

LAST_CLAIM_POLL_SECONDS: Final = 0.05
"""Poll interval while another process posts the last spooled messages."""

RELAY_RETRY_SECONDS: Final = 1.0
"""Minimum pause after the file could not be used.  A random time of up to the same length is added,
so that the processes of a machine do not retry together."""

MIN_PAUSE_SECONDS: Final = 0.001
"""Minimum pause until the next permit, so that a rounded time does not make the thread spin."""

RELAY_EXIT_SECONDS: Final = 3.0
"""How long a process that exits keeps emptying the spool, while that succeeds.  Well below the time
after which process managers kill it (Docker: 10 seconds)."""

RELAY_EXIT_POLL_SECONDS: Final = 0.02
"""Poll interval of a process that exits and waits for its thread."""


class StopRequest(Protocol):
    """What ends `Relay.run`."""

    @property
    def requested(self) -> bool:
        """Whether to stop."""

    def wait(self, seconds: float) -> object:
        """Block until a stop is requested, for *seconds* at most."""


class Relay:
    """Posts spooled messages as soon as permits allow.

    Args:
        spool: Where the messages are.
        commit: Posts them.
    """

    def __init__(self, spool: Spool, commit: GroupCommit) -> None:
        self._spool = spool
        self._commit = commit
        self._clock = Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget the parent's thread; this process starts its own when it spools."""
        self._lock = self._clock.lock()  # guards _thread
        self._thread: threading.Thread | None = None
        self._spooled = Flag(self._clock)  # set when something was spooled
        self._exit = Flag(self._clock)  # set when the process exits
        self._exits = False
        self._exits_by: float | None = None
        self._finishes_at_exit = False
        self._elected = False
        self._stands_by_until: float | None = None  # for a process that has posted
        # By the message's place, the oldest first.
        self._promises: OrderedDict[Place, weakref.ref[_Delivery]] = OrderedDict()
        self._to_ask: deque[Place] = deque()  # the same places, in the order in which to ask
        self._asked_at = 0.0
        self._swept_at = 0.0
        self._took_over = False
        self._is_hindered = False  # the last step failed because of the file
        self._outage = OutageLog(self._clock)

    @property
    def path(self) -> Path:
        """The spool's file.

        Raises:
            SpoolUnavailable: No directory of this machine can hold it.
        """
        return self._spool.path

    def promise(self, places: Sequence[Place]) -> promise:
        """Return a promise that is fulfilled when the messages have left the spool.

        It is rejected with the reason if a message is refused.  It resolves only while you hold
        a reference to it.
        """
        delivery = _Delivery(len(places))
        reference = weakref.ref(delivery)
        for place in places:
            self._promises[place] = reference
            self._to_ask.append(place)
        if places:
            self.notify()
        else:
            delivery()
        return delivery

    def notify(self) -> None:
        """Wake this process's thread, or start it, because something was spooled."""
        if not self._finishes_at_exit:
            self._finishes_at_exit = True
            call_at_exit(partial(_finish, weakref.ref(self)))
        if self._exits_by is not None:  # an exit handler that runs after ours has spooled something
            self.finish(0.0)
            self._log_what_stays()
            return
        self._spooled.set()
        thread = self._thread
        if (thread is None or not thread.is_alive()) and threads_can_run():
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name="cfqueues-relay", daemon=True)
        with self._lock:
            if self._thread is not None and self._thread.ident and self._thread.is_alive():
                return
            self._thread = thread
        try:
            # Not under the lock.  Under gevent, starting a thread switches to another greenlet.  If
            # gevent was loaded after this module (gunicorn --preload), the lock would block all.
            thread.start()
        except RuntimeError:
            # An interpreter that exits starts no threads.  The next process posts what is on disk.
            logger.debug("the spool is not emptied by this process: the interpreter is exiting")
            self._thread = None

    def run(self, stop: StopRequest, *, idle_seconds: float) -> None:
        """Empty the spool in this thread; block until a stop is requested.

        Args:
            stop: Checked between requests.
            idle_seconds: Poll interval while the spool is empty.
        """
        while not stop.requested:
            pause = self._step_safely()
            stop.wait(idle_seconds if pause is None else pause)
        self._resign()

    def finish(self, seconds: float) -> None:
        """Keep emptying the spool for *seconds* while that succeeds; then end the thread.

        The relay's thread posts, and this call waits for it.  If no thread can run, this call
        posts.  Messages are left to another process only if that process is elected and alive.

        Args:
            seconds: Maximum time, counted from the first call.
        """
        if self._exits_by is None:
            self._exits_by = self._clock.monotonic() + seconds
        with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):  # the next process posts
            while self._may_continue() and self._spool.election.win():
                self._empty_before_exit()
            # Resign first, and then look again: another process that has spooled and exits leaves
            # its messages to this process while this process is elected.
            self._elected = False
            self._spool.election.resign()
            if self._may_continue() and self._spool.election.win():
                self._empty_before_exit()
                self._spool.election.resign()
        self._exits = True
        self._exit.set()
        self._spooled.set()

    def _may_continue(self) -> bool:
        return (
            self._exits_by is not None
            and self._clock.monotonic() < self._exits_by
            and self._commit.sender.pause is None
            and self._spool.messages.has_backlog()
        )

    def _empty_before_exit(self) -> None:
        self._exit.set()  # wakes a thread that waits for another process
        while self._may_continue():
            thread = self._thread
            if thread is not None and thread.is_alive():
                pause: float | None = RELAY_EXIT_POLL_SECONDS
            else:
                pause = self._step()
            self._clock.sleep(RELAY_EXIT_POLL_SECONDS if pause is None else pause)

    def _log_what_stays(self) -> None:
        with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):
            if self._spool.messages.has_backlog():
                logger.warning(
                    "messages stay in the spool %s, because this process is exiting: the next "
                    "process that spools, or 'cfqueues relay', delivers them",
                    self.path,
                )

    def _serve(self) -> None:
        while not self._exits:
            pause = self._step_safely()
            if pause is None:
                self._spooled.wait(IDLE_SECONDS)
            elif pause > 0:
                self._exit.wait(pause)

    def _step_safely(self) -> float | None:
        """Do one step.  A failure never ends the thread; its start and its end are logged."""
        try:
            pause = self._step()
            if self._is_hindered:
                self._is_hindered = False
                logger.info("the spool can be emptied again")
            return pause
        except (SpoolUnavailable, SpoolFull, RoomBusy) as error:
            if not self._is_hindered:
                self._is_hindered = True
                logger.error("the spool cannot be emptied now; retrying until it can: %s", error)
        except Exception:  # a bug of this library, or of a callback of the application
            logger.exception("emptying the spool failed; retrying")
        self._resign()
        return RELAY_RETRY_SECONDS * (1 + rng.random())

    def _step(self) -> float | None:
        """Post one request if possible.

        Returns:
            Seconds until the next step; None if it can wait until something is spooled.
        """
        if not self._took_over:
            self._spool.messages.take_over()
            self._took_over = True
        self._commit.catch_up()
        self._resolve_promises()
        if not self._spool.messages.has_backlog():
            while self._elected and self._spool.shrink():
                pass
            self._resign()
            self._outage.note(None)
            self._stands_by_until = None
            self._spool.allowance.notice_stop()  # so that the end of a stop is logged
            return PROMISE_POLL_SECONDS if self._promises else None
        now = self._clock.monotonic()
        pause = self._commit.sender.pause
        self._outage.note(pause)
        if pause is not None and now < pause.until:
            self._resign()  # only this process may be affected: let another one try
            return min(pause.until - now, STANDBY_SECONDS)
        if now - self._swept_at > RELAY_SWEEP_SECONDS:
            self._swept_at = now
            self._spool.room.sweep()
        if self._leaves_it_to_others(now):
            return BACKLOG_DELAY_SECONDS
        self._elected = self._spool.election.win()
        if self._elected:
            return self._post()
        self._stands_by_until = None
        self._spool.allowance.notice_stop()  # each process that spools says why its messages wait
        return rng.uniform(STANDBY_SECONDS / 2, STANDBY_SECONDS)

    def _leaves_it_to_others(self, now: float) -> bool:
        """Whether a process that has posted before may still take over a new backlog."""
        if self._elected or self._exits_by is not None or self._commit.sender.request_seconds > 0:
            return False
        if self._stands_by_until is None:
            self._stands_by_until = now + BACKLOG_DELAY_SECONDS
        return now < self._stands_by_until

    def _post(self) -> float:
        wait = self._commit.post_backlog()
        if wait is None:
            return 0.0
        if wait.until is None:
            return LAST_CLAIM_POLL_SECONDS  # another process is posting the last messages
        pause = min(wait.until - self._clock.monotonic(), RELAY_SWEEP_SECONDS)
        return max(MIN_PAUSE_SECONDS, pause)

    def _resign(self) -> None:
        if self._elected:
            self._elected = False
            # If the file cannot be used, the other processes notice that this one is silent.
            with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):
                self._spool.election.resign()

    # -- promises -----------------------------------------------------------------------------

    def _resolve_promises(self) -> None:
        """Ask for the outcomes of the oldest messages, and of some of the others in rotation."""
        now = self._clock.monotonic()
        if not self._promises or now - self._asked_at < PROMISE_POLL_SECONDS:
            return
        self._asked_at = now
        for _ in range(PROMISES_PER_POLL // PROMISES_PER_QUERY):
            if not self._ask(self._oldest()):
                break
        count = min(PROMISES_PER_QUERY, len(self._to_ask))
        places = [self._to_ask.popleft() for _ in range(count)]
        self._ask(places)
        self._to_ask.extend(place for place in places if place in self._promises)

    def _oldest(self) -> list[Place]:
        while True:
            # Python may switch threads between `islice` and `list`, and the other thread may spool.
            with contextlib.suppress(RuntimeError):
                return list(islice(self._promises, PROMISES_PER_QUERY))

    def _ask(self, places: Sequence[Place]) -> bool:
        """Resolve the promises of messages that have left; return whether any was removed."""
        waiting = []
        for place in places:
            reference = self._promises.get(place)
            if reference is not None and reference() is not None:
                waiting.append(place)
            else:
                self._promises.pop(place, None)
        left = self._spool.messages.left(waiting) if waiting else {}
        for place, error in left.items():
            reference = self._promises.pop(place, None)
            delivery = None if reference is None else reference()
            if delivery is not None:
                delivery.settle(error)
        return bool(left) or len(waiting) < len(places)


class _Delivery(promise):
    """Fulfilled when all its messages are delivered, rejected when the first is refused."""

    def __init__(self, messages: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = messages

    def settle(self, error: Any) -> None:
        self._left -= 1
        if error is not None and not self.failed:
            # Not raised here, because this is the relay's thread and not the publisher's.
            self.throw(error, propagate=False)  # type: ignore[no-untyped-call]
        elif self._left == 0 and not self.failed:
            self()


def _finish(relay: weakref.ref[Relay]) -> None:
    notice_fork()
    alive = relay()
    if alive is not None:
        alive.finish(RELAY_EXIT_SECONDS)
