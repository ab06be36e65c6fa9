"""What a 429 stops, for whatever publishes in a process, and what comes after it.

Cloudflare blocks a token for five minutes; whoever goes on asking makes it longer, and whoever
comes back with a full burst earns the next block.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError
from support.processes import eventually
from support.scripted import Api, Failure, Json, ScriptedServer

import kombu_cfqueues
from kombu_cfqueues import account
from kombu_cfqueues.errors import CFQueuesError, RateLimited
from kombu_cfqueues.rate_limit import StopLog
from kombu_cfqueues.runtime.clock import Clock as SystemClock

BLOCK = Failure(429, 971, "More than 1200 requests per 300 seconds reached", Retry_After="60")

#: Ways in which the allowance is not the machine's: without the file nobody shares it.
ALONE = {
    "the process's": {"request_rate": 50.0, "budget_scope": "process"},
    "no limit": {},
    "no limit, and the id is given": {"queues": {"jobs": "the-id"}},
}
MACHINE = {"the machine's": {"request_rate": 50.0}}


class Clock:
    """The machine's monotonic clock; a test moves it on."""

    def __init__(self) -> None:
        self._real, self._ahead = time.monotonic, 0.0

    def __call__(self) -> float:
        return self._real() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@pytest.fixture
def spool(tmp_path):
    return {"spool_dir": str(tmp_path / "spool")}


@pytest.fixture
def blocked():
    """A server that answers every publish with a block."""
    api = Api(["jobs", "others"])
    with ScriptedServer(otherwise=lambda r: BLOCK if "/messages" in r.path else api(r)) as server:
        yield server


def posts(server):
    return [r for r in server.requests if "/messages" in r.path]


# -- the spool


