"""The emulator's own endpoints, under ``/_emulator/``: what the page shows and does.

Tests in other languages use them too: faults, the clock, knobs and state are available as JSON.
Faults do not apply to these routes, and the request limit does not count them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import admin, contents, fault_orders, limits
from .access import TOKEN, Access
from .activity import KINDS
from .allowance import Allowance
from .answers import Refusal
from .faults import Fault
from .foreign_pages import why_foreign
from .hub_sockets import Hub
from .knobs import Knobs
from .log import LoggedRequest, RequestLog
from .queues import Queue
from .service import Service
from .store import Draft, StoredMessage

_MAX_MESSAGES: Final = 100
"""Maximum number of messages in one response."""

_MAX_REQUESTS: Final = 500
"""Maximum number of requests in one response."""

_MAX_NUMBERS: Final = 1_000
"""Maximum number of messages that one request retries or deletes."""

_PREVIEW_CHARACTERS: Final = 2_000
"""Arguments of a task that are longer than this appear only when the message is shown alone."""

_MAX_ADVANCE_SECONDS: Final = 10 * 365 * 86_400
"""Maximum step of the clock: ten years."""

_FRESH_SUMMARY_SECONDS: Final = 0.02
"""Counting that is faster than this is repeated for each request."""

_SUMMARY_REUSE_FACTOR: Final = 20
"""Slower counts are reused for this many times their own duration.

Counting a million delayed messages takes a while and blocks the thread that serves the API, so
counting gets at most a twentieth of that thread's time."""

Handler = Callable[[Request], Awaitable[Any]]


