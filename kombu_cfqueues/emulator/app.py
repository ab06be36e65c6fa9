"""The API as an ASGI application: how a request is served, step by step.

The application logs the request and applies the faults that are set.  It counts the request against
the request limit, checks its token and its account, and calls the handler of its route.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import re
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import admin, limits, page, traffic
from .access import Access
from .allowance import Allowance, Caller
from .answers import Answer, Refusal
from .call import Call
from .console import Console
from .faults import DROP, RESET, EffectChange, Seconds
from .foreign_pages import why_foreign
from .hub_sockets import PREFIX as HUB_PREFIX
from .hub_sockets import TRANSPORT, Hub
from .log import LoggedRequest, RequestLog
from .routes import Found, Route, find
from .service import Service

PREFIX: Final = "/client/v4"

_AGENT_CHARACTERS: Final = 100
"""Length at which the name of a client is cut off where its requests are counted."""

_UNSUCCESSFUL: Final = re.compile(rb'{"success": ?false')
"""How the envelope of a refusal begins."""

_logger = logging.getLogger(__name__)

_HANDLERS: Final[dict[str, Callable[[Call], Answer]]] = {
    "list": admin.list_queues,
    "create": admin.create,
    "get": admin.get,
    "update": admin.update,
    "edit": admin.edit,
    "delete": admin.delete,
    "metrics": admin.metrics,
    "purge": admin.purge,
    "purge_status": admin.purge_status,
    "list_consumers": admin.list_consumers,
    "create_consumer": admin.create_consumer,
    "get_consumer": admin.get_consumer,
    "update_consumer": admin.update_consumer,
    "delete_consumer": admin.delete_consumer,
    "push": traffic.push,
    "batch": traffic.batch,
    "pull": traffic.pull,
    "ack": traffic.ack,
    "extend": traffic.extend,
    "peek": traffic.peek,
    "purge_refs": traffic.purge_refs,
}


class Api:
    """Everything below ``/client/v4``.

    Args:
        service: The emulated account.
        access: The tokens.
        latency: Seconds before each request takes effect, or the bounds of a random time.
    """

    def __init__(self, service: Service, access: Access, latency: Seconds) -> None:
        self.requests = RequestLog()
        self.latency = latency
        self.allowance = Allowance(service.clock)
        self._service = service
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body = await _read(receive)
        if body is None:
            return  # the client disconnected while it was sending
        request, found = _request(scope, body)
        if self._access.is_public and (why := why_foreign(request.headers)):
            refusal = _refusal_of_foreign(why)
            await _send(send, refusal, _headers(refusal))
            return
        began = time.perf_counter()
        self.requests.append(request)
        answer = await self._under_faults(request, found, receive)
        request.seconds = time.perf_counter() - began
        if answer is DROP or answer is RESET:
            await _cut(scope, receive, reset=answer is RESET)
            return
        request.status = answer.status
        request.code = _code(answer)
        headers = _headers(answer)
        self.requests.keep_answer(request, headers, answer.body)
        await _send(send, answer, headers)

    async def _under_faults(self, request: LoggedRequest, found: Found, receive: Receive) -> Answer:
        applied = self._service.faults.apply(request.route)
        await _wait((self.latency, *applied.waits) if applied.waits else (self.latency,), receive)
        fault = applied.fault
        if fault is None or fault.replace is None:
            return self._answer(request, found, applied.change)
        request.fault = fault.kind
        return fault.replace(
            self._answer(request, found, applied.change) if fault.after_effect else None
        )

    def _answer(self, request: LoggedRequest, found: Found, change: EffectChange) -> Answer:
        try:
            return self._serve(request, found, change)
        except Refusal as refusal:
            return refusal.answer()
        except Exception:  # to the client, a bug here is a failure of the service
            _logger.exception("%s %s failed", request.method, request.path)
            return Refusal(500, 15000, "Unknown internal error").answer()

    def _serve(self, request: LoggedRequest, found: Found, change: EffectChange) -> Answer:
        service = self._service
        knobs = service.knobs
        if len(request.body) > limits.REQUEST_BYTES:
            raise Refusal(knobs.too_large_status, 10205, "The request is too large")
        token = self._access.identify(request.headers, knobs.bad_token)
        caller = Caller(request.client, request.headers.get("user-agent", "")[:_AGENT_CHARACTERS])
        allowance = self.allowance.spend(token, found.route, knobs, caller)
        try:
            route = _existing(request, found, service.account_id)
            self._access.check(token, route)
            query = parse_qsl(request.query, keep_blank_values=True) if request.query else []
            answer = _HANDLERS[route.name](Call(service, route, found, query, request.body, change))
        except Refusal as refusal:
            answer = refusal.answer()
        return answer.with_headers(allowance) if allowance else answer


def application(api: Api, console: Console, hub: Hub) -> ASGIApp:
    """Return the application that serves the API, the hub, the own endpoints and the page."""
    own = Starlette(routes=[*page.routes(), Mount("/_emulator", routes=console.routes())])

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # No Mount: its pattern ends at a line break, which a path may contain.
        path = scope["path"]
        below = path == PREFIX or path.startswith(f"{PREFIX}/")
        try:
            if path.startswith(HUB_PREFIX):
                await hub(scope, receive, send)
            else:
                await (api if below else own)(scope, receive, _without_sniffing(send))
        except asyncio.CancelledError:
            # The server stops and has cut the connection, so no client waits for a response.
            # uvicorn would log the cancellation as a failure.
            return

    return serve


def _without_sniffing(send: Send) -> Send:
    """Return a *send* that tells browsers not to guess the type of what is sent."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [one for one in message["headers"] if one[0] != b"x-content-type-options"]
            message["headers"] = [*headers, (b"x-content-type-options", b"nosniff")]
        await send(message)

    return send_with_header


