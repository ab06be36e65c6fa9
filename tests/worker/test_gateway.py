"""The gateway answers as Cloudflare's API does."""

from __future__ import annotations

import re

import pytest
import requests


def error_of(answer: requests.Response) -> tuple[int, int]:
    envelope = answer.json()
    assert envelope["success"] is False
    assert envelope["result"] is None
    [error] = envelope["errors"]
    assert error["message"]
    return answer.status_code, error["code"]


# ---------------------------------------------------------------------------------- who may


@pytest.mark.parametrize("token", ["old-token", "new-token"])
def test_every_token_is_valid_so_that_one_can_take_the_place_of_another(edge, token):
    answer = requests.get(edge.url(), headers={"Authorization": f"Bearer {token}"})
    assert answer.json()["success"] is True


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, (400, 9106)),
        ("Bearer", (400, 6003)),
        ("Bearer ", (400, 6003)),
        ("Basic b2xkOnRva2Vu", (400, 6003)),
        ("Bearer old-toke", (403, 10000)),
        ("Bearer old-token2", (403, 10000)),
        ("Bearer OLD-TOKEN", (403, 10000)),
        ("Bearer no-token-at-all", (403, 10000)),  # the value of TOKENIZER
    ],
)
def test_nobody_else_gets_in(edge, header, expected):
    headers = {} if header is None else {"Authorization": header}
    assert error_of(requests.get(edge.url(), headers=headers)) == expected


def test_no_answer_repeats_a_token(edge):
    headers = {"Authorization": "Bearer a-secret-of-somebody"}
    assert "a-secret-of-somebody" not in requests.get(edge.url(), headers=headers).text


@pytest.mark.parametrize(
    "path", ["", "client/v4/accounts", f"client/v4/accounts/{'f' * 32}/queues", "client/v4/user"]
)
def test_another_account_or_path_is_not_routed(edge, path):
    assert error_of(edge.http.get(edge.urls["gateway"] + path)) == (404, 7003)


# ---------------------------------------------------------------------------------- which queues


def test_queues_are_listed_under_the_names_of_their_bindings(edge):
    answer = edge.http.get(edge.url("?page=1")).json()
    names = {queue["queue_name"] for queue in answer["result"]}
    assert names == {"jobs", "emails-eu", "bulk", "flaky", "edge", "sink", "Reports"}
    assert all(re.fullmatch("[0-9a-f]{32}", queue["queue_id"]) for queue in answer["result"])
    assert answer["result_info"] == {
        "page": 1, "per_page": 100, "count": 7, "total_count": 7, "total_pages": 1
    }  # fmt: skip


def test_the_list_comes_in_pages(edge):
    pages = [edge.http.get(edge.url(f"?page={page}&per_page=4")).json() for page in (1, 2, 3)]
    assert [page["result_info"]["count"] for page in pages] == [4, 3, 0]
    assert pages[0]["result_info"]["total_pages"] == 2
    ids = [queue["queue_id"] for page in pages for queue in page["result"]]
    assert len(set(ids)) == 7


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("?name=emails-eu", {"emails-eu"}),
        ("?page=1&name=jobs&name=Reports&name=nothing", {"jobs", "Reports"}),
        ("?name=emails", set()),
        ("?name=reports", set()),
    ],
)
def test_the_list_is_filtered_by_exact_names(edge, query, names):
    answer = edge.http.get(edge.url(query)).json()
    assert {queue["queue_name"] for queue in answer["result"]} == names


def test_one_queue_and_its_metrics_can_be_read(edge):
    queue_id = edge.queue_id("jobs")
    assert edge.http.get(edge.url(f"/{queue_id}")).json()["result"]["queue_name"] == "jobs"
    metrics = edge.http.get(edge.url(f"/{queue_id}/metrics")).json()["result"]
    assert metrics == {"backlog_count": 0, "backlog_bytes": 0, "oldest_message_timestamp_ms": 0}


