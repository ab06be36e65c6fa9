"""Cloudflare's limit on API requests: so many a window and token, then a block."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from . import limits
from .answers import Refusal
from .clock import Clock
from .knobs import Knobs
from .routes import Route

_PULLING = ("pull", "ack", "extend")


@dataclass(slots=True)
class _Window:
    opened: float
    used: int = 0
    blocked_until: float = 0


class Allowance:
    """Counts each token's requests.

    The window is a fixed one that opens with the first request that counts; whether Cloudflare's
    is that or a bucket is not known.  Used from one thread only.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._windows: dict[str, _Window] = {}  # by token
        self._seconds: dict[str, deque[list[int]]] = {}  # by token: a second, and how many in it

    def spend(self, token: str, route: Route | None, knobs: Knobs) -> dict[str, str]:
        """Count one request; return the headers that tell the client what is left.

        Raises:
            Refusal: 429, with the ``Retry-After`` after which the block ends.
        """
        if not _counts(route, knobs):
            return {}
        now = self._clock.now()
        self._remember(token, int(now))
        if knobs.rate_limit is None:
            return {}
        window = self._windows.get(token)
        if window is None or now >= max(
            window.opened + knobs.rate_window_seconds, window.blocked_until
        ):
            window = self._windows[token] = _Window(now)
        if now < window.blocked_until:
            raise _too_many(window.blocked_until - now, knobs)
        window.used += 1
        if window.used > knobs.rate_limit:
            window.blocked_until = now + knobs.rate_block_seconds
            raise _too_many(knobs.rate_block_seconds, knobs)
        return _headers(
            knobs.rate_limit - window.used, window.opened + knobs.rate_window_seconds - now, knobs
        )

    def describe(self, token: str, knobs: Knobs) -> dict[str, float | int | None]:
        """Tell what *token* has spent and what is left.

        Returns:
            ``limit`` requests in ``window`` seconds, of which so many are ``left``; seconds until
            the window closes (``resets_in``) or the block ends (``blocked_for``); both None without
            a limit.  Beside it what counts against Cloudflare's own limit, whether it is enforced
            here or not: ``recent`` requests of the last ``cloudflare_window`` seconds, of
            ``cloudflare_limit``.
        """
        now = self._clock.now()
        told: dict[str, float | int | None] = {
            "limit": knobs.rate_limit,
            "window": knobs.rate_window_seconds,
            "left": knobs.rate_limit,
            "resets_in": None,
            "blocked_for": None,
            "recent": self._recent(token, int(now)),
            "cloudflare_limit": limits.REQUESTS,
            "cloudflare_window": limits.WINDOW_SECONDS,
        }
        window = self._windows.get(token)
        if knobs.rate_limit is None or window is None:
            return told
        if now < window.blocked_until:
            return {**told, "left": 0, "blocked_for": window.blocked_until - now}
        closes = window.opened + knobs.rate_window_seconds
        if now < closes:
            left = max(0, knobs.rate_limit - window.used)
            return {**told, "left": left, "resets_in": closes - now}
        return told

    def reset(self) -> None:
        """Forget what was spent, and every block."""
        self._windows.clear()
        self._seconds.clear()

    def _remember(self, token: str, second: int) -> None:
        seconds = self._seconds.setdefault(token, deque())
        if seconds and seconds[-1][0] == second:
            seconds[-1][1] += 1
        else:
            seconds.append([second, 1])
        while seconds[0][0] <= second - limits.WINDOW_SECONDS:
            seconds.popleft()

    def _recent(self, token: str, second: int) -> int:
        since = second - limits.WINDOW_SECONDS
        return sum(n for when, n in self._seconds.get(token, ()) if when > since)


def _counts(route: Route | None, knobs: Knobs) -> bool:
    if route is None or knobs.rate_limited_routes == "all":
        return True
    if knobs.rate_limited_routes == "admin":
        return route.kind == "admin"
    return route.name not in _PULLING


def _too_many(seconds: float, knobs: Knobs) -> Refusal:
    wait = math.ceil(seconds)
    return Refusal(
        429,
        971,
        "Please wait and consider throttling your request speed",
        headers={**_headers(0, wait, knobs), "Retry-After": str(wait)},
    )


def _headers(left: int, seconds: float, knobs: Knobs) -> dict[str, str]:
    return {
        "Ratelimit": f'"default";r={left};t={math.ceil(seconds)}',
        "Ratelimit-Policy": f'"default";q={knobs.rate_limit};w={knobs.rate_window_seconds}',
    }
