"""Delivers messages through an event loop of Kombu's: a Celery worker's, or an application's own.

The loop reads a pipe of ours.  The pipe is readable while a message may be delivered or a failure
is to be raised, and at no other time, so a worker whose window is full costs nothing.  Everything
here runs in the loop's only thread and waits for nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Callable
from typing import Any

from vine import Thenable, promise

from ..consume.inbox import Arrival, Call, Inbox
from .message import Message

logger = logging.getLogger(__name__)


class EventLoopReader:
    """Has a loop deliver what arrives in an inbox, until `close`.

    Args:
        hub: The loop: a ``kombu.asynchronous.Hub``.
        inbox: Where messages arrive.
        deliver: Called in the loop's thread with each message.
    """

    def __init__(self, hub: Any, inbox: Inbox, deliver: Callable[[Arrival | Call], None]) -> None:
        self._hub = hub
        self._inbox = inbox
        self._deliver = deliver
        self._pid = os.getpid()
        self._rung = False
        self._pipe, self._pipe_end = os.pipe()
        os.set_blocking(self._pipe, False)
        os.set_blocking(self._pipe_end, False)
        self._close_pipe = weakref.finalize(
            self, _close_files, self._pid, self._pipe, self._pipe_end
        )
        self._close_pipe.atexit = False
        _settle_at_once(hub)
        hub.on_tick.add(self._keep_reading)
        self._keep_reading()
        inbox.watch(self.ring)

    def ring(self) -> None:
        """Let the loop look into the inbox.  Any thread and any signal handler may call it."""
        if not self._rung:
            self._rung = True
            # A pipe that is full is readable, which is all that is wanted.
            with contextlib.suppress(BlockingIOError):
                os.write(self._pipe_end, b"\0")

    def close(self) -> None:
        """Leave the loop.

        In a forked child this does nothing.  The child shares the loop's poller with its parent, so
        removing the pipe from the poller would stop deliveries in the parent.
        """
        if os.getpid() != self._pid or not self._close_pipe.alive:
            return
        self._inbox.watch(None)
        self._hub.on_tick.discard(self._keep_reading)
        if self._pipe in self._hub.readers:
            self._hub.remove_reader(self._pipe)
        self._close_pipe()

    def _keep_reading(self) -> None:
        """Read the pipe, even after the loop was closed.

        Workers that are embedded in one process share a loop, and the first that stops closes it.
        """
        if os.getpid() == self._pid and self._pipe not in self._hub.readers:
            self._hub.add_reader(self._pipe, self._on_readable)

    def _on_readable(self) -> None:
        """Deliver one message.

        Raises:
            CFQueuesError: A queue cannot be pulled any more.
        """
        # Two workers may run the loop in two threads: then the other one has read the pipe.
        with contextlib.suppress(BlockingIOError):
            os.read(self._pipe, 1024)
        self._rung = False
        arrival = self._inbox.take(deadline=0.0)
        if arrival is None:
            return  # the inbox rings when there is something
        # Before the delivery: a solo worker runs the task in it, which may raise.
        self.ring()
        self._deliver(arrival)


def _close_files(owner: int, *files: int) -> None:
    if os.getpid() == owner:
        for file in files:
            os.close(file)


class _CallSoon:
    """A loop's ``call_soon`` that settles our messages at once, in the thread that calls it.

    Celery acknowledges through ``call_soon``.  Its solo pool returns to the loop only after the
    task, and before Kombu 5.7 a thread's call does not wake the loop.  Settling a message only
    queues it, so there is nothing to wait for.

    It stays with the loop: a task that outlives its connection settles its message too.

    Args:
        original: The loop's own method.
    """

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original

    def __call__(self, callback: Any, *args: Any) -> Any:
        """Call *callback* at once if it settles one of our messages; else leave it to the loop."""
        if not _settles(callback):
            return self._original(callback, *args)
        settle = callback if isinstance(callback, Thenable) else promise(callback, args)
        try:
            settle()
        # An exception would end the loop, and with it the worker.
        except Exception as error:  # noqa: BLE001
            logger.error("a message could not be settled and may be redelivered: %r", error)
        return settle


def _settles(callback: Any) -> bool:
    """Whether *callback* is a method of one of our messages."""
    while isinstance(callback, promise):
        callback = callback.fun
    return isinstance(getattr(callback, "__self__", None), Message)


def _settle_at_once(hub: Any) -> None:
    if not isinstance(hub.call_soon, _CallSoon):
        hub.call_soon = _CallSoon(hub.call_soon)