def test_creating_a_queue_is_refused_with_what_to_do_instead(edge):
    answer = edge.http.post(edge.url(), json={"queue_name": "new"})
    assert error_of(answer) == (403, 10106)
    [error] = answer.json()["errors"]
    assert "wrangler.jsonc" in error["message"]
    assert "emails-eu" in error["message"]


@pytest.mark.parametrize("route", ["messages/pull", "messages/ack", "consumers", "purge"])
def test_what_the_gateway_does_not_do_is_refused_as_a_lacking_permission(edge, route):
    answer = edge.http.post(edge.url(f"/{edge.queue_id('jobs')}/{route}"), json={})
    assert error_of(answer) == (403, 10106)


@pytest.mark.parametrize(
    ("queue_id", "expected"), [("f" * 32, (404, 10104)), ("jobs", (400, 10107))]
)
def test_an_unknown_queue_is_told_from_a_malformed_id(edge, queue_id, expected):
    message = {"body": "x", "content_type": "text"}
    answer = edge.http.post(edge.url(f"/{queue_id}/messages"), json=message)
    assert error_of(answer) == expected


# ---------------------------------------------------------------------------------- publishing


def test_a_message_arrives_as_it_was_sent(edge):
    answer = edge.publish("jobs", "Grüße\n\u2028 \U0001f600 \x01 {")
    assert answer.json()["success"] is True
    assert answer.json()["result"]["metadata"]["metrics"].keys() == {
        "backlog_count",
        "backlog_bytes",
        "oldest_message_timestamp_ms",
    }
    [record] = edge.wait_for("jobs")
    assert record["body"] == "Grüße\n\u2028 \U0001f600 \x01 {"


def test_a_batch_of_a_hundred_of_both_content_types_arrives(edge):
    messages = [
        {"body": f"text {number}", "content_type": "text"}
        if number % 2
        else {"body": {"number": number, "nested": [None, True, 1.5]}}
        for number in range(100)
    ]
    assert edge.publish_batch("emails-eu", messages).json()["success"] is True
    bodies = [record["body"] for record in edge.wait_for("emails-eu", 100)]
    assert sorted(map(str, bodies)) == sorted(str(message["body"]) for message in messages)


@pytest.mark.parametrize("body", ["a string", 7, 1.5, False, None, [1], {}])
def test_a_batch_takes_any_json(edge, body):
    messages = [{"body": body, "content_type": "json"}]
    assert edge.publish_batch("jobs", messages).json()["success"] is True
    assert [record["body"] for record in edge.wait_for("jobs")] == [body]


def test_delays_are_kept_message_over_batch(edge):
    messages = [
        {"body": "two seconds", "content_type": "text", "delay_seconds": 2},
        {"body": "at once", "content_type": "text", "delay_seconds": 0},
        {"body": "one second", "content_type": "text"},
    ]
    assert edge.publish_batch("jobs", messages, delay_seconds=1).ok
    bodies = [record["body"] for record in edge.wait_for("jobs", 3)]
    assert bodies == ["at once", "one second", "two seconds"]


def test_the_largest_message_passes_and_a_byte_more_does_not(edge):
    """Bytes count, not characters: this one is half as long as it is large."""
    assert edge.publish("jobs", "é" * 63_950).ok
    [record] = edge.wait_for("jobs")
    assert record["body"] == "é" * 63_950
    assert error_of(edge.publish("jobs", "é" * 63_950 + "x")) == (413, 10204)


def test_the_largest_batch_passes_and_a_byte_more_does_not(edge):
    messages = [{"body": "x" * 2_460, "content_type": "text"} for _ in range(100)]
    assert edge.publish_batch("bulk", messages).ok
    edge.wait_for("bulk", 100)
    messages[0]["body"] += "x"
    assert error_of(edge.publish_batch("bulk", messages)) == (413, 10205)


