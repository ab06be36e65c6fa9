"""Faults: what a client sees, and what has happened all the same."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
import requests
from emulator.client import errors_of


def bodies(api):
    return [message.body for message in api.emulator.messages("jobs")]


@pytest.mark.parametrize(
    ("set_fault", "status", "content"),
    [
        (lambda f: f.error("push", status=503, code=None), 503, b'"errors": []'),
        (lambda f: f.html_page("push", status=502), 502, b"<!DOCTYPE html>"),
        (lambda f: f.empty_body("push", status=500), 500, b""),
        (lambda f: f.empty_body("push"), 200, b""),
        (lambda f: f.broken_json("push"), 200, b'{"success": true'),
        (lambda f: f.unsuccessful("push", code=10250), 200, b'"success": false'),
        (lambda f: f.redirect("push", location="http://127.0.0.1:9/"), 307, b""),
    ],
)
def test_a_spoiled_answer_means_that_nothing_happened(api, set_fault, status, content):
    set_fault(api.emulator.faults)

    answer = api.push("x")

    assert answer.status_code == status
    assert content in answer.content
    assert bodies(api) == []
    assert api.push("y").status_code == 200
    assert bodies(api) == ["y"]


@pytest.mark.parametrize(
    "method", ["error", "html_page", "empty_body", "broken_json", "unsuccessful"]
)
def test_the_same_after_the_effect_leaves_the_message_written(api, method):
    getattr(api.emulator.faults, method)("push", after_effect=True)

    api.push("x")

    assert bodies(api) == ["x"]


def test_an_error_has_the_status_code_and_headers_of_ones_choice(api):
    api.emulator.faults.error("push", status=429, code=10250, message="m", retry_after=7)

    answer = api.push("x")

    assert errors_of(answer) == (429, [10250])
    assert answer.json()["errors"][0]["message"] == "m"
    assert answer.headers["Retry-After"] == "7"


def test_a_redirect_says_where_to(api):
    api.emulator.faults.redirect("push", location="https://example.com/", status=302)

    assert api.push("x").headers["Location"] == "https://example.com/"


@pytest.mark.parametrize(
    ("method", "shown"), [("null_result", {"result": None}), ("no_result", {})]
)
def test_a_good_answer_may_lack_its_result(api, method, shown):
    getattr(api.emulator.faults, method)("push")

    assert api.push("x").json() == {"success": True, "errors": [], "messages": [], **shown}
    assert bodies(api) == ["x"]


def test_a_reset_happens_before_the_effect_and_a_lost_response_after_it(api):
    faults = api.emulator.faults
    faults.reset("push")
    with pytest.raises(requests.ConnectionError, match="reset"):
        api.push("reset")
    assert bodies(api) == []

    faults.lost_response("push")
    with pytest.raises(requests.ConnectionError, match="without response"):
        api.push("lost")
    assert bodies(api) == ["lost"]

    assert [request.status for request in api.emulator.requests.of("push")] == [None, None]
    assert api.push("good").status_code == 200


def test_a_lost_response_of_a_pull_leaves_a_lease_that_nobody_knows(api):
    api.push("x")
    api.emulator.faults.lost_response("pull")

    with pytest.raises(requests.ConnectionError):
        api.pull()

    assert api.emulator.messages("jobs")[0].state == "leased"
    assert api.pull() == []


def test_a_hang_answers_never_and_others_go_on(api):
    api.emulator.faults.hang("push")

    with pytest.raises(requests.ReadTimeout):
        api.call("POST", "/{jobs}/messages", json={"body": {}}, timeout=0.1)

    assert bodies(api) == []
    assert api.push("x").status_code == 200


@pytest.mark.parametrize(("kind", "how"), [("hang", {}), ("latency", {"seconds": 100})])
def test_stopping_waits_for_no_request_and_is_quiet_about_it(make, caplog, kind, how):
    api = make()
    getattr(api.emulator.faults, kind)("push", **how)

    def push():
        with contextlib.suppress(requests.ConnectionError):
            api.push("x")

    client = threading.Thread(target=push)
    client.start()
    while not api.emulator.requests:
        time.sleep(0.001)
    began = time.monotonic()
    api.emulator.stop()
    client.join()

    assert time.monotonic() - began < 30
    assert caplog.text == ""


def test_latency_comes_on_top_of_other_faults_and_delays_the_effect(api):
    api.emulator.faults.latency("push", seconds=(0.05, 0.06), times=1)
    api.emulator.faults.error("push", status=500)

    began = time.monotonic()
    assert api.push("x").status_code == 500
    assert time.monotonic() - began >= 0.05
    assert api.push("x").status_code == 200


def test_latency_of_every_request_is_a_setting(make):
    api = make(latency=0.5)

    began = time.monotonic()
    api.push("x")
    assert time.monotonic() - began >= 0.5
    api.emulator.latency = 0
    began = time.monotonic()
    api.push("x")
    assert time.monotonic() - began < 0.5


def test_a_fault_strikes_the_routes_it_names_as_often_as_it_says(api):
    fault = api.emulator.faults.error("push", "batch", status=500, times=2)

    assert api.get("").status_code == 200
    assert api.push("x").status_code == 500
    assert api.batch({"body": {}}).status_code == 500
    assert api.push("x").status_code == 200
    assert (fault.hits, fault.left) == (2, 0)
    assert api.emulator.faults.active == []


def test_a_fault_without_routes_strikes_all_and_without_times_always(api):
    fault = api.emulator.faults.error(status=500, times=None)
    assert [api.get("").status_code for _ in range(3)] == [500] * 3
    assert api.push("x").status_code == 500

    api.emulator.faults.remove(fault)
    assert api.push("x").status_code == 200
    api.emulator.faults.error(times=None)
    api.emulator.faults.clear()
    assert api.push("x").status_code == 200


def test_faults_follow_each_other_in_the_order_they_were_set(api):
    api.emulator.faults.error("push", status=503)
    api.emulator.faults.html_page("push", status=502)

    assert [api.push("x").status_code for _ in range(3)] == [503, 502, 200]


def test_messages_of_ones_choice_are_refused_with_the_batch_they_are_in(api):
    api.emulator.faults.refuse_messages(lambda body: body in ("bad", {"bad": 1}))
    good, bad = ({"body": text, "content_type": "text"} for text in ("good", "bad"))

    assert errors_of(api.push("bad")) == (400, [10203])
    assert errors_of(api.push({"bad": 1})) == (400, [10203])
    assert errors_of(api.batch(good, bad, good)) == (400, [10203])
    assert bodies(api) == []
    assert api.batch(good, good).status_code == 200

    api.emulator.faults.clear()
    assert api.push("bad").status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f: f.error("publish"),
        lambda f: f.error("push", times=0),
        lambda f: f.error("push", status=99),
        lambda f: f.redirect("push", location="/", status=200),
        lambda f: f.latency("push", seconds=-1),
        lambda f: f.latency("push", seconds=(2, 1)),
    ],
)
def test_a_fault_that_could_not_strike_is_refused(api, wrong):
    with pytest.raises(ValueError, match=r".+"):
        wrong(api.emulator.faults)
    assert api.emulator.faults.active == []
