"""The thread that owns the connection to a control broker.

Only this thread uses the connection, because client libraries hang or mix up answers if several
threads do.  It starts when the process first uses the control broker, connects, does what other
threads hand over, and reconnects after each failure, forever.  Nothing that a worker does waits
for it.
"""

from __future__ import annotations

import _thread
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from ..options import ControlUrl
from ..retry import Backoff
from ..runtime.exits import call_at_exit
from ..runtime.flag import Event
from ..runtime.fork import notice_fork, renew_in_child
from ..runtime.locks import new_reentrant_lock
from .link import Link
from .outbox import Outbox, Publication
from .port import Port, Step
from .request import Request, reason
from .waker import Waker

logger = logging.getLogger(__name__)

RECONNECT_BACKOFF: Final = Backoff(first_seconds=0.2, longest_seconds=1.0)
"""Pauses between attempts to connect.  Short, because remote control should work again within
seconds, and an attempt costs only one connection."""

CONTROL_PROBE_SECONDS: Final = 5.0
"""How often the connection is tested.  Only a test shows that a silent broker is gone."""

STALE_SECONDS: Final = 1.0
"""Before a request, a connection that was not used for this long is tested.  A request that failed
is not repeated, because the broker may have it."""

FULL_SECONDS: Final = 0.1
"""Poll interval of the owner thread while too many messages wait for the application."""

CONTROL_EXIT_SECONDS: Final = 1.0
"""How long the end of a process waits for its last events and replies to be sent."""


class Work(NamedTuple):
    """What the owner thread is to do for a port."""

    port: Port
    step: Step


