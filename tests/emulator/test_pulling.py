"""Pulling and settling: leases, attempts, retries, dead letters."""

from __future__ import annotations

import base64
import json

import pytest
from emulator.client import errors_of

PULL = {"type": "http_pull"}


def test_a_pulled_message_says_what_it_is(api):
    api.push("text", delay_seconds=20)
    api.emulator.clock.advance(20)

    [message] = api.pull()

    stored = api.emulator.messages("jobs")[0]
    assert message == {
        "id": stored.id,
        "body": "text",
        "attempts": 1,
        "timestamp_ms": round(stored.timestamp * 1000),
        "metadata": {
            "CF-Content-Type": "text",
            "CF-sourceMessageSource": "api",
            "CF-msg-delay-secs": "20",
        },
        "lease_id": message["lease_id"],
    }
    assert len(message["lease_id"]) > 150


@pytest.mark.parametrize("value", [{"a": "ü"}, [1, 2.5, None, True]])
def test_a_json_body_comes_back_in_base64(api, value):
    api.push(value)

    [message] = api.pull()

    assert json.loads(base64.b64decode(message["body"])) == value
    assert message["metadata"]["CF-Content-Type"] == "json"


def test_a_json_body_comes_back_plain_by_the_knob(make):
    api = make(json_pull_encoding="plain")
    api.push({"a": "ü"})

    assert api.pull()[0]["body"] == '{"a":"ü"}'


def test_a_json_body_comes_back_now_so_now_so_by_the_knob(make):
    api = make(json_pull_encoding="mixed")
    api.batch(*[{"body": {"n": 1}}] * 100)

    bodies = {message["body"] for message in api.pull(batch_size=100)}

    assert bodies == {'{"n":1}', base64.b64encode(b'{"n":1}').decode()}


def test_a_pull_takes_five_unless_it_or_the_consumer_says_more(make):
    api = make()
    api.batch(*[{"body": {}}] * 100)
    assert len(api.pull()) == 5
    assert len(api.pull(batch_size=7)) == 7

    api = make(queue={"consumer": {**PULL, "settings": {"batch_size": 9}}})
    api.batch(*[{"body": {}}] * 100)
    assert len(api.pull()) == 9

    api = make(pull_default_size="5", queue={"consumer": {**PULL, "settings": {"batch_size": 9}}})
    api.batch(*[{"body": {}}] * 100)
    assert len(api.pull()) == 5


def test_pulling_is_shuffled_unless_the_knob_says_otherwise(make):
    messages = [{"body": str(n), "content_type": "text"} for n in range(100)]
    api = make(order="fifo")
    api.batch(*messages)
    assert [int(message["body"]) for message in api.pull(batch_size=100)] == list(range(100))

    api = make(seed=1)
    api.batch(*messages)
    pulled = [int(message["body"]) for message in api.pull(batch_size=100)]
    assert pulled != list(range(100))
    assert sorted(pulled) == list(range(100))


def test_short_batches_are_a_knob(make):
    api = make(short_batches=True, seed=1)
    api.batch(*[{"body": {}}] * 100)

    assert {len(api.pull(batch_size=10)) for _ in range(8)} != {10}


def test_a_leased_message_is_hidden_until_its_lease_runs_out(api):
    api.push("x")
    [first] = api.pull(visibility_timeout_ms=10_000)
    assert api.pull() == []
    assert api.emulator.messages("jobs")[0].state == "leased"

    api.emulator.clock.advance(9)
    assert api.pull() == []
    api.emulator.clock.advance(1)
    [second] = api.pull()

    assert (first["attempts"], second["attempts"]) == (1, 2)
    assert first["id"] == second["id"]
    assert first["lease_id"] != second["lease_id"]


@pytest.mark.parametrize(
    ("consumer", "pull", "seconds"),
    [
        ({}, {}, 30),
        ({"visibility_timeout_ms": 5_000}, {}, 5),
        ({"visibility_timeout_ms": 5_000}, {"visibility_timeout_ms": 90_000}, 90),
        ({}, {"visibility_timeout": 90_000}, 30),
    ],
)
def test_a_lease_is_as_long_as_the_pull_or_the_consumer_says(make, consumer, pull, seconds):
    api = make(queue={"consumer": {**PULL, "settings": consumer}})
    api.push("x")

    api.pull(**pull)

    stored = api.emulator.messages("jobs")[0]
    assert stored.visible_at - api.emulator.clock.now() == pytest.approx(seconds, abs=1)


