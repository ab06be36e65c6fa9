"""How a delivery ends: it is acknowledged, given back or dead-lettered."""

from __future__ import annotations

import logging

from ..runtime.once import once
from .acknowledger import Acknowledger
from .dead_letters import Forwarder
from .delivery import Delivery

logger = logging.getLogger(__name__)


class Settlement:
    """Ends deliveries without losing a message.  Every method returns at once.

    Args:
        acknowledger: Settles leases.
        forwarder: Copies messages that a lease cannot bring to their destination.
    """

    def __init__(self, acknowledger: Acknowledger, forwarder: Forwarder) -> None:
        self._acknowledger = acknowledger
        self._forwarder = forwarder

    def ack(self, delivery: Delivery) -> None:
        """Acknowledge a message, so that it is never redelivered."""
        self._acknowledger.ack(delivery)

    def give_back(self, delivery: Delivery, delay: int = 0) -> None:
        """Have a message that the application did not handle redelivered after *delay* seconds.

        If the application's callback failed, this is `requeue`.  Otherwise a copy replaces the
        message if Cloudflare could delete it after one more retry.
        """
        if delivery.failed:
            self.requeue(delivery)
        elif delivery.may_be_retried:
            self._acknowledger.retry(delivery, delay)
        else:
            self._forwarder.replace(delivery, delay)

    def requeue(self, delivery: Delivery) -> None:
        """Have a message redelivered at once because the application asks for it.

        This uses up the retries of the message: after the last one, it goes to its queue's
        dead-letter queue.  Without a dead-letter queue, a copy replaces the message.
        """
        dead_letter_queue = delivery.consumer.dead_letter_queue
        if not dead_letter_queue:
            self.give_back(delivery._replace(failed=False))
        elif not delivery.is_last:
            self._acknowledger.retry(delivery, 0)
        else:
            logger.warning(
                "message %s of queue %r was delivered %s times and requeued, and max_retries is "
                "%d: it is moved to the dead-letter queue %r",
                delivery.raw.get("id"),
                delivery.queue.name,
                delivery.raw.get("attempts"),
                delivery.consumer.max_retries,
                dead_letter_queue,
            )
            self._forwarder.dead_letter(delivery, "delivery_limit")

    def dead_letter(self, delivery: Delivery) -> None:
        """Move a message to its queue's dead-letter queue, or delete it if there is none."""
        if delivery.consumer.dead_letter_queue:
            self._forwarder.dead_letter(delivery, "rejected")
        else:
            _warn_of_deletion(delivery.queue.name)
            self._acknowledger.ack(delivery)


@once  # for each queue
def _warn_of_deletion(queue: str) -> None:
    logger.warning(
        "a rejected message of queue %r was deleted, and so will be the next ones: the queue has "
        "no dead-letter queue (add one with 'cfqueues queues update QUEUE --dead-letter-queue "
        "DEAD', and restart the worker)",
        queue,
    )
