"""Messages as JSON lines: what an export writes and an import reads.

A line has the members of a message in a batch request to the API (``body``, ``content_type``,
``delay_seconds``), and what else is known about the message.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

from . import limits
from .readable_json import members
from .store import Draft
from .stored_messages import StoredMessage

CONTENT_TYPE: Final = "application/x-ndjson"
"""The media type of these lines."""


def write(message: StoredMessage, now: float) -> bytes:
    """Return the line of *message*.

    A delayed message is exported with the rest of its delay, a leased message as if it had no
    lease.

    Args:
        message: The message.
        now: The emulator's time, in seconds since the epoch.
    """
    delayed = message.state == "delayed"
    facts = {
        "content_type": message.content_type,
        "delay_seconds": math.ceil(message.visible_at - now) if delayed else 0,
        "id": message.id,
        "timestamp_ms": round(message.timestamp * 1000),
        "attempts": message.attempts,
        "state": message.state,
        "died_in": message.died_in,
    }
    is_json = message.content_type == "json"
    body = message.body if is_json else json.dumps(message.body, ensure_ascii=False)
    # The JSON of a body stays as it is written: numbers keep all their digits.
    return f'{{"body":{body},{json.dumps(facts)[1:]}\n'.encode()


def read(data: bytes, *, delay_seconds: int, metadata_bytes: int, first: int = 1) -> list[Draft]:
    """Return the messages of JSON lines; empty lines are skipped.

    Args:
        data: The lines, in UTF-8.
        delay_seconds: The delay of a message whose line has none.
        metadata_bytes: Size of each message in addition to its body.
        first: The number of the first line, for errors.

    Raises:
        ValueError: A line is not a message; the text names the line.
    """
    drafts = []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), first):
        if not line.strip():
            continue
        try:
            draft = _draft(line, delay_seconds)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
        size = len(draft.body) + metadata_bytes
        if size > limits.MESSAGE_BYTES:
            raise ValueError(
                f"line {number}: the message has {size} bytes; the limit is {limits.MESSAGE_BYTES}"
            )
        drafts.append(draft)
    return drafts


def _draft(line: bytes, default_delay: int) -> Draft:
    try:
        text = line.decode()
        sent = json.loads(text, parse_constant=_refuse)
        json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("it is not valid JSON; each line is one message") from error
    if not isinstance(sent, dict) or "body" not in sent:
        raise ValueError('a message is an object with a "body"')
    body, content_type = sent["body"], sent.get("content_type", "json")
    if content_type not in ("json", "text"):
        raise ValueError('content_type must be "json" or "text"')
    if content_type == "text" and not isinstance(body, str):
        raise ValueError("the body of a text message must be a string")
    delay = sent.get("delay_seconds", default_delay)
    if isinstance(delay, bool) or not isinstance(delay, int):
        raise ValueError("delay_seconds must be an integer")
    if not 0 <= delay <= limits.DELAY_SECONDS:
        raise ValueError(f"delay_seconds must be from 0 to {limits.DELAY_SECONDS}")
    written = body if content_type == "text" else members(text)["body"]
    return Draft(written.encode(), content_type, delay)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
