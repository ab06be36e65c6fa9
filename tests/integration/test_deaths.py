"""Why a letter died: what dead letters say, who shows it, and that `redrive` takes it off."""

from __future__ import annotations

import json
import re
import socket
from datetime import datetime, timezone

import pytest
from click.testing import CliRunner
from kombu import Connection
from support.forms import first_of

from kombu_cfqueues.cli import peek, redrive
from kombu_cfqueues.consume.cause import MAX_TEXT_CHARACTERS, Cause
from kombu_cfqueues.envelope import repack
from kombu_cfqueues.envelope.deaths import MAX_DEATHS, with_death

from .consuming import FAST, Collector, consume, drain, drain_until_it_fails, publish
from .workers import MATRIX, SOME_POOLS, Worker, until

OPTIONS = FAST | {"dead_letter_queue": "dead"}


def dead_letter(emulator, queue="dead"):
    (letter,) = until(lambda: emulator.messages(queue), what="a dead letter")
    return json.loads(letter.body)


def deaths(emulator, queue="dead"):
    return dead_letter(emulator, queue)["headers"]["x-death"]


@pytest.fixture(autouse=True)
def dead(emulator):
    emulator.create_queue("dead")


@pytest.fixture
def connection(emulator):
    with Connection(emulator.broker_url, transport_options=OPTIONS) as connection:
        yield connection


def test_a_rejected_message_says_where_when_and_by_whom(connection, emulator):
    began = datetime.now(timezone.utc).replace(microsecond=0)
    publish(connection, 1, headers={"mine": "kept"})
    got = Collector(ack=False)
    with consume(connection, got):
        drain(connection, 1)
        got.messages[0].reject()
        (death,) = deaths(emulator)
    at = datetime.fromisoformat(death.pop("time"))
    assert began <= at <= datetime.now(timezone.utc)
    assert death == {
        "queue": "jobs",
        "reason": "rejected",
        "count": 1,
        "exception": "",
        "text": "",
        "hostname": socket.gethostname(),
        "attempts": 1,
    }
    assert dead_letter(emulator)["headers"]["mine"] == "kept"


def test_a_message_that_is_rejected_over_an_exception_names_it(connection, emulator):
    """`except Error: message.reject()`, as people write it."""
    publish(connection, 1)

    def handle(body, message):
        try:
            json.loads("{")
        except ValueError:
            message.reject()

    with consume(connection, handle):
        drain(connection, 1)
        (death,) = deaths(emulator)
    assert death["exception"] == "json.decoder.JSONDecodeError"
    assert death["text"].startswith("Expecting property name")


def test_a_message_whose_retries_are_used_up_names_the_last_exception(emulator):
    options = {**OPTIONS, "consumer_max_retries": 1}

    def fail(body, message):
        raise LookupError("no such customer")

    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection, 1)
        with pytest.raises(LookupError), consume(connection, fail):
            drain_until_it_fails(connection)
    (death,) = deaths(emulator)
    assert (death["reason"], death["exception"]) == ("delivery_limit", "LookupError")
    assert death["text"] == "no such customer"


def test_a_message_without_headers_stays_what_it_was(connection, emulator):
    """A Worker that reads the dead letters gets the JSON that a Worker has sent."""
    plain = {"body_format": "plain", "content_type": "json"}
    with Connection(emulator.broker_url, transport_options=plain) as other:
        publish(other, {"from": "a Worker"})
    got = Collector(ack=False)
    with consume(connection, got, accept=["json"]):
        drain(connection, 1)
        got.messages[0].reject()
        assert dead_letter(emulator) == {"from": "a Worker"}


def test_a_reason_that_does_not_fit_is_left_out(connection, emulator):
    """The message is worth more."""
    publish(connection, "x" * 127_300, serializer="raw", content_type="text/plain")
    (before,) = emulator.messages("jobs")
    got = Collector(ack=False)
    with consume(connection, got):
        drain(connection, 1)
        try:
            raise ValueError("y" * 1000)
        except ValueError:
            got.messages[0].reject()
        assert dead_letter(emulator) == json.loads(before.body)


@pytest.mark.parametrize("pool", first_of(SOME_POOLS))
def test_a_worker_says_which_exception(emulator, tasks, tmp_path, pool):
    """The task failed in a child or in a thread, and another one rejects its message."""
    with Worker(emulator, tmp_path, pool=pool, options=OPTIONS) as worker:
        tasks.reject.delay("a", False)
        tasks.fail_for_good.delay("b")
        tasks.app.send_task("tasks.unknown")
        until(lambda: len(emulator.messages("dead")) == 3)
        assert worker.stop() == 0
    found = {}
    for letter in emulator.messages("dead"):
        headers = json.loads(letter.body)["headers"]
        (found[headers["task"]],) = headers["x-death"]
    told = {name: (one["exception"], one["text"]) for name, one in found.items()}
    assert told["tasks.reject"][0] == "celery.exceptions.Reject"
    assert "as told" in told["tasks.reject"][1]
    assert told["tasks.fail_for_good"] == ("ZeroDivisionError", "no b")
    assert "tasks.unknown" in told["tasks.unknown"][1]
    assert {one["hostname"] for one in found.values()} == {f"celery@{socket.gethostname()}"}
    assert {one["queue"] for one in found.values()} == {"celery"}


