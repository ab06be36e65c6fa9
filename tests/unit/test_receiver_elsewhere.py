"""Messages that others wrote, as consumers get them."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.serialization import prepare_accept_content
from kombu.transport.virtual import Message

from kombu_cfqueues import limits
from kombu_cfqueues.envelope import expired, receive, repack, seconds_until_due
from kombu_cfqueues.envelope.unpack import decode
from kombu_cfqueues.errors import MessageTooLarge
from kombu_cfqueues.transport.celery_task import headers_for_worker


def pulled(body, kind=None, **fields):
    metadata = {} if kind is None else {"CF-Content-Type": kind}
    return {"body": body, "metadata": metadata, "id": "m1", "attempts": 1, **fields}


def unpack(raw):
    return decode(raw)[0]


def text_of(value) -> str:
    return json.dumps(value)


def base64_of(value) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


@pytest.fixture(scope="module")
def channel():
    with Connection("cfqueues://0123456789abcdef0123456789abcdef:t@127.0.0.1:9/") as connection:
        # Its methods for bodies need no server.
        yield connection.transport.Channel(connection.transport)


def decoded(channel, raw):
    message = Message(
        {**(got := receive(raw, "jobs")), "properties": {**got["properties"], "delivery_tag": "t"}},
        channel=channel,
        accept=prepare_accept_content(["json", "text/plain", "application/data"]),
    )
    return message.decode(), message


@pytest.mark.parametrize("written", [text_of, base64_of], ids=["plain", "base64"])
@pytest.mark.parametrize("value", [{"a": 1}, [1, 2], "text", "Grüße", 42, 1.5, True, None, {}, ""])
@pytest.mark.parametrize("attempts", [0, 1])
def test_json_of_a_worker_is_delivered_as_json(channel, written, value, attempts):
    """Whether it comes in base64, and whether attempts begin at 0 or 1, is disputed."""
    body, message = decoded(channel, pulled(written(value), "json", attempts=attempts))

    assert body == value
    assert message.content_type == "application/json"
    told = message.delivery_info["cloudflare"]
    assert told["content_type"] == "json"
    assert told["envelope"] is False
    assert message.delivery_info["redelivered"] is False
    assert message.delivery_info["routing_key"] == "jobs"


def test_text_is_delivered_as_text(channel):
    body, message = decoded(channel, pulled("Grüße", "text"))

    assert body == "Grüße"
    assert (message.content_type, message.content_encoding) == ("text/plain", "utf-8")
    assert message.delivery_info["cloudflare"]["content_type"] == "text"


def test_bytes_are_delivered_as_bytes(channel):
    body, message = decoded(channel, pulled(base64.b64encode(b"\xff\x00").decode(), "bytes"))

    assert bytes(body) == b"\xff\x00"
    assert message.delivery_info["cloudflare"]["content_type"] == "bytes"


def test_an_envelope_says_that_it_is_one():
    envelope = {"body": "x", "headers": {}, "properties": {"delivery_info": {"exchange": "e"}}}

    told = receive(pulled(json.dumps(envelope), "text", attempts=2), "jobs")["properties"]

    assert told["delivery_info"]["cloudflare"]["envelope"] is True
    assert told["delivery_info"]["exchange"] == "e"
    assert told["delivery_info"]["redelivered"] is True


def test_a_task_without_an_id_gets_one_in_a_worker():
    """Celery's worker ends over a task that has none."""
    assert headers_for_worker({"task": "t"}, "m1") == {"task": "t", "id": "m1"}
    assert headers_for_worker({"task": "t", "id": 7}, "m1") == {"task": "t", "id": "m1"}
    assert headers_for_worker({"task": "t"}, None)["id"]


def test_a_task_whose_name_is_no_text_is_no_task_in_a_worker():
    assert headers_for_worker({"task": ["t"], "x": 1}, "m1") == {"x": 1}