class Console:
    """The handlers below ``/_emulator/``.

    Args:
        service: The emulated account.
        access: The tokens that may use the endpoints, if they require one.
        requests: The log of API requests.
        allowance: The request count of each token.
        hub: The emulated hub.
        token: The token whose allowance is shown.
        requires_token: Require a token.  On loopback none is needed, because other machines cannot
            connect.
    """

    def __init__(
        self,
        service: Service,
        access: Access,
        requests: RequestLog,
        allowance: Allowance,
        token: str,
        *,
        hub: Hub,
        requires_token: bool,
    ) -> None:
        self._service = service
        self._access = access
        self._requests = requests
        self._allowance = allowance
        self._hub = hub
        self._token = token
        self._requires_token = requires_token
        self._started = time.monotonic()
        # The queues' summaries, and the ``perf_counter`` time until which they may be reused.
        self._summaries_cache: tuple[float, list[dict[str, Any]]] = (0.0, [])

    def routes(self) -> list[Route]:
        """Return the routes of these endpoints."""
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/state", self._state),
            ("POST", "/queues", self._create_queue),
            ("DELETE", "/queues/{queue_id}", self._delete_queue),
            ("GET", "/queues/{queue_id}/messages", self._messages),
            ("GET", "/queues/{queue_id}/messages/{number:int}", self._message),
            ("POST", "/queues/{queue_id}/messages", self._publish),
            ("POST", "/queues/{queue_id}/retry", self._retry),
            ("POST", "/queues/{queue_id}/delete", self._delete_messages),
            ("POST", "/queues/{queue_id}/purge", self._purge),
            ("POST", "/queues/{queue_id}/pause", self._pause),
            ("GET", "/requests", self._list_requests),
            ("DELETE", "/requests", self._forget_requests),
            ("GET", "/faults", self._list_faults),
            ("POST", "/faults", self._set_fault),
            ("DELETE", "/faults", self._clear_faults),
            ("DELETE", "/faults/{number:int}", self._remove_fault),
            ("GET", "/clock", self._show_clock),
            ("POST", "/clock", self._advance_clock),
            ("GET", "/knobs", self._show_knobs),
            ("PATCH", "/knobs", self._change_knobs),
            ("POST", "/allowance/reset", self._reset_allowance),
            ("POST", "/reset", self._reset),
        ]
        return [
            Route(path, self._endpoint(handler), methods=[method])
            for method, path, handler in table
        ]

    def _endpoint(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Wrap *handler*: check the caller, and turn its result or its failure into a response."""

        async def endpoint(request: Request) -> Response:
            try:
                self._check_caller(request)
                answer = JSONResponse(await handler(request))
            except Refusal as refusal:
                answer = JSONResponse({"error": str(refusal)}, refusal.status)
            except ValueError as error:
                answer = JSONResponse({"error": str(error)}, 400)
            answer.headers["cache-control"] = "no-store"
            return answer

        return endpoint

    def _check_caller(self, request: Request) -> None:
        """Refuse callers without a token, and pages of other sites in a browser on this machine."""
        if self._requires_token:
            try:
                token = self._access.identify(request.headers, "401/10000")
            except Refusal as refusal:
                raise Refusal(401, 10000, "this emulator requires its token") from refusal
            if request.method != "GET" and not self._access.may_edit(token):
                raise Refusal(403, 10000, "this token has read permission only")
            return
        why = why_foreign(request.headers)
        if why is not None:
            raise Refusal(
                403, 10000, f"the request was refused: {why}, and only this emulator's may call it"
            )

    # --- reading

    async def _state(self, _request: Request) -> dict[str, Any]:
        service = self._service
        return {
            "account_id": service.account_id,
            # For the examples on the page: only the default token, which is not a secret.
            "token_hint": self._token if self._token == TOKEN else None,
            "now": service.clock.now(),
            "ahead": service.clock.ahead,
            "uptime": time.monotonic() - self._started,
            "queues": self._summaries(),
            "allowance": self._allowance.describe(self._token, service.knobs),
            "faults": [fault_orders.as_json(fault) for fault in service.faults.active],
            "requests_total": self._requests.total,
        }

    def _summaries(self) -> list[dict[str, Any]]:
        began = time.perf_counter()
        fresh_until, summaries = self._summaries_cache
        if began >= fresh_until:
            with self._service.database.lock:
                summaries = [self._summary(queue) for queue in self._service.queues]
            took = time.perf_counter() - began
            slow = took > _FRESH_SUMMARY_SECONDS
            fresh_until = began + _SUMMARY_REUSE_FACTOR * took if slow else 0.0
            self._summaries_cache = (fresh_until, summaries)
        return summaries

    def _summary(self, queue: Queue) -> dict[str, Any]:
        consumer = queue.consumer()
        counts = self._service.store.counts(queue)
        activity = queue.activity
        return {
            "id": queue.id,
            "name": queue.name,
            "created": queue.created_ms / 1000,
            "paused": queue.delivery_paused,
            "delivery_delay": queue.delivery_delay,
            "retention": queue.message_retention_period,
            "jurisdiction": queue.jurisdiction,
            "consumer": None
            if consumer is None
            else {
                "type": consumer.type,
                "script": consumer.script_name,
                "max_retries": consumer.max_retries,
                "dead_letter_queue": consumer.dead_letter_queue,
            },
            **asdict(counts),
            "bytes": queue.backlog_bytes,
            "totals": activity.totals(),
            "rates": {kind: activity.rate(kind) for kind in KINDS},
            "history": {kind: activity.history(kind) for kind in ("published", "delivered")},
        }

    async def _messages(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        state = request.query_params.get("state") or None
        if state not in (None, "ready", "delayed", "leased"):
            raise ValueError("state must be ready, delayed or leased")
        before = _whole(request.query_params.get("before"), "before")
        limit = min(_whole(request.query_params.get("limit"), "limit") or 50, _MAX_MESSAGES)
        stored = self._service.store.stored(queue, state=state, before=before, limit=limit)
        messages = [_message_as_json(message) for message in stored]
        return {"messages": messages, "more": len(stored) == limit}

    async def _message(self, request: Request) -> dict[str, Any]:
        number: int = request.path_params["number"]
        stored = self._service.store.stored(self._queue(request), before=number + 1, limit=1)
        if not stored or stored[0].number != number:
            raise Refusal(404, 0, "the message no longer exists")
        return _message_as_json(stored[0], whole=True)

    async def _list_requests(self, request: Request) -> dict[str, Any]:
        limit = min(_whole(request.query_params.get("limit"), "limit") or 100, _MAX_REQUESTS)
        names = {queue.id: queue.name for queue in self._service.queues}
        latest = self._requests[-limit:]
        total = self._requests.total
        return {
            "total": total,
            "requests": [
                _request_as_json(logged, total - len(latest) + n + 1, names)
                for n, logged in enumerate(latest)
            ],
        }

    # --- changing

    async def _create_queue(self, request: Request) -> dict[str, Any]:
        sent = await _object(request)
        name = sent.get("name")
        if not isinstance(name, str):
            raise ValueError("name must be a string")
        admin.check_name(name)
        if self._service.queues.named(name, fold=self._service.knobs.fold_names) is not None:
            raise Refusal(409, 11009, f"queue {name!r} already exists")
        consumer = sent.get("consumer")
        new_consumer = None
        if consumer is not None:
            if not isinstance(consumer, dict):
                raise ValueError("consumer must be an object or null")
            new_consumer = admin.new_consumer(self._service.clock.now_ms(), consumer)
        settings = admin.queue_settings({"settings": sent.get("settings", {})})
        queue = self._service.queues.create(name, None, settings)
        if new_consumer is not None:
            self._service.queues.put_consumer(queue, new_consumer)
        return self._refreshed({"id": queue.id, "name": queue.name})

    async def _delete_queue(self, request: Request) -> dict[str, Any]:
        self._service.queues.delete(self._queue(request))
        return self._refreshed({})

    async def _publish(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        sent = await _object(request)
        draft = _draft(sent)
        size = len(draft.body) + self._service.knobs.metadata_bytes
        if size > limits.MESSAGE_BYTES:
            raise Refusal(
                413, 10204, f"the message has {size} bytes; the limit is {limits.MESSAGE_BYTES}"
            )
        if sent.get("delay_seconds") is None:
            draft = replace(draft, delay_seconds=queue.delivery_delay)
        self._service.store.add(queue, [draft])
        return self._refreshed({"published": 1})

    async def _retry(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        numbers = _numbers(await _object(request), optional=True)
        return self._refreshed({"retried": self._service.store.retry_now(queue, numbers)})

    async def _delete_messages(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        numbers = _numbers(await _object(request), optional=False)
        return self._refreshed({"deleted": self._service.store.delete(queue, numbers or [])})

    async def _purge(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        await _object(request)
        count = queue.backlog_count
        self._service.store.purge(queue)
        return self._refreshed({"deleted": count - queue.backlog_count})

    async def _pause(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        paused = (await _object(request)).get("paused")
        if not isinstance(paused, bool):
            raise ValueError("paused must be true or false")
        queue.delivery_paused = paused
        self._service.queues.save(queue)
        return self._refreshed({"paused": paused})

    async def _forget_requests(self, _request: Request) -> dict[str, Any]:
        self._requests.clear()
        return {}

    async def _list_faults(self, _request: Request) -> dict[str, Any]:
        active = self._service.faults.active
        return {"faults": [fault_orders.as_json(fault) for fault in active]}

    async def _set_fault(self, request: Request) -> dict[str, Any]:
        fault = fault_orders.order(self._service.faults, await _object(request))
        return fault_orders.as_json(fault)

    async def _clear_faults(self, _request: Request) -> dict[str, Any]:
        self._service.faults.clear()
        return {}

    async def _remove_fault(self, request: Request) -> dict[str, Any]:
        self._service.faults.remove(self._fault(request.path_params["number"]))
        return {}

    async def _show_clock(self, _request: Request) -> dict[str, Any]:
        return {"now": self._service.clock.now(), "ahead": self._service.clock.ahead}

    async def _advance_clock(self, request: Request) -> dict[str, Any]:
        seconds = (await _object(request)).get("advance")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise ValueError("advance must be a number of seconds")
        if not 0 <= seconds <= _MAX_ADVANCE_SECONDS:
            raise ValueError(f"advance must be from 0 to {_MAX_ADVANCE_SECONDS} seconds")
        self._service.clock.advance(seconds)
        self._refreshed({})
        return await self._show_clock(request)

    async def _show_knobs(self, _request: Request) -> dict[str, Any]:
        return asdict(self._service.knobs)

    async def _change_knobs(self, request: Request) -> dict[str, Any]:
        sent = await _object(request)
        try:
            self._service.knobs = replace(self._service.knobs, **sent)
        except TypeError as error:
            unknown = sorted(set(sent) - set(asdict(Knobs())))
            raise ValueError(f"unknown knobs: {', '.join(unknown)}") from error
        return asdict(self._service.knobs)

    async def _reset_allowance(self, request: Request) -> dict[str, Any]:
        await _object(request)
        self._allowance.reset()
        return self._allowance.describe(self._token, self._service.knobs)

    async def _reset(self, request: Request) -> dict[str, Any]:
        """Delete everything except the knobs and the clock, for the next test."""
        await _object(request)
        for queue in self._service.queues:
            self._service.queues.delete(queue)
        self._service.faults.clear()
        self._requests.clear()
        self._allowance.reset()
        return self._refreshed({})

    # --- helpers

    def _refreshed(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return *answer*, and make the next request for the state count the messages anew."""
        self._summaries_cache = (0.0, [])
        return answer

    def _queue(self, request: Request) -> Queue:
        queue = self._service.queues.get(request.path_params["queue_id"])
        if queue is None:
            raise Refusal(404, 11000, "the queue does not exist")
        return queue

    def _fault(self, number: int) -> Fault:
        for fault in self._service.faults.active:
            if fault.number == number:
                return fault
        raise Refusal(404, 0, "no active fault has this number")


def _message_as_json(message: StoredMessage, *, whole: bool = False) -> dict[str, Any]:
    """Describe a message; with *whole*, include its body and everything in it."""
    described = contents.describe(message.content_type, message.body)
    if not whole:
        del described["content"]
        described.pop("headers", None)
        for name in ("args", "kwargs"):
            if len(json.dumps(described.get(name))) > _PREVIEW_CHARACTERS:
                described[name] = "…"
    shown = {
        "number": message.number,
        "id": message.id,
        "content_type": message.content_type,
        "size": len(message.body.encode()),
        "published": message.timestamp,
        "visible_at": message.visible_at,
        "delay_seconds": message.delay_seconds,
        "attempts": message.attempts,
        "state": message.state,
        "died_in": message.died_in,
        "what": described,
    }
    return {**shown, "body": message.body} if whole else shown


def _request_as_json(
    request: LoggedRequest, number: int, names: Mapping[str, str]
) -> dict[str, Any]:
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
        "status": request.status,
        "code": request.code,
        "seconds": request.seconds,
        "fault": request.fault,
    }


