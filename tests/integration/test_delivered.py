"""Whether the message can have arrived: each exception that a publish raises says so.

An application that catches `OperationalError` needs it, to know whether sending again may make a
duplicate.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from support.processes import ROOT
from support.scripted import After, Api, Die, Drop, Failure, Hang, Html, ScriptedServer

import kombu_cfqueues
from kombu_cfqueues.emulator import ACCOUNT_ID, TOKEN, Emulator


@pytest.fixture
def nobody():
    """The URL of a server that is away."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"cfqueues://{ACCOUNT_ID}:{TOKEN}@127.0.0.1:{free.getsockname()[1]}/"


def app_for(url, **options):
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    app.conf.broker_transport_options = {"publish_timeout": 1, **options}
    return app


def failure_of(send):
    with pytest.raises(Exception) as raised:  # noqa: PT011  any, as long as it says
        send()
    return raised.value


# -- the server is away at the first publish


@pytest.mark.parametrize("retry", [True, False])
def test_celery_says_so_where_nobody_answers(nobody, retry):
    with app_for(nobody) as app:
        error = failure_of(lambda: app.send_task("add", queue="jobs", retry=retry))
    assert isinstance(error, OperationalError)
    assert error.delivered == "no"


@pytest.mark.parametrize("retry", [True, False])
def test_kombu_says_so_where_nobody_answers(nobody, retry):
    with Connection(nobody, transport_options={"publish_timeout": 1}) as connection:
        policy = {"retry": True, "retry_policy": {"max_retries": 1}} if retry else {}
        error = failure_of(lambda: connection.Producer().publish({}, routing_key="jobs", **policy))
    assert isinstance(error, OperationalError)
    assert error.delivered == "no"


@pytest.mark.parametrize("step", [Drop(), Failure(503, 15000), Html(502), Failure(429, 971)])
def test_connecting_has_sent_no_message(step):
    with ScriptedServer(otherwise=lambda _: step) as server, app_for(server.broker_url) as app:
        error = failure_of(lambda: app.send_task("add", queue="jobs", retry=False))
    assert error.delivered == "no"


def test_it_says_so_with_several_urls(nobody):
    """Kombu wraps the last one's error anew."""
    with app_for(f"{nobody};{nobody}") as app:
        error = failure_of(lambda: app.send_task("add", queue="jobs"))
    assert error.delivered == "no"


@pytest.mark.parametrize("others", [1, 2])
def test_it_says_so_after_another_connection_was_lost(nobody, others):
    """The first URL took the message and died; all others are away: perhaps it arrived.

    With two of them, Kombu raises the error of connecting to the last one.
    """
    api = Api(["jobs"])
    with (
        ScriptedServer(
            otherwise=lambda r: Die() if r.path.endswith("/messages") else api(r)
        ) as server,
        app_for(";".join([server.broker_url, *[nobody] * others])) as app,
    ):
        error = failure_of(lambda: app.send_task("add", queue="jobs"))
    assert error.delivered == "unknown"


def test_it_says_so_after_another_broker_has_perhaps_taken_it():
    """The second answers that it has not taken it, which says nothing of the first."""
    api = Api(["jobs"])
    with (
        ScriptedServer(
            otherwise=lambda r: Die() if r.path.endswith("/messages") else api(r)
        ) as one,
        ScriptedServer(
            otherwise=lambda r: Failure(503, 1) if r.path.endswith("/messages") else api(r)
        ) as two,
        app_for(f"{one.broker_url};{two.broker_url}") as app,
    ):
        policy = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
        error = failure_of(lambda: app.send_task("add", queue="jobs", retry_policy=policy))
    assert error.delivered == "unknown"


def test_the_next_message_over_the_same_connection_is_not_in_doubt():
    """The doubt is that of one message."""
    api = Api(["jobs"])
    steps = [Die()]
    with (
        ScriptedServer(
            otherwise=lambda r: (
                (steps.pop() if steps else Failure(503, 1))
                if r.path.endswith("/messages")
                else api(r)
            )
        ) as server,
        Connection(
            f"{server.broker_url};{server.broker_url}", transport_options={"publish_timeout": 1}
        ) as connection,
    ):
        producer = connection.Producer()
        assert failure_of(lambda: producer.publish(1, routing_key="jobs")).delivered == "unknown"
        assert failure_of(lambda: producer.publish(2, routing_key="jobs")).delivered == "no"


