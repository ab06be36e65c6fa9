"""What a response of the API means: its payload, or one of our errors.

The HTTP status alone is not enough: an error may come with status 200, and failures of Cloudflare's
edge are HTML pages.  ``success`` and ``errors[].code`` decide; the status decides if they are
missing.  Only a limit is recognized by either, because it must not be missed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, NamedTuple, TypeAlias

from .. import limits
from ..errors import (
    LIMIT_CODES,
    AuthenticationFailed,
    CFQueuesError,
    ConfigurationError,
    InvalidMessage,
    MessageTooLarge,
    PermanentError,
    PermissionDenied,
    PlanLimitReached,
    PullNotEnabled,
    QueueDisabled,
    QueueFull,
    QueueNameConflict,
    QueueNotFound,
    RateLimited,
    ServerError,
)

STATUS_PAGE: Final = "If trying again does not help, see https://www.cloudflarestatus.com."
"""What to do if the API fails."""

MAX_RETRY_AFTER_SECONDS: Final = limits.WINDOW_SECONDS
"""Longest pause that a response can cause.  Cloudflare's own blocks last this long.  A proxy, a
maintenance page or a wrong clock may ask for days, and the spool's file would keep such a stop even
after a restart."""

_PERMISSION: Final = (
    "The API token needs the permission 'Account > Queues > Edit' (Queues Edit) "
    "for this account, and may have been revoked or mistyped."
)
_NO_QUEUE: Final = (
    "The queue does not exist any more, or never did: create it, or correct its id in the option "
    "'queues'."
)
_MALFORMED_TOKEN: Final = "The API token is malformed: check api_token."  # noqa: S105  a text
_NO_CREDENTIALS: Final = (
    "The API got no token, or credentials of another kind: check api_token, and whether a proxy "
    "removes the Authorization header."
)
_UNBIND: Final = "remove that first, and wait some seconds for it to take effect."
_BLOCKED: Final = "Every call with this token is blocked for up to five minutes."


class Response(NamedTuple):
    """An HTTP response that was read to its end.

    Attributes:
        status: The HTTP status.
        headers: The headers, by names in any case.
        body: The whole body, decoded.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


Meaning: TypeAlias = tuple[type[CFQueuesError], str]
"""The class of our error, and what to do about it; ``""`` if there is nothing to say."""

CODES: Final[Mapping[int, Meaning]] = {
    10104: (QueueNotFound, _NO_QUEUE),
    11000: (QueueNotFound, _NO_QUEUE),
    10106: (PermissionDenied, _PERMISSION),
    10405: (PermissionDenied, _PERMISSION),
    10107: (ConfigurationError, "A queue id has 32 hex digits: check the option 'queues'."),
    10201: (ServerError, STATUS_PAGE),
    10202: (InvalidMessage, "A delay must be 0 to 86,400 seconds."),
    10203: (InvalidMessage, "A delay must be 0 to 86,400 seconds, a content type text or json."),
    10204: (MessageTooLarge, "A message may have 128 KB: store the data and send a reference."),
    10205: (MessageTooLarge, "A batch may have 256 KB."),
    10206: (InvalidMessage, "A batch has 1 to 100 messages."),
    10207: (InvalidMessage, ""),
    10208: (InvalidMessage, ""),
    10013: (InvalidMessage, ""),
    10026: (PermanentError, ""),
    10250: (RateLimited, "The queue is overloaded; try again later."),
    10251: (QueueFull, "It takes no messages until consumers have read some of its backlog."),
    10252: (QueueDisabled, "Enable it again in the dashboard."),
    10253: (PlanLimitReached, "The free plan's operations for today are used up."),
    11001: (PermanentError, "The Worker has no queue handler."),
    11003: (ConfigurationError, "A queue name has 1 to 63 letters, digits and dashes."),
    11004: (PermanentError, "The queue has a consumer already."),
    11005: (PermanentError, f"A Worker has a producer binding to the queue: {_UNBIND}"),
    11006: (PermanentError, "The queue has no such consumer: it was removed already."),
    11009: (QueueNameConflict, "A queue with that name exists already."),
    11017: (PermanentError, f"An R2 bucket sends its notifications to the queue: {_UNBIND}"),
    100127: (ConfigurationError, "Check consumer_max_retries and dead_letter_queue."),
    100128: (ConfigurationError, "Check the queue's settings."),
    6003: (AuthenticationFailed, _MALFORMED_TOKEN),
    6103: (AuthenticationFailed, _MALFORMED_TOKEN),
    6111: (AuthenticationFailed, _MALFORMED_TOKEN),
    9103: (AuthenticationFailed, _NO_CREDENTIALS),
    9106: (AuthenticationFailed, _NO_CREDENTIALS),
    9109: (AuthenticationFailed, _PERMISSION),
    10000: (AuthenticationFailed, _PERMISSION),
    10001: (AuthenticationFailed, _PERMISSION),
    7000: (ConfigurationError, "Check account_id and base_url."),
    7003: (ConfigurationError, "Check account_id and base_url."),
    971: (RateLimited, _BLOCKED),
    6100: (RateLimited, _BLOCKED),
    10429: (RateLimited, _BLOCKED),
    15000: (ServerError, STATUS_PAGE),
}
"""Cloudflare's error codes: from its list at developers.cloudflare.com/queues (101xx, 102xx), from
the source of wrangler (100xxx), and from responses that people reported (the rest)."""

