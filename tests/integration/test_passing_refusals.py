"""Refusals that pass: of a token that has worked, and of a rate limit in any clothes.

Cloudflare answers 10000 and 10001 now and then to a valid token, and tells its rate limit by a code
that comes under other statuses than 429 too.
"""

from __future__ import annotations

import time

import pytest
from kombu import Connection, Exchange, Queue
from support.processes import Script, eventually
from support.scripted import Api, Failure, Json, ScriptedServer, Success

import kombu_cfqueues
from kombu_cfqueues.api import passing_refusals
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import (
    AuthenticationFailed,
    BatchPublishError,
    CFQueuesError,
    PermanentError,
    QueueNotFound,
    RateLimited,
)

FAST = {"polling_interval": 0.05, "max_polling_interval": 0.1}

#: What is seen answered to a valid token: status, code.
PASSING = [(403, 10000), (401, 10000), (400, 10000), (403, 10001), (500, 10001)]


@pytest.fixture
def emulator():
    with Emulator() as running:
        running.create_queue("jobs")
        yield running


def publish(connection, body="x"):
    connection.Producer().publish(body, routing_key="jobs")


def refuse(emulator, *routes, status, code, times):
    emulator.faults.error(
        *routes, status=status, code=code, message="Authentication error", times=times
    )


@pytest.mark.parametrize(("status", "code"), PASSING)
@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_a_token_that_has_worked_publishes_on(emulator, tmp_path, status, code, mode):
    options = {"publish_mode": mode, "spool_dir": str(tmp_path / "spool"), "request_rate": 50.0}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection)
        assert eventually(lambda: len(emulator.messages("jobs")) == 1, 5)
        refuse(emulator, "push", status=status, code=code, times=2)
        publish(connection)
        assert eventually(lambda: len(emulator.messages("jobs")) == 2, 5)


@pytest.mark.parametrize(("status", "code"), PASSING)
def test_a_token_that_has_worked_pulls_on(emulator, status, code):
    """A worker that is told of a refusal stops."""
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        queue = connection.SimpleQueue("jobs")
        publish(connection, 1)
        queue.get(timeout=5).ack()
        refuse(emulator, "pull", status=status, code=code, times=2)
        publish(connection, 2)
        message = queue.get(timeout=5)
        message.ack()
        queue.close()
    assert message.payload == 2


@pytest.mark.parametrize(("status", "code"), [(403, 10000), (403, 10001)])
def test_a_token_that_has_worked_gets_one_message_and_settles_on(emulator, status, code):
    """`basic_get` asks in the caller's thread; an acknowledgement that is lost runs it twice."""
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        channel = connection.default_channel
        publish(connection, 1)
        refuse(emulator, "pull", status=status, code=code, times=2)
        message = channel.basic_get("jobs")
        assert message is not None
        refuse(emulator, "ack", status=status, code=code, times=2)
        message.ack()
        assert eventually(lambda: not emulator.messages("jobs"), 5)


@pytest.mark.parametrize("route", ["list", "create", "list_consumers", "create_consumer"])
def test_a_token_that_has_worked_looks_queues_up_on(emulator, route):
    """A new queue at a bad moment."""
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        publish(connection)
        refuse(emulator, route, status=403, code=10000, times=1)
        connection.Producer().publish("x", routing_key="another")
        channel = connection.default_channel
        assert channel.basic_get("another") is not None


def test_it_is_tried_for_a_bounded_time(emulator):
    """A token that was revoked while the process ran: an answer comes, and says so."""
    options = {"publish_timeout": 20}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection)
        asked = len(emulator.requests)
        refuse(emulator, "push", status=403, code=10000, times=None)
        began = time.monotonic()
        with pytest.raises(AuthenticationFailed):
            publish(connection)
        seconds = time.monotonic() - began
    assert seconds < 15
    assert 2 < len(emulator.requests) - asked < 20


@pytest.mark.parametrize(("status", "code"), [(403, 10000), (403, 10001), (401, 10000)])
def test_a_token_that_has_never_worked_fails_at_once(status, code):
    """With a mistyped token nobody wants to wait.  It is so today, except for 10001."""
    with ScriptedServer(otherwise=lambda _: Failure(status, code)) as server:
        began = time.monotonic()
        with pytest.raises(AuthenticationFailed), Connection(server.broker_url) as connection:
            publish(connection)
        assert time.monotonic() - began < 5
        assert len(server.requests) == 1