def test_the_old_name_of_the_visibility_timeout_is_a_knob(make):
    api = make(visibility_alias=True)
    api.push("x")
    api.pull(visibility_timeout=90_000)

    stored = api.emulator.messages("jobs")[0]
    assert stored.visible_at - api.emulator.clock.now() == pytest.approx(90, abs=1)


def test_an_acknowledged_message_is_gone(api):
    api.push("x")
    [message] = api.pull()

    assert api.ack(message["lease_id"]) == {"ackCount": 1, "retryCount": 0, "warnings": {}}

    assert api.emulator.messages("jobs") == []
    assert api.metrics()["backlog_count"] == 0


def test_a_late_ack_counts_even_when_another_client_has_the_message(api):
    api.push("x")
    [first] = api.pull(visibility_timeout_ms=1000)
    api.emulator.clock.advance(1)
    [second] = api.pull()

    assert api.ack(first["lease_id"])["ackCount"] == 1

    assert api.emulator.messages("jobs") == []
    late = api.ack(second["lease_id"])
    assert late["ackCount"] == 0
    assert list(late["warnings"]) == [second["lease_id"]]


def test_a_late_ack_can_be_only_warned_about(make):
    api = make(late_ack="warn")
    api.push("x")
    [message] = api.pull(visibility_timeout_ms=1000)
    api.emulator.clock.advance(1)

    settled = api.ack(message["lease_id"])

    assert settled["ackCount"] == 0
    assert list(settled["warnings"]) == [message["lease_id"]]
    assert api.emulator.messages("jobs")[0].state == "ready"


def test_a_late_retry_takes_the_message_from_nobody(api):
    api.push("x")
    [first] = api.pull(visibility_timeout_ms=1000)
    api.emulator.clock.advance(1)
    api.pull()

    assert api.retry(first["lease_id"])["retryCount"] == 0

    assert api.emulator.messages("jobs")[0].state == "leased"


@pytest.mark.parametrize(
    ("consumer", "retry", "seconds"),
    [
        ({}, {}, 0),
        ({"retry_delay": 60}, {}, 60),
        ({"retry_delay": 60}, {"delay_seconds": 10}, 10),
        ({"retry_delay": 60}, {"delay_seconds": 0}, 0),
        ({}, {"delay_seconds": 86_400}, 86_400),
    ],
)
def test_a_retried_message_returns_after_its_delay(make, consumer, retry, seconds):
    api = make(queue={"consumer": {**PULL, "settings": consumer}})
    api.push("x")
    [message] = api.pull()

    settled = api.retry(message["lease_id"], **retry)

    assert settled == {"ackCount": 0, "retryCount": 1, "warnings": {}}
    if seconds:
        assert api.emulator.messages("jobs")[0].state == "delayed"
        api.emulator.clock.advance(seconds - 1)
        assert api.pull() == []
        api.emulator.clock.advance(1)
    assert api.pull()[0]["attempts"] == 2


def test_acks_and_retries_share_a_call_and_an_ack_wins_over_a_retry(api):
    api.batch({"body": {}}, {"body": {}})
    first, second = (message["lease_id"] for message in api.pull())

    settled = api.settle(
        acks=[{"lease_id": first}],
        retries=[{"lease_id": second}, {"lease_id": first, "delay_seconds": 5}],
    )

    assert (settled["ackCount"], settled["retryCount"]) == (1, 1)
    assert list(settled["warnings"]) == [first]


def test_unknown_leases_are_warned_about_and_not_counted(api):
    api.push("x")
    [message] = api.pull()
    forged = message["lease_id"][:-4] + "AAAA"

    settled = api.ack("nonsense", forged, "ünicode", "")

    assert settled["ackCount"] == 0
    assert set(settled["warnings"]) == {"nonsense", forged, "ünicode", ""}
    assert len(api.emulator.messages("jobs")) == 1


