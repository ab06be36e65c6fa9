"""The admin routes: queues, consumers, metrics, purge."""

from __future__ import annotations

import re

import pytest
from emulator.client import errors_of


def test_a_queue_is_made_with_its_defaults(api):
    answer = api.post("", {"queue_name": "emails"})

    assert answer.status_code == 200
    queue = answer.json()["result"]
    assert re.fullmatch("[0-9a-f]{32}", queue["queue_id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", queue["created_on"])
    assert queue["settings"] == {
        "delivery_delay": 0,
        "delivery_paused": False,
        "message_retention_period": 345_600,
    }
    assert queue["consumers"] == queue["producers"] == []
    assert queue["consumers_total_count"] == queue["producers_total_count"] == 0
    assert api.get("/{emails}").json()["result"] == queue


def test_a_queue_takes_settings_and_a_jurisdiction(api):
    settings = {"delivery_delay": 86_400, "message_retention_period": 1_209_600}
    sent = {"queue_name": "eu-jobs", "jurisdiction": "eu", "settings": settings}

    queue = api.post("", sent).json()["result"]

    assert queue["jurisdiction"] == "eu"
    assert queue["settings"] == {**settings, "delivery_paused": False}


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "a_b", "a.b", "a b", "ü", "a" * 64, "a\n", None, 5],
)
def test_a_name_that_no_queue_may_have_is_refused(api, name):
    assert errors_of(api.post("", {"queue_name": name})) == (400, [11003])


@pytest.mark.parametrize("name", ["a", "A-1", "a" * 63, "0--0"])
def test_a_name_is_letters_digits_and_dashes(api, name):
    assert api.post("", {"queue_name": name}).status_code == 200


def test_a_name_is_taken_only_once(make):
    api = make()
    assert errors_of(api.post("", {"queue_name": "jobs"})) == (409, [11009])
    assert api.post("", {"queue_name": "Jobs"}).status_code == 200

    api = make(fold_names=True)
    assert errors_of(api.post("", {"queue_name": "Jobs"})) == (409, [11009])


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"settings": {"delivery_delay": 86_401}}, 100128),
        ({"settings": {"delivery_delay": -1}}, 100128),
        ({"settings": {"message_retention_period": 59}}, 100128),
        ({"settings": {"message_retention_period": 1_209_601}}, 100128),
        ({"settings": {"delivery_paused": 1}}, 100128),
        ({"settings": []}, 100128),
        ({"jurisdiction": "mars"}, 10026),
        ({"jurisdiction": 1}, 10026),
    ],
)
def test_bad_settings_of_a_queue_are_refused(api, fields, code):
    assert errors_of(api.post("", {"queue_name": "new", **fields})) == (400, [code])
    assert errors_of(api.call("PATCH", "/{jobs}", json=fields)) == (400, [code])
    assert api.emulator.queue_names() == ["jobs"]


def test_lists_come_in_pages(make):
    api = make(list_page_size=2)
    for name in ("b", "c", "d", "e"):
        api.emulator.create_queue(name)

    pages = [api.get("", params={"page": page}).json() for page in (1, 2, 3, 4)]

    assert [[q["queue_name"] for q in page["result"]] for page in pages] == [
        ["jobs", "b"],
        ["c", "d"],
        ["e"],
        [],
    ]
    assert pages[2]["result_info"] == {
        "page": 3,
        "per_page": 2,
        "count": 1,
        "total_count": 5,
        "total_pages": 3,
    }


def test_a_page_has_20_queues(api):
    for n in range(25):
        api.emulator.create_queue(f"q{n}")

    assert len(api.get("").json()["result"]) == 20


@pytest.mark.parametrize(
    ("knob", "expected"),
    [
        ("exact", ["jobs", "jobs-2"]),
        ("prefix", ["jobs", "jobs-2", "jobs-23"]),
        ("ignored", ["jobs", "jobs-2", "jobs-23", "other"]),
    ],
)
def test_a_list_can_be_filtered_by_several_names(make, knob, expected):
    api = make(list_name_filter=knob)
    for name in ("jobs-2", "jobs-23", "other"):
        api.emulator.create_queue(name)

    answer = api.get("?name=jobs&name=jobs-2")

    assert [queue["queue_name"] for queue in answer.json()["result"]] == expected


@pytest.mark.parametrize("page", ["0", "-1", "x", "", "1.5", "9" * 30, "²"])
def test_a_page_that_is_no_number_is_refused(api, page):
    assert errors_of(api.get("", params={"page": page})) == (400, [10026])