def test_what_was_learned_is_kept_while_a_refusal_may_pass(emulator):
    """Looking all queues up again costs requests, of which there are few."""
    with Connection(emulator.broker_url) as connection:
        publish(connection)
        emulator.requests.clear()
        refuse(emulator, "push", status=403, code=10000, times=1)
        publish(connection)
        publish(connection)
    assert {request.route for request in emulator.requests} == {"push"}


CONNECT = """
    from kombu_cfqueues.errors import RateLimited
    session = connect().transport.session
    try:
        session.account.directory.probe(session.options, deadline=time.monotonic() + 1)
    except RateLimited:
        print(json.dumps("does not know whether the token works"))
    else:
        print(json.dumps("connected"))
"""


@pytest.fixture
def shared(tmp_path):
    """Options of processes that share an allowance, which is plenty."""
    return {"request_rate": 50.0, "spool_dir": str(tmp_path / "spool"), "publish_timeout": 1}


def connect_while_the_token_is_stopped(connection, emulator, options):
    """Let another process connect, which then depends on what the machine knows of the token."""
    emulator.faults.error("push", status=429, code=971, retry_after=60)
    with pytest.raises(CFQueuesError):
        publish(connection)
    asked = len(emulator.requests)
    with Script(CONNECT, emulator.broker_url, options) as another:
        (said,) = another.wait(60)
    assert len(emulator.requests) == asked
    return said


def test_the_machine_remembers_a_token_while_a_refusal_may_pass(emulator, shared):
    with Connection(emulator.broker_url, transport_options=shared) as connection:
        publish(connection)
        refuse(emulator, "push", status=403, code=10000, times=1)
        publish(connection)
        said = connect_while_the_token_is_stopped(connection, emulator, shared)
    assert said == "connected"


@pytest.mark.parametrize(("status", "code"), [(403, 10000), (400, 10000), (401, None)])
def test_the_machine_forgets_a_token_whose_refusal_counts(
    emulator, shared, status, code, monkeypatch
):
    monkeypatch.setattr(passing_refusals, "PASSING_SECONDS", 0.0)  # so the second one counts
    with Connection(emulator.broker_url, transport_options=shared) as connection:
        publish(connection)
        emulator.faults.error("push", status=status, code=code, times=None)
        with pytest.raises(AuthenticationFailed):
            publish(connection)
        emulator.faults.clear()
        said = connect_while_the_token_is_stopped(connection, emulator, shared)
    assert said == "does not know whether the token works"


# -- credentials that were not sent


@pytest.mark.parametrize("code", [9106, 9103])
def test_missing_credentials_are_an_error_of_authentication(code):
    """A proxy that takes the header away: the message is not what is wrong."""
    with (
        ScriptedServer(otherwise=lambda _: Failure(400, code, "Missing headers")) as server,
        pytest.raises(AuthenticationFailed, match=r"api_token|API token"),
        Connection(server.broker_url) as connection,
    ):
        publish(connection)


@pytest.mark.parametrize("code", [9106, 9103])
def test_missing_credentials_do_not_spoil_a_batch_message_by_message(emulator, code):
    """Taken for the messages' fault, each one is posted alone: a hundred requests."""
    with Connection(emulator.broker_url) as connection:
        publish(connection)
        emulator.requests.clear()
        refuse(emulator, "push", "batch", status=400, code=code, times=None)
        producer = connection.Producer()
        with pytest.raises(BatchPublishError), kombu_cfqueues.batch(producer.connection):  # noqa: PT012
            for number in range(20):
                producer.publish(number, routing_key="jobs")
    assert len(emulator.requests) < 10


# -- advice


@pytest.mark.parametrize(
    ("code", "status", "kind", "words"),
    [
        (11005, 400, PermanentError, "Worker"),
        (11017, 400, PermanentError, "R2"),
        (11006, 404, QueueNotFound, "consumer"),
    ],
)
def test_a_queue_that_cannot_be_deleted_says_what_holds_it(emulator, code, status, kind, words):
    """11006 says that a consumer is gone, and today that the queue is."""
    with Connection(emulator.broker_url) as connection:
        publish(connection)
        emulator.faults.error("delete", status=status, code=code, message="no")
        bound = Queue("jobs", Exchange(""), channel=connection.default_channel)
        if code == 11006:
            with pytest.raises(CFQueuesError) as raised:
                bound.delete()
            assert not isinstance(raised.value, QueueNotFound)
        else:
            with pytest.raises(kind) as raised:
                bound.delete()
        assert words in str(raised.value)


