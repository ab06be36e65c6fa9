"""Small bodies that become large ones."""

from __future__ import annotations

import base64
import tracemalloc

import pytest
from kombu import Connection, compression
from kombu.exceptions import DecodeError

from kombu_cfqueues import limits
from kombu_cfqueues.envelope import receive
from kombu_cfqueues.errors import MessageTooLarge
from kombu_cfqueues.transport.message import Message

METHODS = compression.encoders()
MAX_BYTES = 24 << 20
BOMBS = {method: compression.compress(bytes(MAX_BYTES + 1), method)[0] for method in METHODS}


@pytest.fixture(autouse=True)
def lower_limit(monkeypatch):
    """Bombs of the real size take seconds to make."""
    monkeypatch.setattr("kombu_cfqueues.transport.message.MAX_DECOMPRESSED_BYTES", MAX_BYTES)


@pytest.fixture(scope="module")
def channel():
    with Connection("cfqueues://0123456789abcdef0123456789abcdef:t@127.0.0.1:9/") as connection:
        # Its methods for bodies need no server.
        yield connection.transport.Channel(connection.transport)


def message(channel, data, method, **fields):
    payload = {
        "body": base64.b64encode(data).decode(),
        "headers": {"compression": method},
        "properties": {"body_encoding": "base64", "delivery_tag": "t"},
        "content-type": "application/data",
        "content-encoding": "binary",
        **fields,
    }
    return Message(payload, channel=channel, queue="jobs")


def error_of(message):
    """What Kombu hands to `on_decode_error`."""
    told = []
    message._reraise_error(lambda _, error: told.append(error))
    return told[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_body_is_decompressed(channel, method):
    data, name = compression.compress(b"x" * 100_000, method)

    read = message(channel, data, name)

    assert not read.errors
    assert read.payload == b"x" * 100_000


@pytest.mark.parametrize("method", METHODS)
def test_a_bomb_is_not_decompressed(channel, method):
    """128 KB of bz2 can be gigabytes, and a worker that is killed for them gets them again."""
    bomb = BOMBS[method]
    assert len(bomb) < limits.BODY_BYTES
    tracemalloc.start()
    read = message(channel, bomb, method)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    error = error_of(read)
    assert isinstance(error, MessageTooLarge)
    assert "'jobs'" in str(error)
    assert f"{MAX_BYTES:,}" in str(error)
    assert method in str(error)
    assert read.body == bomb
    assert peak < MAX_BYTES


@pytest.mark.parametrize("method", ["application/x-bz2", "application/x-lzma"])
def test_a_bomb_of_many_parts_is_one(channel, method):
    """Both are read on where one stream ends and another begins."""
    part = compression.compress(bytes(MAX_BYTES // 2), method)[0]

    assert not message(channel, part, method).errors
    assert isinstance(error_of(message(channel, part * 3, method)), MessageTooLarge)


@pytest.mark.parametrize("method", [*METHODS, "unknown", 5, ["gzip"]])
def test_what_is_damaged_is_kombus_own_error(channel, method):
    read = message(channel, b"\x00damaged", method)

    error = error_of(read)
    assert not isinstance(error, MessageTooLarge)


def test_a_body_without_a_compression_is_left_alone(channel):
    assert message(channel, BOMBS["application/x-gzip"], None).body == BOMBS["application/x-gzip"]


def test_an_empty_body_is_no_bomb(channel):
    assert not isinstance(error_of(message(channel, b"", "gzip")), MessageTooLarge)


@pytest.mark.parametrize("encoding", ["zlib", "bz2", "hex", "base64", "rot13", "no\0ne", 5, [], ""])
def test_an_encoding_that_is_none_of_a_text_is_dropped(encoding):
    """Kombu would decode the body by it, and Python knows bz2 as an encoding."""
    envelope = {"body": "x", "headers": {}, "content-encoding": encoding, "properties": {}}

    assert receive({"body": envelope}, "jobs")["content-encoding"] is None


@pytest.mark.parametrize("encoding", ["utf-8", "binary", "latin-1", "UTF-16", "us-ascii"])
def test_an_encoding_of_a_text_is_kept(encoding):
    envelope = {"body": "x", "headers": {}, "content-encoding": encoding, "properties": {}}

    assert receive({"body": envelope}, "jobs")["content-encoding"] == encoding


def test_a_bomb_by_encoding_is_data_that_cannot_be_read(channel):
    data = BOMBS["application/x-bz2"]
    got = receive(
        {
            "body": {
                "body": base64.b64encode(data).decode(),
                "headers": {},
                "properties": {"body_encoding": "base64"},
                "content-type": "application/data",
                "content-encoding": "bz2",
            }
        },
        "jobs",
    )
    read = Message({**got, "properties": {**got["properties"], "delivery_tag": "t"}}, channel)

    with pytest.raises(DecodeError):
        read.decode()
