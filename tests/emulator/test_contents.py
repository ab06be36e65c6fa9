"""What the page says a message is."""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.utils.json import loads

from kombu_cfqueues.emulator.contents import celery_task, describe


def published(emulator, **options):
    """Return a description of what Celery itself publishes."""
    app = Celery(broker=emulator.broker_url, broker_transport="kombu_cfqueues:Transport")
    app.conf.update(task_default_queue="jobs", **options)
    sent = app.send_task("shop.pay", (1, [2]), {"by": "card"}, retries=1)
    app.close()
    [message] = emulator.messages("jobs")
    return sent, describe(message.content_type, message.body)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task_compression": "gzip"},
        {"task_compression": "zlib"},
    ],
)
def test_a_task_of_celery_is_read(emulator, options):
    sent, what = published(emulator, **options)

    assert (what["kind"], what["task"], what["id"]) == ("celery", "shop.pay", sent.id)
    assert (what["args"], what["kwargs"], what["retries"]) == ([1, [2]], {"by": "card"}, 1)
    assert what["summary"] == 'shop.pay(1, [2], by="card")'


def test_a_task_of_the_old_protocol_is_read(emulator):
    _, what = published(emulator, task_protocol=1)

    assert (what["kind"], what["task"], what["args"]) == ("celery", "shop.pay", [1, [2]])


def test_a_pickled_task_is_shown_by_its_headers_and_never_loaded(emulator):
    _, what = published(emulator, task_serializer="pickle", accept_content=["pickle"])

    assert (what["kind"], what["args"], what["kwargs"]) == ("celery", "(1, [2])", "{'by': 'card'}")
    assert what["summary"] == "shop.pay(1, [2], **{'by': 'card'})"
    assert "pickle" in what["content"] or "serialize" in what["content"]


def test_a_task_from_the_page_is_one_that_celery_reads():
    envelope = json.loads(celery_task("shop.pay", [1, "ü"], {"by": None}))

    assert loads(b64decode(envelope["body"]))[:2] == [[1, "ü"], {"by": None}]
    what = describe("text", json.dumps(envelope))
    assert (what["task"], what["args"], what["kwargs"]) == ("shop.pay", [1, "ü"], {"by": None})


@pytest.mark.parametrize(
    ("content_type", "body", "kind", "content"),
    [
        ("text", "hello", "text", "hello"),
        ("text", "", "text", ""),
        ("text", "5", "text", "5"),
        ("text", '{"a": 1}', "json", {"a": 1}),
        ("json", '"words"', "json", "words"),
        ("json", "null", "json", None),
        (
            "text",
            '{"body": "x", "headers": {}, "properties": {}, "content-type": "text/plain"}',
            "kombu",
            "x",
        ),
        (
            "text",
            json.dumps(
                {
                    "body": "eyJhIjogMX0=",
                    "headers": {},
                    "content-type": "application/json",
                    "properties": {"body_encoding": "base64"},
                }
            ),
            "kombu",
            {"a": 1},
        ),
        ("text", '{"a": NaN}', "text", '{"a": NaN}'),
        ("text", '{"a": "\\ud800"}', "text", '{"a": "\\ud800"}'),
        ("text", '{"a": 1e999}', "text", '{"a": 1e999}'),
        ("text", '{"body": 1, "headers": [], "properties": {}}', "json", None),
    ],
)
def test_other_messages_are_what_they_are(content_type, body, kind, content):
    what = describe(content_type, body)

    assert what["kind"] == kind
    if content is not None:
        assert what["content"] == content


def test_a_body_that_unpacks_without_end_stays_packed():
    packed = b64encode(zlib.compress(b"x" * 50_000_000)).decode()
    envelope = {
        "body": packed,
        "content-type": "text/plain",
        "headers": {"compression": "zlib"},
        "properties": {"body_encoding": "base64"},
    }

    what = describe("text", json.dumps(envelope))

    assert len(json.dumps(what)) < 1_000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "body": json_values,
            "headers": st.dictionaries(
                st.sampled_from(["task", "id", "argsrepr", "kwargsrepr", "compression", "retries"]),
                json_values,
            )
            | json_values,
            "properties": st.dictionaries(st.just("body_encoding"), json_values) | json_values,
            "content-type": json_values,
            "task": json_values,
            "id": json_values,
            "args": json_values,
            "kwargs": json_values,
        },
    )
)
def test_nothing_that_looks_like_a_task_makes_it_fail(value):
    what = describe("json", json.dumps(value))

    assert what["kind"] in ("celery", "kombu", "json")
    json.dumps(what)