def test_unknown_leases_can_fail_the_whole_call(make):
    api = make(unknown_lease="reject")
    api.push("x")
    [message] = api.pull()
    acks = [{"lease_id": message["lease_id"]}, {"lease_id": "nonsense"}]

    assert errors_of(api.post("/{jobs}/messages/ack", {"acks": acks})) == (400, [10026])
    assert len(api.emulator.messages("jobs")) == 1


def test_a_lease_of_another_queue_is_unknown(api):
    api.emulator.create_queue("other", consumer=PULL)
    api.push("x", queue="other")
    [message] = api.pull("other")

    assert api.ack(message["lease_id"])["ackCount"] == 0
    assert len(api.emulator.messages("other")) == 1


@pytest.mark.parametrize(
    "sent",
    [
        {"acks": [{"lease_id": None}]},
        {"acks": [{}]},
        {"acks": ["bare"]},
        {"acks": {"lease_id": "x"}},
        {"acks": None},
        {"acks": [{"lease_id": "x"}] * 201},
        {"retries": [{"lease_id": "x", "delay_seconds": -1}]},
        {"retries": [{"lease_id": "x", "delay_seconds": 86_401}]},
        [],
    ],
)
def test_a_malformed_ack_is_refused_as_a_whole(api, sent):
    assert errors_of(api.post("/{jobs}/messages/ack", sent)) == (400, [10026])


@pytest.mark.parametrize(
    "sent",
    [
        {"batch_size": 0},
        {"batch_size": 101},
        {"batch_size": "5"},
        {"batch_size": None},
        {"visibility_timeout_ms": -1},
        {"visibility_timeout_ms": 43_200_001},
        {"visibility_timeout_ms": "30000"},
        [],
    ],
)
def test_a_malformed_pull_is_refused(api, sent):
    assert errors_of(api.post("/{jobs}/messages/pull", sent)) == (400, [10026])


@pytest.mark.parametrize(
    ("ack_result", "known", "unknown"),
    [
        ("no_counts", {"warnings": {}}, {"warnings": {"x": "w"}}),
        (
            "warnings_list",
            {"ackCount": 1, "retryCount": 0, "warnings": []},
            {"ackCount": 0, "retryCount": 0, "warnings": ["w"]},
        ),
        (
            "warnings_null",
            {"ackCount": 1, "retryCount": 0, "warnings": None},
            {"ackCount": 0, "retryCount": 0, "warnings": {"x": "w"}},
        ),
    ],
)
def test_the_ack_answer_has_the_shape_that_the_knob_says(make, ack_result, known, unknown):
    api = make(ack_result=ack_result)
    api.push("x")
    warning = "the lease is unknown, or its message is already settled"

    assert api.ack(api.pull()[0]["lease_id"]) == known
    assert api.ack("x") == json.loads(json.dumps(unknown).replace('"w"', f'"{warning}"'))


def test_without_a_pull_consumer_pulling_is_405_with_code_0(make):
    for consumer in (None, {"type": "worker", "script_name": "w"}):
        api = make(queue={"consumer": consumer})

        assert errors_of(api.post("/{jobs}/messages/pull")) == (405, [0])
        assert errors_of(api.post("/{jobs}/messages/ack")) == (405, [0])


def test_a_new_pull_consumer_can_take_its_time(make):
    api = make(pull_enable_delay=16)
    assert errors_of(api.post("/{jobs}/messages/pull")) == (405, [0])

    api.emulator.clock.advance(16)

    assert api.pull() == []


@pytest.mark.parametrize(("knob", "expected"), [("409", (409, [0])), ("429/10252", (429, [10252]))])
def test_a_paused_queue_takes_messages_and_gives_none(make, knob, expected):
    api = make(paused_pull=knob)
    api.push("x")
    [message] = api.pull()
    api.call("PATCH", "/{jobs}", json={"settings": {"delivery_paused": True}})

    assert api.push("y").status_code == 200
    assert errors_of(api.post("/{jobs}/messages/pull")) == expected
    assert api.ack(message["lease_id"])["ackCount"] == 1

    api.call("PATCH", "/{jobs}", json={"settings": {"delivery_paused": False}})
    assert len(api.pull()) == 1


