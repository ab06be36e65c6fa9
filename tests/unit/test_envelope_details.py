"""Particulars of messages that a change may spoil without anyone noticing."""

from __future__ import annotations

import base64
import json
import time

import pytest

from kombu_cfqueues.envelope import expires_at, pack, receive, repack, seconds_until_due
from kombu_cfqueues.envelope.unpack import decode
from kombu_cfqueues.errors import MessageTooLarge
from kombu_cfqueues.options import Options, Secret


def options(**given):
    return Options(account_id="a", api_token=Secret("t"), **given)


def unpack(raw):
    return decode(raw)[0]


MESSAGE = {
    "body": "[1]",
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"x": 1},
    "properties": {"message_id": "m", "body_encoding": "utf-8"},
}


@pytest.mark.parametrize("content_type", ["text", "json"])
def test_what_was_packed_can_be_read_again(content_type):
    """A batch that fails hands the messages back to its caller."""
    assert pack(MESSAGE, "jobs", options(content_type=content_type)).message() == MESSAGE


@pytest.mark.parametrize(
    ("content_type", "body", "read"),
    [
        ("text", "plain words", "plain words"),
        ("text", '{"a": 1}', '{"a": 1}'),
        ("text", "5", "5"),
        ("json", '{"a": 1}', {"a": 1}),
        ("json", "[1]", [1]),
    ],
)
def test_a_plain_body_that_was_packed_is_read_as_that(content_type, body, read):
    given = options(body_format="plain", content_type=content_type)

    assert pack({**MESSAGE, "body": body}, "jobs", given).message() == read


@pytest.mark.parametrize(
    ("expiration", "seconds"), [("5000", 5), (5000, 5), ("0", 0), ("1.5e3", 1.5)]
)
def test_an_expiration_is_milliseconds_from_now(expiration, seconds):
    before = time.time()
    at = expires_at({"properties": {"expiration": expiration}})

    assert before + seconds <= at <= time.time() + seconds


@pytest.mark.parametrize(
    "properties", [{}, None, {"expiration": None}, {"expiration": "soon"}, {"expiration": 10**400}]
)
def test_what_says_no_time_expires_never(properties):
    assert expires_at({"properties": properties}) is None


def test_what_is_too_large_names_a_way_out():
    with pytest.raises(MessageTooLarge, match=r"store the data elsewhere and send a reference$"):
        pack({**MESSAGE, "body": "x" * 130_000}, "jobs", options(compress_large=False))


def test_all_that_is_told_of_a_delivery():
    raw = {
        "body": "words",
        "id": "m1",
        "attempts": 3,
        "timestamp_ms": 17,
        "metadata": {"CF-Content-Type": "text"},
    }

    assert receive(raw, "jobs")["properties"] == {
        "body_encoding": "utf-8",
        "delivery_info": {
            "exchange": "",
            "routing_key": "jobs",
            "redelivered": True,
            "cloudflare": {
                "id": "m1",
                "attempts": 3,
                "timestamp_ms": 17,
                "content_type": "text",
                "envelope": False,
            },
        },
    }


def test_an_envelope_that_does_not_say_how_its_body_is_encoded_is_text():
    envelope = {"body": "x", "headers": {}, "properties": {}}

    assert receive({"body": json.dumps(envelope)}, "q")["properties"]["body_encoding"] == "utf-8"


@pytest.mark.parametrize("kind", ["bytes", "v8"])
def test_what_workers_send_as_data_is_data(kind):
    raw = {
        "body": base64.b64encode(b"5").decode(),
        "metadata": {"CF-Content-Type": kind},
    }

    info = receive(raw, "jobs")["properties"]["delivery_info"]
    assert info["cloudflare"]["envelope"] is False
    assert unpack(raw)["content-type"] == "application/data"
    assert unpack(raw)["content-encoding"] == "binary"


def test_an_envelope_whose_body_is_not_quite_base64_is_no_envelope():
    properties = {"body_encoding": "base64"}
    raw = {"body": json.dumps({"body": "e%A==", "headers": {}, "properties": properties})}

    assert receive(raw, "q")["properties"]["delivery_info"]["cloudflare"]["envelope"] is False


def test_json_of_a_worker_says_so():
    got = unpack({"body": "5", "metadata": {"CF-Content-Type": "json"}})

    assert (got["content-type"], got["content-encoding"]) == ("application/json", "utf-8")


def test_a_value_in_the_place_of_a_text_keeps_its_letters():
    assert unpack({"body": ["Grüße"]})["body"] == '["Grüße"]'
    assert unpack({"body": {"half": "\ud800"}})["body"] == '{"half": "?"}'


@pytest.mark.parametrize(
    ("body", "kind", "alone", "sent"),
    [
        ('{"a": 1}', "json", True, "json"),
        ("5", "json", False, "json"),
        ("NaN", "json", True, "text"),
        ("5", "text", True, "text"),
    ],
)
def test_a_copy_goes_alone_only_where_its_route_takes_it(body, kind, alone, sent):
    copy = repack({"body": body, "metadata": {"CF-Content-Type": kind}})

    assert copy.alone == alone
    assert json.loads(copy.encode())["content_type"] == sent
    assert copy.due is None


def test_a_copy_of_data_has_an_id_of_its_own():
    """What consumers tell duplicates by."""
    raw = {"body": base64.b64encode(b"\xff").decode(), "metadata": {"CF-Content-Type": "bytes"}}
    ids = {
        json.loads(json.loads(repack(raw).encode())["body"])["properties"]["message_id"]
        for _ in range(2)
    }

    assert len(ids) == 2


@pytest.mark.parametrize("eta", ["1970-01-01T00:20:00", "1970-01-01T00:20:00Z"])
def test_an_eta_without_a_zone_is_utc_wherever_the_reader_is(eta, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        assert (
            seconds_until_due({"headers": {"lang": "py", "task": "t", "id": "i", "eta": eta}}, 1000)
            == 200
        )
    finally:
        monkeypatch.undo()
        time.tzset()