async def _object(request: Request) -> dict[str, Any]:
    # A page of another site can send a form or plain text to this endpoint.  For JSON, the browser
    # sends a CORS preflight first, which the emulator does not answer.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal(415, 0, "send the body as application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.REQUEST_BYTES:
            raise Refusal(413, 0, f"the body is larger than {limits.REQUEST_BYTES} bytes")
    try:
        sent = json.loads(body.decode() or "{}")
        json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is not valid JSON") from error
    if not isinstance(sent, dict):
        raise ValueError("the body must be a JSON object")
    return sent


def _draft(sent: Mapping[str, Any]) -> Draft:
    """Return the message that a request describes: a task, JSON or text."""
    delay = sent.get("delay_seconds") or 0
    if isinstance(delay, bool) or not isinstance(delay, int):
        raise ValueError("delay_seconds must be an integer")
    if not 0 <= delay <= limits.DELAY_SECONDS:
        raise ValueError(f"delay_seconds must be from 0 to {limits.DELAY_SECONDS}")
    kind = sent.get("kind")
    if kind == "celery":
        task, args, kwargs = sent.get("task"), sent.get("args", []), sent.get("kwargs", {})
        if not isinstance(task, str) or not task:
            raise ValueError("task must be the name of a task")
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError("args must be a list and kwargs an object")
        return Draft(contents.celery_task(task, args, kwargs).encode(), "text", delay)
    if kind == "json":
        if "body" not in sent:
            raise ValueError("body is missing")
        text = json.dumps(sent["body"], ensure_ascii=False, separators=(",", ":"))
        return Draft(text.encode(), "json", delay)
    if kind == "text":
        body = sent.get("body")
        if not isinstance(body, str):
            raise ValueError("body must be a string")
        return Draft(body.encode(), "text", delay)
    raise ValueError("kind must be celery, json or text")


def _numbers(sent: Mapping[str, Any], *, optional: bool) -> list[int] | None:
    numbers = sent.get("numbers")
    if numbers is None and optional:
        return None
    if (
        not isinstance(numbers, list)
        or len(numbers) > _MAX_NUMBERS
        or not all(_is_number(number) for number in numbers)
    ):
        raise ValueError(f"numbers must be a list of at most {_MAX_NUMBERS} message numbers")
    return numbers


def _is_number(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**63


def _whole(text: str | None, name: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ValueError(f"{name} must be an integer of at least 0")
    return int(text)