def _existing(request: LoggedRequest, found: Found, account_id: str) -> Route:
    if found.account_id != account_id or not (found.route or found.allowed):
        path = request.path.removeprefix(PREFIX)
        raise Refusal(
            404,
            7003,
            f"Could not route to {path}, perhaps your object identifier is invalid?",
            (7000, "No route for that URI"),
        )
    if found.route is None:
        allow = {"Allow": ", ".join(found.allowed)}
        raise Refusal(405, 10405, "Method not allowed", headers=allow)
    return found.route


def _refusal_of_foreign(why: str) -> Answer:
    return Refusal(
        403,
        10000,
        f"the emulator refused the request: {why}, and everybody knows the default token; to be "
        "served under any name, start the emulator with a token of your own (--token)",
    ).answer()


def _request(scope: Scope, body: bytes) -> tuple[LoggedRequest, Found]:
    path = scope["path"]
    found = find(scope["method"], path[len(PREFIX) :])
    request = LoggedRequest(
        method=scope["method"],
        path=path,
        query=scope["query_string"].decode("latin-1"),
        headers={
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        },
        body=body,
        time=time.time(),
        route=found.route.name if found.route else "",
        queue_id=found.queue_id,
        client=scope["client"][0] if scope.get("client") else "",
    )
    return request, found


def _code(answer: Answer) -> int | None:
    """Return the first error code of a refusal; None if there is none."""
    if answer.status < 400 and not _UNSUCCESSFUL.match(answer.body):
        return None
    try:
        code = json.loads(answer.body)["errors"][0]["code"]
    except (ValueError, LookupError, TypeError):  # HTML, or truncated JSON
        return None
    return code if isinstance(code, int) else None


async def _read(receive: Receive) -> bytes | None:
    """Return a request's body, or a little more than ``REQUEST_BYTES`` of one that is too large.

    None if the client disconnects first.
    """
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        if size <= limits.REQUEST_BYTES:
            chunks.append(chunk)
            size += len(chunk)
        # Read and drop the rest: a client that is still sending would not see the response.
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _wait(waits: Iterable[Seconds], receive: Receive) -> None:
    for wait in waits:
        low, high = wait if isinstance(wait, tuple) else (wait, wait)
        seconds = random.uniform(low, high) if low < high else low  # noqa: S311
        if math.isinf(seconds):
            await _disconnect(receive)
        elif seconds:
            await asyncio.sleep(seconds)


async def _cut(scope: Scope, receive: Receive, *, reset: bool) -> None:
    transport = scope[TRANSPORT]
    if reset:
        connection = transport.get_extra_info("socket")
        # With a linger time of zero, closing sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    await _disconnect(receive)


async def _disconnect(receive: Receive) -> None:
    """Wait until the connection is closed, by the client or by a fault."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(answer: Answer) -> dict[str, str]:
    return {
        "content-type": answer.content_type,
        "content-length": str(len(answer.body)),
        "server": "cloudflare",
        "cf-ray": f"{secrets.token_hex(8)}-EMU",
        **answer.headers,
    }


async def _send(send: Send, answer: Answer, headers: Mapping[str, str]) -> None:
    start: dict[str, Any] = {"type": "http.response.start", "status": answer.status}
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({**start, "headers": encoded})
    await send({"type": "http.response.body", "body": answer.body})