@pytest.mark.parametrize(
    ("step", "delivered"),
    [(Drop(), "unknown"), (Hang(), "unknown"), (Failure(503, 15000), "no"),
     (Failure(400, 10207), "no"), (Failure(403, 10000), "no"), (Html(502), "unknown"),
     (Failure(404, 10104), "no")],
)  # fmt: skip
def test_a_publish_that_was_answered_says_so(step, delivered):
    """It is so today."""
    api = Api(["jobs"])
    with (
        ScriptedServer(
            otherwise=lambda r: step if r.path.endswith("/messages") else api(r)
        ) as server,
        app_for(server.broker_url, read_timeout=0.5) as app,
    ):
        error = failure_of(lambda: app.send_task("add", queue="jobs", retry=False))
    assert error.delivered == delivered


@pytest.mark.parametrize(
    "how",
    [
        {"exchange": "nobody", "routing_key": "x"},
        {"queue": "..."},
        {"queue": "jobs", "headers": {"weight": float("nan")}},
        {"queue": "jobs", "countdown": 40 * 86_400},
        {"queue": "jobs", "delay_seconds": -1},
    ],
)
def test_a_message_that_is_refused_here_says_so(emulator, how):
    with app_for(emulator.broker_url) as app:
        error = failure_of(lambda: app.send_task("add", **how))
    assert error.delivered == "no"


def test_a_batch_says_so_as_a_whole(emulator):
    """``BatchPublishError`` has it by message; whoever catches all asks for it alike."""
    with Connection(emulator.broker_url, transport_options={"publish_timeout": 1}) as connection:
        producer = connection.Producer()
        producer.publish("x", routing_key="jobs")
        emulator.faults.error("batch", "push", status=400, code=10207, times=None)

        def send():
            with kombu_cfqueues.batch(producer.connection):
                producer.publish("y", routing_key="jobs")

        assert failure_of(send).delivered == "no"
        emulator.faults.clear()
        emulator.faults.lost_response("batch", "push", times=None)
        assert failure_of(send).delivered == "unknown"


def test_a_connection_that_was_closed_says_so(emulator):
    connection = Connection(emulator.broker_url)
    producer = connection.Producer()
    channel = connection.default_channel
    message = channel.prepare_message("{}", content_type="application/json")
    connection.release()
    error = failure_of(lambda: channel.basic_publish(message, "", "jobs"))
    assert error.delivered == "no"
    assert producer


def publish_while_another_thread_closes(step, *, retry_uncertain, **how):
    """Publish; close the connection once the request has left, and then answer with *step*.

    Returns what the publish raised, and how many requests left.
    """
    api, closed, errors = Api(["jobs"]), threading.Event(), []

    def publish():
        options = {"publish_timeout": 1, "retry_uncertain": retry_uncertain}
        connections.append(connection := Connection(server.broker_url, transport_options=options))
        producer = connection.Producer()
        errors.append(failure_of(lambda: producer.publish({}, routing_key="jobs", **how)))

    connections = []
    with ScriptedServer(
        otherwise=lambda r: After(closed, step) if r.path.endswith("/messages") else api(r)
    ) as server:
        thread = threading.Thread(target=publish)
        thread.start()
        assert server.wait_for(lambda: server.targets("POST", "/messages"))
        connections[0].release()
        closed.set()
        thread.join(10)
        return errors[0], len(server.targets("POST", "/messages"))


@pytest.mark.parametrize("retry_uncertain", [True, False])
@pytest.mark.parametrize(("step", "delivered"), [(Drop(), "unknown"), (Failure(503, 15000), "no")])
def test_a_publish_whose_connection_is_closed_meanwhile_says_so(step, delivered, retry_uncertain):
    error, _ = publish_while_another_thread_closes(step, retry_uncertain=retry_uncertain)
    assert isinstance(error, OperationalError)
    assert error.delivered == delivered


def test_it_is_not_published_again_over_another_connection_if_so_asked():
    """With ``retry_uncertain=False`` nobody may repeat it, Kombu included."""
    policy = {"retry": True, "retry_policy": {"max_retries": 2, "interval_start": 0}}
    error, requests = publish_while_another_thread_closes(Drop(), retry_uncertain=False, **policy)
    assert error.delivered == "unknown"
    assert requests == 1


# -- in time: connecting is Kombu's to repeat, and what follows is ours.  It is so today.


@pytest.mark.parametrize(
    "how", [{"retry": False}, {"timeout": 0.5}, {"retry": False, "timeout": 0.5}], ids=str
)
@pytest.mark.parametrize("hangs", [True, False])
def test_a_publish_ends_when_it_was_told_to(how, hangs):
    """Once connected; ``publish_timeout`` is 1 s."""
    api = Api(["jobs"])
    with ScriptedServer(otherwise=api) as server, app_for(server.broker_url) as app:
        app.send_task("add", queue="jobs")
        server.otherwise = lambda _: Hang() if hangs else Drop()
        began = time.monotonic()
        error = failure_of(lambda: app.send_task("add", queue="jobs", **how))
        assert time.monotonic() - began < 5
    assert error.delivered == "unknown"


