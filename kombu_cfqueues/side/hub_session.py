"""What one connection has at a hub: the queues that it holds, and operations.

``docs/hub.md`` describes the protocol.  Only one thread at a time may use a session.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from queue import Empty
from typing import Any, Final, NamedTuple

from ..errors import ConnectionFailed, MessageTooLarge, PermanentError
from .hub_socket import HUB_OPERATION_SECONDS, Address, HubSocket

logger = logging.getLogger(__name__)

VERSION: Final = 1
"""The version of the protocol."""

MAX_QUEUED: Final = 1_000
"""Maximum number of messages in a queue; further ones replace the oldest."""

MAX_QUEUED_CHARACTERS: Final = 8 * 1024 * 1024
"""Maximum size of the messages in a queue; beyond it, the oldest are dropped."""

FRAME_BYTES: Final = 64 * 1024
"""Operations that nobody waits for are sent once they have this size, or when the session next
receives."""

ACKNOWLEDGED_BYTES: Final = 64 * 1024
"""The session acknowledges after it has received this much; the hub disconnects at 1 MiB."""

KEEPALIVE_SECONDS: Final = 20.0
"""A connection on which nothing has arrived for this long is pinged, so that proxies keep it open.
After twice that, it is considered lost."""

PROBE_SECONDS: Final = 2.0
"""How long `probe` waits for the answer to a ping."""

MAX_POSITIONS: Final = 1_000
"""Maximum number of queues for which this process remembers how far they were read."""


class HubRefused(PermanentError):
    """The hub refused an operation because of a limit, or of the type of an exchange."""


class Entry(NamedTuple):
    """A message in a queue.

    Attributes:
        exchange: Where it was published to.
        key: Its routing key.
        text: The message.
        number: Its number, if the hub keeps it for a minute.
    """

    exchange: str
    key: str
    text: str
    number: int | None


class Position(NamedTuple):
    """How far a process has read the messages for a queue that the hub keeps for a minute.

    Attributes:
        epoch: The hub's period in which the number counts; a restart begins another one.
        number: Number of the last message that was taken from the queue.
    """

    epoch: str
    number: int


_positions: Final[dict[tuple[Address, str], Position]] = {}
"""How far queues were read, those of this process's earlier connections included."""


