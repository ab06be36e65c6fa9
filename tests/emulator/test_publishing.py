"""Publishing: what is accepted, what is refused, and with which status and code."""

from __future__ import annotations

import json

import pytest
from emulator.client import errors_of


def test_the_documented_example_is_accepted(api):
    """The body of the documentation's curl example, under the content type that curl sends."""
    answer = api.call(
        "POST",
        "/{jobs}/messages",
        data='{ "body": { "greeting": "hello" } }',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )

    assert answer.status_code == 200
    assert answer.json()["success"] is True
    [message] = api.emulator.messages("jobs")
    assert message.value == {"greeting": "hello"}
    assert message.content_type == "json"


def test_a_publish_answers_with_the_backlog(api):
    api.push("four")
    answer = api.push("eight")

    metrics = answer.json()["result"]["metadata"]["metrics"]
    assert metrics["backlog_count"] == 2
    assert metrics["backlog_bytes"] == len("foureight")
    assert metrics["oldest_message_timestamp_ms"] == round(
        api.emulator.messages("jobs")[0].timestamp * 1000
    )


@pytest.mark.parametrize("text", ["", "ü€😀", "a\x00b", '{"not": "decoded"}', "\r\n\t\u2028"])
def test_text_is_stored_as_it_came(api, text):
    api.push(text)

    assert [message.body for message in api.emulator.messages("jobs")] == [text]


def test_a_batch_is_stored_in_one_go(api):
    answer = api.batch(
        {"body": "x", "content_type": "text"},
        {"body": {"a": [1, None]}},
        {"body": "a string is any JSON", "content_type": "json"},
        {"body": None, "content_type": "json"},
    )

    assert answer.status_code == 200
    assert [message.value for message in api.emulator.messages("jobs")] == [
        "x",
        {"a": [1, None]},
        "a string is any JSON",
        None,
    ]


@pytest.mark.parametrize(
    ("queue", "batch", "message", "expected"),
    [
        (7, None, None, 7),
        (7, 5, None, 5),
        (7, 5, 3, 3),
        (7, 5, 0, 0),
        (7, 0, None, 0),
        (0, None, 86_400, 86_400),
        (0, 1.9, None, 1),
    ],
)
def test_a_messages_own_delay_goes_before_the_batchs_and_that_before_the_queues(
    make, queue, batch, message, expected
):
    api = make(queue={"delivery_delay": queue})
    fields = {} if batch is None else {"delay_seconds": batch}
    own = {} if message is None else {"delay_seconds": message}

    assert api.batch({"body": {}, **own}, **fields).status_code == 200

    assert api.emulator.messages("jobs")[0].delay_seconds == expected


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ("not json", 400, 10208),
        ("", 400, 10208),
        ('{"body": NaN}', 400, 10208),
        ('{"body": {}} trailing', 400, 10208),
        (r'{"body": {"a": "\ud800"}}', 400, 10208),
        ('{"body": ' + "[" * 100_000 + "]" * 100_000 + "}", 400, 10208),
        (b'{"body": "\xff", "content_type": "text"}', 400, 10208),
        ('{"body": {"a": ' + "9" * 5000 + "}}", 400, 10208),
        ('{"body": [1e999]}', 400, 10207),
        ("[]", 400, 10207),
        ("{}", 400, 10207),
        ('{"messages": [{"body": {}}]}', 400, 10207),
        ('{"body": "a string"}', 400, 10207),
        ('{"body": "a string", "content_type": "json"}', 400, 10207),
        ('{"body": 1}', 400, 10207),
        ('{"body": null}', 400, 10207),
        ('{"body": {}, "content_type": "text"}', 400, 10207),
        ('{"body": "x", "content_type": "bytes"}', 400, 10203),
        ('{"body": "x", "content_type": "v8"}', 400, 10203),
        ('{"body": {}, "content_type": null}', 400, 10203),
        ('{"body": {}, "delay_seconds": -1}', 400, 10203),
        ('{"body": {}, "delay_seconds": 86401}', 400, 10203),
        ('{"body": {}, "delay_seconds": 1e400}', 400, 10203),
        ('{"body": {}, "delay_seconds": "5"}', 400, 10203),
        ('{"body": {}, "delay_seconds": true}', 400, 10203),
        ('{"body": {}, "delay_seconds": null}', 400, 10203),
    ],
)
def test_a_bad_message_is_refused_and_not_stored(api, sent, status, code):
    answer = api.call("POST", "/{jobs}/messages", data=sent)

    assert errors_of(answer) == (status, [code])
    assert api.emulator.messages("jobs") == []


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({}, 10013),
        ([], 10013),
        ({"messages": {}}, 10013),
        ({"messages": []}, 10206),
        ({"messages": [{"body": {}}] * 101}, 10206),
        ({"messages": ["text"]}, 10207),
        ({"messages": [{"body": {}}, {}]}, 10207),
        ({"messages": [{"body": {}}, {"body": {}, "delay_seconds": 86_401}]}, 10203),
        ({"messages": [{"body": {}}], "delay_seconds": 86_401}, 10202),
        ({"messages": [{"body": {}}], "delay_seconds": "5"}, 10202),
    ],
)
def test_one_bad_message_refuses_the_whole_batch(api, sent, code):
    answer = api.post("/{jobs}/messages/batch", sent)

    assert errors_of(answer) == (400, [code])
    assert api.emulator.messages("jobs") == []


