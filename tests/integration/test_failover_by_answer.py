"""With several broker URLs, a broker that answers and does not serve is left like a dead one.

``delivered="no"`` says that the message is nowhere, so that the next URL may have it at once.
"""

from __future__ import annotations

import time

import kombu
import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError
from support.scripted import Api, Drop, Failure, Html, Json, ScriptedServer

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import (
    CFQueuesError,
    ConnectionFailed,
    PlanLimitReached,
    PublishTimeout,
    ServerError,
)

#: Answers of a server that has surely not taken the message.
SURELY_NOT = {
    "503": Failure(503, 15000),
    "503 for an hour": Failure(503, 15000, Retry_After="3600"),
    "503 in HTML": Html(503),
    "429": Failure(429, 971, Retry_After="30"),
    "429 without a time": Failure(429, 971),
    "429 in HTML": Html(429),
    "429 of the edge": Json(429, {"title": "Error 1015"}),
    "the queue is overloaded": Failure(429, 10250, Retry_After="20"),
    "the queue is full": Failure(429, 10251),
    "the queue is disabled": Failure(429, 10252),
    "the plan's operations of the day are used up": Failure(429, 10253),
}


@pytest.fixture
def second():
    with Emulator() as emulator:
        emulator.create_queue("jobs")
        yield emulator


def first(answer, *, where="/messages"):
    """A broker that connects, and answers every publish so."""
    api = Api(["jobs"])
    return ScriptedServer(otherwise=lambda r: answer if r.path.endswith(where) else api(r))


def urls(*brokers):
    return ";".join(broker.broker_url for broker in brokers)


