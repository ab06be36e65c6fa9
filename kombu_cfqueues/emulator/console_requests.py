"""The emulator's own endpoints for the requests that the API has received."""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request

from . import contents, snippets
from .access import Access
from .answers import Refusal
from .console_input import place_of, whole
from .log import LoggedRequest, RequestLog
from .service import Service

_MAX_REQUESTS: Final = 500
"""Maximum number of requests in one response."""

_MAX_DUMP_BYTES: Final = 1_024
"""Number of bytes that are shown of a body which is not text."""

_SECRET_HEADERS: Final = ("authorization", "x-auth-key", "cookie", "proxy-authorization")
"""Headers whose values are masked."""


class RequestConsole:
    """The handlers below ``/_emulator/requests``.

    Args:
        service: The emulated account.
        access: The tokens, to name the token of a request.
        requests: The log of API requests.
        token: The token for code that the answers contain.
    """

    def __init__(self, service: Service, access: Access, requests: RequestLog, token: str) -> None:
        self._service = service
        self._access = access
        self._requests = requests
        self._token = token

    async def latest(self, request: Request) -> dict[str, Any]:
        """Return the latest requests, the oldest first."""
        limit = min(whole(request.query_params.get("limit"), "limit") or 100, _MAX_REQUESTS)
        names = self._names()
        latest = self._requests.latest(limit)
        return {
            "total": self._requests.total,
            "requests": [_as_json(logged, number, names) for number, logged in latest],
        }

    async def one(self, request: Request) -> dict[str, Any]:
        """Return one request in full, with its answer; tokens are masked."""
        number: int = request.path_params["number"]
        logged = self._requests.numbered(number)
        if logged is None:
            raise Refusal(404, 0, "the request is no longer in the log")
        answer = logged.answer
        place = place_of(request, self._service.account_id, self._token)
        return {
            **_as_json(logged, number, self._names()),
            "token": self._access.label_of(logged.headers),
            "path": logged.path,
            "query": logged.query,
            "headers": {name: _masked(name, value) for name, value in logged.headers.items()},
            "body": _text(logged.body),
            "answer": None
            if answer is None
            else {
                "headers": answer.headers,
                "body": None if answer.body is None else _text(answer.body),
                "bytes": answer.size,
                "cut": answer.body is not None and len(answer.body) < answer.size,
            },
            "code": snippets.of_request(logged, place),
        }

    async def forget(self, _request: Request) -> dict[str, Any]:
        """Forget all requests."""
        self._requests.clear()
        return {}

    def _names(self) -> dict[str, str]:
        return {queue.id: queue.name for queue in self._service.queues}


def _as_json(request: LoggedRequest, number: int, names: Mapping[str, str]) -> dict[str, Any]:
    return {
        "number": number,
        "time": request.time,
        "method": request.method,
        "path": request.path[:300],
        "route": request.route,
        "queue": names.get(request.queue_id, ""),
        "bytes": len(request.body),
        "attempt": request.attempt,
        "agent": request.headers.get("user-agent", "")[:100],
        "client": request.client,
        "status": request.status,
        "code": request.code,
        "seconds": request.seconds,
        "fault": request.fault,
    }


def _masked(name: str, value: str) -> str:
    if name not in _SECRET_HEADERS:
        return value
    scheme, space, rest = value.partition(" ")
    return f"{scheme} {'•' * 8}" if space and rest and scheme.isalpha() else "•" * 8


def _text(body: bytes) -> dict[str, str]:
    """Return a body as text for people; ``form`` is ``json``, ``text`` or ``binary``."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return {"form": "binary", "text": binascii.hexlify(body[:_MAX_DUMP_BYTES], " ").decode()}
    shown = contents.pretty_if_json(text)
    return {"form": "text" if shown is None else "json", "text": text if shown is None else shown}
