"""Empties the spool: a daemon thread of each process that spools, or ``cfqueues relay``.

One process at a time does it, elected in the file; that spares the file, and nothing depends on
it, since permits and claims keep apart whoever posts.  The others look now and then whether they
are needed.  A process that has nothing to wait for does nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vine import promise

from ..errors import SpoolFull, SpoolUnavailable
from ..runtime.clock import Clock
from ..runtime.fork import notice_fork, renew_in_child
from ..runtime.rng import rng
from ..runtime.threads import threads_can_run
from .carrier import Carrier
from .claims import Claims
from .file import File
from .intake import Intake
from .turns import Wait

logger = logging.getLogger(__name__)

STANDBY_SECONDS: Final = 0.5
"""How often one that is not elected looks whether it is needed."""

SWEEP_SECONDS: Final = 0.5
"""How often is looked whether those who post are alive."""

PROMISE_SECONDS: Final = 0.25
"""How often is looked what became of messages whose publisher has kept the promise."""

LOOK_SECONDS: Final = 0.05
"""How often is looked again while another process posts the last of what is spooled."""

EXIT_SECONDS: Final = 3.0
"""How long a process that ends goes on emptying the spool, while it succeeds."""


class Relay:
    """Posts what is spooled, as soon as permits allow.

    Args:
        file: The spool.
        intake: What waits.
        claims: Is swept now and then.
        carrier: Posts.
        clock: Time and waiting.
    """

    def __init__(
        self,
        file: File,
        intake: Intake,
        claims: Claims,
        carrier: Carrier,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._file = file
        self._intake = intake
        self._claims = claims
        self._carrier = carrier
        self._clock = clock or Clock()
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget the thread, which is the parent's; this process's starts when it spools."""
        self._lock = self._clock.lock()  # guards _thread
        self._thread: threading.Thread | None = None
        self._news = threading.Event()
        self._over = threading.Event()
        self._elected = False
        self._promises: weakref.WeakValueDictionary[int, promise] = weakref.WeakValueDictionary()
        self._promises_at = 0.0
        self._swept_at = 0.0
        self._took_over = False
        self._reported = ""

    @property
    def path(self) -> Path:
        """The spool's file.

        Raises:
            SpoolUnavailable: There is no place for one.
        """
        return self._file.path

    def promise(self, rows: Sequence[int]) -> promise:
        """Return a promise that is fulfilled when the messages have left the spool.

        It is rejected with the reason if one of them is refused.  It is worked for only as long as
        somebody keeps it.
        """
        made = _Delivery(len(rows))
        for row in rows:
            self._promises[row] = made
        if rows:
            self.notify()
        else:
            made()
        return made

    def notify(self) -> None:
        """Something was spooled: start, or go on, emptying the spool in this process's thread."""
        self._news.set()
        # Where no thread can run, other processes and `cfqueues relay` deliver the message.
        if self._thread is None and threads_can_run():
            self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._serve, name="cfqueues-relay", daemon=True)
        with self._lock:
            if self._thread is not None:
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
        """Go on for at most so long, while there is something to post and it succeeds."""
        end = self._clock.monotonic() + seconds
        with contextlib.suppress(SpoolUnavailable, SpoolFull):  # it waits for the next process
            while (
                self._elected
                and self._carrier.trouble is None
                and self._clock.monotonic() < end
                and self._intake.has_backlog()
            ):
                self._clock.sleep(0.02)
        self._over.set()
        self._news.set()

    def _serve(self) -> None:
        while not self._over.is_set():
            self._news.clear()
            pause = self._step_safely()
            if pause is None:
                self._news.wait()  # nothing is waiting: no work, and no look at the file
            elif pause > 0:
                self._over.wait(pause)

    def _step_safely(self) -> float | None:
        """Do one step; a failure is reported once, and never ends the thread."""
        try:
            return self._step()
        except (SpoolUnavailable, SpoolFull) as error:
            if str(error) != self._reported:
                logger.error("the spool cannot be emptied now: %s", error)
                self._reported = str(error)
        except Exception:  # a bug, ours or of a callable of the application's
            logger.exception("emptying the spool failed")
        self._stand_down()
        return 1.0 + rng.random()

    def _step(self) -> float | None:
        """Post once, if it is time; return after how many seconds to go on, or None: no need."""
        if not self._took_over:
            self._intake.take_over()
            self._took_over = True
        self._keep_promises()
        if not self._intake.has_backlog():
            while self._elected and self._file.shrink():
                pass
            self._stand_down()
            return PROMISE_SECONDS if self._promises else None
        now = self._clock.monotonic()
        if now < self._carrier.resume_at:
            self._stand_down()  # the trouble may be this process's alone: let another try
            return min(self._carrier.resume_at - now, STANDBY_SECONDS)
        if now - self._swept_at > SWEEP_SECONDS:
            self._swept_at = now
            self._claims.sweep()
        self._elected = self._claims.elect()
        if not self._elected:
            return rng.uniform(STANDBY_SECONDS / 2, STANDBY_SECONDS)
        claim = self._carrier.claim(spooled=True)
        if isinstance(claim, Wait):
            if claim.until is None:
                return LOOK_SECONDS  # another process is posting the last of it
            return max(0.001, min(claim.until - self._clock.monotonic(), SWEEP_SECONDS))
        self._carrier.carry(claim)
        return 0.0

    def _stand_down(self) -> None:
        if self._elected:
            self._elected = False
            with contextlib.suppress(SpoolUnavailable, SpoolFull):  # then its silence tells
                self._claims.stand_down()

    def _keep_promises(self) -> None:
        now = self._clock.monotonic()
        if not self._promises or now - self._promises_at < PROMISE_SECONDS:
            return
        self._promises_at = now
        for row, error in self._intake.fates(list(self._promises)).items():
            kept = self._promises.pop(row, None)
            if isinstance(kept, _Delivery):
                kept.settle(error)


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
    notice_fork()
    found = relay()
    if found is not None:
        found.finish(EXIT_SECONDS)
