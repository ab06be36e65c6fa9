"""A message that is ready to be posted, and the address of its queue."""

from __future__ import annotations

import json
import math
import time
from typing import Any, NamedTuple

from .. import limits
from .json_text import loads
from .unpack import is_envelope


class Address(NamedTuple):
    """A queue, by a name that means the same in every process.

    Attributes:
        name: The queue's name at Cloudflare; ``#`` and the queue's id if the application gave the
            id.
        creates: Whether to create the queue if it does not exist.
        cloudflare_id: The queue's id, if it is known.
    """

    name: str
    creates: bool = False
    cloudflare_id: str | None = None

    @classmethod
    def of_id(cls, cloudflare_id: str) -> Address:
        """Return the address of a queue whose name is unknown."""
        return cls(f"#{cloudflare_id}", cloudflare_id=cloudflare_id)

    @property
    def is_id(self) -> bool:
        """Whether only the queue's id is known."""
        return self.name.startswith("#")


class Packed(NamedTuple):
    """A message that is ready to be posted.

    Attributes:
        fragment: The JSON object of the message in UTF-8, without its closing brace.
        size: Number of bytes that the message adds to a request.
        due: When the message may be delivered, in seconds since the epoch; None leaves it to the
            delivery delay of the queue.
        alone: Whether the route for a single message accepts it.  That route refuses a JSON body
            that is neither an object nor an array (code 10207); the batch route accepts any.
        eta: The eta of a Celery task, in seconds since the epoch; None if it has none.  If *due* is
            earlier, a worker holds the message until its eta.
    """

    fragment: bytes
    size: int
    due: float | None = None
    alone: bool = True
    eta: float | None = None

    def encode(self, now: float | None = None) -> bytes:
        """Return the complete JSON object.

        The delay counts from *now*, so that waiting in this process does not make a message late.
        A delay of 0 is stated too, because it overrides the delivery delay of the queue.

        Args:
            now: Seconds since the epoch; None means the current time.
        """
        if self.due is None:
            return self.fragment + b"}"
        # Whole seconds, rounded up, because a message must never be early.
        remaining = math.ceil(self.due - (time.time() if now is None else now))
        delay = min(max(remaining, 0), limits.DELAY_SECONDS)
        return b'%b,"delay_seconds":%d}' % (self.fragment, delay)

    def message(self) -> Any:
        """Return what was packed: Kombu's dictionary, or a plain body."""
        posted = json.loads(self.fragment + b"}")
        body = posted["body"]
        value = loads(body) if isinstance(body, str) else body
        return value if isinstance(value, dict) and is_envelope(value) else body