def test_escapes_do_not_count(edge):
    r"""A control character is six bytes in JSON (``\u0001``) and one in the message."""
    assert edge.publish("jobs", "\x01" * 127_900).ok
    edge.wait_for("jobs")


def test_a_request_too_long_for_any_batch_is_refused_unread(edge):
    url = edge.url(f"/{edge.queue_id('jobs')}/messages/batch")
    assert error_of(edge.http.post(url, data=b" " * 1_700_000)) == (413, 10205)


def test_a_request_that_does_not_say_its_length_is_given_up_when_it_is_too_long(edge):
    """No client fills the memory of the Worker, which serves others at the same time."""
    url = edge.url(f"/{edge.queue_id('jobs')}/messages/batch")
    chunks = (b" " * 100_000 for _ in range(17))
    assert error_of(edge.http.post(url, data=chunks)) == (413, 10205)


def test_a_request_in_chunks_is_read_as_any_other(edge):
    url = edge.url(f"/{edge.queue_id('jobs')}/messages")
    chunks = iter([b'{"body": "Gr\xc3', b'\xbc\xc3\x9fe", ', b'"content_type": "text"}'])
    assert edge.http.post(url, data=chunks).ok
    assert [record["body"] for record in edge.wait_for("jobs")] == ["Grüße"]


@pytest.mark.parametrize("content", [b'{"body": %s}', b'{"messages": [{"body": %s}]}'])
def test_json_of_any_depth_is_published_or_refused(edge, content):
    """Never a 500, which a client would repeat until it runs out of time."""
    route = "messages/batch" if b"messages" in content else "messages"
    url = edge.url(f"/{edge.queue_id('sink')}/{route}")

    def post(depth: int) -> requests.Response:
        return edge.http.post(url, data=content % (b"[" * depth + b"]" * depth))

    assert post(500).ok
    assert error_of(post(60_000)) == (400, 10208)
    depths = (2**power for power in range(9, 16))
    assert {post(depth).status_code for depth in depths} <= {200, 400}


@pytest.mark.parametrize("count", [0, 101])
def test_a_batch_has_one_to_a_hundred_messages(edge, count):
    messages = [{"body": "x", "content_type": "text"}] * count
    assert error_of(edge.publish_batch("jobs", messages)) == (400, 10206)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"{", (400, 10208)),
        (b"", (400, 10208)),
        (b'{"body": "\xff"}', (400, 10208)),
        (b"null", (400, 10207)),
        (b'"text"', (400, 10207)),
        (b"{}", (400, 10207)),
        (b'{"messages": [{"body": "x"}]}', (400, 10207)),
        (b'{"body": "a string as json"}', (400, 10207)),
        (b'{"body": {}, "content_type": "text"}', (400, 10207)),
        (b'{"body": "a\\u0000b", "content_type": "text"}', (400, 10207)),
        (b'{"body": "\\ud800", "content_type": "text"}', (400, 10207)),
        (b'{"body": "x", "content_type": "bytes"}', (400, 10203)),
        (b'{"body": {}, "delay_seconds": 86401}', (400, 10203)),
        (b'{"body": {}, "delay_seconds": -1}', (400, 10203)),
        (b'{"body": {}, "delay_seconds": "1"}', (400, 10203)),
    ],
)
def test_what_is_malformed_has_the_code_of_the_api(edge, payload, expected):
    url = edge.url(f"/{edge.queue_id('jobs')}/messages")
    assert error_of(edge.http.post(url, data=payload)) == expected


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ({"body": {}}, (400, 10013)),
        ({"messages": {}}, (400, 10013)),
        ({"messages": [{"body": 1}], "delay_seconds": 86_401}, (400, 10202)),
    ],
)
def test_a_malformed_batch_has_the_code_of_the_api(edge, payload, expected):
    url = edge.url(f"/{edge.queue_id('jobs')}/messages/batch")
    assert error_of(edge.http.post(url, json=payload)) == expected


