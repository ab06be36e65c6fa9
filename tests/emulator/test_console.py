"""The emulator's own endpoints under ``/_emulator/``: faults, clock, knobs and state over HTTP."""

from __future__ import annotations

import threading

import pytest
import requests

from kombu_cfqueues.emulator import Emulator, Faults, Knobs
from kombu_cfqueues.emulator.fault_orders import KINDS, order, parse

PULL = {"type": "http_pull"}


@pytest.fixture
def console(api):
    """Call an endpoint; return what it says, or its status if it refuses."""

    def call(method, path, body=None, **kwargs):
        url = f"{api.emulator.page_url}_emulator{path}"
        if body is not None:
            kwargs["json"] = body
        answer = requests.request(method, url, timeout=10, **kwargs)
        assert "application/json" in answer.headers["content-type"]
        return answer.json() if answer.ok else (answer.status_code, answer.json()["error"])

    return call


def queue_of(console, name="jobs"):
    return next(queue for queue in console("GET", "/state")["queues"] if queue["name"] == name)


def test_the_state_counts_messages_by_state_and_what_happened(api, console):
    for n in range(4):
        api.push(f"{n}", delay_seconds=60 if n == 0 else 0)
    _, acked = api.pull(batch_size=2)
    api.ack(acked["lease_id"])

    queue = queue_of(console)

    assert (queue["ready"], queue["delayed"], queue["leased"], queue["dead"]) == (1, 1, 1, 0)
    assert queue["totals"] == {
        "published": 4,
        "delivered": 2,
        "acknowledged": 1,
        "retried": 0,
        "lease_expired": 0,
        "dead": 0,
        "expired": 0,
    }
    assert len(queue["history"]["published"]) == 60
    api.emulator.clock.advance(31)
    assert queue_of(console)["totals"]["lease_expired"] == 1
    assert queue_of(console)["ready"] == 2


def test_counts_that_had_to_wait_are_not_kept_longer(api, console):
    """What counting costs decides how long its result is reused, not what it waits for."""
    locked, counted = threading.Event(), threading.Event()

    def keep_waiting():
        with api.emulator._service.database.lock:
            locked.set()
            counted.wait(0.5)

    other = threading.Thread(target=keep_waiting)
    other.start()
    assert locked.wait(10)
    assert queue_of(console)["ready"] == 0
    other.join()
    api.push("1")

    assert queue_of(console)["ready"] == 1


def test_messages_are_listed_decoded_and_in_pages(api, console):
    for n in range(5):
        api.push({"n": n})
    path = f"/queues/{api.emulator.queue_id('jobs')}/messages"

    first = console("GET", f"{path}?limit=2")
    assert [message["what"]["summary"] for message in first["messages"]] == ['{"n":4}', '{"n":3}']
    assert first["more"] is True
    rest = console("GET", f"{path}?limit=100&before={first['messages'][-1]['number']}")
    assert len(rest["messages"]) == 3
    whole = console("GET", f"{path}/{rest['messages'][0]['number']}")
    assert (whole["body"], whole["what"]["content"]) == ('{"n":2}', {"n": 2})
    assert console("GET", f"{path}/999")[0] == 404
    assert console("GET", f"{path}?state=lost")[0] == 400
    assert console("GET", f"{path}?limit=x")[0] == 400
    assert console("GET", f"/queues/{'0' * 32}/messages")[0] == 404


def test_a_person_can_retry_delete_purge_and_pause(api, console):
    path = f"/queues/{api.emulator.queue_id('jobs')}"
    for text in ("a", "b", "c"):
        api.push(text, delay_seconds=60)
    first = api.emulator.messages("jobs")[0]

    assert console("POST", f"{path}/retry", {"numbers": [first.number, 999]}) == {"retried": 1}
    [message] = api.pull()
    assert (message["body"], message["attempts"]) == ("a", 1)
    assert console("POST", f"{path}/retry", {}) == {"retried": 3}
    assert console("POST", f"{path}/delete", {"numbers": [first.number]}) == {"deleted": 1}
    assert console("POST", f"{path}/purge", {}) == {"deleted": 2}
    assert console("POST", f"{path}/pause", {"paused": True}) == {"paused": True}
    assert api.post("/{jobs}/messages/pull").status_code == 409
    assert console("POST", f"{path}/pause", {"paused": 1})[0] == 400
    assert console("POST", f"{path}/delete", {"numbers": ["1"]})[0] == 400
    assert console("POST", f"{path}/delete", {})[0] == 400
    assert console("POST", f"{path}/retry", {"numbers": [2**70]})[0] == 400
    assert console("DELETE", path) == {}
    assert api.emulator.queue_names() == []


