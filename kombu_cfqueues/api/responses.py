"""What an HTTP answer of the API means: its result, or one of our errors.

Statuses alone are not enough: an error may come with status 200, and failures at Cloudflare's edge
are HTML pages.  ``success`` and ``errors[].code`` decide, the status only where they are silent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from ..errors import (
    AuthenticationFailed,
    CFQueuesError,
    ConfigurationError,
    InvalidMessage,
    MessageTooLarge,
    PermanentError,
    PermissionDenied,
    PlanLimitReached,
    QueueDisabled,
    QueueFull,
    QueueNameConflict,
    QueueNotFound,
    RateLimited,
    ServerError,
)

PERMISSION = (
    "The API token needs the permission 'Account > Queues > Edit' (Queues Edit) "
    "for this account, and may have been revoked or mistyped."
)

NO_QUEUE = "The queue has gone, or never was: create it, or correct its id in the option 'queues'."


class Answer(NamedTuple):
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Failure(NamedTuple):
    """The first entry of an answer's ``errors``, as far as it could be read."""

    code: int | None
    text: str


STATUS_PAGE = "If trying again does not help, see https://www.cloudflarestatus.com."

Meaning = tuple[type[CFQueuesError], str]
"""An error's class, and what its reader should do."""


#: Cloudflare's error codes, from its list at developers.cloudflare.com/queues (101xx, 102xx), the
#: source of wrangler (100xxx) and reports of answers seen (the rest).
CODES: dict[int, Meaning] = {
    10104: (QueueNotFound, NO_QUEUE),
    11000: (QueueNotFound, NO_QUEUE),
    10106: (PermissionDenied, PERMISSION),
    10405: (PermissionDenied, PERMISSION),
    10107: (ConfigurationError, "A queue id is 32 hex digits: check the option 'queues'."),
    10201: (ServerError, STATUS_PAGE),
    10202: (InvalidMessage, "A delay is 0 to 86,400 seconds."),
    10203: (InvalidMessage, "A delay is 0 to 86,400 seconds, a content type text or json."),
    10204: (MessageTooLarge, "A message may have 128 KB: store the data and send a reference."),
    10205: (MessageTooLarge, "A batch may have 256 KB."),
    10206: (InvalidMessage, "A batch has 1 to 100 messages."),
    10207: (InvalidMessage, ""),
    10208: (InvalidMessage, ""),
    10013: (InvalidMessage, ""),
    10026: (PermanentError, ""),
    10250: (RateLimited, "The queue is overloaded; try again later."),
    10251: (QueueFull, "Nothing fits until consumers have read some of its backlog."),
    10252: (QueueDisabled, "Enable it again in the dashboard."),
    10253: (PlanLimitReached, "The free plan's operations of today are used up."),
    11001: (PermanentError, "The Worker has no queue handler."),
    11003: (ConfigurationError, "A queue name is 1 to 63 letters, digits and dashes."),
    11004: (PermanentError, "The queue has a consumer already."),
    11009: (QueueNameConflict, "A queue of that name exists."),
    100127: (ConfigurationError, "Check consumer_max_retries and dead_letter_queue."),
    100128: (ConfigurationError, "Check the queue's settings."),
    6003: (AuthenticationFailed, "The API token is malformed: check api_token."),
    6103: (AuthenticationFailed, "The API token is malformed: check api_token."),
    6111: (AuthenticationFailed, "The API token is malformed: check api_token."),
    9109: (AuthenticationFailed, PERMISSION),
    10000: (AuthenticationFailed, PERMISSION),
    7000: (ConfigurationError, "Check account_id and base_url."),
    7003: (ConfigurationError, "Check account_id and base_url."),
    971: (RateLimited, "Every call of this token is blocked for up to five minutes."),
    6100: (RateLimited, "Every call of this token is blocked for up to five minutes."),
    15000: (ServerError, STATUS_PAGE),
}


def envelope_of(
    answer: Answer,
    doing: str,
    statuses: Mapping[int, Meaning] | None = None,
    secret: str = "",
) -> dict[str, Any]:
    """The envelope of a successful answer: its ``result``, which may be missing, and more.

    Args:
        answer: What came.
        doing: What was asked for, for the error's text: ``publishing to queue 'jobs'``.
        statuses: What statuses mean on this route, where it differs from the rest of the API.
        secret: What the answer may repeat and an error must not.

    Raises:
        CFQueuesError: The answer is no success; the subclass says what it means.
    """
    envelope = _parse(answer.body)
    if envelope is not None and envelope.get("success") is True and 200 <= answer.status < 300:
        return envelope
    raise _error(answer, envelope, doing, statuses or {}, secret)


