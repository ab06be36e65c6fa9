"""What a message contains, for people: a Celery task, a Kombu message, JSON, or text.

This module parses Celery's and Kombu's formats from their documentation and does not use their
code: the emulator never unpickles or runs the content of a queue.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .readable_json import elements, members, pretty, readable

_MAX_INFLATED_BYTES: Final = 1_000_000
"""A compressed message that would inflate to more than this stays compressed."""

_MAX_LINE_CHARACTERS: Final = 60
"""Arguments that are longer than this are shown in several lines."""

_MAX_SUMMARY_CHARACTERS: Final = 400
"""Length at which a summary is cut off."""


def describe(content_type: str, body: str) -> dict[str, Any]:
    """Describe a message.

    Args:
        content_type: The content type it was published with: ``text`` or ``json``.
        body: The text, or the JSON text.

    Returns:
        ``kind`` (``celery``, ``kombu``, ``json`` or ``text``), a one-line ``summary`` and the
        decoded ``content``.  A Kombu message also has its ``headers``.  A task has ``headers``,
        ``task``, ``id``, ``args``, ``kwargs`` (as JSON, or in Celery's own ``repr``), ``eta``,
        ``expires`` and ``retries``.
    """
    value = _json(body)
    if isinstance(value, dict):
        envelope = _envelope(value)
        if envelope is not None:
            return envelope
        if isinstance(value.get("task"), str) and isinstance(value.get("id"), str):
            return _old_task(value)  # Celery's protocol 1, without Kombu's envelope
    if content_type == "json" or isinstance(value, dict | list):
        return {"kind": "json", "summary": _short_json(body), "content": value}
    return {"kind": "text", "summary": _short(body), "content": body}


def texts(content_type: str, body: str) -> dict[str, str]:
    """Return the parts of a message as text for people, made from the text of the message.

    Args:
        content_type: As for ``describe()``.
        body: As for ``describe()``.

    Returns:
        ``raw``, the whole body, and ``content``, what is in it.  A Kombu message also has its
        ``headers``, and a task its ``args`` and ``kwargs`` if they are JSON.
    """
    value = _json(body)
    if content_type != "json" and not isinstance(value, dict | list):
        return {"raw": body, "content": body}
    shown = {"raw": _pretty(body)}
    content = body
    if isinstance(value, dict) and _envelope(value) is not None:
        parts = members(body)
        shown["headers"] = pretty(parts["headers"])
        text = _text(value, value["headers"], value["properties"])
        if text is not None and "json" not in str(value.get("content-type")):
            return {**shown, "content": text}
        content = parts["body"] if text is None else text
    return {**shown, "content": _pretty(content), **_arguments(content)}


def _arguments(content: str) -> dict[str, str]:
    """Return the arguments of a task as text, if *content* is that of a task."""
    value = _json(content)
    if isinstance(value, list) and len(value) == 3:
        args, kwargs, _embed = elements(content)
        return {"args": _brief(args), "kwargs": _brief(kwargs)}
    if isinstance(value, dict) and isinstance(value.get("task"), str):
        parts = members(content)
        return {name: _brief(parts[name]) for name in ("args", "kwargs") if name in parts}
    return {}


def searchable(content_type: str, body: str, message_id: str) -> str:
    """Return what a search for a text looks at: the id, the body and its content, case-folded."""
    shown = texts(content_type, body)
    described = describe(content_type, body)
    parts = (message_id, described["summary"], readable(body), *shown.values())
    return "\n".join(parts).casefold()


def pretty_if_json(text: str) -> str | None:
    """Return JSON in lines, made from its text; None if *text* is not JSON."""
    return None if _json(text) is None and text.strip() != "null" else pretty(text)


def celery_task(
    task: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> str:
    """Return the body of a message that a Celery worker runs as *task* (protocol 2, JSON)."""
    task_id = str(uuid.uuid4())
    content = [
        list(args),
        dict(kwargs or {}),
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]
    headers = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "eta": None,
        "expires": None,
        "retries": 0,
        "timelimit": [None, None],
        "argsrepr": repr(tuple(args)),
        "kwargsrepr": repr(dict(kwargs or {})),
        "origin": "emulator",
    }
    properties = {
        "correlation_id": task_id,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": ""},
        "priority": 0,
        "delivery_tag": str(uuid.uuid4()),
        "body_encoding": "base64",
    }
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps(content).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )


def _envelope(value: dict[str, Any]) -> dict[str, Any] | None:
    """Describe a message in Kombu's envelope; None if *value* is not such an envelope."""
    headers, properties = value.get("headers"), value.get("properties")
    if "body" not in value or not isinstance(headers, dict) or not isinstance(properties, dict):
        return None
    content = _content(value, headers, properties)
    if isinstance(headers.get("task"), str):
        return _task(headers, content)
    if isinstance(content, dict) and isinstance(content.get("task"), str) and "id" in content:
        return {**_old_task(content), "headers": headers}
    return {
        "kind": "kombu",
        "summary": _short(content) if isinstance(content, str) else _short_json(_dump(content)),
        "content": content,
        "headers": headers,
    }


def _content(value: dict[str, Any], headers: dict[str, Any], properties: dict[str, Any]) -> Any:
    """Return the content of an envelope: decoded JSON, text, or a note about binary content."""
    text = _text(value, headers, properties)
    if text is None:
        return value["body"]
    decoded = _json(text) if "json" in str(value.get("content-type")) else None
    return text if decoded is None else decoded


def _text(value: dict[str, Any], headers: dict[str, Any], properties: dict[str, Any]) -> str | None:
    """Return the text of an envelope's content, or a note about binary content.

    None if the content is a part of the envelope itself.
    """
    body = value["body"]
    if not isinstance(body, str):
        return None
    raw = body.encode()
    if properties.get("body_encoding") == "base64":
        try:
            raw = base64.b64decode(raw, validate=True)
        except (binascii.Error, ValueError):
            return body
    if headers.get("compression") in ("application/x-gzip", "gzip", "zlib"):
        raw = _inflate(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"{len(raw)} bytes of {value.get('content-type')}"


def _task(headers: dict[str, Any], content: Any) -> dict[str, Any]:
    """Describe a task of Celery's protocol 2, which has the metadata in the headers."""
    args, kwargs = headers.get("argsrepr"), headers.get("kwargsrepr")
    if isinstance(content, list) and len(content) == 3:
        args, kwargs = content[0], content[1]
    return _described(headers, args, kwargs, content, headers)


def _old_task(content: dict[str, Any]) -> dict[str, Any]:
    """Describe a task of Celery's protocol 1, which has the metadata in the body."""
    return _described(content, content.get("args"), content.get("kwargs"), content, {})


def _described(
    of: Mapping[str, Any], args: Any, kwargs: Any, content: Any, headers: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "kind": "celery",
        "summary": _short(f"{of['task']}({_call(args, kwargs)})"),
        "task": of["task"],
        "id": str(of.get("id")),
        "args": args,
        "kwargs": kwargs,
        "eta": of.get("eta"),
        "expires": of.get("expires"),
        "retries": of.get("retries") or 0,
        "content": content,
        "headers": headers,
    }


def _call(args: Any, kwargs: Any) -> str:
    """Format the known arguments as in a function call."""
    if isinstance(args, str):  # Celery's own repr of the tuple
        parts = [args.strip("()").rstrip(",")]
    else:
        parts = [readable(_dump(value)) for value in args or []]
    if isinstance(kwargs, dict):
        parts += [f"{name}={readable(_dump(value))}" for name, value in kwargs.items()]
    elif isinstance(kwargs, str) and kwargs != "{}":
        parts.append(f"**{kwargs}")
    return ", ".join(part for part in parts if part)


def _inflate(raw: bytes) -> bytes:
    try:
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib
        inflated = unpacker.decompress(raw, _MAX_INFLATED_BYTES)
    except zlib.error:
        return raw
    return raw if unpacker.unconsumed_tail else inflated


def _json(text: str) -> Any:
    """Decode JSON; None if it is invalid, or if its value cannot be encoded as JSON again."""
    try:
        value = json.loads(text)
        # json.loads accepts NaN, 1e999 and lone surrogates, which would make our response invalid.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return None
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _brief(text: str) -> str:
    """Return JSON in one line if it fits, else in several."""
    line = readable(text)
    return line if len(line) <= _MAX_LINE_CHARACTERS and "\n" not in line else pretty(text)


def _pretty(text: str) -> str:
    """Return JSON in lines; any other text as it is."""
    shown = pretty_if_json(text)
    return text if shown is None else shown


def _short_json(text: str) -> str:
    # Cut before escapes become characters, because a body may have 128 KB: an escape has 6.
    return _short(readable(text[: 6 * _MAX_SUMMARY_CHARACTERS + 6]))


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SUMMARY_CHARACTERS else text[:_MAX_SUMMARY_CHARACTERS] + "…"