# -- the code decides, not the status


LIMITED = [(status, code) for code in (971, 6100, 10429) for status in (200, 403, 429, 500)]


@pytest.mark.parametrize(("status", "code"), LIMITED)
def test_a_rate_limit_is_one_under_any_status(status, code):
    """Requests of the whole token stop; each further one would make the block longer."""
    api = Api(["jobs"])
    refusal = Failure(status, code, "More than 1200 requests per 300 seconds reached")
    with ScriptedServer(
        otherwise=lambda r: refusal if r.path.endswith("/messages") else api(r)
    ) as server:
        options = {"publish_timeout": 2}
        with Connection(server.broker_url, transport_options=options) as connection:
            for _ in range(3):
                with pytest.raises(CFQueuesError) as raised:
                    publish(connection)
                cause = raised.value.__cause__ or raised.value
                assert isinstance(cause, RateLimited)
                assert raised.value.delivered == "no"
        assert len(server.targets("POST", "/messages")) == 1


@pytest.mark.parametrize(("status", "code"), [(200, 971), (500, 6100), (200, 10429)])
def test_its_retry_after_is_kept_under_any_status(status, code):
    api = Api(["jobs"])
    answers = [Failure(status, code, Retry_After="1")]
    with (
        ScriptedServer(
            otherwise=lambda r: (
                answers.pop() if r.path.endswith("/messages") and answers else api(r)
            )
        ) as server,
        Connection(server.broker_url) as connection,
    ):
        began = time.monotonic()
        publish(connection)
        assert 1 <= time.monotonic() - began < 4


@pytest.mark.parametrize("code", [10000, 10001, 9109, 10104, 11000, 10207, 7003, 15000])
def test_a_429_is_a_rate_limit_whatever_its_code(code):
    """A 429 that carries 10000 would end a worker for a token that is good."""
    api = Api(["jobs"])
    with ScriptedServer(
        otherwise=lambda r: Failure(429, code) if r.path.endswith("/messages") else api(r)
    ) as server:
        options = {"publish_timeout": 1}
        with Connection(server.broker_url, transport_options=options) as connection:
            with pytest.raises(CFQueuesError) as raised:
                publish(connection)
            cause = raised.value.__cause__ or raised.value
            assert isinstance(cause, RateLimited)
        assert len(server.targets("POST", "/messages")) == 1


def test_a_rate_limit_that_is_not_the_first_of_several_errors():
    """Cloudflare may put the general before the particular."""
    api = Api(["jobs"])
    errors = [{"code": 10000, "message": "Authentication error"}, {"code": 971, "message": "limit"}]
    refusal = Json(403, {"success": False, "errors": errors, "result": None})
    with ScriptedServer(
        otherwise=lambda r: refusal if r.path.endswith("/messages") else api(r)
    ) as server:
        options = {"publish_timeout": 1}
        with Connection(server.broker_url, transport_options=options) as connection:
            with pytest.raises(CFQueuesError) as raised:
                publish(connection)
            assert isinstance(raised.value.__cause__ or raised.value, RateLimited)


@pytest.mark.parametrize("status", [200, 500])
def test_pulling_stops_for_it_too(status):
    """A pull is exempt from the limit until somebody is told that it is not."""
    api = Api(["jobs"])
    pulls = []

    def answer(request):
        if request.path.endswith("/consumers"):
            return Success([{"type": "http_pull", "settings": {"max_retries": 100}}])
        if request.path.endswith("/pull"):
            pulls.append(time.monotonic())
            return Failure(status, 971, Retry_After="30")
        return api(request)

    with (
        ScriptedServer(otherwise=answer) as server,
        Connection(server.broker_url, transport_options=FAST) as connection,
    ):
        queue = connection.SimpleQueue("jobs")
        with pytest.raises(queue.Empty):
            queue.get(timeout=2)
        queue.close()
    assert len(pulls) <= 2


@pytest.mark.parametrize("status", [200, 403, 500])
def test_the_emulator_can_be_told_to_answer_so(emulator, status):
    """``faults.error`` takes a code under any status; under 200 too, it is a failure."""
    emulator.faults.error("push", status=status, code=971, retry_after=1)
    with Connection(emulator.broker_url) as connection:
        began = time.monotonic()
        publish(connection)
        assert time.monotonic() - began >= 1