def send(url, *, publish_timeout=8.0, **how):
    """Send one task as Celery does by default; return how long it took."""
    app = Celery("shop", broker=url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    app.conf.broker_transport_options = {"publish_timeout": publish_timeout}
    began = time.monotonic()
    with app:
        app.send_task("add", queue="jobs", **how)
    return time.monotonic() - began


@pytest.mark.parametrize("answer", SURELY_NOT.values(), ids=SURELY_NOT)
def test_the_next_url_is_tried_at_once(second, answer):
    with first(answer) as broker:
        seconds = send(urls(broker, second))

    assert len(second.messages("jobs")) == 1
    assert seconds < 4


@pytest.mark.parametrize("answer", [Failure(500, 15000), Html(502), Failure(504, None)])
def test_so_it_is_after_an_uncertain_answer_that_may_be_repeated(second, answer):
    """With ``retry_uncertain``, the default, it would be posted to the same broker once more."""
    with first(answer) as broker:
        seconds = send(urls(broker, second))

    assert len(second.messages("jobs")) == 1
    assert seconds < 4


@pytest.mark.parametrize("answer", [Failure(503, 15000), Failure(429, 971, Retry_After="30")])
def test_the_next_url_is_tried_at_once_where_looking_the_queue_up_is_answered_so(second, answer):
    """The first broker fails between connecting and the look-up: no message was sent at all."""
    api = Api()
    with ScriptedServer(otherwise=lambda r: answer if "name" in r.query else api(r)) as broker:
        seconds = send(urls(broker, second))

    assert len(second.messages("jobs")) == 1
    assert seconds < 4


def test_a_broker_whose_allowance_is_used_up_is_left(second, tmp_path):
    """Our own waiting is no better than another's answer: here, a stop that an earlier 429 made."""
    options = {"publish_timeout": 8, "spool_dir": str(tmp_path / "spool"), "request_rate": 20.0}
    with first(Failure(429, 971, Retry_After="30")) as broker:
        for _ in range(2):
            began = time.monotonic()
            with Connection(urls(broker, second), transport_options=options) as connection:
                connection.Producer().publish({}, routing_key="jobs", retry=True)
            assert time.monotonic() - began < 4
        posts = broker.targets("POST", "/messages")

    assert len(second.messages("jobs")) == 2
    assert len(posts) == 1, "the second publish waits for the stop of the first"


@pytest.mark.parametrize("others", [(), ("other",)], ids=["nothing there", "others' queues there"])
def test_what_was_bound_at_the_first_is_bound_at_the_next(second, others):
    """To the application the URLs are one broker, and it declares its queues once."""
    shop = Exchange("shop", type="topic")
    orders = Queue("orders", shop, routing_key="order.#")
    api = Api(["orders"])
    answers: list[Failure] = []
    with (
        ScriptedServer(
            otherwise=lambda r: answers[0] if answers and "/messages" in r.path else api(r)
        ) as broker,
        Connection(urls(broker, second)) as declaring,
        Connection(urls(broker, second)) as publishing,
        Connection(second.broker_url) as alone,
    ):
        for name in others:
            Queue(name, shop, routing_key="other", channel=alone.default_channel).declare()
        orders(declaring.default_channel).declare()
        producer = publishing.Producer()
        how = {"exchange": "shop", "routing_key": "order.new", "retry": True}
        producer.publish("first", **how)
        answers.append(Failure(503, 15000))
        for body in ("second", "third"):
            producer.publish(body, **how)
        alone.Producer().publish("of another connection", **how)
        for name in others:
            alone.Producer().publish("x", exchange="shop", routing_key="other")
            assert len(second.messages(name)) == 1
    assert len(second.messages("orders")) == 3


def test_kombus_own_retries_leave_it_too(second):
    """``Producer.publish(retry=True)``, without Celery."""
    with (
        first(Failure(503, 15000)) as broker,
        Connection(urls(broker, second), transport_options={"publish_timeout": 8}) as connection,
    ):
        connection.Producer().publish({}, routing_key="jobs", retry=True)
    assert len(second.messages("jobs")) == 1


@pytest.mark.skipif(
    kombu.VERSION < (5, 7), reason="Kombu before 5.7 raises what the last URL answers to a publish"
)
def test_it_goes_on_in_turn_while_both_are_down_for_a_moment(second):
    """Where each answers 503 the time is shared, and the first that recovers gets the message."""
    second.faults.error("push", status=503, times=2)
    api = Api(["jobs"])
    with first(Failure(503, 15000)) as broker:
        seconds = send(urls(broker, second), publish_timeout=4, retry_policy={"max_retries": 8})
    assert len(second.messages("jobs")) == 1
    assert seconds < 6
    assert not api.messages["jobs"]


def test_it_ends_where_no_broker_serves():
    """An error that says that nothing arrived, within the time of one publish."""
    with first(Failure(503, 15000)) as one, first(Failure(503, 15000)) as two:
        began = time.monotonic()
        with pytest.raises(Exception) as raised:  # noqa: PT011  OperationalError or one of ours
            send(urls(one, two), publish_timeout=1)
        seconds = time.monotonic() - began
    assert raised.value.delivered == "no"
    assert seconds < 6


def test_each_broker_is_asked_once_where_the_plans_of_all_accounts_are_used_up(caplog):
    answer = Failure(429, 10253)
    with first(answer) as one, first(answer) as two:
        with pytest.raises(OperationalError) as raised:
            send(urls(one, two), publish_timeout=1)
        posts = [broker.targets("POST", "/messages") for broker in (one, two)]
    assert raised.value.delivered == "no"
    assert [len(one) for one in posts] == [1, 1]
    assert caplog.text.count("operations for today are used up") == 2


def test_without_another_url_a_used_up_plan_is_no_reason_to_wait():
    with first(Failure(429, 10253)) as broker:
        began = time.monotonic()
        with pytest.raises(PlanLimitReached):
            send(broker.broker_url)
    assert time.monotonic() - began < 4


def test_a_broker_that_takes_no_messages_does_not_connect_for_a_moment(second):
    """Kombu before 5.7 goes on to the next URL only where connecting fails."""
    with (
        first(Failure(503, 15000)) as broker,
        Connection(urls(broker, second)) as connection,
    ):
        producer = connection.Producer()
        with pytest.raises(ServerError):
            producer.publish({}, routing_key="jobs")
        connection.collect()  # as Kombu does
        connection.connect()
        connection.Producer().publish({}, routing_key="jobs")
    assert len(second.messages("jobs")) == 1


# -- what is right today and stays


@pytest.mark.parametrize("answer", [Failure(500, 15000), Html(502), Failure(504, None)])
def test_after_an_uncertain_answer_the_message_is_in_one_place_if_so_asked(second, answer):
    """With ``retry_uncertain=False`` nobody may repeat it, Kombu included."""
    app_url = urls(broker := first(answer), second)
    options = {"publish_timeout": 2, "retry_uncertain": False}
    with (
        broker,
        Connection(app_url, transport_options=options) as connection,
        pytest.raises(CFQueuesError) as raised,
    ):
        connection.Producer().publish({}, routing_key="jobs", retry=True)
    assert raised.value.delivered == "unknown"
    assert not second.messages("jobs")


def test_without_another_url_the_same_broker_is_tried_again():
    """There is nowhere to go, so it waits, and ends in a `PublishTimeout` only if in vain."""
    api = Api(["jobs"])
    answers = [Failure(503, 15000), Html(503)]
    with ScriptedServer(
        otherwise=lambda r: answers.pop() if r.path.endswith("/messages") and answers else api(r)
    ) as broker:
        send(broker.broker_url)
    assert len(api.messages["jobs"]) == 1


def test_a_refusal_of_the_message_is_not_tried_elsewhere(second):
    """Another broker would refuse it as well, and the error would be the other's."""
    with first(Failure(400, 10207)) as broker, pytest.raises(CFQueuesError) as raised:
        send(urls(broker, second))
    assert not isinstance(raised.value, PublishTimeout)
    assert not second.messages("jobs")


def test_a_broker_that_is_gone_is_left_by_what_is_no_publish_too(second):
    """Kombu tries again over the next URL, which is better than trying the same one again."""
    api, gone = Api(["jobs"]), []
    with (
        ScriptedServer(otherwise=lambda r: Drop() if gone else api(r)) as broker,
        Connection(urls(broker, second)) as connection,
    ):
        channel = connection.default_channel
        channel.queue_declare("jobs")
        gone.append(True)
        before = len(broker.requests)
        with pytest.raises(ConnectionFailed):
            channel.basic_get("others")
        assert len(broker.requests) == before + 1
