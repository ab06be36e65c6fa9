"""In: a pulled message as Kombu's dictionary, whatever the queue contains."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Final

from .json_text import NOT_JSON, loads

ENVELOPE_KEYS: Final = frozenset({"body", "headers", "properties"})
"""A JSON object with these keys is a Kombu envelope."""


def receive(raw: Mapping[str, Any], queue: str) -> dict[str, Any]:
    """Return Kombu's dictionary of a pulled message, with all fields that Kombu and Celery expect.

    ``properties["delivery_info"]["cloudflare"]`` has what Cloudflare says about the message.
    Fields with a wrong type are dropped: an envelope may come from other software, such as a
    Worker, and a wrong type would end a consumer.  Never raises.

    Args:
        raw: An entry of a pull's ``messages``.
        queue: Kombu's name of the queue from which it was pulled.
    """
    message, envelope = decode(raw)
    headers, properties = dict(message["headers"]), dict(message["properties"])
    properties.setdefault("body_encoding", "utf-8")
    info = properties.get("delivery_info")
    properties["delivery_info"] = {
        "exchange": "",
        "routing_key": queue,
        **(info if isinstance(info, dict) else {}),
        **_delivery_info(raw, envelope=envelope),
    }
    return {
        "body": message["body"],
        "content-type": _string_or_none(message.get("content-type")),
        "content-encoding": _encoding_or_none(message.get("content-encoding")),
        "headers": headers,
        "properties": properties,
    }


def decode(raw: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a pulled message as Kombu's dictionary, and whether it is a Kombu envelope.

    An envelope is returned as it was packed.  Anything else, such as the result of a Worker's
    ``env.QUEUE.send``, becomes a message whose body is that JSON, text or data, without headers.
    Never raises.

    Args:
        raw: An entry of a pull's ``messages``: ``body``, ``metadata``, ``id`` and others.
    """
    cf_type = cloudflare_type(raw)
    body, value = content_of(raw.get("body"), cf_type)
    if isinstance(value, dict) and is_envelope(value):
        return {**value, "body": value["body"] and _without_surrogates(value["body"])}, True
    if isinstance(body, bytes):
        return foreign_message(body, "application/data", "binary"), False
    if value is not NOT_JSON and cf_type != "text":
        return foreign_message(body, "application/json", "utf-8"), False
    return foreign_message(body, "text/plain", "utf-8"), False


def cloudflare_type(raw: Mapping[str, Any]) -> Any:
    """Return the type of the body at Cloudflare: text, json, bytes or v8; None if it is unknown."""
    metadata = raw.get("metadata")
    return metadata.get("CF-Content-Type") if isinstance(metadata, Mapping) else None


def content_of(body: Any, cf_type: Any) -> tuple[Any, Any]:
    """Return a pulled body as text or bytes, and its JSON value, `NOT_JSON` if it has none."""
    if not isinstance(body, str):
        # The API returns a string; a server in its place may return the JSON value itself.
        if body is None:
            return "", NOT_JSON
        return _without_surrogates(json.dumps(body, ensure_ascii=False)), body
    if cf_type in ("bytes", "v8"):
        data = _from_base64(body)
        if data is not None:
            return data, NOT_JSON
    value = loads(body)
    if value is NOT_JSON and cf_type == "json":
        # Sources disagree on whether a JSON body comes back as it is or in base64.  Accept both.
        data = _from_base64(body)
        decoded = _text_or_none(data) if data is not None else None
        if decoded is not None:
            value = loads(decoded)
            body = body if value is NOT_JSON else decoded
    return _without_surrogates(body), value


def is_envelope(value: dict[str, Any]) -> bool:
    """Return whether *value* is an envelope that Kombu can read.

    An envelope that Kombu cannot read would raise where nothing catches it, and end a worker.
    """
    if not (
        value.keys() >= ENVELOPE_KEYS
        and isinstance(value["properties"], dict)
        and isinstance(value["headers"], dict)
    ):
        return False
    body, encoding = value["body"], value["properties"].get("body_encoding")
    if encoding == "base64" and isinstance(body, str):
        return _from_base64(body) is not None
    return encoding in (None, "utf-8") and (body is None or isinstance(body, str))


def foreign_message(body: str | bytes, content_type: str, encoding: str) -> dict[str, Any]:
    """Return Kombu's dictionary of a body that is not a Kombu envelope."""
    properties: dict[str, Any] = {"delivery_info": {}, "body_encoding": "utf-8"}
    if isinstance(body, bytes):
        body, properties["body_encoding"] = base64.b64encode(body).decode(), "base64"
    return {
        "body": body,
        "content-type": content_type,
        "content-encoding": encoding,
        "headers": {},
        "properties": properties,
    }


def _delivery_info(raw: Mapping[str, Any], *, envelope: bool) -> dict[str, Any]:
    attempts = raw.get("attempts")
    return {
        # Cloudflare documents the first attempt as 1, but has sent 0.  So only a number above 1
        # proves a redelivery.
        "redelivered": isinstance(attempts, int) and attempts > 1,
        "cloudflare": {
            "id": raw.get("id"),
            "attempts": attempts,
            "timestamp_ms": raw.get("timestamp_ms"),
            "content_type": cloudflare_type(raw),
            "envelope": envelope,
        },
    }


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # the base class of binascii.Error; also raised for non-ASCII characters
        return None


def _text_or_none(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _without_surrogates(text: str) -> str:
    """Return *text* without lone surrogates, which JSON can escape and UTF-8 cannot carry."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _string_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _encoding_or_none(value: Any) -> str | None:
    """Return the encoding of a text, or Kombu's ``binary``; None for anything else.

    Python also has encodings that are not for text, such as bz2.  Kombu would use them, and bz2 can
    make gigabytes from a small body.
    """
    if not isinstance(value, str) or value in ("utf-8", "binary"):
        return _string_or_none(value)
    try:
        b"x".decode(value)
    except UnicodeError:
        return value  # an encoding of texts, in which one byte is not a character
    except (LookupError, ValueError):
        return None
    return value