@pytest.mark.parametrize(
    ("deliveries", "max_retries", "expected"),
    [("one_more", 3, 4), ("max_retries", 3, 3), ("one_more", 0, 1), ("max_retries", 0, 1)],
)
def test_a_message_out_of_retries_is_deleted(make, deliveries, max_retries, expected):
    """Explicit retries and expired leases count alike."""
    api = make(
        deliveries=deliveries,
        queue={"consumer": {**PULL, "settings": {"max_retries": max_retries}}},
    )
    api.push("x")

    delivered = 0
    while pulled := api.pull(visibility_timeout_ms=1000):
        delivered += 1
        if delivered % 2:
            api.emulator.clock.advance(1)
        else:
            api.retry(pulled[0]["lease_id"])

    assert delivered == expected
    assert api.metrics() == {
        "backlog_count": 0,
        "backlog_bytes": 0,
        "oldest_message_timestamp_ms": 0,
    }


@pytest.mark.parametrize("by_expiry", [True, False])
def test_a_message_out_of_retries_moves_to_the_dead_letter_queue(make, by_expiry):
    """The queue is made when it is needed, and the message starts anew in it."""
    consumer = {**PULL, "dead_letter_queue": "dead", "settings": {"max_retries": 0}}
    api = make(queue={"consumer": consumer})
    api.push("x")
    [message] = api.pull(visibility_timeout_ms=1000)
    assert api.emulator.queue_names() == ["jobs"]

    if by_expiry:
        api.emulator.clock.advance(1)
        api.metrics()
    else:
        api.retry(message["lease_id"], delay_seconds=60)

    assert api.emulator.messages("jobs") == []
    [dead] = api.emulator.messages("dead")
    assert (dead.id, dead.body, dead.attempts, dead.state) == (message["id"], "x", 0, "ready")
    assert api.metrics("dead")["backlog_count"] == 1
    assert api.ack(message["lease_id"])["ackCount"] == 0


def test_a_dead_letter_can_be_pulled_before_anybody_looks_at_its_old_queue(make):
    consumer = {**PULL, "dead_letter_queue": "dead", "settings": {"max_retries": 0}}
    api = make(queue={"consumer": consumer})
    api.emulator.create_queue("dead", consumer=PULL)
    api.push("x")
    api.pull(visibility_timeout_ms=1000)
    api.emulator.clock.advance(1)

    assert [message["attempts"] for message in api.pull("dead")] == [1]


def test_a_dead_letter_can_get_a_new_id(make):
    consumer = {**PULL, "dead_letter_queue": "dead", "settings": {"max_retries": 0}}
    api = make(dead_letter_keeps_id=False, queue={"consumer": consumer})
    api.push("x")
    [message] = api.pull()
    api.retry(message["lease_id"])

    assert api.emulator.messages("dead")[0].id != message["id"]


def test_the_first_attempt_can_be_0(make):
    api = make(first_attempt=0)
    api.push("x")

    assert api.pull()[0]["attempts"] == 0


def test_a_message_is_deleted_when_its_retention_is_over(make):
    api = make(queue={"message_retention_period": 60})
    api.push("ready")
    api.push("delayed", delay_seconds=3600)
    api.push("leased")
    api.emulator.clock.advance(59)
    assert api.metrics()["backlog_count"] == 3
    api.pull(visibility_timeout_ms=43_200_000)

    api.emulator.clock.advance(1)

    assert api.metrics()["backlog_count"] == 0
    api.push("later")
    api.emulator.clock.advance(59)
    assert len(api.emulator.messages("jobs")) == 1


def test_a_shorter_retention_holds_for_messages_that_are_there_already(api):
    api.push("x")
    api.emulator.clock.advance(100)
    api.call("PATCH", "/{jobs}", json={"settings": {"message_retention_period": 60}})

    assert api.emulator.messages("jobs") == []


@pytest.mark.parametrize(
    ("spares", "left"),
    [
        ("none", set()),
        ("leased", {"leased"}),
        ("delayed", {"delayed"}),
        ("both", {"leased", "delayed"}),
    ],
)
def test_retention_can_spare_what_is_leased_or_delayed(make, spares, left):
    api = make(retention_spares=spares, queue={"message_retention_period": 60})
    api.push("leased")
    api.pull(visibility_timeout_ms=43_200_000)
    api.push("ready")
    api.push("delayed", delay_seconds=3600)

    api.emulator.clock.advance(60)

    assert {message.body for message in api.emulator.messages("jobs")} == left


