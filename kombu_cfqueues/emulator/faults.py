"""Failures on demand: what can go wrong between a client and Cloudflare.

A fault applies to the next *times* requests (every request, if *times* is None) of the routes that
it names (all routes, if it names none).  Faults apply in the order in which they were set.  A fault
that replaces the response does so before the request takes effect.  With ``after_effect=True`` the
request takes effect first: the message *is* written, and the client cannot know.
"""

from __future__ import annotations

import itertools
import json
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from . import routes as api
from .answers import Answer, Refusal, html_page

Seconds = float | tuple[float, float]
"""Seconds, or the lower and upper bound of a random time."""

DROP: Final = Answer(0, b"")
"""Stands for no response: the server closes the connection."""

RESET: Final = Answer(0, b"reset")
"""Stands for no response: the server resets the connection."""


@dataclass(frozen=True, slots=True)
class EffectChange:
    """What faults change about the effect of a request, as opposed to its response.

    Attributes:
        duplicate: Each pulled message is delivered once more.
        max_messages: Maximum number of messages that a pull returns; None for no maximum.
        late_seconds: Extra seconds until a published message can be pulled.
    """

    duplicate: bool = False
    max_messages: int | None = None
    late_seconds: float = 0

    def __or__(self, other: EffectChange) -> EffectChange:
        """Combine two changes."""
        sizes = [size for size in (self.max_messages, other.max_messages) if size is not None]
        return EffectChange(
            self.duplicate or other.duplicate,
            min(sizes, default=None),
            max(self.late_seconds, other.late_seconds),
        )


@dataclass(eq=False, slots=True)
class Fault:
    """A fault that was set.

    Attributes:
        kind: The name of the method that set it.
        routes: The routes it applies to; empty for all.
        left: Number of requests it still applies to; None for no limit.
        hits: Number of requests it has applied to.
        detail: Its other arguments, by name.
        number: Identifies it in ``/_emulator/faults``.
        after_effect: The request takes effect before the fault replaces the response.
        wait: Seconds before anything happens, or their bounds; infinite for a hang.
        replace: Makes the response from the one that the request would get, which is None if the
            request takes no effect; None if the fault keeps the response.
        change: What it changes about the effect.
    """

    kind: str
    routes: tuple[str, ...]
    left: int | None
    hits: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    after_effect: bool = False
    wait: Seconds | None = None
    replace: Callable[[Answer | None], Answer] | None = field(default=None, repr=False)
    change: EffectChange | None = None


@dataclass(frozen=True, slots=True)
class AppliedFaults:
    """The faults that apply to one request: delays, a replaced response, a changed effect."""

    waits: tuple[Seconds, ...] = ()
    fault: Fault | None = None
    change: EffectChange = EffectChange()


NO_CHANGE: Final = EffectChange()
"""The effect of a request to which no fault applies."""

_NO_FAULTS: Final = AppliedFaults()


