"""Writes down what a process asked of the API, and what it was answered.

It stands around the methods of the client and changes nothing.  Its lines are how a message that
ran twice is explained: by a post or an acknowledgement whose answer never came.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from kombu_cfqueues.api.client import Client
from kombu_cfqueues.errors import CFQueuesError

from .ledger import MESSAGE, write

_numbers = itertools.count()


def install() -> None:
    """Watch all clients of this process, and of its children."""
    _watch("push", lambda queue, message, **_: ("post", _names([message])))
    _watch("push_batch", lambda queue, messages, **_: ("post", _names(messages)))
    _watch("ack", _settling)
    pull = Client.pull

    @functools.wraps(pull)
    def watched(self: Client, queue_id: str, **given: Any) -> list[dict[str, Any]]:
        asked = time.monotonic()
        found = pull(self, queue_id, **given)
        write("pulled", asked, [_pulled(raw) for raw in found])
        return found

    Client.pull = watched  # type: ignore[method-assign]


def _watch(name: str, describe: Callable[..., tuple[Any, ...]]) -> None:
    """Write a line before each call, and one after it; between them a process may be killed."""
    method = getattr(Client, name)

    @functools.wraps(method)
    def watched(self: Client, *args: Any, **given: Any) -> Any:
        number = next(_numbers)
        what, *rest = describe(*args, **given)
        write(what, number, *rest)
        outcome = "unknown"
        try:
            result = method(self, *args, **given)
            outcome = "yes"
        except CFQueuesError as error:
            outcome = error.delivered
            raise
        finally:
            write("answer", number, outcome)
        return result

    setattr(Client, name, watched)


def _settling(
    queue: str, *, acks: Any = (), retries: Any = None, deadline: float
) -> tuple[Any, ...]:
    return "settle", list(acks), list(retries or {})


def _names(messages: Any) -> list[str]:
    found = (MESSAGE.search(message) for message in messages)
    return [name[0].decode() for name in found if name]


def _pulled(raw: dict[str, Any]) -> tuple[Any, ...]:
    names = _names([json.dumps(raw.get("body")).encode()])
    return (names[0] if names else None, raw.get("id"), raw.get("lease_id"))
