"""The emulator's own endpoints, under ``/_emulator/``: what the page shows and does.

Tests in other languages use them too: faults, the clock, knobs and state are available as JSON.
Faults do not apply to these routes, and the request limit does not count them.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from . import admin, fault_orders, snippets
from .access import Access
from .activity import KINDS
from .allowance import Allowance
from .answers import Refusal
from .console_input import place_of, read_object
from .console_messages import MessageConsole
from .console_requests import RequestConsole
from .faults import Fault
from .foreign_pages import why_foreign
from .hub_sockets import Hub
from .knobs import Knobs
from .log import RequestLog
from .queues import Queue
from .service import Service

_MAX_ADVANCE_SECONDS: Final = 10 * 365 * 86_400
"""Maximum step of the clock: ten years."""

_FRESH_SUMMARY_SECONDS: Final = 0.02
"""Counting that takes less of the thread's time than this is repeated for each request."""

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
        self._messages = MessageConsole(service, token, self._refreshed)
        self._logged = RequestConsole(service, access, requests, token)
        self._started = time.monotonic()
        # The queues' summaries, and the ``perf_counter`` time until which they may be reused.
        self._summaries_cache: tuple[float, list[dict[str, Any]]] = (0.0, [])

    def routes(self) -> list[Route]:
        """Return the routes of these endpoints."""
        messages, requests = self._messages, self._logged
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/health", self._health),
            ("GET", "/state", self._state),
            ("POST", "/queues", self._create_queue),
            ("DELETE", "/queues/{queue_id}", self._delete_queue),
            ("GET", "/queues/{queue_id}/messages", messages.page),
            ("GET", "/queues/{queue_id}/messages/{number:int}", messages.one),
            ("POST", "/queues/{queue_id}/messages", messages.publish),
            ("GET", "/queues/{queue_id}/export", messages.export),
            ("POST", "/queues/{queue_id}/import", messages.import_lines),
            ("POST", "/queues/{queue_id}/retry", messages.retry),
            ("POST", "/queues/{queue_id}/delete", messages.delete),
            ("POST", "/queues/{queue_id}/purge", messages.purge),
            ("POST", "/queues/{queue_id}/pause", self._pause),
            ("GET", "/requests", requests.latest),
            ("GET", "/requests/{number:int}", requests.one),
            ("DELETE", "/requests", requests.forget),
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
            answer: Response
            try:
                # A health probe has no token, and learns only that the emulator is running.
                if handler != self._health:
                    self._check_caller(request)
                result = await handler(request)
                answer = result if isinstance(result, Response) else JSONResponse(result)
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
                403, 10000, f"the request was refused: {why}; only the emulator's page may send it"
            )

    # --- reading

    async def _health(self, _request: Request) -> dict[str, Any]:
        """Report that the emulator is running; Docker Compose and others wait for this."""
        with self._service.database.lock:
            self._service.database.connection.execute("SELECT count(*) FROM queues").fetchone()
        return {"status": "ok"}

    async def _state(self, request: Request) -> dict[str, Any]:
        service = self._service
        return {
            "account_id": service.account_id,
            "first_steps": snippets.first_steps(place_of(request, service.account_id, self._token)),
            "now": service.clock.now(),
            "ahead": service.clock.ahead,
            "uptime": time.monotonic() - self._started,
            "queues": self._summaries(),
            "allowance": self._allowance.describe(self._token, service.knobs),
            "allowances": self._allowances(),
            "faults": [fault_orders.as_json(fault) for fault in service.faults.active],
            "requests_total": self._requests.total,
            "hub": self._hub.describe(),
        }

    def _allowances(self) -> list[dict[str, Any]]:
        """Describe the allowance of each token that made a request recently."""
        knobs = self._service.knobs
        described = [
            {"token": self._access.label(token), **self._allowance.describe(token, knobs)}
            for token in self._access.tokens
        ]
        return [one for one in described if one["recent"] or one["blocked_for"] is not None]

    def _summaries(self) -> list[dict[str, Any]]:
        fresh_until, summaries = self._summaries_cache
        if time.perf_counter() >= fresh_until:
            began = time.thread_time()  # what it costs, not what it waits for
            with self._service.database.lock:
                summaries = [self._summary(queue) for queue in self._service.queues]
            took = time.thread_time() - began
            slow = took > _FRESH_SUMMARY_SECONDS
            fresh_until = time.perf_counter() + _SUMMARY_REUSE_FACTOR * took if slow else 0.0
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

    # --- changing

    async def _create_queue(self, request: Request) -> dict[str, Any]:
        sent = await read_object(request)
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
        self._service.queues.delete(self._messages.queue(request))
        return self._refreshed({})

    async def _pause(self, request: Request) -> dict[str, Any]:
        queue = self._messages.queue(request)
        paused = (await read_object(request)).get("paused")
        if not isinstance(paused, bool):
            raise ValueError("paused must be true or false")
        queue.delivery_paused = paused
        self._service.queues.save(queue)
        return self._refreshed({"paused": paused})

    async def _list_faults(self, _request: Request) -> dict[str, Any]:
        active = self._service.faults.active
        return {"faults": [fault_orders.as_json(fault) for fault in active]}

    async def _set_fault(self, request: Request) -> dict[str, Any]:
        fault = fault_orders.order(self._service.faults, await read_object(request))
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
        seconds = (await read_object(request)).get("advance")
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
        sent = await read_object(request)
        try:
            self._service.knobs = replace(self._service.knobs, **sent)
        except TypeError as error:
            unknown = sorted(set(sent) - set(asdict(Knobs())))
            raise ValueError(f"unknown knobs: {', '.join(unknown)}") from error
        return asdict(self._service.knobs)

    async def _reset_allowance(self, request: Request) -> dict[str, Any]:
        await read_object(request)
        self._allowance.reset()
        return self._allowance.describe(self._token, self._service.knobs)

    async def _reset(self, request: Request) -> dict[str, Any]:
        """Delete everything except the knobs and the clock, for the next test."""
        await read_object(request)
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

    def _fault(self, number: int) -> Fault:
        for fault in self._service.faults.active:
            if fault.number == number:
                return fault
        raise Refusal(404, 0, "no active fault has this number")
