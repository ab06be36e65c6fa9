"""The emulator's own endpoints, under ``/_emulator/``: what the page shows and does.

Also for tests in other languages: faults, the clock, knobs and state are all here as JSON.  No
fault strikes these routes and no request limit counts them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import admin, contents, fault_orders, limits
from .access import TOKEN, Access
from .activity import KINDS
from .allowance import Allowance
from .answers import Refusal
from .faults import Fault
from .knobs import Knobs
from .log import LoggedRequest, RequestLog
from .queues import Queue
from .service import Service
from .store import Draft, StoredMessage

_MOST_MESSAGES: Final = 100  # of one answer
_MOST_REQUESTS: Final = 500  # of one answer
_PREVIEW_CHARACTERS: Final = 2_000
_MOST_SECONDS: Final = 10 * 365 * 86_400  # ten years: as far as the clock goes in one step

Handler = Callable[[Request], Awaitable[Any]]


class Console:
    """Answers what is asked below ``/_emulator/``.

    Args:
        service: The account.
        access: Who may ask, if a token is wanted.
        requests: What was asked of the API.
        allowance: What each token has spent.
        token: The token whose allowance is shown.
        guarded: A token is wanted.  Not on loopback, where nobody else can come.
    """

    def __init__(
        self,
        service: Service,
        access: Access,
        requests: RequestLog,
        allowance: Allowance,
        token: str,
        *,
        guarded: bool,
    ) -> None:
        self._service = service
        self._access = access
        self._requests = requests
        self._allowance = allowance
        self._token = token
        self._guarded = guarded
        self._started = time.monotonic()
        self._queues: tuple[float, list[dict[str, Any]]] = (0.0, [])  # until when it is fresh

    def routes(self) -> list[Route]:
        """Return its routes."""
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
            ("PATCH", "/knobs", self._turn_knobs),
            ("POST", "/allowance/reset", self._reset_allowance),
            ("POST", "/reset", self._reset),
        ]
        return [
            Route(path, self._endpoint(handler), methods=[method])
            for method, path, handler in table
        ]

    def _endpoint(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        """Wrap *handler*: who may call it, and how its result and its failures look."""

        async def endpoint(request: Request) -> Response:
            try:
                self._admit(request)
                answer = JSONResponse(await handler(request))
            except Refusal as refusal:
                answer = JSONResponse({"error": str(refusal)}, refusal.status)
            except ValueError as error:
                answer = JSONResponse({"error": str(error)}, 400)
            answer.headers["cache-control"] = "no-store"
            return answer

        return endpoint

    def _admit(self, request: Request) -> None:
        """Refuse whoever has no token, and pages of other sites that a browser here has open."""
        if self._guarded:
            try:
                token = self._access.identify(request.headers, "401/10000")
            except Refusal as refusal:
                raise Refusal(401, 10000, "a token of this emulator is needed") from refusal
            if request.method != "GET" and not self._access.may_edit(token):
                raise Refusal(403, 10000, "this token may only read")
            return
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        # A name that somebody else's DNS points at loopback would have the browser send us what
        # a page of theirs asks for.
        if not (host == "localhost" or host.endswith(".localhost") or _is_address(host)):
            raise Refusal(403, 10000, "ask for it by the address or as localhost")
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") or (
            origin is not None and urlsplit(origin).netloc != request.headers.get("host")
        ):
            raise Refusal(403, 10000, "only this emulator's own page may ask")

    # --- looking

    async def _state(self, _request: Request) -> dict[str, Any]:
        service = self._service
        return {
            "account_id": service.account_id,
            # For the examples on the page: only the one that everybody knows.
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
        fresh_until, summaries = self._queues
        if began >= fresh_until:
            with self._service.database.lock:
                summaries = [self._summary(queue) for queue in self._service.queues]
            took = time.perf_counter() - began
            # Counting a million delayed messages takes a while, in the thread that serves the
            # API: it may take a twentieth of it.
            self._queues = (began + 20 * took if took > 0.02 else 0.0, summaries)
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
            raise ValueError("state is ready, delayed or leased")
        before = _whole(request.query_params.get("before"), "before")
        most = min(_whole(request.query_params.get("limit"), "limit") or 50, _MOST_MESSAGES)
        stored = self._service.store.stored(queue, state=state, before=before, most=most)
        return {"messages": [_shown(message) for message in stored], "more": len(stored) == most}

    async def _message(self, request: Request) -> dict[str, Any]:
        number: int = request.path_params["number"]
        stored = self._service.store.stored(self._queue(request), before=number + 1, most=1)
        if not stored or stored[0].number != number:
            raise Refusal(404, 0, "the message is gone")
        return _shown(stored[0], whole=True)

    async def _list_requests(self, request: Request) -> dict[str, Any]:
        most = min(_whole(request.query_params.get("limit"), "limit") or 100, _MOST_REQUESTS)
        names = {queue.id: queue.name for queue in self._service.queues}
        latest = self._requests[-most:]
        total = self._requests.total
        return {
            "total": total,
            "requests": [
                _request_shown(one, total - len(latest) + n + 1, names)
                for n, one in enumerate(latest)
            ],
        }

    # --- doing

    async def _create_queue(self, request: Request) -> dict[str, Any]:
        sent = await _object(request)
        name = sent.get("name")
        if not isinstance(name, str):
            raise ValueError("name is a text")
        admin.check_name(name)
        if self._service.queues.named(name, fold=self._service.knobs.fold_names) is not None:
            raise Refusal(409, 11009, f"there is a queue {name!r} already")
        consumer = sent.get("consumer")
        made = None
        if consumer is not None:
            if not isinstance(consumer, dict):
                raise ValueError("consumer is an object, or null")
            made = admin.new_consumer(self._service.clock.now_ms(), consumer)
        settings = admin.queue_settings({"settings": sent.get("settings", {})})
        queue = self._service.queues.create(name, None, settings)
        if made is not None:
            self._service.queues.put_consumer(queue, made)
        return self._changed({"id": queue.id, "name": queue.name})

    async def _delete_queue(self, request: Request) -> dict[str, Any]:
        self._service.queues.delete(self._queue(request))
        return self._changed({})

    async def _publish(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        sent = await _object(request)
        draft = _draft(sent)
        size = len(draft.body) + self._service.knobs.metadata_bytes
        if size > limits.MESSAGE_BYTES:
            raise Refusal(413, 10204, f"the message has {size} bytes; {limits.MESSAGE_BYTES} fit")
        if sent.get("delay_seconds") is None:
            draft = replace(draft, delay_seconds=queue.delivery_delay)
        self._service.store.add(queue, [draft])
        return self._changed({"published": 1})

    async def _retry(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        numbers = _numbers(await _object(request), optional=True)
        return self._changed({"retried": self._service.store.retry_now(queue, numbers)})

    async def _delete_messages(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        numbers = _numbers(await _object(request), optional=False)
        return self._changed({"deleted": self._service.store.delete(queue, numbers or [])})

    async def _purge(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        await _object(request)
        count = queue.backlog_count
        self._service.store.purge(queue)
        return self._changed({"deleted": count - queue.backlog_count})

    async def _pause(self, request: Request) -> dict[str, Any]:
        queue = self._queue(request)
        paused = (await _object(request)).get("paused")
        if not isinstance(paused, bool):
            raise ValueError("paused is true or false")
        queue.delivery_paused = paused
        self._service.queues.save(queue)
        return self._changed({"paused": paused})

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
            raise ValueError("advance is a number of seconds")
        if not 0 <= seconds <= _MOST_SECONDS:
            raise ValueError(f"advance is from 0 to {_MOST_SECONDS} seconds")
        self._service.clock.advance(seconds)
        self._changed({})
        return await self._show_clock(request)

    async def _show_knobs(self, _request: Request) -> dict[str, Any]:
        return asdict(self._service.knobs)

    async def _turn_knobs(self, request: Request) -> dict[str, Any]:
        sent = await _object(request)
        try:
            self._service.knobs = replace(self._service.knobs, **sent)
        except TypeError as error:
            unknown = sorted(set(sent) - set(asdict(Knobs())))
            raise ValueError(f"no knob is called {', '.join(unknown)}") from error
        return asdict(self._service.knobs)

    async def _reset_allowance(self, request: Request) -> dict[str, Any]:
        await _object(request)
        self._allowance.reset()
        return self._allowance.describe(self._token, self._service.knobs)

    async def _reset(self, request: Request) -> dict[str, Any]:
        """Forget everything but the knobs and the clock, for the next test."""
        await _object(request)
        for queue in self._service.queues:
            self._service.queues.delete(queue)
        self._service.faults.clear()
        self._requests.clear()
        self._allowance.reset()
        return self._changed({})

    # --- parts

    def _changed(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Have the next look at the queues see what was done."""
        self._queues = (0.0, [])
        return answer

    def _queue(self, request: Request) -> Queue:
        queue = self._service.queues.get(request.path_params["queue_id"])
        if queue is None:
            raise Refusal(404, 11000, "there is no such queue")
        return queue

    def _fault(self, number: int) -> Fault:
        for fault in self._service.faults.active:
            if fault.number == number:
                return fault
        raise Refusal(404, 0, "no fault of that number is set")


