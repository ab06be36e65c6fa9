"""Finds and creates the consumers that let queues be pulled over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .. import limits
from ..errors import PermanentError, PullNotEnabled
from ..options import Options
from ..runtime.recent import Recent
from .client import Client
from .models import PullConsumer, Queue
from .queue_names import QueueNames

logger = logging.getLogger(__name__)

CONSUMER_EXISTS: Final = 11004
"""Cloudflare's code for "the queue has a consumer already"."""

FEW_RETRIES: Final = 10
"""A consumer that allows fewer deliveries causes a warning: each worker that ends or is killed
while it has the message uses one of them."""


class PullConsumers:
    """The pull consumers of one account's queues, as far as this process knows them.

    Args:
        client: Makes the requests.
        names: Translates the names of dead-letter queues.
    """

    def __init__(self, client: Client, names: QueueNames) -> None:
        self._client = client
        self._names = names
        # By queue id.  None if the queue could not be pulled: then the consumer that came with its
        # look-up is outdated.
        self._known: Recent[str, PullConsumer | None] = Recent()

    def enable(self, queue: Queue, options: Options, *, deadline: float) -> PullConsumer:
        """Return the queue's pull consumer, and create it if it is missing.

        Blocks for at most three requests; once they have succeeded, for none.

        Args:
            queue: The queue.
            options: ``consumer_max_retries``, ``dead_letter_queue``, ``queue_name_prefix`` and
                ``visibility_timeout`` are used.
            deadline: When to give up, in seconds of `time.monotonic`.

        Raises:
            PullNotEnabled: A Worker consumes the queue, and a queue has one kind of consumer.
            CFQueuesError: What a request raised.
        """
        known = self._known.get(queue.id)
        if known is not None:
            return known
        # The look-up of a queue usually returns its consumers.  Otherwise an application with fifty
        # queues would use fifty requests, the allowance of a quarter of a minute, for them.
        outdated = queue.id in self._known
        consumer = None if outdated else PullConsumer.from_json(queue.consumers)
        if consumer is None:
            consumer = self._listed(queue, deadline)
        if consumer is None:
            consumer = self._create(queue, options, deadline)
        elif consumer.max_retries < min(FEW_RETRIES, options.consumer_max_retries):
            logger.warning(
                "the pull consumer of queue %r allows %d deliveries of a message (max_retries), "
                "and every worker that ends while it has the message uses one: set it to %d",
                queue.name,
                consumer.max_retries,
                limits.MAX_RETRIES,
            )
        self._known.put(queue.id, consumer)
        return consumer

    def forget(self, queue_id: str) -> None:
        """Read the consumers of a queue again at the next `enable`, because a pull was refused."""
        self._known.put(queue_id, None)

    def _listed(self, queue: Queue, deadline: float) -> PullConsumer | None:
        consumers = self._client.list_consumers(queue.id, deadline=deadline)
        found = PullConsumer.from_json(consumers)
        if found is None:
            _refuse_worker(queue, consumers)
        return found

    def _create(self, queue: Queue, options: Options, deadline: float) -> PullConsumer:
        dead_letter_queue = options.dead_letter_queue
        if dead_letter_queue:
            dead_letter_queue = self._names.reserve(dead_letter_queue, options)
        try:
            self._client.create_pull_consumer(
                queue.id,
                max_retries=options.consumer_max_retries,
                visibility_timeout_ms=int(options.visibility_timeout * 1000),
                dead_letter_queue=dead_letter_queue,
                deadline=deadline,
            )
        except PermanentError as error:
            # Another process was faster, such as another worker on this machine.
            found = self._listed(queue, deadline) if error.code == CONSUMER_EXISTS else None
            if found is None:
                raise
            return found
        logger.info("enabled HTTP pull for queue %r at Cloudflare", queue.name)
        return PullConsumer(options.consumer_max_retries, dead_letter_queue or "")


def _refuse_worker(queue: Queue, consumers: Sequence[Mapping[str, Any]]) -> None:
    """Raise `PullNotEnabled` if a Worker is among the queue's *consumers*."""
    if any(consumer.get("type") == "worker" for consumer in consumers):
        raise PullNotEnabled(
            f"queue {queue.name!r} is consumed by a Worker, and a queue has one kind of consumer: "
            "remove the Worker's consumer (dashboard, or 'wrangler queues consumer remove') to "
            "pull from the queue, or use another queue"
        )
