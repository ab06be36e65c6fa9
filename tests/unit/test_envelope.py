"""Kombu's message <-> the queue's message: it comes back unchanged, or is refused at once."""

import base64
import copy
import json
import random
import re
import time
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.compression import decompress as kombu_decompress

from kombu_cfqueues import limits
from kombu_cfqueues.envelope import pack, retention_error
from kombu_cfqueues.envelope.unpack import decode
from kombu_cfqueues.errors import InvalidMessage, MessageTooLarge
from kombu_cfqueues.options import Options, Secret

DAY = 86_400

#: Marks of a Celery task: only then is the header ``eta`` Celery's.
TASK = {"lang": "py", "task": "shop.add", "id": "0c8e4fd0"}


def options(**given):
    return Options(account_id="a", api_token=Secret("t"), **given)


def message(body="{}", headers=None, **properties):
    return {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers or {},
        "properties": {"body_encoding": "utf-8", "delivery_info": {}, **properties},
    }


def packed(*args, now=None, queue="jobs", given=None, **kwargs):
    return json.loads(pack(message(*args, **kwargs), queue, given or options()).encode(now))


def refusal(*args, given=None, **kwargs):
    with pytest.raises(InvalidMessage) as refused:
        packed(*args, given=given, **kwargs)
    assert "queue 'jobs'" in str(refused.value)
    return str(refused.value)


def pulled(sent, kind):
    return {"body": sent, "metadata": {"CF-Content-Type": kind}}


def unpack(raw):
    return decode(raw)[0]


# Round trips

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | texts
values = st.recursive(
    scalars | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "__type__" not in str(value))
headers = st.dictionaries(
    texts.filter(lambda name: name != "eta"),
    values
    | st.datetimes(timezones=st.just(timezone.utc))
    | st.uuids()
    | st.binary(max_size=20)
    | st.decimals(allow_nan=False),
    max_size=4,
)
messages = st.builds(
    lambda body, headers, properties: {
        "body": body,
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {**properties, "message_id": "m", "body_encoding": "utf-8"},
    },
    texts,
    headers,
    st.dictionaries(texts.filter(lambda name: name != "delay_seconds"), values, max_size=3),
)


@given(original=messages)
def test_a_message_comes_back_as_it_went_in(original):
    sent = json.loads(pack(original, "jobs", options()).encode())

    assert sent["content_type"] == "text"
    assert unpack(pulled(sent["body"], "text")) == original


@pytest.mark.parametrize("in_base64", [False, True])
@given(original=messages)
def test_a_json_message_comes_back_whichever_way_the_server_returns_it(in_base64, original):
    """Whether a json body comes back in base64 is disputed."""
    sent = json.loads(pack(original, "jobs", options(content_type="json")).encode())
    text = json.dumps(sent["body"])

    body = base64.b64encode(text.encode()).decode() if in_base64 else text

    assert unpack(pulled(body, "json")) == original


@given(body=texts, content_type=st.just("text"))
def test_a_plain_body_is_sent_as_nothing_but_itself(body, content_type):
    given = options(body_format="plain", content_type=content_type)

    sent = json.loads(pack(message(body), "jobs", given).encode())

    assert sent == {"body": body, "content_type": "text"}


@given(value=values)
def test_a_plain_json_body_is_sent_as_the_value_that_it_stands_for(value):
    given = options(body_format="plain", content_type="json")

    ready = pack(message(json.dumps(value)), "jobs", given)

    assert json.loads(ready.encode()) == {"body": value, "content_type": "json"}
    # The route for one message refuses any other value.
    assert ready.alone == isinstance(value, (dict, list))


def test_what_was_packed_is_left_as_it_was():
    """One message may be published to several queues."""
    original = message('{"a": 1}', {"h": 1}, delay_seconds=3)
    before = json.loads(json.dumps(original))

    pack(original, "jobs", options())

    assert original == before


def test_a_message_without_an_id_gets_one_of_its_own():
    """It is what a consumer tells a duplicate by."""
    first, second = (unpack(pulled(packed()["body"], "text")) for _ in range(2))

    assert first["properties"]["message_id"] != second["properties"]["message_id"]
    assert UUID(first["properties"]["message_id"])


