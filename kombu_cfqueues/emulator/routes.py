"""The routes of the API, by path and method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the API.

    Attributes:
        name: Its name in faults and in the log.
        kind: Message routes use error codes 101xx and 102xx, admin routes 11xxx.
        edits: Requires the permission *Queues Edit*; the other routes require *Queues Read*.
    """

    name: str
    kind: Literal["message", "admin"]
    edits: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The result of looking up a path: the route, or why there is none, and the ids in the path."""

    route: Route | None
    allowed: tuple[str, ...] = ()  # the methods of the path
    account_id: str = ""
    queue_id: str = ""
    consumer_id: str = ""


def _admin(name: str, *, edits: bool = True) -> Route:
    return Route(name, "admin", edits)


def _message(name: str) -> Route:
    return Route(name, "message", True)


# The part of the path after /accounts/{account_id}/queues, with "*" for ids.
_TABLE: Final[dict[tuple[str, ...], dict[str, Route]]] = {
    (): {"GET": _admin("list", edits=False), "POST": _admin("create")},
    ("*",): {
        "GET": _admin("get", edits=False),
        "PUT": _admin("update"),
        "PATCH": _admin("edit"),
        "DELETE": _admin("delete"),
    },
    ("*", "metrics"): {"GET": _admin("metrics", edits=False)},
    ("*", "purge"): {"GET": _admin("purge_status", edits=False), "POST": _admin("purge")},
    ("*", "consumers"): {
        "GET": _admin("list_consumers", edits=False),
        "POST": _admin("create_consumer"),
    },
    ("*", "consumers", "*"): {
        "GET": _admin("get_consumer", edits=False),
        "PUT": _admin("update_consumer"),
        "DELETE": _admin("delete_consumer"),
    },
    ("*", "messages"): {"POST": _message("push")},
    ("*", "messages", "batch"): {"POST": _message("batch")},
    ("*", "messages", "pull"): {"POST": _message("pull")},
    ("*", "messages", "ack"): {"POST": _message("ack")},
    ("*", "messages", "extend"): {"POST": _message("extend")},
    ("*", "messages", "peek"): {"POST": _message("peek")},
    ("*", "messages", "purge"): {"POST": _message("purge_refs")},
}

NAMES: Final = tuple(route.name for methods in _TABLE.values() for route in methods.values())
"""The names of all routes."""


def find(method: str, path: str) -> Found:
    """Look up the route of *path*, the part below ``/client/v4``."""
    parts = path.split("/")
    if len(parts) < 4 or parts[0] or parts[1] != "accounts" or parts[3] != "queues":
        return Found(None)
    tail = parts[4:]
    queue_id = tail[0] if tail else ""
    consumer_id = tail[2] if len(tail) == 3 and tail[1] == "consumers" else ""
    key = tuple("*" if n == 0 or (n == 2 and consumer_id) else part for n, part in enumerate(tail))
    methods = _TABLE.get(key, {})
    return Found(methods.get(method), tuple(methods), parts[2], queue_id, consumer_id)