def _shown(message: StoredMessage, *, whole: bool = False) -> dict[str, Any]:
    """Return what is said of a message; its body in full only if it is asked for alone."""
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


def _request_shown(request: LoggedRequest, number: int, names: Mapping[str, str]) -> dict[str, Any]:
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
    # A page of another site can send a form or plain text here, but JSON only after asking, and
    # nobody answers that question.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refusal(415, 0, "send it as application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.REQUEST_BYTES:
            raise Refusal(413, 0, "that is too much")
    try:
        sent = json.loads(body.decode() or "{}")
        json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is not JSON") from error
    if not isinstance(sent, dict):
        raise ValueError("the body is a JSON object")
    return sent


def _draft(sent: Mapping[str, Any]) -> Draft:
    """Return the message that somebody wants to publish: a task, JSON or text."""
    delay = sent.get("delay_seconds") or 0
    if isinstance(delay, bool) or not isinstance(delay, int):
        raise ValueError("delay_seconds is a whole number")
    if not 0 <= delay <= limits.DELAY_SECONDS:
        raise ValueError(f"delay_seconds is from 0 to {limits.DELAY_SECONDS}")
    kind = sent.get("kind")
    if kind == "celery":
        task, args, kwargs = sent.get("task"), sent.get("args", []), sent.get("kwargs", {})
        if not isinstance(task, str) or not task:
            raise ValueError("task is the name of a task")
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError("args is a list, and kwargs an object")
        return Draft(contents.celery_task(task, args, kwargs).encode(), "text", delay)
    if kind == "json":
        if "body" not in sent:
            raise ValueError("body is missing")
        text = json.dumps(sent["body"], ensure_ascii=False, separators=(",", ":"))
        return Draft(text.encode(), "json", delay)
    if kind == "text":
        body = sent.get("body")
        if not isinstance(body, str):
            raise ValueError("body is a text")
        return Draft(body.encode(), "text", delay)
    raise ValueError("kind is celery, json or text")


def _numbers(sent: Mapping[str, Any], *, optional: bool) -> list[int] | None:
    numbers = sent.get("numbers")
    if numbers is None and optional:
        return None
    if (
        not isinstance(numbers, list)
        or len(numbers) > 1000
        or not all(_is_row(number) for number in numbers)
    ):
        raise ValueError("numbers is a list of message numbers, at most 1000")
    return numbers


def _is_row(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**63


def _whole(text: str | None, name: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ValueError(f"{name} is a whole number")
    return int(text)


def _is_address(host: str) -> bool:
    """Tell whether *host* is an IP address, which no DNS can point elsewhere."""
    return ":" in host or host.replace(".", "").isdecimal()
