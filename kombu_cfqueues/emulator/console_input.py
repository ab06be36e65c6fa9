"""Reads and checks what callers of the emulator's own endpoints send."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from starlette.requests import Request

from . import contents, limits
from .answers import Refusal
from .snippets import Place
from .store import Draft

_MAX_NUMBERS: Final = 1_000
"""Maximum number of messages that one request retries or deletes."""


_ADDRESS: Final = re.compile(r"[A-Za-z0-9.-]+(:\d+)?|\[[0-9a-fA-F:.]+\](:\d+)?")


def place_of(request: Request, account_id: str, token: str) -> Place:
    """Return where the caller of the page reaches the emulator, for code on the page."""
    address = request.headers.get("host", "")
    return Place(address if _ADDRESS.fullmatch(address) else "127.0.0.1", account_id, token)


async def read_body(request: Request, content_type: str, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        Refusal: It is not sent as *content_type* (415), or has more than *limit* bytes (413).
    """
    # A page of another site can send a form or plain text to this endpoint.  For other types, the
    # browser sends a CORS preflight first, which the emulator does not answer.
    if request.headers.get("content-type", "").partition(";")[0].strip() != content_type:
        raise Refusal(415, 0, f"send the body as {content_type}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise Refusal(413, 0, f"the body is larger than {limit} bytes")
    return bytes(body)


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request sends; an empty body is an empty object.

    Raises:
        Refusal: As for ``read_body()``.
        ValueError: The body is not a JSON object.
    """
    body = await read_body(request, "application/json", limits.REQUEST_BYTES)
    try:
        sent = json.loads(body.decode() or "{}")
        json.dumps(sent, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError("the body is not valid JSON") from error
    if not isinstance(sent, dict):
        raise ValueError("the body must be a JSON object")
    return sent


def draft_of(sent: Mapping[str, Any]) -> Draft:
    """Return the message that a request describes: a task, JSON or text.

    Raises:
        ValueError: A value is missing or wrong.
    """
    delay = sent.get("delay_seconds") or 0
    if isinstance(delay, bool) or not isinstance(delay, int):
        raise ValueError("delay_seconds must be an integer")
    if not 0 <= delay <= limits.DELAY_SECONDS:
        raise ValueError(f"delay_seconds must be from 0 to {limits.DELAY_SECONDS}")
    kind = sent.get("kind")
    if kind == "celery":
        task, args, kwargs = sent.get("task"), sent.get("args", []), sent.get("kwargs", {})
        if not isinstance(task, str) or not task:
            raise ValueError("task must be the name of a task")
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise ValueError("args must be a list and kwargs an object")
        return Draft(contents.celery_task(task, args, kwargs).encode(), "text", delay)
    if kind == "json":
        if "body" not in sent:
            raise ValueError("body is missing")
        text = json.dumps(sent["body"], ensure_ascii=False, separators=(",", ":"))
        return Draft(text.encode(), "json", delay)
    if kind == "text":
        body = sent.get("body")
        if not isinstance(body, str):
            raise ValueError("body must be a string")
        return Draft(body.encode(), "text", delay)
    raise ValueError("kind must be celery, json or text")


def numbers_of(sent: Mapping[str, Any], *, optional: bool) -> list[int] | None:
    """Return the ``numbers`` of messages that a request names; None for all, if *optional*.

    Raises:
        ValueError: They are missing, too many, or not numbers of messages.
    """
    numbers = sent.get("numbers")
    if numbers is None and optional:
        return None
    if (
        not isinstance(numbers, list)
        or len(numbers) > _MAX_NUMBERS
        or not all(_is_number(number) for number in numbers)
    ):
        raise ValueError(f"numbers must be a list of at most {_MAX_NUMBERS} message numbers")
    return numbers


def whole(text: str | None, name: str) -> int | None:
    """Return the integer in a query; None if it is missing or empty.

    Raises:
        ValueError: It is not an integer of at least 0.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise ValueError(f"{name} must be an integer of at least 0")
    return int(text)


def _is_number(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**63