class OwnerThread:
    """The thread, what is handed to it, and what it declares at each connect.

    Args:
        url: URL of the control broker, or a callable that returns it at each connect.

    Attributes:
        lock: Guards all fields, and the records of the ports; never held while anything blocks.
            Reentrant, because a signal handler may interrupt its holder.
    """

    def __init__(self, url: ControlUrl) -> None:
        self._url = url
        self._exchanges: dict[str, tuple[str, dict[str, Any]]] = {}
        self._link: Link | None = None
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Leave the connection and what waits to the parent; keep the exchanges."""
        link, self._link = self._link, None
        if link is not None:
            link.abandon()
        self.lock = new_reentrant_lock()
        self._ports: weakref.WeakSet[Port] = weakref.WeakSet()
        self._todo: deque[Work | Request] = deque()  # in the order in which they were handed over
        self._outbox = Outbox()
        self._lost: deque[list[Any]] = deque()  # channels of ports that were garbage-collected
        self._waker: Waker | None = None  # None without a thread
        self._has_ended = Event()
        self._ends = self._ends_at_exit = False
        self._failure = ""  # of the last attempt to connect, or of the connection
        self._tries = 0
        self._used_at = 0.0

    def _start(self) -> None:
        """Start the thread unless it runs.  The caller holds the lock."""
        if self._waker is not None or self._ends:
            return
        self._waker = waker = Waker()
        self._has_ended = Event()
        # Not `threading.Thread`: under gevent and eventlet, starting one switches to another
        # greenlet, and that one may wait for the lock.
        try:
            _thread.start_new_thread(self._serve, (waker,))
        except RuntimeError as error:
            logger.warning("no thread can be started for the control broker: %s", error)
            self._waker = None
            waker.close()
            return
        if not self._ends_at_exit:
            self._ends_at_exit = True
            call_at_exit(partial(_finish, weakref.ref(self)))

    def _ring(self) -> None:
        """Wake the thread."""
        waker = self._waker
        if waker is not None:
            waker.ring()

    def finish(self) -> None:
        """Send what waits and close the connection, for `CONTROL_EXIT_SECONDS` at most."""
        notice_fork()
        if self._waker is None:
            return
        with self.lock:
            self._ends = True
            self._ring()
        self._has_ended.wait(CONTROL_EXIT_SECONDS)

    # -- in the thread

    def _serve(self, waker: Waker) -> None:
        try:
            self._reconnect(waker)
        finally:
            # However it ends: if its greenlet was killed, the next use starts another thread.
            if self._waker is waker:
                self._link = None
                self._has_ended.set()
                self._waker = None
                waker.close()

    def _reconnect(self, waker: Waker) -> None:
        """Connect and work until the process ends."""
        backoff = RECONNECT_BACKOFF
        while self._waker is waker:  # else this is a greenlet of the parent, in a forked child
            try:
                self._connect_and_work(waker)
                return
            # Kombu's transports and their libraries have errors of their own.
            except Exception as error:  # noqa: BLE001
                if self._waker is not waker:
                    return
                failed_at_once = self._link is None
                self._broken(error)
                if self._ends:
                    return
                backoff = (backoff if failed_at_once else RECONNECT_BACKOFF).after_failure()
            time.sleep(backoff.pause_seconds(least=0.5))

    def _connect_and_work(self, waker: Waker) -> None:
        """Work with a new connection until the process ends, or until the connection fails."""
        number, self._tries = self._tries, self._tries + 1
        link = Link(_current(self._url), number)
        try:
            self._replay(link)
            self._work_with(link, waker)
        except BaseException:
            link.drop()
            raise
        link.close()

    def _replay(self, link: Link) -> None:
        """Declare what is recorded, on new channels."""
        with self.lock:
            self._link = link
            requests = [one for one in self._todo if isinstance(one, Request)]
            self._todo = deque(requests)  # the rest is on the record
            exchanges = list(self._exchanges)
            ports = list(self._ports)
            for port in ports:
                port.channel = None
        self._recovered(link)
        for exchange in exchanges:
            self._attempt(link, partial(self._declare, exchange), f"declare exchange {exchange!r}")
        for port in ports:
            self._apply(link, port)

    def _work_with(self, link: Link, waker: Waker) -> None:
        probe_at = time.monotonic() + CONTROL_PROBE_SECONDS
        while self._waker is waker:
            while self._work_once(link):
                pass
            if self._ends:
                return
            if time.monotonic() >= probe_at:
                probe_at = time.monotonic() + CONTROL_PROBE_SECONDS
                link.probe()
                self._used_at = time.monotonic()
            seconds = max(0.0, probe_at - time.monotonic())
            self._wait(link, waker, seconds)

    def _wait(self, link: Link, waker: Waker, seconds: float) -> None:
        if any(port.is_full for port in list(self._ports)):
            time.sleep(FULL_SECONDS)
            return
        rings, has_more = link.wait(waker.file, seconds)
        if rings:
            waker.clear()
        if has_more:
            link.drain()

    def _work_once(self, link: Link) -> bool:
        """Do one thing that waits; return whether there was one."""
        with self.lock:
            lost = self._lost.popleft() if self._lost else None
            todo = self._todo.popleft() if self._todo else None
            sent = self._outbox.take() if todo is None else []
        if lost:
            self._attempt(link, lambda _: lost[0].close(), "close a channel")
        if isinstance(todo, Work):
            self._take_step(link, todo)
        elif todo is not None:
            self._answer(link, todo)
        elif sent:
            self._attempt(link, partial(self._send, sent), "publish events and replies")
        else:
            return lost is not None
        return True

    def _send(self, sent: list[Publication], link: Link) -> None:
        with link.one_request():
            for one in sent:
                what = f"publish to exchange {one.exchange!r}"
                self._attempt(link, partial(_publish, one), what)

    def _answer(self, link: Link, request: Request) -> None:
        if time.monotonic() - self._used_at > STALE_SECONDS:
            # Before the request begins: if this fails, the next connection takes the request.
            try:
                link.probe()
            except Exception:
                with self.lock:
                    self._todo.appendleft(request)
                raise
        with self.lock:
            if request.is_withdrawn:
                return
            request.is_begun = True
        self._attempt(link, request.perform, request.what)

    def _apply(self, link: Link, port: Port) -> None:
        """Do all that a port has on its record, on a new channel."""
        with self.lock:
            steps = list(port.record.values())
            # Steps that still wait would be done twice, or undo what the record says now.
            self._todo = deque(one for one in self._todo if not _is_recorded(one, port))
        if not all(self._is_done(link, port, step) for step in steps):
            self._apply(link, port)  # with at least one step less

    def _take_step(self, link: Link, work: Work) -> None:
        if not self._is_done(link, *work):
            self._apply(link, work.port)

    def _is_done(self, link: Link, port: Port, step: Step) -> bool:
        """Do a step for a port; if the broker refuses it, log that and take it off the record.

        Returns:
            False if all other steps must be done anew, because RabbitMQ has closed the channel.
        """
        if port.channel is None:
            if port.is_closed:
                return True
            port.channel = link.channel()
        refusal = self._attempt(link, lambda link: step.act(link, port.channel), step.what)
        if refusal is None:
            return True
        with self.lock:
            for key in [key for key, one in port.record.items() if one is step]:
                del port.record[key]
        if not link.closes_channel(refusal):
            return True
        channel, port.channel = port.channel, None
        self._attempt(link, lambda _: channel.close(), "close a channel")
        return False

    def _attempt(self, link: Link, act: Callable[[Link], Any], what: str) -> Exception | None:
        """Do *act*; return the error if the broker refused it.

        Raises:
            Exception: The connection has failed.
        """
        try:
            act(link)
        # The libraries' own errors: see `Link.is_refusal`.
        except Exception as error:
            if not link.is_refusal(error):
                raise
            if what:
                logger.error("the control broker %s refused to %s: %s", link.shown, what, error)
            return error
        self._used_at = time.monotonic()
        return None

    def _declare(self, exchange: str, link: Link) -> None:
        declared = self._exchanges.get(exchange)
        if declared is not None:
            link.declare_exchange(exchange, declared[0], **declared[1])

    def _recovered(self, link: Link) -> None:
        if self._failure:
            logger.warning("the control broker %s works again", link.shown)
        self._failure = ""

    def _broken(self, error: Exception) -> None:
        with self.lock:
            self._link = None
            if not self._failure:
                logger.warning(
                    "the control broker (control_url) does not work: %s; remote control, events "
                    "and broadcasts wait until it does, and tasks are not affected",
                    reason(error),
                )
            self._failure = reason(error)


def _publish(one: Publication, link: Link) -> None:
    link.publish(*one, confirm=False)


def _is_recorded(work: Work | Request, port: Port) -> bool:
    """Whether *work* is for *port* and about what is on its record."""
    if isinstance(work, Request) or work.port is not port:
        return False
    return bool(work.step.keys) and all(key in port.record for key in work.step.keys)


def _current(url: ControlUrl) -> str:
    return str(url() if callable(url) else url)


def _finish(reference: weakref.ref[OwnerThread]) -> None:
    notice_fork()
    thread = reference()
    if thread is not None:
        thread.finish()