def test_a_peeked_message_stays_and_can_be_purged_by_its_ref(api):
    api.batch({"body": "a", "content_type": "text"}, {"body": "b", "content_type": "text"})

    peeked = api.post("/{jobs}/messages/peek").json()["result"]["messages"]
    assert sorted(message["body"] for message in peeked) == ["a", "b"]
    assert all(set(message) >= {"id", "attempts", "ref", "timestamp_ms"} for message in peeked)
    assert all("lease_id" not in message for message in peeked)

    refs = [{"ref": peeked[0]["ref"]}, {"ref": "nonsense"}]
    result = api.post("/{jobs}/messages/purge", {"refs": refs}).json()["result"]
    assert result["errors"] == []
    assert list(result["warnings"]) == ["nonsense"]
    assert [message.body for message in api.emulator.messages("jobs")] == [peeked[1]["body"]]
    assert api.pull()[0]["attempts"] == 1


def test_a_ref_is_no_lease_and_a_lease_no_ref(api):
    api.push("x")
    ref = api.post("/{jobs}/messages/peek").json()["result"]["messages"][0]["ref"]
    lease_id = api.pull()[0]["lease_id"]

    assert api.ack(ref)["ackCount"] == 0
    api.post("/{jobs}/messages/purge", {"refs": [{"ref": lease_id}]})
    assert len(api.emulator.messages("jobs")) == 1


def test_extending_is_not_there_unless_the_knob_says_so(make):
    assert errors_of(make().post("/{jobs}/messages/extend")) == (404, [7003, 7000])

    api = make(extend=True)
    api.push("x")
    [message] = api.pull(visibility_timeout_ms=1000)
    extend = {"extend": [{"lease_id": message["lease_id"]}], "visibility_timeout_ms": 60_000}
    answer = api.post("/{jobs}/messages/extend", extend)

    renewed = answer.json()["result"]["leases"][message["lease_id"]]
    api.emulator.clock.advance(30)
    assert api.emulator.messages("jobs")[0].state == "leased"
    assert api.emulator.messages("jobs")[0].attempts == 1
    assert api.ack(renewed)["ackCount"] == 1


def test_a_duplicate_is_delivered_although_the_first_was_acknowledged(api):
    """The same id again, as an at-least-once queue may do; once, not for ever."""
    api.emulator.faults.duplicate()
    api.push("x")
    [first] = api.pull()
    assert api.metrics()["backlog_count"] == 2
    api.ack(first["lease_id"])

    [second] = api.pull()

    assert second["id"] == first["id"]
    assert second["lease_id"] != first["lease_id"]
    api.ack(second["lease_id"])
    assert api.metrics()["backlog_count"] == 0


@pytest.mark.parametrize(("rate", "least", "most"), [(0, 0, 0), (0.5, 20, 80), (1, 100, 100)])
def test_how_many_are_delivered_twice_is_a_knob(make, rate, least, most):
    api = make(duplicate_rate=rate, seed=1)
    api.batch(*[{"body": {"n": n}} for n in range(100)])
    seen = []
    while pulled := api.pull(batch_size=100):
        seen += [message["id"] for message in pulled]
        api.ack(*(message["lease_id"] for message in pulled))

    assert least <= len(seen) - 100 <= most
    assert len(set(seen)) == 100


def test_a_pull_can_be_told_to_be_short(api):
    api.batch(*[{"body": {}}] * 5)
    api.emulator.faults.short_batch(most=2)
    api.emulator.faults.short_batch(most=0)

    assert [len(api.pull()) for _ in range(3)] == [2, 0, 3]


def test_a_message_can_be_accepted_and_come_late(api):
    api.emulator.faults.late(seconds=5)
    assert api.push("x").status_code == 200
    assert api.pull() == []
    api.emulator.clock.advance(5)
    assert len(api.pull()) == 1


def test_late_messages_are_a_knob(make):
    api = make(late_visibility=60, seed=1)
    api.batch(*[{"body": {}}] * 50)
    assert len(api.pull(batch_size=100)) < 10
    api.emulator.clock.advance(60)
    assert len(api.pull(batch_size=100)) > 40
