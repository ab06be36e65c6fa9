"""The router of the hub: which client gets a message.  ``docs/hub.md`` describes the protocol.

A namespace stores only the bindings of queues that connected clients hold and, for a minute, the
commands of remote control.  It does no I/O: it appends operations to ``Client.outgoing``.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

VERSION: Final = 1
"""The version of the protocol."""

MAX_FRAME_BYTES: Final = 576 * 1024
"""Enough for the largest message, if each of its characters must be escaped."""
MAX_MESSAGE_BYTES: Final = 256 * 1024
MAX_UNACKNOWLEDGED_BYTES: Final = 1024 * 1024
MAX_NAME_BYTES: Final = 255
MAX_HELD_BYTES: Final = 12 * 1024
"""Maximum sum of the names of a client's queues; the Durable Object keeps them in 16 KB."""
MAX_CLIENTS: Final = 5_000
MAX_BINDINGS: Final = 10_000
OPERATIONS_PER_SECOND: Final = 500
OPERATIONS_AT_ONCE: Final = 5_000
KEPT_MESSAGES: Final = 100
KEPT_SECONDS: Final = 60.0
MAX_REPLAYED_BYTES: Final = 256 * 1024

LIMITS: Final = {
    "frame": MAX_FRAME_BYTES,
    "message": MAX_MESSAGE_BYTES,
    "unacknowledged": MAX_UNACKNOWLEDGED_BYTES,
}
"""The limits that a welcome tells the client."""

TYPES: Final = ("direct", "topic", "fanout")

PROTOCOL_ERROR: Final = 4400
WRONG_VERSION: Final = 4406
TOO_LARGE: Final = 4413
TOO_SLOW: Final = 4408
TOO_MANY_CLIENTS: Final = 4429

Operation = list[Any]


class Violation(Exception):
    """The client broke the protocol or a limit, and is disconnected.

    Args:
        code: Close code of the WebSocket.
        text: The reason.
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Refusal(Exception):
    """One operation is refused.  Its arguments are the error code and a text."""


class Binding(NamedTuple):
    """A queue's binding to an exchange."""

    queue: str
    exchange: str
    type: str
    key: str

    def matches(self, key: str) -> bool:
        """Whether a message with the routing key *key* goes to the queue."""
        if self.type == "topic":
            return _topic_matches(self.key, key)
        return self.type == "fanout" or self.key == key


class Client:
    """One connected client.

    Attributes:
        name: What it calls itself; ``""`` before its greeting.
        queues: The queues that it holds, and whether it consumes them.
        unacknowledged: Bytes that it was sent and has not acknowledged.
        outgoing: Operations for its next frame.
    """

    def __init__(self) -> None:
        self.name = ""
        self.greeted = False
        self.connected_at = time.time()
        self.queues: dict[str, bool] = {}
        self.unacknowledged = 0
        self.outgoing: list[Operation] = []
        self._credit = float(OPERATIONS_AT_ONCE)
        self._credited_at = time.monotonic()

    def spend(self) -> bool:
        """Count an operation; return False if the client is too fast."""
        now = time.monotonic()
        earned = (now - self._credited_at) * OPERATIONS_PER_SECOND
        self._credit = min(float(OPERATIONS_AT_ONCE), self._credit + earned) - 1
        self._credited_at = now
        return self._credit >= 0


class _Kept(NamedTuple):
    number: int
    at: float
    exchange: str
    key: str
    message: str


