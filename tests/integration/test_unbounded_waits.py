"""What a server says of waiting is heeded, and bounded: one odd answer costs minutes, not a day.

Cloudflare blocks for five minutes and says up to 300 seconds.  A proxy, a clock that is wrong or a
page of maintenance may say anything; the stop is kept in the file, and a restart does not end it.
"""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError
from support.processes import eventually
from support.scripted import Api, Failure, Json, Say, ScriptedServer, Success

import kombu_cfqueues
from kombu_cfqueues import account
from kombu_cfqueues.errors import CFQueuesError, PublishTimeout

LONGEST = 300
"""Seconds; Cloudflare's own limit."""

NEXT_YEAR = formatdate(time.time() + 365 * 86_400, usegmt=True)


class Clock:
    """The machine's monotonic clock; a test moves it on."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self._ahead = 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def answering(*answers):
    """A server that gives these answers to the first publishes, and then serves."""
    api, left = Api(["jobs"]), list(answers)
    server = ScriptedServer(
        otherwise=lambda r: left.pop(0) if left and "/messages" in r.path else api(r)
    )
    server.api = api
    return server


SCOPES = {
    "the machine's allowance": {"request_rate": 20.0},
    "the process's": {"request_rate": 20.0, "budget_scope": "process"},
    "none": {},
}


@pytest.fixture(params=SCOPES.values(), ids=SCOPES)
def options(request, tmp_path):
    return {"spool_dir": str(tmp_path / "spool"), "publish_timeout": 2, **request.param}


def publish(server, options):
    with Connection(server.broker_url, transport_options=options) as connection:
        connection.Producer().publish("x", routing_key="jobs")


def as_after_a_restart():
    account._registry.accounts.clear()


TOO_LONG = {
    "429 for a day": Failure(429, 971, Retry_After="86400"),
    "429 for the plan, for a day": Failure(429, 10253, Retry_After="86400"),
    "429 of the queue, for a day": Failure(429, 10250, Retry_After="86400"),
    "429 for thirty years": Failure(429, 971, Retry_After="999999999"),
    "503 for an hour": Failure(503, 15000, Retry_After="3600"),
    "503 until next year": Failure(503, 15000, Retry_After=NEXT_YEAR),
    "429 until next year": Failure(429, 971, Retry_After=NEXT_YEAR),
    "500 for an hour": Failure(500, 15000, Retry_After="3600"),
}


@pytest.mark.parametrize("answer", TOO_LONG.values(), ids=TOO_LONG)
def test_five_minutes_later_publishing_goes_on(options, clock, answer):
    with answering(answer) as server:
        with pytest.raises(CFQueuesError):
            publish(server, options)
        clock.advance(LONGEST + 1)
        publish(server, options)
    assert server.api.messages["jobs"]


@pytest.mark.parametrize("answer", TOO_LONG.values(), ids=TOO_LONG)
def test_the_error_does_not_promise_a_day_of_waiting(options, answer):
    """An application that obeys ``retry_after`` would sleep as long; the text may say it all."""
    with answering(answer) as server, pytest.raises(CFQueuesError) as raised:
        publish(server, options)
    assert (raised.value.retry_after or 0) <= LONGEST


@pytest.mark.parametrize("answer", list(TOO_LONG.values())[:2], ids=list(TOO_LONG)[:2])
def test_a_stop_that_is_kept_on_disk_ends_for_other_processes_too(tmp_path, clock, answer):
    options = {"spool_dir": str(tmp_path / "spool"), "publish_timeout": 2, "request_rate": 20.0}
    with answering(answer) as server:
        with pytest.raises(CFQueuesError):
            publish(server, options)
        as_after_a_restart()
        with pytest.raises(OperationalError):  # it cannot even connect
            publish(server, options)
        clock.advance(LONGEST + 1)
        publish(server, options)
    assert server.api.messages["jobs"]


@pytest.mark.parametrize("said", ['"default";r=0;t=86400', '"default";r=1;t=999999999'])
@pytest.mark.parametrize("scope", ["host", "process"])
def test_a_ratelimit_header_slows_down_for_five_minutes_at_most(tmp_path, clock, said, scope):
    """It comes with any answer, also with one that accepts."""
    options = {
        "spool_dir": str(tmp_path / "spool"), "publish_timeout": 1.5, "request_rate": 20.0,
        "budget_scope": scope,
    }  # fmt: skip
    slow = Success()
    slow = Say(200, slow.body, headers={"Ratelimit": said})
    with answering(slow) as server:
        publish(server, options)
        with pytest.raises(PublishTimeout):  # noqa: PT012  it is heeded
            for _ in range(3):
                publish(server, options)
        clock.advance(LONGEST + 1)
        if scope == "host":
            as_after_a_restart()
        for _ in range(5):
            publish(server, options)


@pytest.mark.parametrize("answer", list(TOO_LONG.values())[::4], ids=list(TOO_LONG)[::4])
def test_what_is_spooled_goes_on_five_minutes_later(tmp_path, clock, answer):
    options = {
        "spool_dir": str(tmp_path / "spool"), "request_rate": 20.0, "publish_mode": "spool",
    }  # fmt: skip
    with (
        answering(answer) as server,
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        before = kombu_cfqueues.stats()["retries"]
        promise = connection.Producer().publish("x", routing_key="jobs")
        assert eventually(lambda: kombu_cfqueues.stats()["retries"] > before, 5)
        clock.advance(LONGEST + 1)
        assert eventually(lambda: promise.ready, 4)


# -- a date is compared with the date of the answer itself


def dated(status, code, *, skew, wait):
    """An answer of a server whose clock is *skew* seconds ahead: try again in *wait* seconds."""
    now = time.time() + skew
    return Json(
        status,
        {"success": False, "errors": [{"code": code, "message": "later"}], "result": None},
        Date=formatdate(now, usegmt=True),
        Retry_After=formatdate(now + wait, usegmt=True),
    )


@pytest.mark.parametrize(("status", "code"), [(503, 15000), (429, 971)])
@pytest.mark.parametrize("skew", [3600, -3600], ids=["ahead", "behind"])
def test_a_date_is_as_far_off_as_the_servers_clock_says(tmp_path, status, code, skew):
    """An hour of skew made 2 seconds an hour, and two seconds none."""
    options = {"spool_dir": str(tmp_path / "spool"), "publish_timeout": 8, "request_rate": 20.0}
    with answering(dated(status, code, skew=skew, wait=2)) as server:
        began = time.monotonic()
        publish(server, options)
        seconds = time.monotonic() - began
    assert 0.9 < seconds < 5  # HTTP's dates have whole seconds


@pytest.mark.parametrize("date", [None, "yesterday", ""])
def test_an_answer_without_a_date_goes_by_this_clock(tmp_path, date):
    """It is so today."""
    answer = Failure(503, 15000, Retry_After=formatdate(time.time() + 3, usegmt=True))
    if date is not None:
        answer = Say(503, answer.body, headers={**answer.headers, "Date": date})
    options = {"spool_dir": str(tmp_path / "spool"), "publish_timeout": 8}
    with answering(answer) as server:
        began = time.monotonic()
        publish(server, options)
        assert 0.9 < time.monotonic() - began < 5