class _HeldQueue:
    """A queue that a session holds; it drops its oldest messages when it is full."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._entries: deque[Entry] = deque()
        self._characters = 0  # of all texts
        self._is_full = False  # as far as the log says

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        """Add a message at the end."""
        self._entries.append(entry)
        self._characters += len(entry.text)
        while len(self._entries) > MAX_QUEUED or self._characters > MAX_QUEUED_CHARACTERS:
            self._characters -= len(self._entries.popleft().text)
            if not self._is_full:
                self._is_full = True
                logger.warning(
                    "queue %r of the hub is full, because nobody takes its messages: the oldest "
                    "are dropped",
                    self._name,
                )

    def put_back(self, entry: Entry) -> None:
        """Add a message at the front."""
        self._entries.appendleft(entry)
        self._characters += len(entry.text)

    def take(self) -> Entry:
        """Remove and return the first message.

        Raises:
            Empty: There is none.
        """
        if not self._entries:
            self._is_full = False
            raise Empty
        entry = self._entries.popleft()
        self._characters -= len(entry.text)
        return entry

    def clear(self) -> None:
        """Drop all messages."""
        self._entries.clear()
        self._characters = 0


class Session:
    """An open connection to a hub.

    Args:
        address: Where it is.
        token: Its token.
        seconds: Maximum time for connecting.
        name: What the hub shows for it.

    Raises:
        ConnectionFailed, AuthenticationFailed, ConfigurationError: See `HubSocket`.
    """

    def __init__(self, address: Address, token: str, seconds: float, name: str) -> None:
        self.listened: set[str] = set()
        self._limits: dict[str, int] = {}
        self._queues: dict[str, _HeldQueue] = {}
        self._waiting: list[str] = []
        self._waiting_bytes = 0
        self._unacknowledged = 0
        self._answers: dict[int, list[Any]] = {}
        self._requests = 0
        self._pinged_at = 0.0
        self._socket = HubSocket(address, token, seconds)
        try:
            self._post(["hello", VERSION, name])
            deadline = time.monotonic() + seconds
            while not self._limits:
                self._await(deadline)
        except BaseException as error:
            self._socket.close()
            if isinstance(error, ConnectionFailed):
                error.delivered = "no"  # only the greeting was sent
            raise

    @property
    def socket(self) -> HubSocket:
        """Its socket."""
        return self._socket

    # Operations

    def declare(self, queue: str) -> None:
        """Hold *queue* from now on, in this process."""
        if queue not in self._queues:
            self._ask(["declare", queue])
            self._queues.setdefault(queue, _HeldQueue(queue))

    def holds(self, queue: str) -> bool:
        """Whether this session holds *queue*."""
        return queue in self._queues

    def delete(self, queue: str) -> None:
        """Delete *queue* and its messages."""
        if self._queues.pop(queue, None) is not None:
            self._post(["delete", queue, None])

    def consume(self, queue: str, *, consumes: bool) -> None:
        """Tell the hub whether *queue* is consumed here; consumers get its messages first."""
        if queue in self._queues:
            self._post(["consume", queue, consumes, None])

    def bind(self, queue: str, exchange: str, kind: str, key: str) -> None:
        """Bind *queue*, and get what the hub has kept since an earlier connection had it.

        Raises:
            HubRefused: The exchange is of another type, or the hub has too many bindings.
        """
        place = (self._socket.address, queue)
        since = _positions.get(place)
        position = Position(*self._ask(["bind", queue, exchange, kind, key, since]))
        if since is None and exchange.endswith(".pidbox") and not exchange.startswith("reply."):
            while len(_positions) >= MAX_POSITIONS:
                _positions.pop(next(iter(_positions)), None)
            _positions[place] = position
        elif since is not None and since.epoch != position.epoch:
            _positions[place] = Position(position.epoch, 0)  # the hub sends all that it keeps

    def unbind(self, queue: str, exchange: str, key: str) -> None:
        """Remove a binding."""
        self._ask(["unbind", queue, exchange, key])

    def find(self, exchange: str, key: str = "") -> bool:
        """Whether a queue is bound to *exchange*; or, if that is ``""``, whether queue *key* is."""
        return bool(self._ask(["find", exchange, key]))

    def publish(self, exchange: str, key: str, message: str, *, confirm: bool) -> None:
        """Publish a message.

        Args:
            exchange: An exchange; ``""`` for the queue *key*.
            key: The routing key.
            message: The message.
            confirm: Wait until the hub has it.  Otherwise it is sent when this session next
                receives, and not at all while nobody listens to the exchange.

        Raises:
            MessageTooLarge: The hub would refuse it.
            ConnectionFailed: The connection is lost.
        """
        size, limit = len(message.encode("utf-8", "surrogatepass")), self._limits["message"]
        if size > limit:
            raise MessageTooLarge(
                f"a message of {size:,} bytes to exchange {exchange!r} is larger than the hub's "
                f"limit of {limit:,} bytes: send less data"
            )
        operation = ["publish", exchange, key, message]
        if confirm:
            self._ask(operation)
        elif not exchange or exchange.endswith(".pidbox") or exchange in self.listened:
            self._post([*operation, None])

    def _ask(self, operation: list[Any]) -> Any:
        """Have the hub do *operation*, and return its answer."""
        self._requests += 1
        request = self._requests
        self._post([*operation, request])
        deadline = time.monotonic() + HUB_OPERATION_SECONDS
        while request not in self._answers:
            self._await(deadline)
        verdict, _, *values = self._answers.pop(request)
        if verdict == "ok":
            return values[0]
        code, text = values
        if code == "too-large":
            raise MessageTooLarge(f"the hub refused a message: {text}")
        if code == "too-fast":
            raise ConnectionFailed(f"the hub refused an operation: {text}")
        raise HubRefused(f"the hub refused to {operation[0]} {operation[1]!r}: {text}")

    def _await(self, deadline: float) -> None:
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise ConnectionFailed("the hub did not answer in time", delivered="unknown")
        self.poll(seconds)

    def _post(self, operation: list[Any]) -> None:
        text, size = _encode(operation)
        limit = self._limits.get("frame")
        if limit is not None and size + len("[]") > limit:
            raise MessageTooLarge(
                f"a message of {size:,} bytes, escaped as JSON, is larger than the hub's limit of "
                f"{limit:,} bytes: send less data"
            )
        if self._waiting and self._waiting_bytes + size > FRAME_BYTES:
            self.flush()
        self._waiting.append(text)
        self._waiting_bytes += size + len(",")

    def flush(self) -> None:
        """Send what waits, in one frame.

        Raises:
            ConnectionFailed: The connection is lost.
        """
        if self._waiting:
            frame, self._waiting = f"[{','.join(self._waiting)}]", []
            self._waiting_bytes = 0
            self._socket.send(frame)

    # Receiving

    def poll(self, seconds: float) -> None:
        """Send what waits; read what arrives within *seconds*, at most one batch.

        Raises:
            ConnectionFailed: The connection is lost.
        """
        self.flush()
        for text in self._socket.receive(seconds):
            self._unacknowledged += len(text.encode())
            for operation in json.loads(text):
                self._perform(operation)
        if self._unacknowledged >= ACKNOWLEDGED_BYTES:
            self._post(["ack", self._unacknowledged])
            self._unacknowledged = 0
            self.flush()

    def _perform(self, operation: list[Any]) -> None:
        name, *given = operation
        if name == "message":
            queues, *entry = given
            for queue in queues:
                if queue in self._queues:
                    self._queues[queue].put(Entry(*entry))
        elif name == "listened":
            (self.listened.add if given[1] else self.listened.discard)(given[0])
        elif name == "welcome":
            _, listened, self._limits = given
            self.listened = set(listened)
        elif given[0] is not None:  # an answer
            self._answers[given[0]] = operation
        else:
            logger.warning("the hub refused an operation: %s", given[-1])

    # The queues

    def take(self, queue: str) -> Entry:
        """Return the next message of *queue*.

        Raises:
            Empty: There is none here.
        """
        held = self._queues.get(queue)
        if held is None:
            raise Empty
        entry = held.take()
        place = (self._socket.address, queue)
        position = _positions.get(place)
        if position is not None and entry.number is not None:
            _positions[place] = Position(position.epoch, max(position.number, entry.number))
        return entry

    def put_back(self, queue: str, entry: Entry) -> None:
        """Make *entry* the next message of *queue*."""
        if queue in self._queues:
            self._queues[queue].put_back(entry)

    def size(self, queue: str) -> int:
        """Return how many messages of *queue* are here."""
        return len(self._queues.get(queue, ()))

    def purge(self, queue: str) -> int:
        """Drop the messages of *queue*; return how many."""
        count = self.size(queue)
        if count:
            self._queues[queue].clear()
        return count

    # The connection

    def keep_alive(self) -> None:
        """Ping a silent connection.

        Raises:
            ConnectionFailed: The hub has been silent for too long.
        """
        now, heard_at = time.monotonic(), self._socket.heard_at
        if now - heard_at > 2 * KEEPALIVE_SECONDS and self._pinged_at > heard_at:
            raise ConnectionFailed("the hub does not answer pings", delivered="unknown")
        if now - max(heard_at, self._pinged_at) > KEEPALIVE_SECONDS:
            self._pinged_at = now
            self._socket.ping()

    def probe(self) -> None:
        """Find out whether the connection works.

        Raises:
            ConnectionFailed: It does not.
        """
        pongs, deadline = self._socket.pongs, time.monotonic() + PROBE_SECONDS
        self._socket.ping()
        while self._socket.pongs == pongs:
            self._await(deadline)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _encode(operation: list[Any]) -> tuple[str, int]:
    """Return the JSON of *operation*, and its size in bytes."""
    text = json.dumps(operation, separators=(",", ":"), ensure_ascii=False)
    try:
        return text, len(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which must be escaped
        text = json.dumps(operation, separators=(",", ":"))
        return text, len(text)
