"""Cloudflare's limit on API requests: so many a window and token, then a block."""

from __future__ import annotations

import math
from dataclasses import dataclass

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

    def spend(self, token: str, route: Route | None, knobs: Knobs) -> dict[str, str]:
        """Count one request; return the headers that tell the client what is left.

        Raises:
            Refusal: 429, with the ``Retry-After`` after which the block ends.
        """
        if knobs.rate_limit is None or not _counts(route, knobs):
            return {}
        now = self._clock.now()
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

    def left(self, token: str, knobs: Knobs) -> int | None:
        """Return how many requests *token* may still make in this window; None without a limit."""
        if knobs.rate_limit is None:
            return None
        now = self._clock.now()
        window = self._windows.get(token)
        if window is None or now >= max(
            window.opened + knobs.rate_window_seconds, window.blocked_until
        ):
            return knobs.rate_limit
        return 0 if now < window.blocked_until else max(0, knobs.rate_limit - window.used)

    def reset(self) -> None:
        """Forget what was spent, and every block."""
        self._windows.clear()


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