def test_kombus_own_option_ends_connecting(nobody):
    """Where nobody answers, Kombu tries for 6 s, with Redis as with us; ``max_retries`` ends it."""
    with app_for(nobody, max_retries=0) as app:
        began = time.monotonic()
        failure_of(lambda: app.send_task("add", queue="jobs", retry=False))
        assert time.monotonic() - began < 5


# -- while the interpreter ends


def run(code, url, options):
    """A script that ends, and all that it says."""
    prelude = f"""
        import sys, atexit, json
        from kombu import Connection
        import kombu_cfqueues
        from kombu_cfqueues.errors import CFQueuesError
        connection = Connection({url!r}, transport_options={options!r})
        # Made before the end, as Kombu itself imports a module to make one.
        producer = connection.Producer(auto_declare=False)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=15,  # a few seconds at the end are promised; for ever is not
        check=False,
    )


AT_THE_END = {
    "del": """
        class Late:
            def __del__(self):
                try:
                    producer.publish("late", routing_key="jobs")
                except CFQueuesError as error:
                    print("typed", error.delivered, file=sys.stderr, flush=True)
                except BaseException as error:
                    print("raised", repr(error), file=sys.stderr, flush=True)
                else:
                    print("accepted", file=sys.stderr, flush=True)
        sys.modules["late"] = late = Late()
    """,
    "del, after a first publish": """
        producer.publish("early", routing_key="jobs")
        class Late:
            def __del__(self):
                try:
                    producer.publish("late", routing_key="jobs")
                except CFQueuesError as error:
                    print("typed", error.delivered, file=sys.stderr, flush=True)
                except BaseException as error:
                    print("raised", repr(error), file=sys.stderr, flush=True)
                else:
                    print("accepted", file=sys.stderr, flush=True)
        sys.modules["late"] = late = Late()
    """,
}


@pytest.mark.parametrize("code", AT_THE_END.values(), ids=AT_THE_END)
@pytest.mark.parametrize("mode", ["confirm", "spool"])
def test_a_publish_while_the_interpreter_ends_is_accepted_or_a_typed_error(tmp_path, code, mode):
    """No `ImportError` of ours, and no acceptance of what never leaves."""
    with Emulator() as emulator:
        emulator.create_queue("jobs")
        options = {"publish_mode": mode, "spool_dir": str(tmp_path / "spool")}
        done = run(code, emulator.broker_url, options)
        bodies = [json.loads(m.body)["body"] for m in emulator.messages("jobs")]
    assert "raised" not in done.stderr, done.stderr
    assert "typed no" in done.stderr or "accepted" in done.stderr, done.stderr
    assert ("accepted" in done.stderr) == ("late" in bodies)


@pytest.mark.parametrize("target", ["connection", "app"])
@pytest.mark.parametrize("used", [True, False], ids=["used before", "first use"])
def test_a_batch_while_the_interpreter_ends_is_a_typed_error(target, used):
    """As without a batch; and what the process has done can still be read."""
    code = f"""
        from celery import Celery
        app = Celery(broker=connection.as_uri(include_password=True), set_as_current=False)
        app.send_task("early", queue="jobs")
        if {used}:
            with kombu_cfqueues.batch({target}):
                kombu_cfqueues.stats()
        class Late:
            def __del__(self):
                try:
                    with kombu_cfqueues.batch({target}):
                        producer.publish("late", routing_key="jobs")
                except kombu_cfqueues.errors.CFQueuesError as error:
                    print("typed", error.delivered, file=sys.stderr, flush=True)
                print(kombu_cfqueues.stats()["published"], "published", file=sys.stderr)
        sys.modules["late"] = late = Late()
    """
    with Emulator() as emulator:
        emulator.create_queue("jobs")
        done = run(code, emulator.broker_url, {})
    assert done.stderr.splitlines() == ["typed no", "1 published"]


@pytest.mark.parametrize("first", [True, False])
def test_a_late_atexit_in_spool_mode_is_delivered_or_says_that_it_is_not(tmp_path, first):
    """Handlers run last in, first out: an early one runs when ours is over."""
    code = f"""
        def late():
            producer.publish("late", routing_key="jobs")
            print("accepted", file=sys.stderr, flush=True)
        atexit.register(late)
        if {first}:
            producer.publish("early", routing_key="jobs")
    """
    with Emulator() as emulator:
        emulator.create_queue("jobs")
        options = {"publish_mode": "spool", "spool_dir": str(tmp_path / "spool")}
        done = run(code, emulator.broker_url, options)
        bodies = [json.loads(m.body)["body"] for m in emulator.messages("jobs")]
    said = "accepted" not in done.stderr or "spool" in done.stderr
    assert "late" in bodies or said, done.stderr