class Namespace:
    """The state of one hub: its clients, their queues, and the bindings of these queues."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.frames = 0
        self._bindings: dict[Binding, None] = {}
        self._kept: deque[_Kept] = deque(maxlen=KEPT_MESSAGES)
        self._number = 0
        self._epoch = secrets.token_hex(8)
        self._turn = itertools.count()

    def join(self, client: Client) -> None:
        """Add a client.

        Raises:
            Violation: The hub has too many clients.
        """
        if len(self.clients) >= MAX_CLIENTS:
            raise Violation(TOO_MANY_CLIENTS, f"the hub has {MAX_CLIENTS} clients")
        self.clients.append(client)

    def leave(self, client: Client) -> None:
        """Forget a client, and the queues that only it held."""
        if client in self.clients:
            self.clients.remove(client)
            for queue in list(client.queues):
                self._let_go(client, queue)

    def handle(self, client: Client, frame: str) -> None:
        """Perform the operations of *frame*.

        Raises:
            Violation: The frame is too large, or breaks the protocol.
        """
        self.frames += 1
        if _size(frame) > MAX_FRAME_BYTES:
            raise Violation(TOO_LARGE, f"a frame is larger than {MAX_FRAME_BYTES} bytes")
        try:
            operations = json.loads(frame)
        except (ValueError, RecursionError):
            operations = None
        if not isinstance(operations, list):
            raise Violation(PROTOCOL_ERROR, "a frame is not a JSON array of operations")
        for operation in operations:
            self._perform(client, operation)

    def _perform(self, client: Client, operation: Any) -> None:
        name: Any
        arguments: list[Any]
        name, *arguments = operation if isinstance(operation, list) and operation else [None]
        shape = _SHAPES.get(name) if isinstance(name, str) else None
        if shape is None or not _fits(arguments, shape):
            raise Violation(PROTOCOL_ERROR, "an operation is unknown, or has wrong arguments")
        if client.greeted is (name == "hello"):
            raise Violation(PROTOCOL_ERROR, "the first operation, and only that, must be a hello")
        if name == "hello":
            self._hello(client, *arguments)
            return
        if name == "ack":
            count: int = arguments[0]
            client.unacknowledged = max(0, client.unacknowledged - max(0, count))
            return
        *given, request = arguments
        try:
            if not client.spend():
                raise _Refusal("too-fast", f"over {OPERATIONS_PER_SECOND} operations per second")
            method: Callable[..., Any] = partial(_METHODS[name], self, client)
            value = method(*given)
        except _Refusal as refusal:
            client.outgoing.append(["error", request, *refusal.args])
            return
        if request is not None:
            client.outgoing.append(["ok", request, value])

    # Operations

    def _hello(self, client: Client, version: int, name: str) -> None:
        if version != VERSION:
            raise Violation(WRONG_VERSION, f"the hub speaks version {VERSION}, not {version}")
        client.name, client.greeted = name[:MAX_NAME_BYTES], True
        client.outgoing.append(["welcome", VERSION, sorted(self._listened()), LIMITS])

    def _declare(self, client: Client, queue: str) -> None:
        if queue in client.queues:
            return
        held = sum(_held_size(name) for name in (*client.queues, _checked(queue)))
        if held > MAX_HELD_BYTES:
            raise _Refusal("too-many", "the client holds too many queues")
        client.queues[queue] = False

    def _delete(self, client: Client, queue: str) -> None:
        if queue in client.queues:
            self._let_go(client, queue)

    def _consume(self, client: Client, queue: str, consumes: bool) -> None:
        if queue in client.queues:
            client.queues[queue] = consumes

    def _bind(  # noqa: PLR0917  the arguments of the operation
        self, client: Client, queue: str, exchange: str, kind: str, key: str, since: Any
    ) -> Any:
        if kind not in TYPES:
            raise _Refusal("type", f"the type must be one of {', '.join(TYPES)}")
        if queue not in client.queues:
            raise _Refusal("not-held", "the client has not declared the queue")
        _checked(exchange)
        _checked(key)
        others = {one.type for one in self._bindings if one.exchange == exchange}
        if others - {kind}:
            raise _Refusal("type", f"the exchange is of type {others.pop()}, not {kind}")
        if len(self._bindings) >= MAX_BINDINGS:
            raise _Refusal("too-many", f"the hub has {MAX_BINDINGS} bindings")
        binding = Binding(queue, exchange, kind, key)
        self._bindings[binding] = None
        if not others and not _is_control(exchange):
            self._tell(["listened", exchange, True])
        self._replay(client, binding, since)
        return [self._epoch, self._number]

    def _unbind(self, _: Client, queue: str, exchange: str, key: str) -> None:
        gone = [one for one in self._bindings if (one[0], one[1], one[3]) == (queue, exchange, key)]
        self._remove(gone)

    def _publish(self, _: Client, exchange: str, key: str, message: str) -> None:
        _checked(exchange)
        _checked(key)
        if _size(message) > MAX_MESSAGE_BYTES:
            raise _Refusal("too-large", f"a message is larger than {MAX_MESSAGE_BYTES} bytes")
        number = self._keep(exchange, key, message) if _is_kept(exchange) else None
        targets: dict[int, tuple[Client, list[str]]] = {}
        for queue in self._route(exchange, key):
            holder = self._holder(queue)
            if holder is not None:
                targets.setdefault(id(holder), (holder, []))[1].append(queue)
        for holder, queues in targets.values():
            holder.outgoing.append(["message", queues, exchange, key, message, number])

    def _find(self, _: Client, exchange: str, key: str) -> bool:
        if not exchange:
            return any(key in client.queues for client in self.clients)
        return any(binding.exchange == exchange for binding in self._bindings)

    # Routing

    def _route(self, exchange: str, key: str) -> list[str]:
        if not exchange:
            return [key]
        found = (one for one in self._bindings if one.exchange == exchange and one.matches(key))
        return list(dict.fromkeys(binding.queue for binding in found))

    def _holder(self, queue: str) -> Client | None:
        holders = [client for client in self.clients if queue in client.queues]
        candidates = [client for client in holders if client.queues[queue]] or holders[:1]
        return candidates[next(self._turn) % len(candidates)] if candidates else None

    def _keep(self, exchange: str, key: str, message: str) -> int:
        self._number += 1
        self._kept.append(_Kept(self._number, time.monotonic(), exchange, key, message))
        return self._number

    def _replay(self, client: Client, binding: Binding, since: Any) -> None:
        if since is None or not _is_kept(binding.exchange):
            return
        last = since[1] if since[0] == self._epoch else 0
        found: list[Operation] = []
        left = MAX_REPLAYED_BYTES
        for number, at, exchange, key, message in reversed(self._kept):
            is_due = number > last and time.monotonic() - at < KEPT_SECONDS
            if is_due and exchange == binding.exchange and binding.matches(key):
                left -= _size(message)
                if left < 0:
                    break
                found.append(["message", [binding.queue], exchange, key, message, number])
        client.outgoing += reversed(found)

    def _let_go(self, client: Client, queue: str) -> None:
        client.queues.pop(queue, None)
        if not any(queue in one.queues for one in self.clients):
            self._remove([binding for binding in self._bindings if binding.queue == queue])

    def _remove(self, bindings: list[Binding]) -> None:
        before = self._listened()
        for binding in bindings:
            self._bindings.pop(binding, None)
        for exchange in sorted(before - self._listened()):
            self._tell(["listened", exchange, False])

    def _listened(self) -> set[str]:
        return {one.exchange for one in self._bindings if not _is_control(one.exchange)}

    def _tell(self, operation: Operation) -> None:
        for client in self.clients:
            if client.greeted:
                client.outgoing.append(operation)

    def describe(self) -> dict[str, Any]:
        """Return the connected clients, as ``GET /hub/NAMESPACE`` shows them."""
        return {
            "clients": [
                {
                    "name": client.name,
                    "connected_at": int(client.connected_at),
                    "queues": sorted(client.queues),
                    "unacknowledged": client.unacknowledged,
                }
                for client in self.clients
            ],
            "bindings": len(self._bindings),
            "frames": self.frames,
        }


_METHODS: Final[dict[str, Callable[..., Any]]] = {
    "declare": Namespace._declare,
    "delete": Namespace._delete,
    "consume": Namespace._consume,
    "bind": Namespace._bind,
    "unbind": Namespace._unbind,
    "publish": Namespace._publish,
    "find": Namespace._find,
}

_SHAPES: Final[dict[str, tuple[str, ...]]] = {
    "hello": ("number", "text"),
    "ack": ("number",),
    "declare": ("text", "request"),
    "delete": ("text", "request"),
    "consume": ("text", "flag", "request"),
    "bind": ("text", "text", "text", "text", "since", "request"),
    "unbind": ("text", "text", "text", "request"),
    "publish": ("text", "text", "text", "request"),
    "find": ("text", "text", "request"),
}
"""The arguments of each operation."""


def _fits(arguments: list[Any], shape: tuple[str, ...]) -> bool:
    return len(arguments) == len(shape) and all(
        _CHECKS[kind](one) for one, kind in zip(arguments, shape, strict=True)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_since(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and _is_number(value[1])
    )


_CHECKS: Final[dict[str, Callable[[Any], bool]]] = {
    "number": _is_number,
    "text": lambda value: isinstance(value, str),
    "flag": lambda value: isinstance(value, bool),
    "since": _is_since,
    "request": lambda value: value is None or _is_number(value),
}


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _held_size(name: str) -> int:
    """Return the bytes of a queue's name in the Durable Object, which stores ASCII or UTF-16."""
    return 16 + (len(name) if name.isascii() else len(name.encode("utf-16-le", "surrogatepass")))


def encode(operations: list[Operation]) -> str:
    """Return a frame: JSON, in which only what UTF-8 cannot encode is escaped."""
    text = json.dumps(operations, separators=(",", ":"), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(operations, separators=(",", ":"))
    return text


def _checked(name: str) -> str:
    if _size(name) > MAX_NAME_BYTES:
        raise _Refusal("name", f"a name is longer than {MAX_NAME_BYTES} bytes")
    return name


def _is_control(exchange: str) -> bool:
    """Whether an exchange is one of remote control, to which clients always send."""
    return exchange.endswith(".pidbox")


def _is_kept(exchange: str) -> bool:
    """Whether messages of an exchange are kept for a minute: commands are, replies are not."""
    return _is_control(exchange) and not exchange.startswith("reply.")


def _topic_matches(pattern: str, key: str) -> bool:
    """Whether a topic matches: ``*`` is one word, ``#`` any number of words."""
    words = key.split(".")
    reached = {0}  # how many words of the key the pattern may have matched so far
    for part in pattern.split("."):
        if part == "#":
            reached = set(range(min(reached, default=len(words) + 1), len(words) + 1))
        else:
            reached = {n + 1 for n in reached if n < len(words) and part in ("*", words[n])}
    return len(words) in reached
