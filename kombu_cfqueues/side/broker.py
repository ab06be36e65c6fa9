"""The control broker, as the threads of an application use it: its own thread does the work."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ..runtime.fork import notice_fork
from .link import Link
from .outbox import Publication
from .owner_thread import OwnerThread, Work
from .port import Arrived, Port, Step
from .request import Request, unavailable

CONTROL_REQUEST_SECONDS: Final = 2.0
"""How long a request waits for the control broker if its caller gives no timeout."""

STEPS_SECONDS: Final = 1.0
"""How long a new consumer waits until the control broker knows it, so that a worker that reports
ready can be controlled.  If this takes longer, the consumer starts anyway."""

EXISTS_SECONDS: Final = 60.0
"""How long it is remembered that an exchange exists at the control broker."""


class ControlBroker(OwnerThread):
    """What this process has at one control broker."""

    def renew_after_fork(self) -> None:
        """See `OwnerThread.renew_after_fork`."""
        super().renew_after_fork()
        self._exists_until: dict[str, float] = {}  # exchanges; monotonic seconds

    def open_port(self, deliver: Callable[[Arrived], None]) -> Port:
        """Return a port for one of our channels; close it when the channel is closed."""
        notice_fork()
        port = Port(self, deliver)
        weakref.finalize(port, self._lose, port.cell).atexit = False
        return port

    def declare_exchange(self, exchange: str, kind: str, **given: Any) -> None:
        """Record an exchange.  This does not connect."""
        notice_fork()
        with self.lock:
            is_new = self._exchanges.get(exchange) != (kind, given)
            self._exchanges[exchange] = kind, given
            if is_new and self._link is not None:
                what = f"declare exchange {exchange!r}"
                self._todo.append(Request(partial(self._declare, exchange), what))
                self._ring()

    def delete_exchange(self, exchange: str) -> None:
        """Forget an exchange; other processes may still use it."""
        with self.lock:
            self._exchanges.pop(exchange, None)

    def do(self, port: Port, step: Step, *, connects: bool) -> None:
        """See `Owner`."""
        notice_fork()
        if connects:
            self._ports.add(port)
            self._start()
        if self._link is not None:
            self._todo.append(Work(port, step))
            self._ring()

    def send(self, message: Any, exchange: str, routing_key: str) -> None:
        """Publish an event or a reply later, or drop it.  Neither blocks nor raises."""
        notice_fork()
        with self.lock:
            self._outbox.put(Publication(message, exchange, routing_key))
            self._start()
            self._ring()

    def send_latest(self, exchange: str, key: str, message: Any) -> None:
        """Publish *message* later, or drop it; it replaces one that waits for the same *key*."""
        notice_fork()
        with self.lock:
            self._outbox.put_latest(key, Publication(message, exchange, ""))
            self._start()
            self._ring()

    def publish(self, message: Any, exchange: str, routing_key: str, seconds: float | None) -> None:
        """Publish a message; block until the control broker has it.

        Args:
            message: Kombu's dictionary.
            exchange: Name of the exchange.
            routing_key: The routing key.
            seconds: Maximum time; None means `CONTROL_REQUEST_SECONDS`.

        Raises:
            ControlUnavailable: The message may have been delivered: see the error's ``delivered``.
            MessageTooLarge, HubRefused: See `ask`.
        """

        def act(link: Link) -> None:
            link.publish(message, exchange, routing_key, confirm=True)

        self.ask(act, f"the message to exchange {exchange!r}", seconds)

    def has_exchange(self, exchange: str, seconds: float | None = None) -> bool:
        """Whether the exchange exists at the control broker.

        Raises:
            ControlUnavailable: The control broker does not answer within *seconds*.
        """
        if time.monotonic() < self._exists_until.get(exchange, 0.0):
            return True
        what = f"the question whether exchange {exchange!r} exists"
        exists = bool(self.ask(lambda link: link.has_exchange(exchange), what, seconds))
        if exists:
            self._exists_until[exchange] = time.monotonic() + EXISTS_SECONDS
        return exists

    def ask(
        self,
        act: Callable[[Link], Any],
        what: str,
        seconds: float | None = None,
        *,
        port: Port | None = None,
    ) -> Any:
        """Have the owner thread do *act*, and return its result.

        Args:
            act: What to do; it is not repeated.
            what: Its description, for the error.
            seconds: Maximum time; None means `CONTROL_REQUEST_SECONDS`.
            port: The port whose channel *act* uses, if it uses one.

        Raises:
            ControlUnavailable, MessageTooLarge, HubRefused: It was not done in time, or it failed.
        """
        notice_fork()
        seconds = CONTROL_REQUEST_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        request = Request(act)
        with self.lock:
            if port is not None:
                self._ports.add(port)
            self._todo.append(request)
            self._start()
            self._ring()
        request.wait(deadline)
        with self.lock:
            request.is_withdrawn = True
            unsure = request.is_begun
        if request.error is None and request.is_done:
            return request.result
        raise unavailable(what, seconds, request.error, self._failure, unsure=unsure)

    def await_steps(self) -> None:
        """Wait until all that was handed over is done, for `STEPS_SECONDS` at most.

        Does not wait while the control broker is known not to work.
        """
        request = Request(lambda _: None)
        with self.lock:
            if self._failure:
                return
            self._todo.append(request)
            self._start()
            self._ring()
        request.wait(time.monotonic() + STEPS_SECONDS)
        with self.lock:
            request.is_withdrawn = True

    def _lose(self, cell: list[Any]) -> None:
        """Close the channel of a port that was garbage-collected.  Takes no lock."""
        self._lost.append(cell)
        self._ring()