@pytest.mark.parametrize(
    ("pool", "task", "exception"),
    [
        ("prefork", "die", "billiard.exceptions.WorkerLostError"),
        *(
            [
                ("prefork", "overdue_for_good", "billiard.exceptions.TimeLimitExceeded"),
                ("gevent", "overdue_for_good", "gevent.timeout.Timeout"),
            ]
            if MATRIX
            else []
        ),
    ],
)
def test_a_task_that_is_cut_off_says_so(emulator, tasks, tmp_path, pool, task, exception):
    """No line of the task runs any more, and Celery rejects its message for it."""
    options = {**OPTIONS, "consumer_max_retries": 0}
    with Worker(emulator, tmp_path, pool=pool, options=options) as worker:
        tasks.app.send_task(f"tasks.{task}", ["a"])
        until(lambda: emulator.messages("dead"), what=worker.log)
        (death,) = deaths(emulator)
    assert (death["exception"], death["reason"]) == (exception, "delivery_limit")


def test_a_body_that_no_worker_can_decode_says_so(emulator, tasks, tmp_path):
    with Connection(emulator.broker_url) as connection:
        headers = {"task": "tasks.note", "id": "1", "lang": "py"}
        publish(
            connection,
            "{",
            queue="celery",
            headers=headers,
            content_type="application/json",
            content_encoding="utf-8",
            serializer=None,
        )
    with Worker(emulator, tmp_path, pool="solo", options=OPTIONS):
        (death,) = deaths(emulator)
    assert death["reason"] == "undecodable"
    assert death["exception"]


def test_peek_shows_why_and_redrive_takes_it_off(connection, emulator, monkeypatch):
    publish(connection, {"customer": 7})
    got = Collector(ack=False)
    with consume(connection, got):
        drain(connection, 1)
        try:
            raise RuntimeError("the printer\nburns")
        except RuntimeError:
            got.messages[0].reject()
        until(lambda: emulator.messages("dead") and not emulator.messages("jobs"))
    run = CliRunner().invoke
    arguments = ["--broker", emulator.broker_url]

    shown = run(peek.command, [*arguments, "dead"])
    assert "died=rejected in jobs on" in shown.output
    assert "RuntimeError: the printer burns" in re.sub(r"\s+", " ", shown.output)
    (line,) = run(peek.command, [*arguments, "dead", "--json"]).output.splitlines()
    assert json.loads(line)["death"]["exception"] == "RuntimeError"

    moved = run(redrive.command, [*arguments, "dead", "--to", "jobs", "--match", "printer"])
    assert "Moved 1 message" in moved.output
    (back,) = emulator.messages("jobs")
    assert "x-death" not in json.loads(back.body)["headers"]
    assert back.content == {"customer": 7}


def test_a_second_death_of_the_same_kind_is_counted():
    """As in RabbitMQ: one entry for each queue and reason, the latest first."""
    message = {"headers": {}, "body": ""}
    for queue, reason in [("a", "rejected"), ("b", "rejected"), ("a", "rejected")]:
        message = with_death(message, {"queue": queue, "reason": reason})
    found = message["headers"]["x-death"]
    assert [(one["queue"], one["count"]) for one in found] == [("a", 2), ("b", 1)]
    for number in range(2 * MAX_DEATHS):
        message = with_death(message, {"queue": str(number), "reason": "rejected"})
    assert len(message["headers"]["x-death"]) == MAX_DEATHS


@pytest.mark.parametrize(
    "strange",
    [
        '{"body":"x","headers":{"n":NaN},"properties":{}}',
        '{"body":"x","headers":{"n":"\\ud800"},"properties":{}}',
        '{"body":"x","headers":{"n":{"__type__":"decimal","__value__":"x"}},"properties":{}}',
        '{"body":"x","headers":' + '{"n":' * 200 + "1" + "}" * 200 + ',"properties":{}}',
    ],
)
def test_an_envelope_that_python_reads_and_does_not_write_is_moved_as_well(strange):
    """A hostile message must not stay for ever, because it cannot say why it died."""
    raw = {"body": strange, "metadata": {"CF-Content-Type": "text"}}
    packed = repack(raw, death={"queue": "a", "reason": "rejected"})
    moved = json.loads(json.loads(packed.encode())["body"])
    assert moved["body"] == "x"
    assert repack(raw, forget_deaths=True).encode()


@pytest.mark.parametrize("forged", [3, "x", {"a": 1}, [1, None, "x"], [{"count": "x"}]])
def test_a_forged_header_does_no_harm(forged):
    message = {"headers": {"x-death": forged}, "body": ""}
    found = with_death(message, {"queue": "a", "reason": "rejected"})["headers"]["x-death"]
    assert found[0] == {"queue": "a", "reason": "rejected", "count": 1}


def test_the_text_of_an_exception_is_bounded_and_may_fail():
    class Strange(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    assert len(Cause.of(ValueError("x" * 9999)).text) == MAX_TEXT_CHARACTERS
    assert Cause.of(Strange()).text == ""
    assert Cause.of(OSError("no file \udcff")).text == "no file ?"
    assert Cause.of(None) == Cause()