def test_a_dead_letter_returns_to_where_it_died(make, console, api):
    api.emulator.create_queue(
        "work", consumer={**PULL, "dead_letter_queue": "dead", "settings": {"max_retries": 0}}
    )
    api.push("x", queue="work")
    api.pull("work")
    api.emulator.clock.advance(30)
    assert queue_of(console, "work")["dead"] == 1
    [dead] = api.emulator.messages("dead")
    assert dead.died_in == "work"

    assert console("POST", f"/queues/{api.emulator.queue_id('dead')}/retry", {}) == {"retried": 1}

    assert queue_of(console, "work")["dead"] == 0
    assert api.emulator.messages("dead") == []
    assert api.metrics("dead")["backlog_count"] == 0
    assert api.metrics("work")["backlog_count"] == 1
    assert api.pull("work")[0]["attempts"] == 1


def test_what_is_published_here_is_checked(api, console):
    path = f"/queues/{api.emulator.queue_id('jobs')}/messages"
    sent = {"kind": "celery", "task": "t", "args": [1], "kwargs": {"a": None}}
    assert console("POST", path, sent) == {"published": 1}
    for wrong in (
        {},
        {"kind": "celery"},
        {"kind": "celery", "task": "t", "args": {}},
        {"kind": "text", "body": 1},
        {"kind": "json"},
        {"kind": "text", "body": "x", "delay_seconds": 86_401},
        {"kind": "text", "body": "x", "delay_seconds": "1"},
    ):
        assert console("POST", path, wrong)[0] == 400
    assert console("POST", path, {"kind": "text", "body": "x" * 128_000})[0] == 413
    assert len(api.emulator.messages("jobs")) == 1


def test_queues_are_made_here_too(api, console):
    made = console("POST", "/queues", {"name": "new", "consumer": PULL})
    assert api.emulator.queue_id("new") == made["id"]
    assert console("POST", "/queues", {"name": "new"})[0] == 409
    assert console("POST", "/queues", {"name": "a b"})[0] == 400
    assert console("POST", "/queues", {"name": "b", "consumer": []})[0] == 400
    assert console("POST", "/queues", {"name": "c", "settings": {"delivery_delay": -1}})[0] == 400


def test_faults_are_set_listed_and_removed(api, console):
    fault = console(
        "POST", "/faults", {"kind": "error", "routes": ["push"], "status": 503, "times": 2}
    )
    assert api.push("x").status_code == 503
    [listed] = console("GET", "/faults")["faults"]
    assert (listed["hits"], listed["left"], listed["routes"]) == (1, 1, ["push"])
    assert console("DELETE", f"/faults/{fault['number']}") == {}
    assert api.push("x").status_code == 200
    assert console("DELETE", f"/faults/{fault['number']}")[0] == 404
    console("POST", "/faults", {"kind": "reset"})
    assert console("DELETE", "/faults") == {}
    assert api.push("x").status_code == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"kind": "refuse_messages"},
        {"kind": "__init__"},
        {"kind": ["error"]},
        {"kind": "error", "routes": "push"},
        {"kind": "error", "routes": ["publish"]},
        {"kind": "error", "status": "503"},
        {"kind": "error", "status": True},
        {"kind": "error", "status": 99},
        {"kind": "error", "colour": "red"},
        {"kind": "error", "self": 1},
        {"kind": "error", "message": "a\r\nb"},
        {"kind": "error", "retry_after": "1\r\nSet-Cookie: x"},
        {"kind": "error", "times": 0},
        {"kind": "latency"},
        {"kind": "latency", "seconds": [1, 2, 3]},
        {"kind": "latency", "seconds": None},
        {"kind": "duplicate", "routes": ["push"]},
        {"kind": "redirect"},
    ],
)
def test_a_fault_that_means_nothing_is_refused(api, console, wrong):
    assert console("POST", "/faults", wrong)[0] == 400
    assert api.emulator.faults.active == []


def test_every_fault_can_be_ordered():
    assert set(KINDS) == {name for name in vars(Faults) if not name.startswith("_")} - {
        "active",
        "remove",
        "clear",
        "apply",
        "check_message",
        "refuse_messages",
    }
    needs = {
        "redirect": {"location": "/"},
        "latency": {"seconds": [0.1, 2]},
        "late": {"seconds": 1},
    }
    faults = Faults()
    for kind in KINDS:
        assert order(faults, {"kind": kind, "times": None, **needs.get(kind, {})}).kind == kind


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("reset", {"kind": "reset", "routes": []}),
        (
            "error push batch status=503 times=3",
            {"kind": "error", "routes": ["push", "batch"], "status": 503, "times": 3},
        ),
        (
            "latency pull seconds=0.1-2 times=null",
            {"kind": "latency", "routes": ["pull"], "seconds": [0.1, 2.0], "times": None},
        ),
        (
            "redirect location=http://a-b/",
            {"kind": "redirect", "routes": [], "location": "http://a-b/"},
        ),
        (
            "error after_effect=true title=x-y",
            {"kind": "error", "routes": [], "after_effect": True, "title": "x-y"},
        ),
    ],
)
def test_the_words_of_the_command_line_mean_the_same(text, meant):
    assert parse(text) == meant


