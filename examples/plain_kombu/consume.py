"""Print orders as they come, until Ctrl-C."""

from kombu import Connection, Consumer, Queue
from kombu.message import Message
from kombu.mixins import ConsumerMixin

import kombu_cfqueues  # noqa: F401  makes cfqueues:// known to Kombu


class Orders(ConsumerMixin):
    """Consumes the queue ``orders``, and connects again by itself."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def get_consumers(self, consumer: type[Consumer], channel: object) -> list[Consumer]:
        """Return what to consume: at most 100 orders are pulled ahead."""
        return [consumer([Queue("orders")], callbacks=[self.on_order], prefetch_count=100)]

    def on_order(self, body: dict[str, str], message: Message) -> None:
        """Handle an order.  What is not acknowledged comes again."""
        print("order:", body["item"], flush=True)
        message.ack()


if __name__ == "__main__":
    with Connection("cfqueues://") as connection:
        try:
            Orders(connection).run()
        except KeyboardInterrupt:
            print("stopped")