def test_headers_that_json_does_not_know_survive_as_on_other_transports():
    given = {
        "when": datetime(2026, 11, 23, tzinfo=timezone.utc),
        "day": date(2026, 11, 23),
        "id": UUID(int=5),
        "price": Decimal("1.10"),
        "text": b"bytes",
        "data": b"\xff\x00",
    }

    assert unpack(pulled(packed(headers=given)["body"], "text"))["headers"] == given


def test_text_is_not_sent_in_base64():
    """It would cost a third of the 128 KB."""
    assert "grüße 🎉" in packed("grüße 🎉")["body"]


# What cannot be sent


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("content_type", ["text", "json"])
def test_numbers_that_json_does_not_have_are_refused_in_headers(number, content_type):
    """JavaScript's JSON.parse would choke on them, far from who sent them."""
    text = refusal(headers={"x": [number]}, given=options(content_type=content_type))

    assert "JSON compliant" in text


@pytest.mark.parametrize("constant", ["NaN", '{"x": Infinity}', "[-Infinity]"])
def test_numbers_that_json_does_not_have_are_refused_in_a_json_body(constant):
    text = refusal(constant, given=options(body_format="plain", content_type="json"))

    assert "is not JSON" in text


def test_a_kombu_body_may_hold_any_text():
    """Whatever the application's serializer wrote is text within text."""
    assert '"NaN"' in packed("NaN")["body"]


@pytest.mark.parametrize("body", ["", "{", "{'a': 1}", "[" * 100_000])
def test_a_body_that_is_no_json_is_not_sent_as_json(body):
    refusal(body, given=options(body_format="plain", content_type="json"))


@pytest.mark.parametrize("given", [{}, {"content_type": "json"}, {"body_format": "plain"}])
def test_lone_surrogates_in_the_body_are_refused(given):
    assert "surrogates not allowed" in refusal("half of \ud83c", given=options(**given))


@pytest.mark.parametrize(
    "headers", [{"x": "\ud83c"}, {"\udfff": 1}, {"x": {"y": ["\ud800"]}}, {"eta": "\ud800"}]
)
@pytest.mark.parametrize("content_type", ["text", "json"])
def test_lone_surrogates_in_headers_are_refused(headers, content_type):
    refusal(headers=headers, given=options(content_type=content_type))


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j, {(1, 2): 3}])
def test_headers_that_json_cannot_carry_are_refused(value):
    refusal(headers={"x": value})


def test_headers_that_hold_themselves_are_refused():
    circle = []
    circle.append(circle)

    refusal(headers={"x": circle})


def test_headers_nested_too_deep_are_refused():
    deep = []
    for _ in range(100_000):
        deep = [deep]

    refusal(headers={"x": deep})


@pytest.mark.parametrize("given", [{"body": "AAE=", "body_encoding": "base64"}, {"body": None}])
@pytest.mark.parametrize("content_type", ["text", "json"])
def test_a_binary_body_is_not_sent_plain(given, content_type):
    """A consumer that knows nothing of Kombu could not tell its base64 from text."""
    text = refusal(**given, given=options(body_format="plain", content_type=content_type))

    assert "binary" in text


# Size