class Faults:
    """The active faults; each method sets one and returns it.

    Any thread may set and clear faults while requests run.

    Raises:
        ValueError: (every method) a route or a status does not exist, or times is below 1.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []  # guarded by _lock
        self._refusals: list[_MessageRefusal] = []  # guarded by _lock
        self._numbers = itertools.count(1)

    # --- responses of Cloudflare's API

    def error(
        self,
        *routes: str,
        status: int = 500,
        code: int | None = 15000,
        message: str = "injected error",
        retry_after: int | str | None = None,
        after_effect: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Answer with *status* and *code* in Cloudflare's envelope.

        ``faults.error("push", status=429, code=10250, retry_after=2)``

        With ``code=None`` the envelope has no error.  *retry_after* is the value of the
        ``Retry-After`` header: seconds or a date.
        """
        errors = [] if code is None else [{"code": code, "message": message}]
        body = {"success": False, "errors": errors, "messages": [], "result": None}
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        answer = Answer(_status(status), json.dumps(body).encode(), headers)
        return self._set(
            "error",
            routes,
            times,
            answer,
            after_effect=after_effect,
            detail={"status": status, "code": code},
        )

    def unsuccessful(
        self,
        *routes: str,
        code: int = 15000,
        message: str = "injected error",
        after_effect: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Answer 200 with ``"success": false``."""
        errors = [{"code": code, "message": message}]
        body = {"success": False, "errors": errors, "messages": [], "result": None}
        answer = Answer(200, json.dumps(body).encode())
        return self._set("unsuccessful", routes, times, answer, after_effect=after_effect)

    def null_result(self, *routes: str, times: int | None = 1) -> Fault:
        """Perform the request and answer with ``"result": null``."""
        return self._set("null_result", routes, times, _without_result, after_effect=True)

    def no_result(self, *routes: str, times: int | None = 1) -> Fault:
        """Perform the request and answer without any ``result``."""
        return self._set("no_result", routes, times, _bare, after_effect=True)

    # --- responses of the edge in front of the API

    def html_page(
        self,
        *routes: str,
        status: int = 502,
        title: str = "Bad gateway",
        after_effect: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Answer with an error page in HTML, as Cloudflare's edge does."""
        answer = html_page(_status(status), title)
        return self._set(
            "html_page",
            routes,
            times,
            answer,
            after_effect=after_effect,
            detail={"status": status},
        )

    def empty_body(
        self,
        *routes: str,
        status: int = 200,
        after_effect: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Answer with a status and an empty body."""
        answer = Answer(_status(status), b"")
        return self._set("empty_body", routes, times, answer, after_effect=after_effect)

    def broken_json(
        self,
        *routes: str,
        status: int = 200,
        after_effect: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Answer with truncated JSON."""
        answer = Answer(_status(status), b'{"success": true, "errors": [], "resu')
        return self._set("broken_json", routes, times, answer, after_effect=after_effect)

    def redirect(
        self, *routes: str, location: str, status: int = 307, times: int | None = 1
    ) -> Fault:
        """Redirect the client to *location*."""
        if status not in (301, 302, 303, 307, 308):
            raise ValueError(
                f"the status of a redirect must be 301, 302, 303, 307 or 308, not {status}"
            )
        answer = Answer(status, b"", {"Location": location})
        return self._set("redirect", routes, times, answer)

    # --- the network

    def reset(self, *routes: str, times: int | None = 1) -> Fault:
        """Reset the connection; the request takes no effect."""
        return self._set("reset", routes, times, RESET)

    def lost_response(self, *routes: str, times: int | None = 1) -> Fault:
        """Perform the request, then close the connection without a response."""
        return self._set("lost_response", routes, times, DROP, after_effect=True)

    def hang(self, *routes: str, times: int | None = 1) -> Fault:
        """Accept the request and never answer; it takes no effect."""
        return self._set("hang", routes, times, DROP, wait=float("inf"))

    def latency(self, *routes: str, seconds: Seconds, times: int | None = None) -> Fault:
        """Wait *seconds* before the request takes effect; a pair bounds a random time.

        Other faults may apply to the same request.
        """
        low, high = seconds if isinstance(seconds, tuple) else (seconds, seconds)
        if not 0 <= low <= high < math.inf:
            raise ValueError(
                f"seconds must be a time or the bounds of a random time, not {seconds}"
            )
        return self._set("latency", routes, times, None, wait=seconds, detail={"seconds": seconds})

    # --- messages

    def duplicate(self, *, times: int | None = 1) -> Fault:
        """Deliver each pulled message once more, even if it is acknowledged."""
        return self._set("duplicate", ("pull",), times, None, change=EffectChange(duplicate=True))

    def short_batch(self, *, most: int = 1, times: int | None = 1) -> Fault:
        """Return at most *most* messages from a pull; 0 returns none."""
        if most < 0:
            raise ValueError(f"most must be at least 0, not {most}")
        return self._set(
            "short_batch",
            ("pull",),
            times,
            None,
            change=EffectChange(max_messages=most),
            detail={"most": most},
        )

    def late(self, *, seconds: float, times: int | None = 1) -> Fault:
        """Accept published messages, which can be pulled only *seconds* later."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds must be at least 0 and finite, not {seconds}")
        return self._set(
            "late",
            ("push", "batch"),
            times,
            None,
            change=EffectChange(late_seconds=seconds),
            detail={"seconds": seconds},
        )

    def refuse_messages(
        self,
        condition: Callable[[Any], bool],
        *,
        status: int = 400,
        code: int = 10203,
        message: str = "injected refusal of the message",
    ) -> None:
        """Refuse every push or batch with a message whose body fulfils *condition*, until cleared.

        The emulator's thread calls *condition* with each body as it was sent: a string, or decoded
        JSON.
        """
        with self._lock:
            self._refusals.append(_MessageRefusal(condition, _status(status), code, message))

    # --- active faults

    @property
    def active(self) -> list[Fault]:
        """The faults that still apply to requests."""
        with self._lock:
            return list(self._faults)

    def remove(self, fault: Fault) -> None:
        """Remove a fault; do nothing if it is used up already."""
        with self._lock:
            if fault in self._faults:
                self._faults.remove(fault)

    def clear(self) -> None:
        """Remove all faults and refusals."""
        with self._lock:
            self._faults.clear()
            self._refusals.clear()

    # --- for the emulator

    def apply(self, route: str) -> AppliedFaults:
        """Return the faults that apply to a request of *route*, and count it against them.

        They are all latencies, the first fault that replaces the response, and the first fault of
        each kind that changes the effect.
        """
        if not self._faults:  # without the lock, which would slow down load tests
            return _NO_FAULTS
        waits: list[Seconds] = []
        replacing: Fault | None = None
        change = NO_CHANGE
        changing: set[str] = set()
        with self._lock:
            for fault in list(self._faults):
                if (fault.routes and route not in fault.routes) or (fault.replace and replacing):
                    continue
                if fault.kind in changing:  # two short batches apply to two pulls
                    continue
                fault.hits += 1
                if fault.left is not None:
                    fault.left -= 1
                    if fault.left == 0:
                        self._faults.remove(fault)
                if fault.wait is not None:
                    waits.append(fault.wait)
                if fault.change is not None:
                    change |= fault.change
                    changing.add(fault.kind)
                if fault.replace is not None:
                    replacing = fault
        return AppliedFaults(tuple(waits), replacing, change)

    def check_message(self, body: Any) -> None:
        """Check a message's body against ``refuse_messages``.

        Raises:
            Refusal: A condition holds.
        """
        for refusal in self._refusals:
            if refusal.condition(body):
                raise Refusal(refusal.status, refusal.code, refusal.message)

    def _set(
        self,
        kind: str,
        routes: tuple[str, ...],
        times: int | None,
        replacement: Answer | Callable[[Answer | None], Answer] | None,
        *,
        after_effect: bool = False,
        wait: Seconds | None = None,
        change: EffectChange | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Fault:
        unknown = sorted(set(routes) - set(api.NAMES))
        if unknown:
            raise ValueError(f"unknown route {unknown[0]!r}; the routes are {', '.join(api.NAMES)}")
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for no limit, not {times}")
        replace = (
            (lambda _, answer=replacement: answer)
            if isinstance(replacement, Answer)
            else replacement
        )
        fault = Fault(
            kind,
            routes,
            times,
            detail=dict(detail or {}),
            number=next(self._numbers),
            after_effect=after_effect,
            wait=wait,
            replace=replace,
            change=change,
        )
        with self._lock:
            self._faults.append(fault)
        return fault


@dataclass(frozen=True, slots=True)
class _MessageRefusal:
    condition: Callable[[Any], bool]
    status: int
    code: int
    message: str


def _without_result(answer: Answer | None) -> Answer:
    return _edited(answer, {"result": None})


def _bare(answer: Answer | None) -> Answer:
    return _edited(answer, {})


def _edited(answer: Answer | None, result: dict[str, None]) -> Answer:
    if answer is None or answer.status != 200:
        return answer or DROP
    envelope = json.loads(answer.body)
    envelope.pop("result", None)
    return Answer(200, json.dumps({**envelope, **result}).encode(), answer.headers)


def _status(status: int) -> int:
    if not 200 <= status <= 599:
        raise ValueError(f"a status must be from 200 to 599, not {status}")
    return status
