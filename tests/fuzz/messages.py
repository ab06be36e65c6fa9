"""What a queue may hold, read as a consumer and as a dead letter."""

from __future__ import annotations

import base64
import contextlib
import json

from kombu import Connection
from kombu.exceptions import KombuError
from kombu.serialization import prepare_accept_content

from kombu_cfqueues.envelope import expired, receive, repack, seconds_until_due
from kombu_cfqueues.errors import MessageTooLarge
from kombu_cfqueues.transport.celery_task import is_valid_task
from kombu_cfqueues.transport.message import Message

KINDS = ("text", "json", "bytes", "v8", None)
ACCEPT = prepare_accept_content(["json", "text/plain", "application/data"])

ENVELOPE = {
    "body": "[[1], {}, {}]",
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"lang": "py", "task": "t", "id": "i", "eta": "2030-01-01T00:00:00Z", "retries": 0},
    "properties": {"body_encoding": "utf-8", "expiration": "1000", "delivery_info": {}},
}
SEEDS = [
    bytes([number]) + text.encode()
    for number in range(len(KINDS) * 2)
    for text in (
        json.dumps(ENVELOPE),
        json.dumps({**ENVELOPE, "body": "eA==", "properties": {"body_encoding": "base64"}}),
        base64.b64encode(json.dumps(ENVELOPE).encode()).decode(),
        '{"__type__": "datetime", "__value__": "2030-01-01T00:00:00"}',
        "text",
    )
]
WORDS = [
    '"body"', '"headers"', '"properties"', '"body_encoding"', '"base64"', '"compression"', '"gzip"',
    '"expiration"', '"eta"', '"task"', '"__type__"', '"__value__"', '"decimal"', '"uuid"',
    '"datetime"', '"bytes"', '"content-encoding"', '"content-type"', "1e999", "NaN", "null",
    "\\ud800", "99999999999999999999", "[[[[[[[[", "{}", "[]",
]  # fmt: skip


def _channel():
    connection = Connection("cfqueues://0123456789abcdef0123456789abcdef:t@127.0.0.1:9/")
    return connection.transport.Channel(connection.transport)


channel = _channel()


def read(data: bytes) -> None:
    """Read *data*, whose first byte says how the body is typed, and as what it comes."""
    first = data[0] if data else 0
    body = data[1:].decode("utf-8", "surrogateescape" if first & 64 else "replace")
    value = _value(body) if first & 128 else body
    raw = {
        "body": value,
        "metadata": {"CF-Content-Type": KINDS[first % len(KINDS)]},
        "id": "m",
        "lease_id": "l",
        "attempts": 1,
        "timestamp_ms": 1_000_000,
    }
    got = receive(raw, "jobs")
    expired(got, 1e9)
    seconds_until_due(got, 1e9)
    message = Message(
        {**got, "properties": {**got["properties"], "delivery_tag": "t"}}, channel, accept=ACCEPT
    )
    is_valid_task(message)
    if not message.errors:
        with contextlib.suppress(KombuError):  # its word for what cannot be read
            message.decode()
    with contextlib.suppress(MessageTooLarge):
        json.loads(repack(raw).encode())


def _value(body: str) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body
