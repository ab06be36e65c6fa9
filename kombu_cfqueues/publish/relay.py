"""Empties the spool: a daemon thread of each process that spools, or ``cfqueues relay``.

One process at a time does it, elected in the file; that spares the file, and nothing depends on it,
since permits and claims keep apart whoever posts.  The others look now and then whether they are
needed: the one that is elected, or a publisher whose messages wait, may have been killed.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from vine import promise

from ..errors import SpoolFull, SpoolUnavailable
from ..runtime.clock import Clock
from ..runtime.flag import Flag
from ..runtime.fork import renew_in_child
from ..runtime.once import Once
from ..runtime.rng import rng
from ..spool import Place, Spool
from ..waiting_room import RoomBusy
from .group_commit import GroupCommit

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 5.0
"""Pause between two looks of a process that has spooled and waits for nothing: a publisher that was
killed may have left messages behind."""

STANDBY_SECONDS: Final = 0.5
"""Pause between two looks of a process that is not elected, while messages wait."""

SWEEP_SECONDS: Final = 0.5
"""Pause between two looks whether the processes that post are alive."""

PROMISE_SECONDS: Final = 0.25
"""Poll interval for promises that are still referenced."""

PROMISES: Final = 500
"""How many promises are asked about in one statement."""

MOST_PROMISES: Final = 4_000
"""How many promises are asked about in one poll: a process may keep a hundred thousand."""

LOOK_SECONDS: Final = 0.05
"""Pause between two looks while another process posts the last of what is spooled."""

TROUBLE_SECONDS: Final = 1.0
"""Pause after the file could not be used; a random part of it is added."""

EXIT_SECONDS: Final = 3.0
"""How long a process that ends goes on emptying the spool, while it succeeds."""


class Relay:
    """Posts what is spooled, as soon as permits allow.

    Args:
        spool: What waits.
        commit: Posts.
        clock: Time and waiting.
    """

    def __init__(self, spool: Spool, commit: GroupCommit, *, clock: Clock | None = None) -> None:
        self._spool = spool
        self._commit = commit
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget the thread, which is the parent's; this process's starts when it spools."""
        self._lock = self._clock.lock()  # guards _thread
        self._thread: threading.Thread | None = None
        self._news = Flag(self._clock)  # something was spooled
        self._end = Flag(self._clock)  # the process ends
        self._over = False
        self._elected = False
        # By the message's place, the oldest first; and in the order in which they are asked about.
        self._promises: OrderedDict[Place, weakref.ref[_Delivery]] = OrderedDict()
        self._asked: deque[Place] = deque()
        self._promises_at = 0.0
        self._swept_at = 0.0
        self._took_over = False
        self._once = Once()

    @property
    def path(self) -> Path:
        """The spool's file.

        Raises:
            SpoolUnavailable: There is no place for one.
        """
        return self._spool.path

    def promise(self, places: Sequence[Place]) -> promise:
        """Return a promise that is fulfilled when the messages have left the spool.

        It is rejected with the reason if one of them is refused.  It resolves only while somebody
        holds a reference to it.
        """
        made = _Delivery(len(places))
        kept = weakref.ref(made)
        for place in places:
            self._promises[place] = kept
            self._asked.append(place)
        if places:
            self.notify()
        else:
            made()
        return made

    def notify(self) -> None:
        """Something was spooled: start, or go on, emptying the spool in this process's thread."""
        self._news.set()
        thread = self._thread
        if thread is None or not thread.is_alive():
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name="cfqueues-relay", daemon=True)
        with self._lock:
            if self._thread is not None and self._thread.ident and self._thread.is_alive():
                return
            self._thread = thread
        try:
            # Not under the lock.  To start a thread under gevent is to switch to another greenlet,
            # and where gevent came after this module (gunicorn --preload), the lock would stop all.
            thread.start()
        except RuntimeError:
            # The interpreter is ending, and starts no threads any more.  What is on the disk is
            # for the next process, as is all that this one does not get done.
            logger.debug("no thread empties the spool: the interpreter is ending")
            self._thread = None
            return
        atexit.register(_finish, weakref.ref(self))

    def run(self, stop: threading.Event, *, idle_seconds: float) -> None:
        """Empty the spool in this thread, until *stop*.

        Args:
            stop: Looked at between requests.
            idle_seconds: How often is looked for something to do.
        """
        while not stop.is_set():
            pause = self._step_safely()
            stop.wait(idle_seconds if pause is None else pause)
        self._stand_down()

    def finish(self, seconds: float) -> None:
        """Go on for at most *seconds*, while there is something to post and it succeeds."""
        end = self._clock.monotonic() + seconds
        with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):  # the next process posts
            while (
                self._elected
                and self._commit.sender.pause is None
                and self._clock.monotonic() < end
                and self._spool.has_backlog()
            ):
                self._clock.sleep(0.02)
        self._over = True
        self._end.set()
        self._news.set()

    def _serve(self) -> None:
        while not self._over:
            pause = self._step_safely()
            if pause is None:
                self._news.wait(IDLE_SECONDS)
            elif pause > 0:
                self._end.wait(pause)

    def _step_safely(self) -> float | None:
        """Do one step; a failure is reported once, and never ends the thread."""
        try:
            return self._step()
        except (SpoolUnavailable, SpoolFull, RoomBusy) as error:
            if self._once.is_new(str(error)):
                logger.error("the spool cannot be emptied now: %s", error)
        except Exception:  # a bug, ours or of a callable of the application's
            logger.exception("emptying the spool failed")
        self._stand_down()
        return TROUBLE_SECONDS * (1 + rng.random())

    def _step(self) -> float | None:
        """Post once, if it is time; return after how many seconds to go on, or None: no need."""
        if not self._took_over:
            self._spool.take_over()
            self._took_over = True
        self._commit.catch_up()
        self._keep_promises()
        if not self._spool.has_backlog():
            while self._elected and self._spool.shrink():
                pass
            self._stand_down()
            return PROMISE_SECONDS if self._promises else None
        now = self._clock.monotonic()
        pause = self._commit.sender.pause
        if pause is not None and now < pause.until:
            self._stand_down()  # the trouble may be this process's alone: let another try
            return min(pause.until - now, STANDBY_SECONDS)
        if now - self._swept_at > SWEEP_SECONDS:
            self._swept_at = now
            self._spool.sweep()
        self._elected = self._spool.elect()
        if not self._elected:
            return rng.uniform(STANDBY_SECONDS / 2, STANDBY_SECONDS)
        wait = self._commit.post_backlog()
        if wait is None:
            return 0.0
        if wait.until is None:
            return LOOK_SECONDS  # another process is posting the last of it
        return max(0.001, min(wait.until - self._clock.monotonic(), SWEEP_SECONDS))

    def _stand_down(self) -> None:
        if self._elected:
            self._elected = False
            with contextlib.suppress(SpoolUnavailable, SpoolFull, RoomBusy):  # its silence tells
                self._spool.resign()

    # -- promises -----------------------------------------------------------------------------

    def _keep_promises(self) -> None:
        """Ask what became of messages, the oldest first, and of some of the others in turn."""
        now = self._clock.monotonic()
        if not self._promises or now - self._promises_at < PROMISE_SECONDS:
            return
        self._promises_at = now
        for _ in range(MOST_PROMISES // PROMISES):
            if not self._ask(self._oldest()):
                break
        some = [self._asked.popleft() for _ in range(min(PROMISES, len(self._asked)))]
        self._ask(some)
        self._asked.extend(place for place in some if place in self._promises)

    def _oldest(self) -> list[Place]:
        while True:
            with contextlib.suppress(RuntimeError):  # another thread has just spooled something
                return list(islice(self._promises, PROMISES))

    def _ask(self, places: Sequence[Place]) -> bool:
        """Keep the promises of those that have left; return whether any is off the list."""
        waiting = []
        for place in places:
            kept = self._promises.get(place)
            if kept is not None and kept() is not None:
                waiting.append(place)
            else:
                self._promises.pop(place, None)
        left = self._spool.left(waiting) if waiting else {}
        for place, error in left.items():
            kept = self._promises.pop(place, None)
            made = None if kept is None else kept()
            if made is not None:
                made.settle(error)
        return bool(left) or len(waiting) < len(places)


class _Delivery(promise):
    """Fulfilled by the last of its messages, rejected by the first that is refused."""

    def __init__(self, messages: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = messages

    def settle(self, error: Any) -> None:
        self._left -= 1
        if error is not None and not self.failed:
            # Not raised here: this thread is not its publisher's.
            self.throw(error, propagate=False)  # type: ignore[no-untyped-call]
        elif self._left == 0 and not self.failed:
            self()


def _finish(relay: weakref.ref[Relay]) -> None:
    found = relay()
    if found is not None:
        found.finish(EXIT_SECONDS)