@pytest.mark.parametrize(
    "headers", [{"task": "t"}, {"task": ["t"], "x": 1}, {"task": "t", "id": 7}]
)
def test_headers_of_an_envelope_are_the_applications(headers):
    envelope = {"body": "[]", "headers": headers, "properties": {}}

    assert receive(pulled(json.dumps(envelope), "json"), "jobs")["headers"] == headers


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
almost_envelopes = st.fixed_dictionaries(
    {
        "body": st.text() | json_values,
        "headers": st.dictionaries(st.sampled_from(["task", "id", "eta", "x"]), json_values),
        "properties": st.dictionaries(
            st.sampled_from(
                ["body_encoding", "delivery_info", "delivery_tag", "expiration", "message_id"]
            ),
            json_values | st.sampled_from(["base64", "utf-8"]),
        ),
    },
    optional={"content-type": json_values, "content-encoding": json_values},
)


@given(
    body=st.text()
    | json_values.map(json.dumps)
    | almost_envelopes.map(json.dumps)
    | st.just('{"body": "\\ud800", "headers": {}, "properties": {}}')
    | st.just("\ud800"),
    kind=st.sampled_from(["text", "json", "bytes", "v8", None, 5]),
    attempts=st.sampled_from([0, 1, 7, None, "x"]),
    timestamp=st.sampled_from([None, 0, 10**13, "x"]),
)
def test_whatever_comes_can_be_made_a_message(channel, body, kind, attempts, timestamp):
    """Any exception here would end a worker, and the message would come again."""
    raw = pulled(body, kind, attempts=attempts, timestamp_ms=timestamp)

    got = receive(raw, "jobs")

    expired(got, 1e9)
    seconds_until_due(got, 1e9)
    Message({**got, "properties": {**got["properties"], "delivery_tag": "t"}}, channel=channel)
    json.loads(repack(raw).encode())


# Copies


@pytest.mark.parametrize("kind", ["text", "json", None])
@pytest.mark.parametrize(
    "body", ['{"a": 1}', '"text"', "5", "plain", '{"body": "x", "headers": {}, "properties": {}}']
)
def test_a_copy_is_what_the_message_was(kind, body):
    copy = json.loads(repack(pulled(body, kind)).encode())

    text = copy["body"] if copy["content_type"] == "text" else json.dumps(copy["body"])
    back = pulled(text, copy["content_type"] if kind else None)
    assert unpack(back) == unpack(pulled(body, kind))


def test_a_copy_of_data_is_an_envelope_because_the_api_takes_no_data():
    raw = pulled(base64.b64encode(b"\xff\x00").decode(), "bytes")

    copy = json.loads(repack(raw).encode())

    assert copy["content_type"] == "text"
    before, after = unpack(raw), unpack(pulled(copy["body"], "text"))
    assert (after["body"], after["content-type"]) == (before["body"], before["content-type"])


def test_a_copy_may_be_delayed():
    assert json.loads(repack(pulled("x", "text"), delay_seconds=60).encode())["delay_seconds"] == 60


def test_data_that_does_not_fit_into_an_envelope_is_too_large():
    raw = pulled(base64.b64encode(bytes(limits.BODY_BYTES)).decode(), "bytes")

    with pytest.raises(MessageTooLarge):
        repack(raw)


# Time


@pytest.mark.parametrize(
    ("expiration", "at", "gone"),
    [("10000", 1010, True), ("10000", 1009.9, False), ("never", 9999, False), (None, 9999, False),
     ("0", 1000, True), ([], 9999, False)],
)  # fmt: skip
def test_a_message_expires_so_many_milliseconds_after_it_came_to_the_queue(expiration, at, gone):
    envelope = {"body": "x", "headers": {}, "properties": {"expiration": expiration}}
    raw = pulled(json.dumps(envelope), "text", timestamp_ms=1_000_000)

    assert expired(receive(raw, "jobs"), at) == gone


@pytest.mark.parametrize(
    ("eta", "left"),
    [("1970-01-01T00:20:00+00:00", 200), ("1970-01-01T00:00:00+00:00", 0), ("soon", 0), (None, 0)],
)
def test_how_far_off_a_message_is(eta, left):
    envelope = {
        "body": "x",
        "headers": {"lang": "py", "task": "t", "id": "i", "eta": eta},
        "properties": {},
    }

    message = receive(pulled(json.dumps(envelope), "text"), "jobs")

    assert seconds_until_due(message, 1000) == left