def _parse(body: bytes) -> dict[str, Any] | None:
    try:
        envelope = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return envelope if isinstance(envelope, dict) else None


def _error(
    answer: Answer,
    envelope: dict[str, Any] | None,
    doing: str,
    statuses: Mapping[int, Meaning],
    secret: str,
) -> CFQueuesError:
    failure = _first_failure(envelope, secret)
    kind, advice = _meaning(answer, envelope, failure, statuses)
    said = f", code {failure.code}" if failure.code is not None else ""
    ray_id = _hide(secret, answer.headers.get("CF-Ray", ""))[:100]
    if ray_id:
        said += f", ray {ray_id}"
    text = f": {failure.text}" if failure.text else _what_came(answer, envelope, secret)
    error = kind(
        f"{doing} failed (HTTP {answer.status}{said}){text}. {advice}".rstrip(". ") + ".",
        status=answer.status,
        code=failure.code,
        ray_id=ray_id or None,
        retry_after=_retry_after(answer.headers.get("Retry-After")),
    )
    # A 503 says that nothing was done.  Any other failure of the server may have come after the
    # message was written.
    if isinstance(error, ServerError) and answer.status != 503:
        error.delivered = "unknown"
    return error


def _first_failure(envelope: dict[str, Any] | None, secret: str) -> Failure:
    errors = envelope.get("errors") if envelope else None
    first = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, dict):
        return Failure(None, "")
    code, text = first.get("code"), first.get("message")
    return Failure(
        code if isinstance(code, int) and not isinstance(code, bool) else None,
        (
            " ".join(_hide(secret, text).split())[:300].rstrip(".?!")
            if isinstance(text, str)
            else ""
        ),
    )


def _meaning(
    answer: Answer,
    envelope: dict[str, Any] | None,
    failure: Failure,
    statuses: Mapping[int, Meaning],
) -> Meaning:
    if "cf-mitigated" in answer.headers:
        return (
            ServerError,
            "Cloudflare's edge challenged the request: check whether this machine's IP is blocked.",
        )
    if failure.code in CODES:
        return CODES[failure.code]
    if answer.status in statuses:
        return statuses[answer.status]
    return _meaning_of_status(answer.status, has_json=envelope is not None)


def _meaning_of_status(status: int, *, has_json: bool) -> Meaning:
    if 300 <= status < 400:
        advice = "Redirects are not followed, they would carry the API token: check base_url."
        return ConfigurationError, advice
    if status == 401 or (status == 403 and has_json):
        return (AuthenticationFailed if status == 401 else PermissionDenied), PERMISSION
    known: dict[int, Meaning] = {
        403: (PermissionDenied, f"A proxy may have answered in the API's place. {PERMISSION}"),
        404: (QueueNotFound, "Check account_id and base_url."),
        405: (ConfigurationError, "Check base_url."),
        408: (ServerError, STATUS_PAGE),
        409: (QueueNameConflict, "It exists already."),
        413: (MessageTooLarge, "A message may have 128 KB, a request 256 KB."),
        429: (RateLimited, "Every call of this token may be blocked for up to five minutes."),
    }
    if status in known:
        return known[status]
    if 400 <= status < 500:
        return InvalidMessage, ""
    return ServerError, STATUS_PAGE


def _what_came(answer: Answer, envelope: dict[str, Any] | None, secret: str) -> str:
    if envelope is not None:
        return ""
    if not answer.body:
        return ", with an empty body"
    kind = _hide(secret, answer.headers.get("Content-Type", "")).split(";")[0][:100]
    kind = kind or "of unknown type"
    return f", with {len(answer.body):,} bytes ({kind}) that are not the API's JSON"


def _hide(secret: str, text: str) -> str:
    return text.replace(secret, "**") if secret else text


def _retry_after(value: str | None) -> float | None:
    """Seconds of a ``Retry-After`` header, which may also be a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    # Compared this way round, NaN is refused as well.
    return max(0.0, seconds) if seconds < 1e9 else None