PULL_STATUSES: Final[Mapping[int, Meaning]] = {
    405: (PullNotEnabled, "The queue has no HTTP pull consumer, or a Worker consumes it."),
    409: (QueueDisabled, "Delivery is paused; resume it with 'cfqueues queues resume'."),
}
"""What these statuses mean on the route that pulls."""

_STATUSES: Final[Mapping[int, Meaning]] = {
    401: (AuthenticationFailed, _PERMISSION),
    404: (QueueNotFound, "Check account_id and base_url."),
    405: (ConfigurationError, "Check base_url."),
    408: (ServerError, STATUS_PAGE),
    409: (QueueNameConflict, "It exists already."),
    413: (MessageTooLarge, "A message may have 128 KB, a request 256 KB."),
    429: (RateLimited, "Every call with this token may be blocked for up to five minutes."),
}
"""What a status means on the other routes, if the response has no known code."""


def payload_of(
    response: Response, action: str, statuses: Mapping[int, Meaning], secret: str
) -> dict[str, Any]:
    """Return the JSON object of a successful response: its ``result``, if it has one, and more.

    Args:
        response: The response.
        action: What the request was for, such as ``publishing to queue 'jobs'``; the error's text
            begins with it.
        statuses: What statuses mean on this route, where it differs from the other routes.
        secret: Masked in the error's text, because a server may repeat what it was sent.

    Raises:
        CFQueuesError: The response is not a success; the class says what it means.
    """
    payload = _parse(response.body)
    if payload is not None and payload.get("success") is True and 200 <= response.status < 300:
        return payload
    raise _error(response, payload, action, statuses, secret)


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return payload if isinstance(payload, dict) else None