def test_patch_changes_what_is_sent_and_put_resets_the_rest(api):
    api.call("PATCH", "/{jobs}", json={"settings": {"delivery_delay": 5, "delivery_paused": True}})
    patched = api.call("PATCH", "/{jobs}", json={"settings": {"delivery_delay": 6}})
    assert patched.json()["result"]["settings"] == {
        "delivery_delay": 6,
        "delivery_paused": True,
        "message_retention_period": 345_600,
    }

    put = api.call("PUT", "/{jobs}", json={"settings": {"message_retention_period": 60}})
    assert put.json()["result"]["settings"] == {
        "delivery_delay": 0,
        "delivery_paused": False,
        "message_retention_period": 60,
    }


def test_a_queue_can_be_renamed_unless_the_knob_says_otherwise(make):
    api = make()
    api.emulator.create_queue("other")
    assert errors_of(api.call("PATCH", "/{jobs}", json={"queue_name": "other"})) == (409, [11009])
    assert api.call("PATCH", "/{jobs}", json={"queue_name": "jobs"}).status_code == 200
    renamed = api.call("PATCH", "/{jobs}", json={"queue_name": "work"})
    assert renamed.json()["result"]["queue_name"] == "work"

    api = make(allow_rename=False)
    assert errors_of(api.call("PATCH", "/{jobs}", json={"queue_name": "work"})) == (400, [100128])


def test_the_jurisdiction_stays(api):
    answer = api.call("PATCH", "/{jobs}", json={"jurisdiction": "eu"})

    assert errors_of(answer) == (400, [100128])


def test_a_deleted_queue_is_gone_with_its_messages(api):
    api.push("x")
    queue_id = api.emulator.queue_id("jobs")

    answer = api.call("DELETE", "/{jobs}")

    assert answer.json() == {"success": True, "errors": [], "messages": []}
    assert errors_of(api.get(f"/{queue_id}")) == (404, [11000])
    assert errors_of(api.post(f"/{queue_id}/messages", {"body": {}})) == (404, [10104])
    api.post("", {"queue_name": "jobs"})
    assert api.emulator.messages("jobs") == []


def test_a_consumer_is_made_read_replaced_and_deleted(make):
    api = make(queue={"consumer": None})
    settings = {
        "batch_size": 100,
        "max_retries": 100,
        "retry_delay": 86_400,
        "visibility_timeout_ms": 43_200_000,
    }
    sent = {"type": "http_pull", "dead_letter_queue": "dead", "settings": settings}

    made = api.post("/{jobs}/consumers", sent).json()["result"]
    assert made["type"] == "http_pull"
    assert made["queue_name"] == "jobs"
    assert made["dead_letter_queue"] == "dead"
    assert made["settings"] == settings
    assert api.get("/{jobs}/consumers").json()["result"] == [made]
    assert api.get("/{jobs}").json()["result"]["consumers"] == [made]
    path = f"/{{jobs}}/consumers/{made['consumer_id']}"
    assert api.get(path).json()["result"] == made

    replaced = api.call("PUT", path, json={"type": "http_pull"}).json()["result"]
    assert replaced["consumer_id"] == made["consumer_id"]
    assert replaced["dead_letter_queue"] == ""
    assert replaced["settings"]["max_retries"] == 3

    deleted = api.call("DELETE", path).json()
    assert (deleted["success"], deleted["result"]) == (True, None)
    assert errors_of(api.get(path)) == (404, [7003])


def test_put_makes_the_first_consumer(make):
    api = make(queue={"consumer": None})

    answer = api.call("PUT", "/{jobs}/consumers/" + "0" * 32, json={"type": "http_pull"})

    assert answer.status_code == 200
    assert api.pull() == []


def test_a_worker_consumer_has_settings_of_its_own(make):
    api = make(queue={"consumer": None})
    settings = {"batch_size": 50, "max_concurrency": None, "max_wait_time_ms": 1000}
    sent = {"type": "worker", "script_name": "w", "settings": settings}

    made = api.post("/{jobs}/consumers", sent).json()["result"]

    assert made["script_name"] == "w"
    assert made["settings"] == {**settings, "max_retries": 3, "retry_delay": 0}


