"""A raw HTTP server that does what a test tells it, over real sockets, and records all it hears.

::

    with ScriptedServer(Drop(), Json(200, {"success": True})) as server:
        ...  # the first request is dropped, the second one succeeds
    assert [request.method for request in server.requests] == ["POST", "POST"]

Each request takes the next step of the script; when the script is over, ``otherwise`` makes the
step of the request, by default as an account's API that has no queues.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

#: Certificate and key for 127.0.0.1, localhost and queues.invalid, made for these tests and trusted
#: by nobody.
CERTIFICATE = Path(__file__).with_name("loopback.pem")
#: What a client has to trust to accept it.
CA_BUNDLE = Path(__file__).with_name("loopback-ca.pem")

_serial = itertools.count(1)


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    peer: tuple[str, int]

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Step:
    """What the server does with one request."""

    reads = True  # whether the request is read, and recorded, before

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        """Do it; returns whether the connection stays open."""
        raise NotImplementedError


@dataclass(frozen=True)
class Say(Step):
    """Answer with this body and these headers."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> bytes:
        headers = {
            "Content-Type": self.content_type,
            "Content-Length": str(len(self.body)),
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} Scripted", *(f"{k}: {v}" for k, v in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + self.body

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        connection.sendall(self.text())
        return True


def Json(status: int, payload: Any, **headers: str) -> Say:  # noqa: N802  one of the steps
    """Answer with JSON; ``Retry_After="3"`` is a header."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Say(status, json.dumps(payload).encode(), headers=named)


def Success(result: Any = None, **more: Any) -> Say:  # noqa: N802
    """Answer as the API does when it has done what was asked."""
    return Json(200, {"success": True, "errors": [], "messages": [], "result": result, **more})


def Failure(  # noqa: N802
    status: int, code: int | None = None, text: str = "refused", **headers: str
) -> Say:
    """Answer as the API does when it refuses."""
    error: dict[str, Any] = {"message": text} | ({} if code is None else {"code": code})
    return Json(status, {"success": False, "errors": [error], "result": None}, **headers)


def Html(status: int) -> Say:  # noqa: N802
    """Answer as an edge or a proxy does."""
    return Say(status, b"<!doctype html><title>Error</title>", "text/html; charset=UTF-8")


@dataclass(frozen=True)
class Raw(Step):
    """Send these bytes and close; *reads* the request before."""

    data: bytes
    reads: bool = True

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        connection.sendall(self.data)
        return False


class Drop(Step):
    """Read the request and close without an answer."""

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        return False


class Die(Step):
    """Read the request, close without an answer, and accept no more connections."""

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        server.stop_listening()
        return False


class Reset(Step):
    """Reset the connection without having read the request."""

    reads = False

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False


class ResetAfter(Reset):
    """Read the request and reset the connection."""

    reads = True


class Hang(Step):
    """Read the request and say nothing until the server is closed."""

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        server.released.wait()
        return False


@dataclass(frozen=True)
class Drip(Step):
    """Answer byte by byte, with a pause of *every* seconds before each."""

    data: bytes
    every: float = 0.02

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        for i in range(len(self.data)):
            if server.released.wait(self.every):
                break
            connection.sendall(self.data[i : i + 1])
        return False


@dataclass(frozen=True)
class After(Step):
    """Wait for an event of the test, then go on with *step*."""

    event: threading.Event
    step: Step

    def play(self, connection: socket.socket, server: ScriptedServer) -> bool:
        self.event.wait(10)
        return self.step.play(connection, server)


class Api:
    """The least of the API that stays true to itself: list, create and push.

    Args:
        names: The queues that exist.
        page_size: Queues on a page.
        filters: Whether the query ``name`` has an effect.
        counts: Whether lists come with ``result_info``.
        pages: Whether the query ``page`` has an effect.
        folds: Whether upper and lower case of names are one.
        retention: ``message_retention_period`` of every queue.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        *,
        page_size: int = 20,
        filters: bool = True,
        counts: bool = True,
        pages: bool = True,
        folds: bool = False,
        retention: int = 345_600,
    ) -> None:
        self.page_size, self.filters, self.counts, self.pages = page_size, filters, counts, pages
        self.folds, self.retention = folds, retention
        self.ids: dict[str, str] = {}
        self.messages: dict[str, list[dict[str, Any]]] = {}  # by queue name
        self._lock = threading.Lock()
        for name in names:
            self.add(name)

    def add(self, name: str) -> str:
        self.ids[name] = f"{next(_serial):032x}"
        self.messages.setdefault(name, [])
        return self.ids[name]

    def __call__(self, request: Request) -> Step:
        with self._lock:
            match = re.fullmatch(r".*/queues(?:/([^/]+)/messages(/batch)?)?", request.path)
            if match is None:
                return Failure(404, 7003)
            queue_id, batch = match.groups()
            if queue_id:
                return self._push(queue_id, request.json, batch=bool(batch))
            if request.method == "POST":
                return self._create(request.json["queue_name"])
            return self._list(request.query)

    def _push(self, queue_id: str, sent: dict[str, Any], *, batch: bool) -> Step:
        for name, known in self.ids.items():
            if known == queue_id:
                self.messages[name] += sent["messages"] if batch else [sent]
                return Success()
        return Failure(404, 10104, "queue not found")

    def _create(self, name: str) -> Step:
        if name in self.ids or (self.folds and name.lower() in map(str.lower, self.ids)):
            return Failure(409, 11009, "queue name taken")
        self.add(name)
        return Success(self._entry(name))

    def _list(self, query: dict[str, list[str]]) -> Step:
        names = [n for n in self.ids if self._matches(n, query.get("name"))]
        page = int(query.get("page", ["1"])[0]) if self.pages else 1
        shown = names[(page - 1) * self.page_size : page * self.page_size]
        info = {
            "page": page,
            "per_page": self.page_size,
            "count": len(shown),
            "total_count": len(names),
            "total_pages": -(-len(names) // self.page_size),
        }
        return Success(
            [self._entry(name) for name in shown], **({"result_info": info} if self.counts else {})
        )

    def _matches(self, name: str, wanted: list[str] | None) -> bool:
        if wanted is None or not self.filters:
            return True
        return name in wanted or (self.folds and name.lower() in map(str.lower, wanted))

    def _entry(self, name: str) -> dict[str, Any]:
        settings = {"message_retention_period": self.retention}
        return {"queue_id": self.ids[name], "queue_name": name, "settings": settings}


class ScriptedServer:
    """See the module.

    Args:
        *script: The steps of the first requests.
        otherwise: Makes the step of each further request.
        tls: Whether to speak TLS, with a certificate that nobody trusts.

    Attributes:
        script: The steps of the next requests; may be added to.
        otherwise: What makes the others; may be replaced.
        requests: What was read, in order.
        opened: How many connections were accepted.
        released: Set at the end; what hangs goes on.
        account, token: Of no other server, as accounts are remembered for the whole process.
    """

    def __init__(
        self,
        *script: Step,
        otherwise: Callable[[Request], Step] | None = None,
        tls: bool = False,
    ) -> None:
        serial = next(_serial)
        self.account = f"{serial:032x}"
        self.token = f"s3cret-{serial}-{'x' * 12}"
        self.requests: list[Request] = []
        self.opened = 0
        self.released = threading.Event()
        self.script = list(script)
        self.otherwise = otherwise or Api()
        self._changed = threading.Condition()
        self._connections: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if tls else None
        if self._context:
            self._context.load_cert_chain(CERTIFICATE)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        scheme = "https" if self._context else "http"
        return f"{scheme}://{self.netloc}/client/v4"

    @property
    def broker_url(self) -> str:
        return f"cfqueues://{self.account}:{self.token}@{self.netloc}/"

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def targets(self, method: str, ending: str = "") -> list[str]:
        """The targets of the requests of this method whose path ends so."""
        found = [r for r in self.requests if r.method == method and r.path.endswith(ending)]
        return [request.target for request in found]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 5.0) -> bool:
        """Wait until what was heard makes *condition* true; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(condition, seconds)

    def close_connections(self) -> None:
        """Close every connection, as a server that restarts does."""
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def stop_listening(self) -> None:
        """Refuse further connections, and end those that are open."""
        # `close` alone leaves the thread in `accept`, which holds the socket open.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5)
        self._listener.close()
        self.close_connections()

    def __enter__(self) -> ScriptedServer:  # noqa: PYI034  typing has Self from 3.11 on
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.stop_listening()
        for thread in self._threads[1:]:
            thread.join(5)
            assert not thread.is_alive(), "a connection of the server does not end"

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection, peer), daemon=True)
            with self._changed:
                self.opened += 1
                self._connections.add(connection)
                self._threads.append(thread)
                self._changed.notify_all()
            thread.start()

    def _serve(self, plain: socket.socket, peer: tuple[str, int]) -> None:
        connection = plain
        try:
            if self._context:
                connection = self._context.wrap_socket(plain, server_side=True)
                with self._changed:
                    self._connections.discard(plain)
                    self._connections.add(connection)
            while self._turn(connection, peer):
                pass
        except OSError:
            pass  # the client has gone
        finally:
            connection.close()
            with self._changed:
                self._connections -= {plain, connection}
                self._changed.notify_all()

    def _turn(self, connection: socket.socket, peer: tuple[str, int]) -> bool:
        if not self._context and not connection.recv(1, socket.MSG_PEEK):
            return False
        with self._changed:
            step = self.script.pop(0) if self.script else None
        if step is None or step.reads:
            request = _read(connection, peer)
            if request is None:
                return False
            with self._changed:
                self.requests.append(request)
                self._changed.notify_all()
            step = step or self.otherwise(request)
        return step.play(connection, self)


def _read(connection: socket.socket, peer: tuple[str, int]) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(1 << 16)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    while len(body) < int(headers.get("content-length", 0)):
        more = connection.recv(1 << 16)
        if not more:
            return None
        body += more
    return Request(method, target, headers, body, peer)
