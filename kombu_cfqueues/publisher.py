"""Publishing: from a packed message to an answer that says it is accepted."""

from __future__ import annotations

from . import retry
from .client import Client
from .envelope import Packed
from .errors import ConnectionFailed, TransientError


class Publisher:
    """Posts the messages of all threads of a process to one account's queues.

    Args:
        client: Where to post.
        retry_uncertain: Whether to post again when the answer to a post was lost.
    """

    def __init__(self, client: Client, *, retry_uncertain: bool = True) -> None:
        self._client = client
        self._retry_uncertain = retry_uncertain

    def submit(
        self, queue_id: str, packed: Packed, *, deadline: float, switches: bool = False
    ) -> None:
        """Block until Cloudflare has accepted the message.

        Args:
            queue_id: The queue.
            packed: The message.
            deadline: When to give up, in seconds of `time.monotonic`.
            switches: Fail at once where surely nothing was sent, so that Kombu can go on to the
                next URL of a fail-over list.
        """

        def give_up(error: TransientError) -> bool:
            if error.delivered == "unknown":
                return not self._retry_uncertain
            return switches and isinstance(error, ConnectionFailed)

        def post() -> None:
            message = packed.encode()
            if packed.alone:
                self._client.push(queue_id, message, deadline=deadline)
            else:
                self._client.push_batch(queue_id, [message], deadline=deadline)

        retry.until(deadline, post, give_up)
