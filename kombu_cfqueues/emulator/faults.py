"""Failures on demand: what can go wrong between a client and Cloudflare, to be switched on.

Every fault strikes the routes that it names (all, if it names none), the next *times* requests
(each one, if *times* is None), in the order in which the faults were set.  One that spoils an
answer strikes either before the request has had its effect or, ``after_effect=True``, afterwards:
then the message *is* written, and the client cannot know.
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
"""A time, or the least and the most of a random one."""

DROP: Final = Answer(0, b"")
"""Stands for no answer: the connection is closed."""

RESET: Final = Answer(0, b"reset")
"""Stands for no answer: the connection is reset."""


@dataclass(frozen=True, slots=True)
class Twist:
    """What a fault does to the effect of a request, and not to its answer.

    Attributes:
        duplicate: What is pulled can be pulled once more.
        most: A pull gets no more messages than that.
        late_seconds: What is published can be pulled only that much later.
    """

    duplicate: bool = False
    most: int | None = None
    late_seconds: float = 0

    def __or__(self, other: Twist) -> Twist:
        """Return both at once."""
        sizes = [size for size in (self.most, other.most) if size is not None]
        return Twist(
            self.duplicate or other.duplicate,
            min(sizes, default=None),
            max(self.late_seconds, other.late_seconds),
        )


@dataclass(eq=False, slots=True)
class Fault:
    """A fault that was set.

    Attributes:
        kind: The name of the method that set it.
        routes: The routes it strikes; all, if empty.
        left: How often it will still strike; None for always.
        hits: How often it has struck.
        detail: What else was said of it, by name.
    """

    kind: str
    routes: tuple[str, ...]
    left: int | None
    hits: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    after_effect: bool = False
    wait: Seconds | None = None  # seconds before anything happens; infinite for a hang
    spoil: Callable[[Answer | None], Answer] | None = field(default=None, repr=False)
    twist: Twist | None = None


@dataclass(frozen=True, slots=True)
class Strike:
    """What the faults do to one request."""

    waits: tuple[Seconds, ...] = ()
    fault: Fault | None = None
    twist: Twist = Twist()


NO_TWIST: Final = Twist()
"""What happens to nearly every request."""

_NO_STRIKE: Final = Strike()


class Faults:
    """The faults that are set; each method sets one and returns it.

    Faults may be set and cleared from any thread while requests run.

    Raises:
        ValueError: (every method) no route of that name, no such status, or times below 1.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []  # guarded by _lock
        self._refusals: list[_MessageRefusal] = []  # guarded by _lock
        self._numbers = itertools.count(1)

    # --- answers of Cloudflare's

    def error(
        self,
        *routes: str,
        status: int = 500,
        code: int | None = 15000,
        message: str = "an error that was ordered",
        retry_after: int | str | None = None,
        after_effect: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Answer with *status* and *code* in Cloudflare's envelope.

        ``faults.error("push", status=429, code=10250, retry_after=2)``

        With ``code=None`` there is no error in the envelope.  *retry_after*, in seconds or a date,
        is for the header of that name.
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
        message: str = "an error that was ordered",
        after_effect: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Answer 200 with ``"success": false``."""
        errors = [{"code": code, "message": message}]
        body = {"success": False, "errors": errors, "messages": [], "result": None}
        answer = Answer(200, json.dumps(body).encode())
        return self._set("unsuccessful", routes, times, answer, after_effect=after_effect)

    def null_result(self, *routes: str, times: int | None = 1) -> Fault:
        """Do what was asked and answer with ``"result": null``."""
        return self._set("null_result", routes, times, _without_result, after_effect=True)

    def no_result(self, *routes: str, times: int | None = 1) -> Fault:
        """Do what was asked and answer without any ``result``."""
        return self._set("no_result", routes, times, _bare, after_effect=True)

    # --- answers of whoever stands in front of it

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
        """Answer with a status and nothing else."""
        answer = Answer(_status(status), b"")
        return self._set("empty_body", routes, times, answer, after_effect=after_effect)

    def broken_json(
        self,
        *routes: str,
        status: int = 200,
        after_effect: bool = False,
        times: int | None = 1,
    ) -> Fault:
        """Answer with JSON that ends in its middle."""
        answer = Answer(_status(status), b'{"success": true, "errors": [], "resu')
        return self._set("broken_json", routes, times, answer, after_effect=after_effect)

    def redirect(
        self, *routes: str, location: str, status: int = 307, times: int | None = 1
    ) -> Fault:
        """Send the client to *location*."""
        if status not in (301, 302, 303, 307, 308):
            raise ValueError(f"a redirect's status is 301, 302, 303, 307 or 308, not {status}")
        answer = Answer(status, b"", {"Location": location})
        return self._set("redirect", routes, times, answer)

    # --- the way there and back

    def reset(self, *routes: str, times: int | None = 1) -> Fault:
        """Reset the connection; the request has no effect."""
        return self._set("reset", routes, times, RESET)

    def lost_response(self, *routes: str, times: int | None = 1) -> Fault:
        """Do what was asked, then close the connection without an answer."""
        return self._set("lost_response", routes, times, DROP, after_effect=True)

    def hang(self, *routes: str, times: int | None = 1) -> Fault:
        """Take the request and never answer; it has no effect."""
        return self._set("hang", routes, times, DROP, wait=float("inf"))

    def latency(self, *routes: str, seconds: Seconds, times: int | None = None) -> Fault:
        """Let *seconds* pass before the request has its effect; with a pair, between the two.

        Others may strike the same request after it.
        """
        least, most = seconds if isinstance(seconds, tuple) else (seconds, seconds)
        if not 0 <= least <= most < math.inf:
            raise ValueError(f"seconds is a time, or the least and the most of it, not {seconds}")
        return self._set("latency", routes, times, None, wait=seconds, detail={"seconds": seconds})

    # --- messages

    def duplicate(self, *, times: int | None = 1) -> Fault:
        """Let what is pulled be there once more: acknowledged or not, it is delivered again."""
        return self._set("duplicate", ("pull",), times, None, twist=Twist(duplicate=True))

    def short_batch(self, *, most: int = 1, times: int | None = 1) -> Fault:
        """Give a pull at most *most* messages, even none, whatever there is."""
        if most < 0:
            raise ValueError(f"most is from 0, not {most}")
        return self._set(
            "short_batch", ("pull",), times, None, twist=Twist(most=most), detail={"most": most}
        )

    def late(self, *, seconds: float, times: int | None = 1) -> Fault:
        """Accept what is published, and let it be pulled only *seconds* later."""
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds is a time from 0, not {seconds}")
        return self._set(
            "late",
            ("push", "batch"),
            times,
            None,
            twist=Twist(late_seconds=seconds),
            detail={"seconds": seconds},
        )

    def refuse_messages(
        self,
        condition: Callable[[Any], bool],
        *,
        status: int = 400,
        code: int = 10203,
        message: str = "a message that was ordered to be refused",
    ) -> None:
        """Refuse every push or batch with a message whose body fulfils *condition*, until cleared.

        *condition* is given each body as it was sent: a string, or what the JSON says.  It is
        called in the emulator's thread.
        """
        with self._lock:
            self._refusals.append(_MessageRefusal(condition, _status(status), code, message))

    # --- what is set

    @property
    def active(self) -> list[Fault]:
        """The faults that will still strike."""
        with self._lock:
            return list(self._faults)

    def remove(self, fault: Fault) -> None:
        """Take back one fault; one that is used up already is no error."""
        with self._lock:
            if fault in self._faults:
                self._faults.remove(fault)

    def clear(self) -> None:
        """Take back all faults and refusals."""
        with self._lock:
            self._faults.clear()
            self._refusals.clear()

    # --- for the emulator

    def strike(self, route: str) -> Strike:
        """Use up what strikes the next request of *route*.

        All latencies, one that spoils the answer, and one of each kind that changes the effect.
        """
        if not self._faults:  # without the lock, for the sake of load tests
            return _NO_STRIKE
        waits: list[Seconds] = []
        spoiler: Fault | None = None
        twist = NO_TWIST
        twisted: set[str] = set()
        with self._lock:
            for fault in list(self._faults):
                if (fault.routes and route not in fault.routes) or (fault.spoil and spoiler):
                    continue
                if fault.kind in twisted:  # two short batches are for two pulls
                    continue
                fault.hits += 1
                if fault.left is not None:
                    fault.left -= 1
                    if fault.left == 0:
                        self._faults.remove(fault)
                if fault.wait is not None:
                    waits.append(fault.wait)
                if fault.twist is not None:
                    twist |= fault.twist
                    twisted.add(fault.kind)
                if fault.spoil is not None:
                    spoiler = fault
        return Strike(tuple(waits), spoiler, twist)

    def check_message(self, body: Any) -> None:
        """Raise the refusal that was ordered for a message with this body."""
        for refusal in self._refusals:
            if refusal.condition(body):
                raise Refusal(refusal.status, refusal.code, refusal.message)

    def _set(
        self,
        kind: str,
        routes: tuple[str, ...],
        times: int | None,
        spoil: Answer | Callable[[Answer | None], Answer] | None,
        *,
        after_effect: bool = False,
        wait: Seconds | None = None,
        twist: Twist | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> Fault:
        unknown = sorted(set(routes) - set(api.NAMES))
        if unknown:
            raise ValueError(f"no route is called {unknown[0]!r}; there are {', '.join(api.NAMES)}")
        if times is not None and times < 1:
            raise ValueError(f"times is from 1, or None for always, not {times}")
        fixed = (lambda _, answer=spoil: answer) if isinstance(spoil, Answer) else spoil
        fault = Fault(
            kind,
            routes,
            times,
            detail=dict(detail or {}),
            number=next(self._numbers),
            after_effect=after_effect,
            wait=wait,
            spoil=fixed,
            twist=twist,
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
        raise ValueError(f"a status is from 200 to 599, not {status}")
    return status