def test_a_message_may_have_128_kb_of_which_its_metadata_takes_100_bytes(api):
    """The limit is in bytes, so what is not ASCII counts for more than one."""
    assert api.push("x" * 127_900).status_code == 200
    assert errors_of(api.push("x" * 127_901)) == (413, [10204])
    assert api.push("é" * 63_950).status_code == 200
    assert errors_of(api.push("é" * 63_951)) == (413, [10204])
    assert len(api.emulator.messages("jobs")) == 2


def test_escapes_do_not_count_for_more_than_what_they_stand_for(api):
    sent = json.dumps({"body": "é" * 60_000, "content_type": "text"})
    assert len(sent) > 128_000

    assert api.call("POST", "/{jobs}/messages", data=sent).status_code == 200


def test_a_batch_may_have_256_kb(api):
    half = {"body": "x" * 127_900, "content_type": "text"}
    assert api.batch(half, half).status_code == 200
    assert errors_of(api.batch(half, half, {"body": {}})) == (413, [10205])


def test_a_request_of_10_mb_is_refused(api):
    answer = api.call("POST", "/{jobs}/messages", data=b"x" * 10_000_000)

    assert errors_of(answer) == (413, [10205])


def test_a_full_queue_refuses_until_it_is_emptied(make):
    api = make(max_backlog_bytes=10)
    api.push("12345678")

    full = api.push("123")
    assert errors_of(full) == (429, [10251])
    assert "Retry-After" not in full.headers

    api.ack(api.pull()[0]["lease_id"])
    assert api.push("123").status_code == 200


def test_the_queues_own_429_can_carry_retry_after(make):
    api = make(max_backlog_bytes=1, queue_429_retry_after=7)

    assert api.push("full").headers["Retry-After"] == "7"


def test_a_missing_queue_and_a_malformed_id_are_told_apart(api):
    unknown = api.post("/" + "0" * 32 + "/messages", {"body": {}})
    malformed = api.post("/jobs/messages", {"body": {}})

    assert errors_of(unknown) == (404, [10104])
    assert errors_of(malformed) == (400, [10107])


@pytest.mark.parametrize(
    ("knobs", "sent", "expected"),
    [
        ({"strict_json_body": False}, {"body": "a string"}, 200),
        ({"strict_json_body": False}, {"body": 1}, 200),
        ({"metadata_bytes": 0}, {"body": "x" * 128_000, "content_type": "text"}, 200),
        (
            {"too_large_status": 400},
            {"body": "x" * 128_000, "content_type": "text"},
            400,
        ),
    ],
)
def test_knobs_of_a_single_publish(make, knobs, sent, expected):
    assert make(**knobs).post("/{jobs}/messages", sent).status_code == expected


def test_knobs_of_a_batch(make):
    half = {"body": "x" * 127_900, "content_type": "text"}
    assert make(max_batch_bytes=288_000).batch(half, half, {"body": {}}).status_code == 200
    assert errors_of(make(empty_batch_code="10013").batch()) == (400, [10013])
    assert errors_of(make(missing_queue_code="11000").post("/" + "0" * 32 + "/messages")) == (
        404,
        [11000],
    )


@pytest.mark.parametrize(("push_result", "shown"), [("null", {"result": None}), ("absent", {})])
def test_a_publish_may_answer_without_a_result(make, push_result, shown):
    envelope = make(push_result=push_result).push("x").json()

    assert envelope == {"success": True, "errors": [], "messages": [], **shown}
