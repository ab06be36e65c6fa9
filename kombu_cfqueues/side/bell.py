"""The doorbell beyond this machine: bells over the control broker (``doorbell="everywhere"``).

A bell is a hint that a queue has messages, as in `consume.doorbell`.  It is one small message, for
which nobody waits.  While the owner thread is busy, the bells for a queue become one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ..runtime.fork import renew_in_child
from ..runtime.rng import new_id
from .broker import ControlBroker
from .port import Arrived, Port

EXCHANGE: Final = "cfqueues.bells"
"""The fanout exchange of the bells of all queues, of all accounts."""

QUEUE_EXPIRES_MS: Final = 60_000
"""RabbitMQ deletes the queue of a process that is gone after this time."""


class ControlBell:
    """Rings everywhere, and hears the bells for this process.

    Args:
        control: The control broker.
    """

    def __init__(self, control: ControlBroker) -> None:
        self._control = control
        self.renew_after_fork()
        renew_in_child(self)

    def renew_after_fork(self) -> None:
        """Forget the parent's port, which hears bells for the parent."""
        self._port: Port | None = None

    def ring(self, key: str) -> None:
        """Ring for a queue.  Neither blocks nor raises."""
        self._declare()
        self._control.send_latest(EXCHANGE, key, _message(key))

    def listen(self, on_ring: Callable[[str], None], on_gap: Callable[[], None]) -> None:
        """Hear bells from now on.  Blocks for a second at most.

        Args:
            on_ring: Called with the key of each bell, in the owner thread; must not block.
            on_gap: Called in the same way when bells may have been missed: after each reconnect,
                and once if listening has begun only after this method returned.
        """
        if self._port is not None:
            return
        returned = False

        def consuming() -> None:
            if returned:
                on_gap()

        def deliver(arrived: Arrived) -> None:
            port.taken()
            body = arrived.payload["body"]
            on_ring(body.decode("ascii", "replace") if isinstance(body, bytes) else str(body))

        self._port = port = self._control.open_port(deliver)
        self._declare()
        queue = f"{EXCHANGE}.{new_id()}"
        arguments: dict[str, Any] = {"x-expires": QUEUE_EXPIRES_MS}
        port.declare(queue, {"durable": False, "auto_delete": True, "arguments": arguments})
        port.bind(queue, EXCHANGE, "", None)
        port.consume(queue, new_id(), no_ack=True)
        port.when_consuming(consuming)
        self._control.await_steps()  # the pull that follows finds what was published before
        returned = True

    def _declare(self) -> None:
        self._control.declare_exchange(
            EXCHANGE, "fanout", durable=False, auto_delete=False, arguments=None
        )


def _message(key: str) -> dict[str, Any]:
    return {
        "body": key,
        "content-type": "text/plain",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {"delivery_mode": 1},
    }