def _error(
    response: Response,
    payload: dict[str, Any] | None,
    action: str,
    statuses: Mapping[int, Meaning],
    secret: str,
) -> CFQueuesError:
    code, text = _failure(payload)
    kind, advice = _meaning(response, code, statuses, has_json=payload is not None)
    ray_id = _masked(response.headers.get("CF-Ray", ""), secret)[:100]
    facts = f"HTTP {response.status}"
    facts += f", code {code}" if code is not None else ""
    facts += f", ray {ray_id}" if ray_id else ""
    text = " ".join(_masked(text, secret).split())[:300].rstrip(".?!")
    if text:
        text = f": {text}"
    elif payload is None:
        text = _unreadable(response, secret)
    pause = _retry_after(response.headers)
    if pause is not None and pause > MAX_RETRY_AFTER_SECONDS:
        advice += (
            f" The server asked for a pause of {pause:,.0f} s; the library waits at most "
            f"{MAX_RETRY_AFTER_SECONDS} s."
        )
        pause = float(MAX_RETRY_AFTER_SECONDS)
    error = kind(
        f"{action} failed ({facts}){text}. {advice.strip()}".rstrip(". ") + ".",
        status=response.status,
        code=code,
        ray_id=ray_id or None,
        retry_after=pause,
    )
    # A 503 says that nothing was done.  Any other failure of the server may have happened after
    # the message was written.
    if isinstance(error, ServerError) and response.status != 503:
        error.delivered = "unknown"
    return error


def _failure(payload: dict[str, Any] | None) -> tuple[int | None, str]:
    """Return code and text of an entry of ``errors``: the first about a limit, else the first."""
    entries = payload.get("errors") if payload else None
    failures = [_code_and_text(entry) for entry in entries] if isinstance(entries, list) else []
    first = failures[0] if failures else (None, "")
    return next((failure for failure in failures if failure[0] in LIMIT_CODES), first)


def _code_and_text(entry: Any) -> tuple[int | None, str]:
    if not isinstance(entry, dict):
        return None, ""
    code, text = entry.get("code"), entry.get("message")
    is_code = isinstance(code, int) and not isinstance(code, bool)
    return code if is_code else None, text if isinstance(text, str) else ""


def _meaning(
    response: Response, code: int | None, statuses: Mapping[int, Meaning], *, has_json: bool
) -> Meaning:
    if response.status == HTTPStatus.TOO_MANY_REQUESTS and code not in LIMIT_CODES:
        return _STATUSES[HTTPStatus.TOO_MANY_REQUESTS]
    if "cf-mitigated" in response.headers:
        advice = (
            "Cloudflare's edge challenged the request: check whether this machine's IP is blocked."
        )
        return ServerError, advice
    if code is not None and code in CODES:
        return CODES[code]
    if response.status in statuses:
        return statuses[response.status]
    return _meaning_of_status(response.status, has_json=has_json)


def _meaning_of_status(status: int, *, has_json: bool) -> Meaning:
    if 300 <= status < 400:
        advice = "Redirects are not followed, they would carry the API token: check base_url."
        return ConfigurationError, advice
    if status == 403:
        origin = "" if has_json else "A proxy may have answered in the API's place. "
        return PermissionDenied, origin + _PERMISSION
    if status in _STATUSES:
        return _STATUSES[status]
    if 400 <= status < 500:
        return InvalidMessage, ""
    return ServerError, STATUS_PAGE


def _unreadable(response: Response, secret: str) -> str:
    """Describe a body that is not the API's JSON."""
    if not response.body:
        return ", with an empty body"
    kind = _masked(response.headers.get("Content-Type", ""), secret).split(";")[0][:100]
    kind = kind or "of unknown type"
    return f", with {len(response.body):,} bytes ({kind}) that are not the API's JSON"


def _masked(text: str, secret: str) -> str:
    return text.replace(secret, "**") if secret else text


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``Retry-After``, which may also be a date (RFC 9110).

    A date is compared with the response's own date, because the two clocks may differ.
    """
    value = headers.get("Retry-After")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        due, now = _epoch(value), _epoch(headers.get("Date", ""))
        if due is None:
            return None
        seconds = due - (time.time() if now is None else now)
    # In this order, the comparison refuses NaN too.
    return max(0.0, seconds) if seconds < 1e9 else None


def _epoch(date: str) -> float | None:
    """Return an HTTP date in seconds since the epoch; None if it is not a date."""
    try:
        read = parsedate_to_datetime(date)
        # A date without a time zone is in UTC (RFC 9110), but Python would use the local time zone.
        return (read if read.tzinfo else read.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None