def test_one_bad_message_keeps_the_whole_batch_out_and_is_named(edge):
    """A refusal means that nothing was sent: the client may split the batch and send it again."""
    good, bad = {"body": "x", "content_type": "text"}, {"body": 1, "content_type": "text"}
    answer = edge.publish_batch("jobs", [good, good, bad, good])
    assert error_of(answer) == (400, 10207)
    assert answer.json()["errors"][0]["source"] == {"pointer": "/messages/2/body"}
    edge.publish("jobs", "after it")
    assert [record["body"] for record in edge.wait_for("jobs")] == ["after it"]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("Queue is overloaded. Please back off. (10250)", (429, 10250)),
        ("Queue is full (10251)", (429, 10251)),
        ("Queue is disabled (10252)", (429, 10252)),
        ("Free tier limit exceeded (10253)", (429, 10253)),
        ("Queue does not exist (10104)", (404, 10104)),
        ("Message is too large (10204)", (413, 10204)),
        ("Unknown Internal Error (15000)", (500, 15000)),
        ("Network connection lost.", (500, 15000)),
    ],
)
def test_a_failure_of_the_runtime_keeps_its_code(edge, failure, expected):
    """Without a code, whether the messages were written is unknown: never "none was"."""
    queue_id = edge.queue_id("faulty", "faulty")
    message = {"body": failure, "content_type": "text"}
    answer = edge.http.post(edge.url(f"/{queue_id}/messages", "faulty"), json=message)
    assert error_of(answer) == expected


# ---------------------------------------------------------------------------------- as the API


def text(body, **fields):
    return {"body": body, "content_type": "text", **fields}


@pytest.mark.parametrize(
    ("route", "payload"),
    [
        ("messages", text("x")),
        ("messages", {"body": [1]}),
        ("messages", {"body": 1}),
        ("messages", {"body": None}),
        ("messages", {"body": "x", "content_type": None}),
        ("messages", text("x", delay_seconds=None)),
        ("messages", text("x", delay_seconds=True)),
        ("messages", text("x", delay_seconds=86_400)),
        ("messages", text("x", delay_seconds=86_401)),
        ("messages", text("x" * 127_900)),
        ("messages", text("x" * 127_901)),
        ("messages", {"body": ["x" * 127_896]}),
        ("messages", {"body": ["x" * 127_897]}),
        ("messages", []),
        ("messages/batch", []),
        ("messages/batch", {"messages": []}),
        ("messages/batch", {"messages": [1]}),
        ("messages/batch", {"messages": [None]}),
        ("messages/batch", {"messages": [{"body": None}, {"body": "x"}, text("x")]}),
        ("messages/batch", {"messages": [{"body": 1}], "delay_seconds": -1}),
        ("messages/batch", {"messages": [{}], "delay_seconds": -1}),
        ("messages/batch", {"messages": [{"body": 1, "delay_seconds": 2.5}]}),
        ("messages/batch", {"messages": [text("x")] * 100}),
        ("messages/batch", {"messages": [text("x")] * 101}),
        ("messages/batch", {"messages": [text("x" * 85_233)] * 3}),
        ("messages/batch", {"messages": [text("x" * 85_234)] * 3}),
        ("messages/batch", {"messages": [text("x" * 127_901)] * 3}),
    ],
)
def test_the_gateway_and_the_emulator_agree(edge, emulator, route, payload):
    """Two readings of the API, written apart."""
    emulator.create_queue("jobs")
    queues = f"{emulator.base_url}/accounts/{emulator.account_id}/queues"
    expected = requests.post(
        f"{queues}/{emulator.queue_id('jobs')}/{route}",
        json=payload,
        headers={"Authorization": f"Bearer {emulator.token}"},
    )
    answer = edge.http.post(edge.url(f"/{edge.queue_id('sink')}/{route}"), json=payload)
    assert outcome_of(answer) == outcome_of(expected)


def outcome_of(answer):
    return answer.status_code, [error["code"] for error in answer.json()["errors"]]
