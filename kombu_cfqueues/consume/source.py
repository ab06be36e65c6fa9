"""What is pulled: a queue at Cloudflare and its pull consumer, which must be found first.

The receiver looks for them in its threads, because the server may be slow or down, and the
application must not wait for longer than its own timeout.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from ..api.directory import Directory
from ..api.models import PullConsumer, Queue
from ..errors import PullNotEnabled, QueueNotFound
from ..options import Options

T = TypeVar("T")

ENABLE_RETRY_SECONDS: Final = 1.0
"""Pause after a pull that failed with HTTP 405."""


class Source(NamedTuple):
    """A queue and its pull consumer."""

    queue: Queue
    consumer: PullConsumer

    @classmethod
    def unknown(cls, name: str) -> Source:
        """Return what stands for the source of Kombu's queue *name* until it is found.

        No queue at Cloudflare has its id.
        """
        return cls(Queue(f"unknown: {name}", name, None), PullConsumer(0, ""))


def find_source(name: str, directory: Directory, options: Options, *, deadline: float) -> Source:
    """Find Kombu's queue *name* and its pull consumer; create what is missing.

    A queue that was deleted and created again has another id, and is found at the second attempt.

    Raises:
        PullNotEnabled: A Worker consumes the queue.
        CFQueuesError: A request failed.
    """
    queue = directory.queue(name, options, deadline=deadline)
    try:
        return Source(queue, directory.enable_pull(queue, options, deadline=deadline))
    except QueueNotFound:
        if not directory.forget(name, queue.id, options):
            raise
    queue = directory.queue(name, options, deadline=deadline)
    return Source(queue, directory.enable_pull(queue, options, deadline=deadline))


def use_source(
    name: str,
    directory: Directory,
    options: Options,
    use: Callable[[Source], T],
    *,
    deadline: float,
) -> T:
    """Return what *use* returns for Kombu's queue *name*.

    A queue that was deleted is looked up once more.  HTTP 405 of a new pull consumer is retried
    until *deadline*.

    Raises:
        CFQueuesError: What the look-up or *use* raised.
    """
    looks_again = True
    while True:
        source = find_source(name, directory, options, deadline=deadline)
        try:
            return use(source)
        except PullNotEnabled:
            directory.forget_pull(source.queue.id)
            if time.monotonic() + ENABLE_RETRY_SECONDS > deadline:
                raise
            time.sleep(ENABLE_RETRY_SECONDS)
        except QueueNotFound:
            if not looks_again or not directory.forget(name, source.queue.id, options):
                raise
            looks_again = False