def test_a_queue_has_one_consumer(make):
    api = make()
    assert errors_of(api.post("/{jobs}/consumers", {"type": "http_pull"})) == (409, [11004])

    api = make(max_consumers=2)
    assert api.post("/{jobs}/consumers", {"type": "http_pull"}).status_code == 200


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({}, 10026),
        ({"type": "carrier_pigeon"}, 10026),
        ({"type": None}, 10026),
        ({"type": "worker"}, 10026),
        ([], 10026),
        ({"type": "http_pull", "dead_letter_queue": "no name"}, 11003),
        ({"type": "http_pull", "dead_letter_queue": 1}, 10026),
        ({"type": "http_pull", "settings": {"max_retries": 101}}, 100127),
        ({"type": "http_pull", "settings": {"batch_size": 101}}, 100127),
        ({"type": "http_pull", "settings": {"batch_size": 0}}, 100127),
        ({"type": "http_pull", "settings": {"retry_delay": 86_401}}, 100127),
        ({"type": "http_pull", "settings": {"visibility_timeout_ms": 43_200_001}}, 100127),
        ({"type": "http_pull", "settings": {"visibility_timeout_ms": "1"}}, 100127),
        ({"type": "http_pull", "settings": None}, 100127),
        ({"type": "worker", "script_name": "w", "settings": {"max_concurrency": 251}}, 100127),
    ],
)
def test_a_bad_consumer_is_refused(make, sent, code):
    api = make(queue={"consumer": None})

    assert errors_of(api.post("/{jobs}/consumers", sent)) == (400, [code])
    assert api.emulator.consumers("jobs") == []


def test_metrics_count_delayed_and_leased_messages_too(api):
    api.push("ready")
    api.push("delayed", delay_seconds=60)
    api.pull()

    metrics = api.metrics()

    assert metrics["backlog_count"] == 2
    assert metrics["backlog_bytes"] == len("readydelayed")
    assert metrics["oldest_message_timestamp_ms"] > 0


def test_a_purge_deletes_everything_and_wants_to_be_told_so(make):
    api = make()
    assert api.get("/{jobs}/purge").json()["result"] == {"started_at": "", "completed": ""}
    api.push("ready")
    api.push("delayed", delay_seconds=60)
    assert errors_of(api.post("/{jobs}/purge")) == (400, [10026])
    assert api.metrics()["backlog_count"] == 2

    started = api.post("/{jobs}/purge", {"delete_messages_permanently": True}).json()["result"]

    assert started["complete"] == "true"
    assert api.emulator.messages("jobs") == []
    assert api.metrics()["backlog_count"] == 0
    status = api.get("/{jobs}/purge").json()["result"]
    assert status == {"started_at": started["started_at"], "completed": "true"}


def test_a_purge_can_answer_with_the_queue(make):
    api = make(purge_result="queue")

    answer = api.post("/{jobs}/purge", {"delete_messages_permanently": True})

    assert answer.json()["result"]["queue_name"] == "jobs"


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/{jobs}/messages", (405, [10405])),
        ("GET", "/{jobs}/messages/batch", (405, [10405])),
        ("DELETE", "", (405, [10405])),
        ("POST", "/{jobs}/messages/unknown", (404, [7003, 7000])),
        ("GET", "/{jobs}/unknown", (404, [7003, 7000])),
        ("POST", "/{jobs}/messages/", (404, [7003, 7000])),
        ("GET", "/" + "0" * 32, (404, [11000])),
        ("GET", "/not-an-id", (400, [10107])),
        ("GET", "/" + "A" * 32, (400, [10107])),
    ],
)
def test_paths_and_methods_that_mean_nothing(api, method, path, expected):
    assert errors_of(api.call(method, path)) == expected


def test_head_is_answered_without_a_body(api):
    answer = api.call("HEAD", "/{jobs}")

    assert answer.status_code == 405
    assert answer.content == b""


def test_a_purge_can_take_its_time_and_spares_what_comes_meanwhile(make):
    api = make(purge_delay=10)
    api.push("before")
    started = api.post("/{jobs}/purge", {"delete_messages_permanently": True}).json()["result"]
    assert started["complete"] == "false"
    api.emulator.clock.advance(5)
    api.push("meanwhile")
    assert api.metrics()["backlog_count"] == 2
    assert api.get("/{jobs}/purge").json()["result"]["completed"] == "false"

    api.emulator.clock.advance(5)

    assert api.get("/{jobs}/purge").json()["result"]["completed"] == "true"
    assert [message.body for message in api.emulator.messages("jobs")] == ["meanwhile"]
    assert api.metrics()["backlog_count"] == 1


def test_metrics_can_lag(make):
    api = make(metrics_lag=10)
    assert api.metrics()["backlog_count"] == 0
    api.push("x")
    assert api.metrics()["backlog_count"] == 0
    api.emulator.clock.advance(10)
    assert api.metrics()["backlog_count"] == 1


@pytest.mark.parametrize(
    ("counted", "expected"), [("both", 3), ("leased", 2), ("delayed", 2), ("none", 1)]
)
def test_what_metrics_count_as_backlog_is_a_knob(make, counted, expected):
    api = make(backlog_counts=counted)
    api.push("leased")
    api.pull()
    api.push("ready")
    api.push("delayed", delay_seconds=60)

    metrics = api.metrics()

    assert metrics["backlog_count"] == expected
    assert (metrics["backlog_bytes"] == len("leasedreadydelayed")) is (counted == "both")
