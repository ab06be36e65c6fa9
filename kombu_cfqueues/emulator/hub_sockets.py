"""The hub's WebSockets: ``/hub/NAMESPACE``, with the token of the emulator."""

from __future__ import annotations

import asyncio
import json
import re
from http import HTTPStatus
from typing import Any, Final, Literal

from starlette.types import Receive, Scope, Send

from .access import Access
from .answers import Refusal
from .foreign_pages import why_foreign
from .hub import MAX_UNACKNOWLEDGED_BYTES, TOO_SLOW, Client, Namespace, Violation, encode

PREFIX: Final = "/hub/"

TRANSPORT: Final = "kombu_cfqueues.transport"
"""Key of the connection in an ASGI scope; the server sets it."""

CLOSE_SECONDS: Final = 5.0
"""How long a client has to confirm the end of its WebSocket; then its connection is cut."""

_NAMESPACE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Hub:
    """The hubs of all namespaces, as one ASGI application.

    Args:
        access: The tokens, each of which may connect.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._namespaces: dict[str, Namespace] = {}
        self._sockets: dict[int, _Socket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: a WebSocket, or a GET that asks which clients are connected."""
        name = scope["path"].removeprefix(PREFIX)
        refusal = self._refusal(scope, name)
        if scope["type"] == "http":
            if refusal is None and (b"upgrade", b"websocket") in scope["headers"]:
                refusal = 501, "the emulator needs the package websockets for the hub: install it"
            await self._answer(refusal, name, send)
        elif refusal is not None:
            await _refuse(send, *refusal)
        else:
            namespace = self._namespaces.setdefault(name, Namespace())
            await self._serve(namespace, _Socket(send, scope[TRANSPORT]), receive)

    def describe(self) -> dict[str, Any]:
        """Return the connected clients, by namespace."""
        found = self._namespaces.items()
        return {name: one.describe() for name, one in sorted(found) if one.clients}

    def _refusal(self, scope: Scope, name: str) -> tuple[int, str] | None:
        headers = {key.decode("latin-1"): text.decode("latin-1") for key, text in scope["headers"]}
        if self._access.is_public and (why := why_foreign(headers)):
            return 403, f"the emulator refused the request: {why}"
        try:
            self._access.identify(headers, "403/10000")
        except Refusal:
            return (401, "no Bearer token") if "authorization" not in headers else (
                403, "this hub does not know the token")  # fmt: skip
        if not _NAMESPACE.fullmatch(name):
            return 404, "a namespace consists of at most 64 letters, digits, dashes and underscores"
        return None

    async def _answer(self, refusal: tuple[int, str] | None, name: str, send: Send) -> None:
        status, text = refusal or (200, "")
        found = self._namespaces.get(name) or Namespace()
        body = json.dumps({"error": text} if refusal else found.describe()).encode()
        length = str(len(body)).encode()  # some WebSocket clients read no chunks
        headers = [(b"content-type", b"application/json"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _serve(self, namespace: Namespace, connection: _Socket, receive: Receive) -> None:
        await receive()  # the request to connect
        await connection.accept()
        sender = asyncio.create_task(connection.send_waiting())
        self._sockets[id(connection.client)] = connection
        try:
            namespace.join(connection.client)
            await self._route(namespace, connection, receive)
        except Violation as violation:
            connection.end(violation.code, violation.text)
        finally:
            del self._sockets[id(connection.client)]
            namespace.leave(connection.client)
            self._flush(namespace)
            connection.end(1000, "")
            await sender

    async def _route(self, namespace: Namespace, connection: _Socket, receive: Receive) -> None:
        while not connection.has_ended:
            event = await receive()
            if event["type"] == "websocket.disconnect":
                return
            text = event.get("text")
            if text is None:
                text = (event.get("bytes") or b"").decode("utf-8", "replace")
            try:
                namespace.handle(connection.client, text)
            finally:
                self._flush(namespace)

    def _flush(self, namespace: Namespace) -> None:
        for client in namespace.clients:
            if client.outgoing:
                operations, client.outgoing = client.outgoing, []
                self._sockets[id(client)].put(encode(operations))


class _Socket:
    """One client's WebSocket.  The limit on unacknowledged bytes bounds what waits to be sent."""

    def __init__(self, send: Send, transport: asyncio.Transport) -> None:
        self.client = Client()
        self.has_ended = False
        self._send = send
        self._transport = transport
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def put(self, frame: str) -> None:
        """Send a frame when the socket takes it; disconnect a client that acknowledges nothing."""
        if self.has_ended:
            return
        self.client.unacknowledged += len(frame.encode())
        if self.client.unacknowledged > MAX_UNACKNOWLEDGED_BYTES:
            self.end(
                TOO_SLOW, f"the client has not acknowledged {self.client.unacknowledged} bytes"
            )
            return
        self._waiting.put_nowait({"type": "websocket.send", "text": frame})

    async def accept(self) -> None:
        """Answer the request to connect."""
        await self._send({"type": "websocket.accept"})

    def end(self, code: int, reason: str) -> None:
        """Close the socket once what waits is sent, unless it is closed already."""
        if not self.has_ended:
            self.has_ended = True
            self._waiting.put_nowait({"type": "websocket.close", "code": code, "reason": reason})
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._transport.abort)

    async def send_waiting(self) -> None:
        """Send what waits until the socket is closed."""
        closed = False
        while not closed:
            event = await self._waiting.get()
            closed = event["type"] == "websocket.close"
            try:
                await self._send(event)
            except (OSError, RuntimeError):  # the client has disconnected
                self.has_ended = closed = True


async def _refuse(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    body = json.dumps({"error": text}).encode()
    await send({"type": "websocket.http.response.body", "body": body})


def websocket_class() -> type[asyncio.Protocol] | Literal["none"]:
    """Return the class that serves the hub's WebSockets, if ``websockets`` is installed."""
    try:
        from uvicorn.protocols.websockets.websockets_sansio_impl import (  # noqa: PLC0415
            WebSocketsSansIOProtocol,
        )
    except ImportError:
        return "none"

    class _WebSocket(WebSocketsSansIOProtocol):
        def handle_connect(self, event: Any) -> None:
            super().handle_connect(event)
            if self.response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                self.scope[TRANSPORT] = self.transport  # type: ignore[typeddict-unknown-key]

    return _WebSocket