def body_of_size(size, *, filler="x"):
    """A body with which the whole message has *size* bytes as it is sent."""
    empty = len(packed("", message_id="m")["body"].encode())
    return filler * ((size - empty) // len(filler.encode()))


@pytest.mark.parametrize("filler", ["x", "é", "\N{SNOWMAN}"])
def test_the_largest_message_is_sent(filler):
    body = body_of_size(limits.BODY_BYTES, filler=filler)

    sent = packed(body, message_id="m")["body"]

    assert limits.BODY_BYTES - 3 < len(sent.encode()) <= limits.BODY_BYTES


@pytest.mark.parametrize(("filler", "size"), [("x", "127,901"), ("é", "127,902")])
def test_a_message_over_the_limit_is_refused_with_its_size_and_the_limit(filler, size):
    """Counted in the bytes that are sent, not in characters."""
    largest = body_of_size(limits.BODY_BYTES, filler="x")
    packed(largest, message_id="m")

    with pytest.raises(MessageTooLarge) as refused:
        packed(largest + filler, message_id="m", given=options(compress_large=False))

    assert f"{size} bytes" in str(refused.value)
    assert "127,900" in str(refused.value)
    assert "queue 'jobs'" in str(refused.value)


@pytest.mark.parametrize("body_format", ["plain", "kombu"])
@pytest.mark.parametrize("content_type", ["text", "json"])
def test_the_limit_holds_in_every_format(body_format, content_type):
    given = options(body_format=body_format, content_type=content_type, compress_large=False)

    with pytest.raises(MessageTooLarge):
        packed(f'["{"x" * limits.BODY_BYTES}"]', given=given)


# Compression of what is too large


@pytest.mark.parametrize("content_type", ["text", "json"])
def test_a_message_over_the_limit_is_compressed_and_marked_as_kombu_does(content_type):
    body = '["' + "Grüße " * 100_000 + '"]'
    given = options(content_type=content_type)

    raw = pulled(packed(body, given=given)["body"], content_type)
    sent = unpack(raw)

    assert sent["headers"] == {"compression": "application/x-gzip"}
    assert sent["properties"]["body_encoding"] == "base64"
    assert kombu_decompress(base64.b64decode(sent["body"]), "gzip").decode() == body


def test_the_size_after_base64_decides():
    """A body that fits as it is stays text; one byte more is compressed."""
    largest = body_of_size(limits.BODY_BYTES)
    assert '"compression"' not in packed(largest, message_id="m")["body"]
    assert '"compression"' in packed(largest + "x", message_id="m")["body"]


def test_a_binary_body_is_compressed_from_its_bytes():
    data = bytes(range(256)) * 1_000
    given = message(base64.b64encode(data).decode(), body_encoding="base64")
    before = copy.deepcopy(given)

    sent = unpack(pulled(json.loads(pack(given, "jobs", options()).encode())["body"], "text"))

    assert kombu_decompress(base64.b64decode(sent["body"]), "gzip") == data
    assert given == before, "the application may publish it again"


def test_what_does_not_shrink_is_refused_with_both_sizes():
    noise = base64.b64encode(random.Random(7).randbytes(200_000)).decode()
    with pytest.raises(MessageTooLarge) as refused:
        packed(noise, body_encoding="base64")
    sizes = [
        int(size.replace(",", "")) for size in re.findall(r"([\d,]+) bytes", str(refused.value))
    ]
    assert sizes[0] > 266_000
    assert 266_000 < sizes[1] < 267_500
    assert sizes[2] == limits.BODY_BYTES


@pytest.mark.parametrize(
    ("body", "headers", "given", "reason"),
    [
        ("x" * 130_000, {"compression": "application/x-bz2"}, {}, "compressed already"),
        ("x" * 130_000, {}, {"compress_large": False}, "compress_large is off"),
        ("x" * 130_000, {}, {"body_format": "plain"}, "has no header"),
        ("x" * (16 << 20) + "x", {}, {}, "at most 16,777,216 bytes"),
        ("{}", {"mine": "x" * 130_000}, {}, "if its body is compressed"),
    ],
    ids=["compressed", "turned off", "plain", "over 16 MiB", "large headers"],
)
def test_why_a_message_could_not_be_made_to_fit_is_told(body, headers, given, reason):
    with pytest.raises(MessageTooLarge, match=reason):
        packed(body, headers, given=options(**given))


def test_a_body_of_16_mib_is_compressed():
    assert '"compression"' in packed("x" * (16 << 20))["body"]


# Delay


@pytest.mark.parametrize("delay", [0, 1, 30, DAY, 1.5])
def test_delay_seconds_is_the_delay_of_the_message_rounded_up(delay):
    """A message must never be early; 0 overrides the queue's own delay."""
    assert packed(delay_seconds=delay)["delay_seconds"] == -(-delay // 1)


def test_without_a_delay_the_queues_own_holds():
    assert "delay_seconds" not in packed()


@pytest.mark.parametrize(
    "delay",
    [-1, -0.001, DAY + 1, 10**400, 1e300, float("nan"), float("inf"), "soon", True, [1], b"1"],
)
def test_a_delay_that_is_none_is_refused(delay):
    text = refusal(delay_seconds=delay)

    assert "delay_seconds" in text
    assert "0 to 86,400" in text


@pytest.mark.parametrize(
    "eta",
    [
        "2026-11-23T12:01:30+00:00",
        "2026-11-23T12:01:30Z",
        "2026-11-23T12:01:29.000001+00:00",
        "2026-11-23T14:01:30+02:00",
        "2026-11-23T12:01:30",
        datetime(2026, 11, 23, 12, 1, 30, tzinfo=timezone.utc),
        datetime(2026, 11, 23, 12, 1, 30),
    ],
)
def test_an_eta_is_the_delay_of_the_message(eta):
    noon = datetime(2026, 11, 23, 12, tzinfo=timezone.utc).timestamp()

    assert packed(headers={**TASK, "eta": eta}, now=noon)["delay_seconds"] == 90


def test_the_eta_stays_in_the_message():
    """A worker that gets the message early, holds it."""
    sent = packed(headers={**TASK, "eta": "2099-01-01T00:00:00+00:00"})

    assert unpack(pulled(sent["body"], "text"))["headers"]["eta"] == "2099-01-01T00:00:00+00:00"


@pytest.mark.parametrize("eta", ["2099-01-01T00:00:00+00:00", "9999-12-31T23:59:59-14:00"])
def test_an_eta_beyond_a_day_waits_for_a_day_first(eta):
    assert packed(headers={**TASK, "eta": eta})["delay_seconds"] == DAY


@pytest.mark.parametrize("eta", ["2020-01-01T00:00:00+00:00", "0001-01-01T00:00:00+14:00"])
def test_an_eta_that_has_passed_is_no_delay(eta):
    assert packed(headers={**TASK, "eta": eta})["delay_seconds"] == 0


@pytest.mark.parametrize("eta", [None, "", "tomorrow", 5, [], "12:00", "2026-99-99T00:00:00"])
def test_a_header_eta_that_is_no_time_is_the_applications_own(eta):
    assert "delay_seconds" not in packed(headers={**TASK, "eta": eta})


def test_delay_seconds_wins_over_an_eta():
    assert (
        packed(headers={**TASK, "eta": "2099-01-01T00:00:00Z"}, delay_seconds=5)["delay_seconds"]
        == 5
    )


def test_an_eta_can_be_left_to_the_worker():
    sent = packed(
        headers={**TASK, "eta": "2099-01-01T00:00:00Z"}, given=options(native_delay=False)
    )

    assert "delay_seconds" not in sent


def test_waiting_in_the_process_does_not_make_a_message_late():
    ready = pack(message(delay_seconds=100), "jobs", options())

    later = json.loads(ready.encode(now=time.time() + 60))
    much_later = json.loads(ready.encode(now=time.time() + 600))

    assert later["delay_seconds"] == 40
    assert much_later["delay_seconds"] == 0


def test_a_delay_past_the_queues_retention_is_refused():
    """The queue would delete the message unread."""
    ready = pack(message(delay_seconds=3600), "jobs", options())

    refused = retention_error(ready, "jobs", 1800)

    assert isinstance(refused, InvalidMessage)
    assert "'jobs'" in str(refused)
    assert "3,600 s" in str(refused)
    assert "1,800 s" in str(refused)


def test_an_eta_past_the_queues_retention_is_refused():
    eta = datetime.now(timezone.utc) + timedelta(days=5)
    ready = pack(message(headers={**TASK, "eta": eta}), "jobs", options())

    assert retention_error(ready, "jobs", 4 * DAY) is not None


@pytest.mark.parametrize("retention", [None, 3600, DAY])
def test_a_delay_within_the_retention_or_an_unknown_one_is_sent(retention):
    for ready in (message(delay_seconds=3600), message()):
        assert retention_error(pack(ready, "jobs", options()), "jobs", retention) is None


# What comes from elsewhere


@pytest.mark.parametrize(
    ("body", "kind", "content_type", "encoded", "text"),
    [
        ("hello", "text", "text/plain", "utf-8", "hello"),
        ('{"a": 1}', "text", "text/plain", "utf-8", '{"a": 1}'),
        ('{"a": 1}', "json", "application/json", "utf-8", '{"a": 1}'),
        ("eyJhIjogMX0=", "json", "application/json", "utf-8", '{"a": 1}'),
        ({"a": 1}, "json", "application/json", "utf-8", '{"a": 1}'),
        ('{"a": 1}', None, "application/json", "utf-8", '{"a": 1}'),
        ("hello", None, "text/plain", "utf-8", "hello"),
        ("AP8=", "bytes", "application/data", "base64", "AP8="),
        ("no base64!", "bytes", "text/plain", "utf-8", "no base64!"),
        ("grüße", "bytes", "text/plain", "utf-8", "grüße"),
        ("no json", "json", "text/plain", "utf-8", "no json"),
        ("x", "v8", "text/plain", "utf-8", "x"),
        (None, None, "text/plain", "utf-8", ""),
    ],
)
def test_a_message_that_is_no_envelope_is_delivered_as_what_it_is(
    body, kind, content_type, encoded, text
):
    got = unpack(pulled(body, kind))

    assert (got["body"], got["content-type"]) == (text, content_type)
    assert got["properties"]["body_encoding"] == encoded
    assert got["headers"] == {}


ENVELOPE = {"body": "x", "headers": {}, "properties": {}}


@pytest.mark.parametrize(
    "almost",
    [
        {**ENVELOPE, "body": 5},
        {**ENVELOPE, "body": {"a": 1}},
        {**ENVELOPE, "headers": None},
        {**ENVELOPE, "headers": []},
        {**ENVELOPE, "properties": "p"},
        {**ENVELOPE, "properties": {"body_encoding": "zip"}},
        {**ENVELOPE, "properties": {"body_encoding": 5}},
        {**ENVELOPE, "properties": {"body_encoding": "base64"}, "body": "not base64"},
        {"body": "x", "headers": {}},
    ],
)
def test_what_only_looks_like_an_envelope_is_delivered_as_json(almost):
    """Kombu would fail on it where nothing catches it, and the worker would end."""
    got = unpack(pulled(json.dumps(almost), "json"))

    assert got["content-type"] == "application/json"
    assert json.loads(got["body"]) == almost


@pytest.mark.parametrize(
    "value",
    [
        {"__type__": "uuid", "__value__": 5},
        {"__type__": "uuid", "__value__": {}},
        {"__type__": "uuid", "__value__": {"colour": 1}},
        {"__type__": "decimal", "__value__": "x"},
        {"__type__": "datetime", "__value__": "x"},
        {"__type__": "datetime", "__value__": 5},
        {"__type__": "bytes", "__value__": 5},
        {"__type__": "base64", "__value__": "x"},
        {"__type__": "colour", "__value__": 5},
        {"__type__": ["list"], "__value__": 5},
    ],
)
@pytest.mark.parametrize("kind", ["text", "json", None])
def test_values_that_kombus_json_cannot_read_are_left_as_they_are(value, kind):
    """One such message, which anybody who may publish can send, must not end a worker."""
    envelope = {**ENVELOPE, "headers": {"x": value}}

    assert unpack(pulled(json.dumps(envelope), kind)) == envelope


raw_scalars = st.none() | st.booleans() | st.floats() | st.text()
raw_values = st.recursive(
    raw_scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)


@given(
    body=raw_values | raw_values.map(json.dumps),
    metadata=raw_values | st.fixed_dictionaries({"CF-Content-Type": raw_values}),
)
@pytest.mark.parametrize("kind", ["text", "json", "bytes", "v8", None])
def test_whatever_the_queue_holds_can_be_delivered(kind, body, metadata):
    if isinstance(metadata, dict) and kind:
        metadata = {**metadata, "CF-Content-Type": kind}

    got = unpack({"body": body, "metadata": metadata})

    assert isinstance(got["body"], str)
    assert isinstance(got["headers"], dict)
    assert isinstance(got["properties"], dict)


@pytest.mark.parametrize("raw", [{}, {"body": None}, {"metadata": []}, {"body": [], "metadata": 5}])
def test_every_field_of_a_pulled_message_may_be_missing(raw):
    assert isinstance(unpack(raw)["body"], str)