@pytest.mark.parametrize("options", {**ALONE, **MACHINE}.values(), ids=[*ALONE, *MACHINE])
def test_the_spool_heeds_a_429(blocked, spool, options):
    """It came with ``Retry-After: 60``: nothing of the token may leave before."""
    options = {**spool, **options, "publish_mode": "spool"}
    with Connection(blocked.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        for _ in range(3):
            producer.publish("x", routing_key="jobs")
        assert blocked.wait_for(lambda: bool(posts(blocked)))
        assert not blocked.wait_for(lambda: len(posts(blocked)) > 1, 3)


@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_the_spool_heeds_a_429_that_another_publish_was_answered(blocked, spool, options):
    """One token, one block: a confirmed publish has heard of it."""
    confirmed = {**spool, **options, "publish_timeout": 1}
    spooled = {**spool, **options, "publish_mode": "spool"}
    with (
        Connection(blocked.broker_url, transport_options=confirmed) as one,
        Connection(blocked.broker_url, transport_options=spooled) as two,
    ):
        with pytest.raises(CFQueuesError):
            one.Producer().publish("x", routing_key="jobs")
        assert len(posts(blocked)) == 1
        two.Producer().publish("x", routing_key="jobs")
        assert not blocked.wait_for(lambda: len(posts(blocked)) > 1, 2)


@pytest.mark.parametrize("options", ALONE.values(), ids=ALONE)
def test_a_confirmed_publish_heeds_a_429_that_the_spool_was_answered(blocked, spool, options):
    confirmed = {**spool, **options, "publish_timeout": 1}
    spooled = {**spool, **options, "publish_mode": "spool"}
    before = kombu_cfqueues.stats()["retries"]
    with (
        Connection(blocked.broker_url, transport_options=spooled) as one,
        Connection(blocked.broker_url, transport_options=confirmed) as two,
    ):
        one.Producer().publish("x", routing_key="jobs")
        assert eventually(lambda: kombu_cfqueues.stats()["retries"] > before, 5)
        sent = len(posts(blocked))
        with pytest.raises(OperationalError):  # it cannot even connect
            two.Producer().publish("x", routing_key="jobs")
        assert len(posts(blocked)) == sent


def test_in_process_scope_the_file_and_the_process_have_one_allowance(spool):
    """Each with an allowance of its own would be twice the rate."""
    rate = 10.0
    limited = {
        **spool, "request_rate": rate, "request_burst": 1, "budget_scope": "process",
        "publish_timeout": 5,
    }  # fmt: skip
    spooled = {**limited, "publish_mode": "spool"}
    with ScriptedServer(otherwise=Api([f"queue-{n}" for n in range(200)])) as server:
        stop = threading.Event()
        with (
            Connection(server.broker_url, transport_options=spooled) as one,
            Connection(server.broker_url, transport_options=limited) as two,
        ):
            for number in range(60):  # each a request of its own
                one.Producer().publish("x", routing_key=f"queue-{number}")

            def confirm():
                producer = two.Producer()
                while not stop.is_set():
                    producer.publish("x", routing_key="queue-199")

            thread = threading.Thread(target=confirm)
            thread.start()
            assert server.wait_for(lambda: bool(posts(server)))
            began, first = time.monotonic(), len(server.requests)
            time.sleep(2)
            seconds, count = time.monotonic() - began, len(server.requests) - first
            stop.set()
            thread.join(10)
    assert count <= rate * seconds * 1.2 + 2


# -- nothing is earned while stopped, also by a gateway, from which no share is learned


@pytest.mark.parametrize("scope", ["host", "process"])
@pytest.mark.parametrize("retry_after", [None, "300"])
def test_after_a_block_a_process_comes_back_with_little(spool, clock, scope, retry_after):
    """Every machine that was blocked returns in the same second."""
    rate, burst = 10.0, 60
    options = {
        **spool, "request_rate": rate, "request_burst": burst, "budget_scope": scope,
        "publish_timeout": 1,
    }  # fmt: skip
    api, answers = Api(["jobs"]), [Failure(429)]
    if retry_after:
        answers = [Failure(429, Retry_After=retry_after)]
    with (
        ScriptedServer(
            otherwise=lambda r: answers.pop() if answers and "/messages" in r.path else api(r)
        ) as server,
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        blocked = time.monotonic()
        with pytest.raises(CFQueuesError):
            connection.Producer().publish("x", routing_key="jobs")
        asked = len(server.requests)
        clock.advance(301)
        began = time.monotonic()
        while time.monotonic() - began < 1:
            connection.Producer().publish("x", routing_key="jobs")
        seconds = time.monotonic() - blocked - 301  # without what the clock was set forward
        # What a new process has, what is earned since the block of 300 s ended, and one on its way.
        assert len(server.requests) - asked <= 5 + rate * (1 + seconds) + 1


def test_so_it_is_after_a_restart_in_the_block(spool, clock):
    options = {**spool, "request_rate": 10.0, "request_burst": 60, "publish_timeout": 1}
    api, answers = Api(["jobs"]), [Failure(429)]
    with ScriptedServer(
        otherwise=lambda r: answers.pop() if answers and "/messages" in r.path else api(r)
    ) as server:
        with (
            Connection(server.broker_url, transport_options=options) as connection,
            pytest.raises(CFQueuesError),
        ):
            connection.Producer().publish("x", routing_key="jobs")
        account._registry.accounts.clear()
        clock.advance(301)
        asked = len(server.requests)
        with Connection(server.broker_url, transport_options=options) as connection:
            began = time.monotonic()
            while time.monotonic() - began < 1:
                connection.Producer().publish("x", routing_key="jobs")
            seconds = time.monotonic() - began
        assert len(server.requests) - asked <= 5 + 10 * (1 + seconds) + 1


# -- and somebody is told


def warnings(caplog):
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("kombu_cfqueues") and record.levelno == logging.WARNING
        if "429" in record.getMessage()
    ]


@pytest.mark.parametrize("options", {**ALONE, **MACHINE}.values(), ids=[*ALONE, *MACHINE])
@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_a_block_is_one_warning(blocked, spool, caplog, options, mode):
    """Five minutes without a word look like a library that hangs."""
    options = {**spool, **options, "publish_mode": mode, "publish_timeout": 0.5}
    with Connection(blocked.broker_url, transport_options=options) as connection:
        for _ in range(3):
            try:
                connection.Producer().publish("x", routing_key="jobs")
            except CFQueuesError:
                assert mode == "confirm"
        assert eventually(lambda: bool(warnings(caplog)), 2)
    (text,) = warnings(caplog)
    assert "60 s" in text or "300 s" in text
    assert blocked.token not in text


def test_each_block_is_a_warning(spool, caplog, clock):
    """The second one is news too."""
    api = Api(["jobs"])
    with ScriptedServer(otherwise=lambda r: BLOCK if "/messages" in r.path else api(r)) as server:
        options = {**spool, "request_rate": 50.0, "publish_timeout": 0.5}
        with Connection(server.broker_url, transport_options=options) as connection:
            for _ in range(2):
                with pytest.raises(CFQueuesError):
                    connection.Producer().publish("x", routing_key="jobs")
                clock.advance(61)
    assert len(warnings(caplog)) == 2


def test_a_process_that_is_stopped_by_anothers_429_says_so_too(blocked, spool, caplog):
    """It publishes, waits, and has no answer of its own to tell of."""
    options = {**spool, "request_rate": 50.0, "publish_timeout": 0.5}
    with (
        Connection(blocked.broker_url, transport_options=options) as connection,
        pytest.raises(CFQueuesError),
    ):
        connection.Producer().publish("x", routing_key="jobs")
    account._registry.accounts.clear()  # as another process
    caplog.clear()
    with (
        Connection(blocked.broker_url, transport_options=options) as connection,
        pytest.raises(OperationalError),
    ):
        connection.Producer().publish("x", routing_key="jobs")
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("options", {**ALONE, **MACHINE}.values(), ids=[*ALONE, *MACHINE])
@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_the_end_of_a_block_is_one_line(spool, caplog, options, mode):
    """Who has read the warning wants to know."""
    api = Api(["jobs"])
    options = {**spool, **options, "publish_mode": mode}
    short = Failure(429, 971, Retry_After="1")
    answers = [short]
    with ScriptedServer(
        otherwise=lambda r: answers.pop() if answers and "/messages" in r.path else api(r)
    ) as server:
        if "queues" in options:
            options["queues"] = {"jobs": api.ids["jobs"]}
        with (
            caplog.at_level(logging.INFO, "kombu_cfqueues"),
            Connection(server.broker_url, transport_options=options) as connection,
        ):
            for _ in range(3):
                connection.Producer().publish("x", routing_key="jobs")
            assert server.wait_for(lambda: len(api.messages["jobs"]) == 3)
    told = [r.levelname for r in caplog.records if "429" in r.getMessage()]
    assert told == ["WARNING", "INFO"]


def test_a_thread_that_tells_late_of_a_block_tells_nothing_new(caplog, clock):
    """It has read of the block before it ended, and is slower than the others."""
    log = StopLog(SystemClock())
    blocked = RateLimited("blocked", retry_after=1.0)
    with caplog.at_level(logging.INFO, "kombu_cfqueues"):
        until = time.monotonic() + 60
        log.stopped(blocked, until)
        clock.advance(61)
        log.stopped(blocked, until)
        log.resumed()
        log.stopped(blocked, until)
        log.resumed()
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize("options", {**ALONE, **MACHINE}.values(), ids=[*ALONE, *MACHINE])
@pytest.mark.parametrize(("code", "reaches_others"), [(10250, True), (10253, False)])
def test_a_429_stops_the_queue_or_all_publishing(spool, options, code, reaches_others):
    """10250 is the limit of one queue, 10253 that of all publishing."""
    api = Api(["jobs", "others"])
    busy = Failure(429, code, Retry_After="60")
    options = {**spool, **options, "publish_timeout": 1}
    options["queues"] = {name: api.ids[name] for name in options.get("queues", ())}
    jobs = f"/{api.ids['jobs']}/messages"
    with ScriptedServer(otherwise=lambda r: busy if jobs in r.path else api(r)) as server:
        with Connection(server.broker_url, transport_options=options) as connection:
            producer = connection.Producer()
            for _ in range(2):
                with pytest.raises(CFQueuesError):
                    producer.publish("x", routing_key="jobs")
            with contextlib.nullcontext() if reaches_others else pytest.raises(CFQueuesError):
                producer.publish("x", routing_key="others")
        assert len(posts(server)) == 1 + reaches_others
    assert len(api.messages["others"]) == reaches_others


def test_a_queue_that_is_overloaded_is_no_block(spool, caplog):
    """It is so today: others go on, and it is no warning of the token."""
    api = Api(["jobs", "others"])
    refusal = Json(429, {"success": False, "errors": [{"code": 10250, "message": "overloaded"}]})
    with ScriptedServer(otherwise=api) as server:
        options = {**spool, "publish_timeout": 1}
        with Connection(server.broker_url, transport_options=options) as connection:
            connection.Producer().publish("x", routing_key="jobs")
            jobs = api.ids["jobs"]
            server.otherwise = lambda r: refusal if f"{jobs}/messages" in r.path else api(r)
            with pytest.raises(CFQueuesError):
                connection.Producer().publish("x", routing_key="jobs")
            connection.Producer().publish("x", routing_key="others")
    assert len(api.messages["others"]) == 1
