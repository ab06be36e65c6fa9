"""Cloudflare's limit on API requests: a number per window and token, then a block."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final

from . import limits
from .answers import Refusal
from .clock import Clock
from .knobs import Knobs
from .routes import Route

_PULL_ROUTES: Final = ("pull", "ack", "extend")


_MAX_CALLERS: Final = 50
"""Maximum number of callers that are counted separately in one second."""

_MAX_CALLERS_SHOWN: Final = 10
"""Maximum number of callers in a description."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, as far as the emulator can tell.

    Attributes:
        address: The address of the machine; "" if unknown.
        agent: Its ``User-Agent``.
    """

    address: str
    agent: str


_OTHERS: Final = Caller("", "others")


@dataclass(slots=True)
class _Window:
    opened: float
    used: int = 0
    blocked_since: float = 0
    blocked_until: float = 0
    refused: int = 0


class Allowance:
    """Counts each token's requests.

    The window has a fixed length and opens with the first counted request.  Whether Cloudflare
    has such a window or a token bucket is not known.  Use it from one thread only.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[str, _Window] = {}  # by token
        # By token, the oldest first: a second since the epoch, and the requests in that second.
        self._seconds: dict[str, deque[tuple[int, Counter[Caller]]]] = {}

    def spend(
        self, token: str, route: Route | None, knobs: Knobs, caller: Caller
    ) -> dict[str, str]:
        """Count one request and return the headers that tell the client what is left.

        Raises:
            Refusal: The token is over its limit (429, unless the knob ``rate_limit_answer`` says
                otherwise, with ``Retry-After`` until the block ends).
        """
        if not _counts(route, knobs):
            return {}
        now = self._clock.now()
        self._remember(token, int(now), caller)
        if knobs.rate_limit is None:
            return {}
        window = self._windows.get(token)
        if window is None or now >= max(
            window.opened + knobs.rate_window_seconds, window.blocked_until
        ):
            window = self._windows[token] = _Window(now)
        if now < window.blocked_until:
            window.refused += 1
            raise _too_many(window.blocked_until - now, knobs)
        window.used += 1
        if window.used > knobs.rate_limit:
            window.refused = 1
            window.blocked_since = now
            window.blocked_until = now + knobs.rate_block_seconds
            raise _too_many(knobs.rate_block_seconds, knobs)
        return _headers(
            knobs.rate_limit - window.used, window.opened + knobs.rate_window_seconds - now, knobs
        )

    def describe(self, token: str, knobs: Knobs) -> dict[str, Any]:
        """Return what *token* has used and what is left.

        Returns:
            The emulator's limit: ``limit`` requests in ``window`` seconds, with ``left`` remaining.
            ``resets_in`` and ``blocked_for`` are the seconds until the window closes or the block
            ends, None if there is no window, no block or no limit.  During a block,
            ``blocked_since`` and ``blocked_until`` are its bounds in seconds since the epoch,
            ``used`` the requests of the window that caused it, and ``refused`` those that it has
            refused so far.
            Cloudflare's own limit, enforced here or not: ``recent`` requests in the last
            ``cloudflare_window`` seconds, out of ``cloudflare_limit``, and the ``callers`` that
            made most of them.
        """
        now = self._clock.now()
        callers = self._recent(token, int(now))
        description: dict[str, Any] = {
            "limit": knobs.rate_limit,
            "window": knobs.rate_window_seconds,
            "left": knobs.rate_limit,
            "resets_in": None,
            "blocked_for": None,
            "blocked_since": None,
            "blocked_until": None,
            "used": 0,
            "refused": 0,
            "recent": callers.total(),
            "callers": [
                {"address": caller.address, "agent": caller.agent, "requests": number}
                for caller, number in callers.most_common(_MAX_CALLERS_SHOWN)
            ],
            "cloudflare_limit": limits.REQUESTS,
            "cloudflare_window": limits.WINDOW_SECONDS,
        }
        window = self._windows.get(token)
        if knobs.rate_limit is None or window is None:
            return description
        if now < window.blocked_until:
            return {
                **description,
                "left": 0,
                "blocked_for": window.blocked_until - now,
                "blocked_since": window.blocked_since,
                "blocked_until": window.blocked_until,
                "used": window.used,
                "refused": window.refused,
            }
        closes = window.opened + knobs.rate_window_seconds
        if now < closes:
            left = max(0, knobs.rate_limit - window.used)
            return {**description, "left": left, "resets_in": closes - now}
        return description

    def reset(self) -> None:
        """Forget all counts and end all blocks."""
        self._windows.clear()
        self._seconds.clear()

    def _remember(self, token: str, second: int, caller: Caller) -> None:
        seconds = self._seconds.setdefault(token, deque())
        if not seconds or seconds[-1][0] != second:
            seconds.append((second, Counter()))
        callers = seconds[-1][1]
        callers[caller if caller in callers or len(callers) < _MAX_CALLERS else _OTHERS] += 1
        while seconds[0][0] <= second - limits.WINDOW_SECONDS:
            seconds.popleft()

    def _recent(self, token: str, second: int) -> Counter[Caller]:
        since = second - limits.WINDOW_SECONDS
        recent: Counter[Caller] = Counter()
        for when, callers in self._seconds.get(token, ()):
            if when > since:
                recent.update(callers)
        return recent


def _counts(route: Route | None, knobs: Knobs) -> bool:
    if route is None or knobs.rate_limited_routes == "all":
        return True
    if knobs.rate_limited_routes == "admin":
        return route.kind == "admin"
    return route.name not in _PULL_ROUTES


def _too_many(seconds: float, knobs: Knobs) -> Refusal:
    wait = math.ceil(seconds)
    status, code = map(int, knobs.rate_limit_answer.split("/"))
    return Refusal(
        status,
        code,
        "Please wait and consider throttling your request speed",
        headers={**_headers(0, wait, knobs), "Retry-After": str(wait)},
    )


def _headers(left: int, seconds: float, knobs: Knobs) -> dict[str, str]:
    return {
        "Ratelimit": f'"default";r={left};t={math.ceil(seconds)}',
        "Ratelimit-Policy": f'"default";q={knobs.rate_limit};w={knobs.rate_window_seconds}',
    }
