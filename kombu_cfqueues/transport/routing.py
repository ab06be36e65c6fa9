"""The part of a channel that routes: exchanges, bindings, and the queues for a message."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import virtual

from ..errors import ConnectionFailed, InvalidMessage
from ..metrics import metrics
from ..runtime.once import once
from .bindings import Bindings
from .celery_task import (
    CONTROL_HINT,
    asks_for_control,
    is_control_exchange,
    is_control_queue,
    is_event,
)
from .session import Connected, Session

logger = logging.getLogger(__name__)


class RoutingChannel(virtual.Channel):
    """Declares exchanges and bindings, and finds the queues for a message."""

    connection: Connected

    @property
    def session(self) -> Session:
        """What the channels of this connection share.

        Raises:
            ConnectionFailed: The connection was closed, perhaps by another thread.  Kombu then
                connects again.
        """
        if self.connection is None:
            raise ConnectionFailed("the connection of this channel was closed: open another one")
        return self.connection.session

    @property
    def state(self) -> Bindings:
        """The exchanges and bindings, which all connections to the account share."""
        return self.session.bindings

    def exchange_declare(self, *args: Any, **kwargs: Any) -> None:
        """Declare an exchange.  Makes no request.

        Raises:
            NotEquivalentError: The exchange exists with other properties.
        """
        with self.state.lock:
            super().exchange_declare(*args, **kwargs)  # type: ignore[no-untyped-call]

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Forget an exchange and its bindings; its queues stay, as in AMQP.  Makes no request."""
        self.state.delete_exchange(exchange, if_unused=if_unused)

    def queue_bind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", *_: Any, **__: Any
    ) -> None:
        """Bind a queue to an exchange.  Makes no request.

        Raises:
            ChannelError: The exchange was not declared.
        """
        if is_control_queue(queue):
            return  # nothing is routed to it, and each process that inspects workers has its own
        state = self.state
        exchange = exchange or "amq.direct"
        with state.lock:
            if exchange not in state.exchanges:
                raise ChannelError(  # type: ignore[no-untyped-call]
                    f"NOT_FOUND - no exchange {exchange!r} to which queue {queue!r} could be "
                    "bound: declare it first",
                    (50, 20),
                    "Channel.queue_bind",
                    "404",
                )
            super().queue_bind(queue, exchange, routing_key)  # type: ignore[no-untyped-call]

    def queue_unbind(
        self, queue: str, exchange: str | None = None, routing_key: str = "", *_: Any, **__: Any
    ) -> None:
        """Forget a binding, if it exists.  Makes no request."""
        self.state.unbind(queue, exchange or "amq.direct", routing_key)

    def get_table(self, exchange: str) -> list[Any]:
        """Return a copy of the routing table of *exchange*: (routing key, pattern, queue)."""
        return self.state.table(exchange)

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """Return each binding as (queue, exchange, routing key)."""
        return iter(
            [(key.queue, key.exchange, key.routing_key) for key in list(self.state.bindings)]
        )

    def route(
        self, message: Mapping[str, Any], exchange: str, routing_key: str, *, mandatory: bool
    ) -> list[str]:
        """Return the queues for a message; none if it may, or must, be dropped.

        Args:
            message: Kombu's dictionary.
            exchange: Name of the exchange; if it is ``""``, *routing_key* is the queue.
            routing_key: The routing key.
            mandatory: Raise even where the option ``unroutable`` is ``"drop"``.

        Raises:
            InvalidMessage: No queue is bound for the message.
        """
        queues = [queue for queue in self._lookup(exchange, routing_key) if queue]  # type: ignore[no-untyped-call]
        if queues:
            return queues
        declared = self.state.exchanges.get(exchange) or {}
        kind = declared.get("type")
        # The setting `event_exchange` can rename the exchange `celeryev`.
        is_control = is_control_exchange(exchange) or (kind == "topic" and is_event(message))
        if is_control and asks_for_control(exchange, routing_key):
            warn_once(CONTROL_HINT)
        if is_control_exchange(exchange):
            return []  # without fanout no process can receive it
        # A fanout exchange ignores routing keys, of which there may be any number.
        text = _unroutable(exchange, None if kind == "fanout" else routing_key)
        if mandatory:
            raise InvalidMessage(text)
        if kind == "fanout":
            warn_once(text)
        elif is_control:
            pass
        elif self.session.options.unroutable == "raise":
            raise InvalidMessage(text)
        else:
            metrics.unroutable()
        return []


def _unroutable(exchange: str, routing_key: str | None) -> str:
    if not exchange:
        return (
            "the message has neither an exchange nor a routing key, so no queue gets it: publish "
            "it with the queue's name as routing key"
        )
    key = "" if routing_key is None else f" with routing key {routing_key!r}"
    return (
        f"no queue is bound to exchange {exchange!r}{key} in this process, so the message reaches "
        "no queue: declare the queue in the publishing process, or publish without an exchange and "
        "with the queue's name as routing key"
    )


@once
def warn_once(text: str) -> None:
    """Log a warning once in the life of the process."""
    logger.warning("%s", text)