def test_the_clock_moves_forward_here(api, console):
    api.push("x", delay_seconds=3600)
    assert console("POST", "/clock", {"advance": 3600})["ahead"] == 3600
    assert len(api.pull()) == 1
    for wrong in (-1, "1", True, None, 1e300):
        assert console("POST", "/clock", {"advance": wrong})[0] == 400


def test_knobs_turn_while_it_runs(api, console):
    api.push({})
    assert console("PATCH", "/knobs", {"json_pull_encoding": "plain", "rate_limit": 2})
    assert api.pull()[0]["body"] == "{}"
    assert api.emulator.knobs == Knobs(json_pull_encoding="plain", rate_limit=2)
    assert console("GET", "/knobs")["rate_limit"] == 2
    assert console("PATCH", "/knobs", {"rate_limit": "2"})[0] == 400
    assert "colour" in console("PATCH", "/knobs", {"colour": 1})[1]


def test_everything_can_be_forgotten_between_tests(api, console):
    api.push("x")
    console("POST", "/faults", {"kind": "error"})
    assert console("POST", "/reset", {}) == {}
    state = console("GET", "/state")
    assert (state["queues"], state["faults"]) == ([], [])
    assert console("GET", "/requests")["requests"] == []


def test_nobody_counts_or_spoils_what_is_asked_here(make):
    api = make(rate_limit=0)
    api.emulator.faults.error(times=None)
    url = api.emulator.page_url

    assert requests.get(f"{url}_emulator/state", timeout=5).status_code == 200
    assert requests.get(url, timeout=5).status_code == 200
    assert list(api.emulator.requests) == []


def test_requests_without_a_limit_are_counted_as_cloudflare_would(api, console):
    for _ in range(3):
        api.push("x")
    api.pull()
    allowance = console("GET", "/state")["allowance"]
    assert (allowance["recent"], allowance["cloudflare_limit"], allowance["limit"]) == (
        3,
        1200,
        None,
    )
    api.emulator.clock.advance(300)
    assert console("GET", "/state")["allowance"]["recent"] == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8787"},
        {"Host": "localhost.evil.example"},
    ],
)
def test_pages_of_other_sites_are_refused(console, headers):
    """A browser on this machine would carry their requests here."""
    assert console("GET", "/state", headers=headers)[0] == 403
    assert console("POST", "/reset", {}, headers=headers)[0] == 403


def test_a_form_of_another_site_is_refused(console):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = console("POST", "/reset", headers={"Content-Type": content_type}, data="{}")
        assert answer[0] == 415


@pytest.mark.parametrize("sent", ["nonsense", "[]", "[" * 100_000, '{"a": NaN}', b"\xff"])
def test_what_is_no_json_object_is_refused(console, sent):
    headers = {"Content-Type": "application/json"}
    assert console("POST", "/clock", headers=headers, data=sent)[0] == 400


def test_beyond_loopback_everything_wants_the_token():
    """The page itself holds nothing; what it shows does."""
    tokens = {"viewer": "read"}
    with Emulator("0.0.0.0", token="mine", tokens=tokens) as emulator:
        root = f"http://127.0.0.1:{emulator.port}"
        assert requests.get(root, timeout=5).status_code == 200
        for path in ("/state", "/requests", "/faults", "/knobs", "/clock"):
            url = f"{root}/_emulator{path}"
            assert requests.get(url, timeout=5).status_code == 401
            for token, status in (("wrong", 401), ("mine", 200), ("viewer", 200)):
                bearer = {"Authorization": f"Bearer {token}"}
                assert requests.get(url, headers=bearer, timeout=5).status_code == status
        bearer = {"Authorization": "Bearer viewer"}
        url = f"{root}/_emulator/reset"
        assert requests.post(url, json={}, headers=bearer, timeout=5).status_code == 403
        bearer = {"Authorization": "Bearer mine"}
        assert requests.post(url, json={}, headers=bearer, timeout=5).status_code == 200


def test_the_page_lets_nothing_run_but_its_own_files(api):
    answer = requests.get(api.emulator.page_url, timeout=5)

    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    for name in ("..%2fpage.py", "page.py", "__init__.py", "%2e%2e/page.py", "nothing.js"):
        assert requests.get(f"{api.emulator.page_url}_page/{name}", timeout=5).status_code == 404
