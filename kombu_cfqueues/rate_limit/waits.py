"""Why a request has to wait, as errors: for the log, and for callers that cannot wait."""

from __future__ import annotations

from typing import Final

from ..errors import RateLimited
from .allowance import Allowance, Limit

QUEUE_STOPPED: Final = "the queue takes no messages now"
"""Why messages to one queue wait."""


class NoPermit(RateLimited):
    """The library's own request allowance is used up; the server has refused nothing."""


class Stopped(RateLimited):
    """The API has stopped requests earlier, so this request was not made.

    Attributes:
        lesson: What a block of the token has taught this machine, as a sentence.
    """

    lesson = ""


def no_permit(limit: Limit, seconds: float, allowance: Allowance | None = None) -> NoPermit:
    """Return the error for a request that would have to wait *seconds* for a permit of *limit*."""
    text = "the request allowance is used up"
    rate = allowance.mine(limit).rate if allowance else limit.rate
    if rate < 1:
        why = "request_rate"
        if rate < limit.rate:
            why = "this machine's share of request_rate, learned when the token was blocked"
        text += (
            f", which lets one request leave every {1 / rate:.3g} s ({why}): raise "
            "publish_timeout, or use publish_mode='spool'"
        )
    return NoPermit(text, retry_after=seconds)


def stopped(why: str, seconds: float, lesson: str = "") -> Stopped:
    """Return the error for a request that the API has stopped for *seconds* more."""
    error = Stopped(f"{why}, for another {seconds:,.0f} s", retry_after=seconds)
    error.lesson = lesson
    return error
