"""What Kombu consumers get, through the emulator."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from queue import Empty
from textwrap import dedent

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.exceptions import ChannelError

import kombu_cfqueues
from kombu_cfqueues.consume import pull_failures
from kombu_cfqueues.consume.settlement import Settlement
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    PermissionDenied,
    PullNotEnabled,
    QueueNotFound,
)

from .consuming import (
    FAST,
    PULL,
    Collector,
    arrived,
    consume,
    drain,
    drain_until_it_fails,
    nothing_comes,
    publish,
    settled,
)
from .workers import MATRIX, until, within


@pytest.fixture
def connection(emulator):
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        yield connection


# --- Delivery


def test_what_is_published_is_delivered_once(connection, emulator):
    publish(connection, *range(30))
    got = Collector()
    with consume(connection, got):
        drain(connection, 30)
    assert sorted(got.bodies) == list(range(30))
    settled(emulator)


def test_one_call_delivers_one_message(connection):
    """Celery makes one more call when it is told to stop, and starts all that the call delivers."""
    publish(connection, *range(10))
    got = Collector()
    with consume(connection, got, prefetch_count=10):
        for expected in range(1, 11):
            connection.drain_events(timeout=30)
            assert len(got.bodies) == expected


def test_draining_an_empty_queue_ends_at_its_timeout(connection):
    with consume(connection, Collector()):
        started = time.monotonic()
        nothing_comes(connection, 1)
    assert 0.9 <= time.monotonic() - started <= within(1.5, 10)


def test_draining_ends_at_its_timeout_while_the_server_hangs(emulator):
    options = {"read_timeout": 1.5}
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        consume(connection, Collector()),
    ):
        fault = emulator.faults.hang("pull", times=None)
        started = time.monotonic()
        nothing_comes(connection, 1)
        assert 0.9 <= time.monotonic() - started <= within(1.5, 10)
        assert fault.hits
        emulator.faults.clear()


def test_draining_without_a_timeout_waits_until_a_message_comes(connection, emulator):
    got = Collector()
    with consume(connection, got):
        threading.Timer(0.3, publish, (connection.clone(), "late")).start()
        connection.drain_events()
    assert got.bodies == ["late"]


def test_nothing_is_pulled_before_somebody_drains(connection, emulator):
    """A forked child inherits its parent's consumers, and need not consume."""
    with consume(connection, Collector()):
        time.sleep(0.2)
        assert not emulator.requests.of("pull")


def test_the_newest_of_two_consumers_of_one_queue_gets_its_messages(connection, emulator):
    """As in Kombu's other virtual transports; the one before goes on when it is cancelled."""
    publish(connection, *range(10))
    first, second = Collector(), Collector()
    with consume(connection, first):
        with consume(connection, second):
            drain(connection, 5)
        drain(connection, 5)
    assert sorted(first.bodies + second.bodies) == list(range(10))
    assert (len(first.bodies), len(second.bodies)) == (5, 5)
    settled(emulator)


def test_cancelling_one_of_two_consumers_leaves_the_other(connection, emulator):
    first, second = Collector(), Collector()
    with consume(connection, second):
        with consume(connection, first):
            pass
        publish(connection, "x")
        drain(connection, 1)
    assert second.bodies == ["x"]


def test_consumers_on_two_channels_of_one_connection_both_work(connection, emulator):
    first, second = Collector(), Collector()
    a = Consumer(connection.channel(), Queue("a"), callbacks=[first])
    b = Consumer(connection.channel(), Queue("b"), callbacks=[second])
    publish(connection, 1, queue="a")
    publish(connection, 2, queue="b")
    with a, b:
        drain(connection, 2)
    assert (first.bodies, second.bodies) == ([1], [2])


def test_a_consumer_without_acks_is_acked_on_receipt(connection, emulator):
    publish(connection, 1, 2)
    got = Collector(ack=False)
    with consume(connection, got, no_ack=True):
        drain(connection, 2)
        settled(emulator)


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_bodies_come_back_unchanged(connection, serializer, compression):
    body = {"text": "Grüße \U0001f600", "n": [1, 2.5, None]}
    body |= {"bytes": b"\xff\x00"} if serializer == "pickle" else {}
    publish(connection, body, serializer=serializer, compression=compression)
    got = Collector()
    with consume(connection, got, accept=["json", "pickle"]):
        drain(connection, 1)
    assert got.bodies == [body]


# --- Prefetch


def test_no_more_is_held_than_the_prefetch_count(connection, emulator):
    publish(connection, *range(20))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=3):
        drain(connection, 3)
        nothing_comes(connection, 0.3)
        states = [message.state for message in emulator.messages("jobs")]
        assert states.count("leased") == 3
        got.messages[0].ack()
        drain(connection, 1)
        assert len(got.bodies) == 4


def test_a_failed_ack_frees_its_prefetch_slot(connection, emulator):
    publish(connection, *range(5))
    got = Collector()
    with consume(connection, got, prefetch_count=1):
        drain(connection, 1)
        emulator.faults.error("ack", status=503, times=None)
        drain(connection, 3)
        emulator.faults.clear()
        drain(connection, 1)
    assert sorted(got.bodies) == list(range(5))


def test_getting_one_message_withholds_no_others(connection, emulator):
    """A script that wants one message and states no prefetch count leaves the rest to others."""
    publish(connection, *range(20))
    queue = connection.SimpleQueue("jobs")
    message = queue.get(timeout=30)
    time.sleep(0.2)
    states = [message.state for message in emulator.messages("jobs")]
    assert states.count("leased") == 1
    message.ack()
    queue.close()


def test_a_lowered_prefetch_count_holds_for_what_was_pulled_before(connection):
    publish(connection, *range(6))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=6) as consumer:
        drain(connection, 1)
        consumer.qos(prefetch_count=2)
        drain(connection, 1)
        nothing_comes(connection, 0.3)


# --- Settling


def test_acks_leave_together(connection, emulator):
    publish(connection, *range(50))
    with consume(connection, Collector(), prefetch_count=50):
        started = time.monotonic()
        drain(connection, 50)
        took = time.monotonic() - started
    settled(emulator)
    assert len(emulator.requests.of("ack")) <= 3 + took / 0.1


def test_an_ack_is_at_the_server_soon_while_its_thread_is_busy(connection, emulator):
    publish(connection, 1)
    got = Collector()
    with consume(connection, got, prefetch_count=1):
        drain(connection, 1)
        acked = time.time()
        # Never lets go of its thread, nor of more of the processor than it must.
        while not emulator.requests.of("ack") and time.time() < acked + 60:
            sum(range(1000))
    (request,) = emulator.requests.of("ack")
    assert request.time - acked < within(0.2, 10)


def test_a_requeued_message_is_there_for_the_very_next_get(connection, emulator):
    emulator.latency = 0.05
    queue = connection.SimpleQueue("jobs")
    publish(connection, "again")
    arrived(emulator)
    for _ in range(5):
        queue.get_nowait().requeue()
    message = queue.get_nowait()
    assert message.payload == "again"
    message.ack()
    with pytest.raises(Empty):
        queue.get_nowait()
    queue.close()


def test_a_requeued_message_is_there_although_a_consumer_pulls_ahead(connection):
    queue = connection.SimpleQueue("jobs")
    publish(connection, "again")
    message = queue.get(timeout=30)
    for _ in range(5):
        message.requeue()
        message = queue.get_nowait()
    message.ack()
    queue.close()


def test_what_a_consumer_has_pulled_ahead_is_there_for_a_get(connection, emulator):
    queue = connection.SimpleQueue("jobs")
    queue.channel.basic_qos(0, 10, False)
    publish(connection, *range(5))
    arrived(emulator)
    messages = [queue.get(timeout=30)]
    messages += [queue.get_nowait() for _ in range(4)]
    assert sorted(message.payload for message in messages) == list(range(5))
    for message in messages:
        message.ack()
    queue.close()


@pytest.mark.parametrize(("count", "overlap"), [(60, True), (5, False)])
def test_a_queue_that_is_full_is_pulled_twice_at_once(emulator, count, overlap):
    """While one answer is on its way, and no other: two would ask an empty queue twice as often."""
    options = {"pull_batch_size": 10, **FAST}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection, *range(count))
        emulator.faults.latency("pull", seconds=0.8)
        got = Collector()
        with consume(connection, got, prefetch_count=100):
            drain(connection, min(count, 40))
            if not overlap:
                nothing_comes(connection, 1)
        times = sorted(pull.time for pull in emulator.requests.of("pull"))
        assert len(times) > 1
        # The answer to one takes 0.8 s.
        assert any(after - before < 0.7 for before, after in itertools.pairwise(times)) is overlap


def pulls_in_flight(emulator, seconds):
    """Most pulls that were in flight at once, where each takes *seconds*."""
    times = sorted(pull.time for pull in emulator.requests.of("pull"))
    return max(sum(at <= other < at + 0.9 * seconds for other in times) for at in times)


def test_pulls_overlap_further_while_messages_flow(emulator):
    """A far server is used as fast as a near one; what is held stays within the prefetch count."""
    options = {"pull_batch_size": 10, **FAST}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        with connection.Producer() as producer, kombu_cfqueues.batch(producer.connection):
            for number in range(300):
                producer.publish(number, routing_key="jobs")
        emulator.faults.latency("pull", seconds=0.3)
        got = Collector()
        with consume(connection, got, prefetch_count=40):
            drain(connection, 200)
            assert emulator.requests.of("pull")
            leased = [message.state for message in emulator.messages("jobs")].count("leased")
            drain(connection, 100)
        assert sorted(got.bodies) == list(range(300))
    assert leased <= 40
    assert 2 < pulls_in_flight(emulator, 0.3) <= 5


def test_an_almost_empty_queue_is_pulled_twice_for_each_message(emulator):
    """An empty pull is billed: one finds the message, and one shows that it was the last."""
    options = {"polling_interval": 300, "max_polling_interval": 300}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        emulator.faults.latency("pull", seconds=0.02)
        with consume(connection, Collector(), prefetch_count=8):
            nothing_comes(connection, 0.1)
            for number in range(12):
                publish(connection, number)
                drain(connection, 1)
                nothing_comes(connection, 0.1)
            settled(emulator)
        assert len(emulator.requests.of("pull")) <= 1 + 2 * 12


def test_pulls_that_fail_together_delay_the_next_ones_once(emulator):
    options = {"pull_batch_size": 10, **FAST}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        with connection.Producer() as producer, kombu_cfqueues.batch(producer.connection):
            for number in range(300):
                producer.publish(number, routing_key="jobs")
        emulator.faults.latency("pull", seconds=0.3)
        with consume(connection, Collector(), prefetch_count=100):
            drain(connection, 150)
            emulator.faults.error("pull", status=502, times=4)
            drain(connection, 150)
        pulls = sorted(emulator.requests.of("pull"), key=lambda pull: pull.time)
    assert [pull.status for pull in pulls].count(502) == 4
    # Four failures one after the other make pauses of up to 4 s.
    assert max(b.time - a.time for a, b in itertools.pairwise(pulls)) < 2


def test_pulls_wait_for_acknowledgements_that_leave_slowly(emulator):
    """A handler that is faster than they are does not fill the memory with them."""
    options = {"pull_batch_size": 50}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        with connection.Producer() as producer, kombu_cfqueues.batch(producer.connection):
            for number in range(2000):
                producer.publish(number, routing_key="jobs")
        emulator.faults.latency("ack", seconds=0.8)
        waiting = []

        def handle(body, message) -> None:
            message.ack()
            handle.count += 1
            if handle.count % 100 == 0:
                acks = emulator.requests.of("ack")
                waiting.append(handle.count - sum(ack.body.count(b"lease_id") for ack in acks))

        handle.count = 0
        with consume(connection, handle, prefetch_count=1000):
            drain(connection, 2000)
    # 5 requests in flight, 200 that wait, 250 that were pulled ahead when these were too many, and
    # what came while a pull was awaited.
    assert max(waiting) <= 500 + 200 + 250 + 100


def test_no_pull_leaves_while_a_message_is_on_its_way_back(connection, emulator):
    """It would bring nothing, and cost as much as one that does."""
    emulator.faults.latency("ack", seconds=0.5)
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=1):
        publish(connection, "x")
        drain(connection, 1)
        before = len(emulator.requests.of("pull"))
        got.messages[0].requeue()
        drain(connection, 1)

        assert len(emulator.requests.of("pull")) == before + 1
        got.messages[1].ack()


def test_a_requeued_message_comes_at_once_to_a_consumer_that_found_its_queue_empty(emulator):
    options = {"polling_interval": 300, "max_polling_interval": 300}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection, "x")
        arrived(emulator)
        got = Collector(ack=False)
        with consume(connection, got, prefetch_count=5):
            drain(connection, 1)
            until(lambda: [r.status for r in emulator.requests.of("pull")].count(200) == 2)
            got.messages[0].requeue()
            drain(connection, 1)


def test_acknowledging_several_at_once(connection, emulator):
    publish(connection, *range(4))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=4):
        drain(connection, 4)
        got.messages[2].ack(multiple=True)
        until(lambda: len(emulator.messages("jobs")) == 1)
        got.messages[3].ack()
        settled(emulator)


def test_recover_gives_back_what_is_unsettled(connection, emulator):
    publish(connection, *range(3))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=3) as consumer:
        drain(connection, 3)
        consumer.recover(requeue=True)
        drain(connection, 3)
        assert sorted(got.bodies[3:]) == [0, 1, 2]
        with pytest.raises(NotImplementedError):
            consumer.recover()


def test_a_message_says_that_it_comes_again(connection):
    publish(connection, "x")
    got = Collector(ack=False)
    with consume(connection, got):
        drain(connection, 1)
        got.messages[0].requeue()
        drain(connection, 1)
    first, second = (message.delivery_info for message in got.messages)
    assert not first["redelivered"]
    assert second["redelivered"]
    assert (first["exchange"], first["routing_key"]) == ("", "jobs")


# --- Rejecting


def test_a_rejected_message_goes_to_the_dead_letter_queue(emulator):
    options = {**FAST, "dead_letter_queue": "graves"}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection, {"n": 1})
        (published,) = emulator.messages("jobs")
        got = Collector(ack=False)
        with consume(connection, got):
            drain(connection, 1)
            got.messages[0].reject()
            settled(emulator)
        (dead,) = emulator.messages("graves")
        envelope, before = json.loads(dead.body), json.loads(published.body)
        assert envelope["headers"].pop("x-death")[0]["reason"] == "rejected"
        assert envelope == before


def test_a_dead_letter_that_cannot_be_published_yet_is_lost_in_no_queue(emulator):
    options = {**FAST, "dead_letter_queue": "graves"}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection, "x")
        got = Collector(ack=False)
        with consume(connection, got):
            drain(connection, 1)
            fault = emulator.faults.error("push", status=503, times=None)
            got.messages[0].reject()
            until(lambda: fault.hits >= 2)
            assert len(emulator.messages("jobs")) == 1
            emulator.faults.clear()
            settled(emulator)
        assert len(emulator.messages("graves")) == 1


def test_a_dead_letter_that_is_refused_stays_where_it_was(emulator, caplog):
    options = {**FAST, "dead_letter_queue": "graves"}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection, "x")
        got = Collector(ack=False)
        with consume(connection, got):
            drain(connection, 1)
            emulator.faults.error("push", "batch", status=403, code=10106, times=None)
            got.messages[0].reject()
            until(lambda: "could not be copied" in caplog.text)
            time.sleep(0.2)
            assert len(emulator.messages("jobs")) == 1


def test_a_rejected_message_without_a_dead_letter_queue_is_dropped_with_one_warning(
    connection, emulator, caplog
):
    publish(connection, 1, 2, queue="drops")
    got = Collector(ack=False)
    with consume(connection, got, queue="drops"):
        drain(connection, 2)
        for message in got.messages:
            message.reject()
        settled(emulator, "drops")
    warnings = [r for r in caplog.records if "no dead-letter queue" in r.getMessage()]
    assert "cfqueues queues update QUEUE --dead-letter-queue" in warnings[0].getMessage()
    assert len(warnings) == 1


@pytest.mark.parametrize(
    ("max_retries", "deliveries", "first_attempt"),
    list(itertools.product([3, 100], ["one_more", "max_retries"], [0, 1]))
    if MATRIX
    else [(3, "one_more", 1), (3, "max_retries", 0), (100, "max_retries", 0)],
)
def test_a_message_that_is_requeued_150_times_is_still_there(
    max_retries, deliveries, first_attempt
):
    with Emulator(deliveries=deliveries, first_attempt=first_attempt) as emulator:
        consumer = {"type": "http_pull", "settings": {"max_retries": max_retries}}
        emulator.create_queue("jobs", consumer=consumer)
        with Connection(emulator.broker_url, transport_options=FAST) as connection:
            publish(connection, "precious", message_id="the same")
            times = 0

            def requeue(_, message):
                nonlocal times
                times += 1
                assert message.properties["message_id"] == "the same"
                if times <= 150:
                    message.requeue()
                else:
                    message.ack()

            with consume(connection, requeue, prefetch_count=1):
                drain(connection, 151)
            settled(emulator)


# --- Time


def test_an_expired_message_is_dropped(connection, emulator):
    publish(connection, "old", expiration=0.05)
    publish(connection, "young", expiration=60)
    time.sleep(0.1)
    got = Collector()
    with consume(connection, got, prefetch_count=5):
        drain(connection, 1)
        settled(emulator)
    assert got.bodies == ["young"]


def test_a_message_that_is_due_much_later_goes_back_for_the_rest(connection, emulator):
    from datetime import datetime, timedelta, timezone

    eta = (datetime.now(timezone.utc) + timedelta(hours=30)).isoformat()
    publish(connection, "later", headers={"lang": "py", "task": "t", "id": "i", "eta": eta})
    got = Collector()
    with consume(connection, got):
        emulator.clock.advance(86_401)
        nothing_comes(connection, 0.2)
        until(lambda: emulator.messages("jobs")[0].attempts == 1)
        until(lambda: emulator.messages("jobs")[0].state == "delayed")
    (message,) = emulator.messages("jobs")
    assert message.visible_at == pytest.approx(emulator.clock.now() + 86_400, abs=5)
    assert not got.bodies


# --- Polling


def test_an_idle_consumer_asks_less_and_less(emulator):
    """An empty pull is billed."""
    with Connection(emulator.broker_url) as connection, consume(connection, Collector()):
        nothing_comes(connection, 36 if MATRIX else 0.1)
        until(lambda: len(emulator.requests.of("pull")) >= 2)
        times = [request.time for request in emulator.requests.of("pull")]
        if MATRIX:
            assert 20 <= len(times) <= 26, (
                "one a second at first, and after 10 s at each tenth more"
            )
            publish(connection, "late")
            drain(connection, 1, timeout=10.5)
    quiet = [time - times[0] for time in times if time < times[0] + 36]
    for before, after in itertools.pairwise(quiet):
        assert after - before > 0.9 * max(1, before / 10)


def test_a_message_makes_an_idle_consumer_quick_again(emulator):
    options = {"polling_interval": 2, "max_polling_interval": 300}
    got = Collector()
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        consume(connection, got, prefetch_count=4),
    ):
        nothing_comes(connection, 0.2)
        until(lambda: len(emulator.requests.of("pull")) == 1)
        publish(connection, *range(20))
        # Each 4 take a pull; with the next pauses, of 4 s, 8 s and so on, that would be a minute.
        drain(connection, 20, timeout=4)
        assert len(emulator.requests.of("pull")) >= 6


@pytest.mark.parametrize("prefetch", [0, 20] if MATRIX else [0])
def test_fifty_queues_do_not_hold_each_other_up(emulator, prefetch):
    emulator.knobs = replace(emulator.knobs, list_page_size=100)
    names = [f"q{n}" for n in range(50)]
    for name in names:
        emulator.create_queue(name, consumer=PULL)
    emulator.latency = 0.1
    got = Collector()
    options = {"max_polling_interval": 2}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        queues = [Queue(name) for name in names]
        with connection.Consumer(queues, callbacks=[got], prefetch_count=prefetch):
            nothing_comes(connection, 0.2)
            until(lambda: len({request.path for request in emulator.requests.of("pull")}) == 50)
            pulls = emulator.requests.of("pull")
            # No queue is asked again before the others were; requests overtake each other, though.
            assert len({request.path for request in pulls[: 50 + 8]}) == 50
            for name in names[::10]:
                publish(connection, name, queue=name)
            published = time.monotonic()
            drain(connection, 5)
            assert time.monotonic() - published < within(2 + 1, 20)
    assert not emulator.requests.of("list_consumers")  # the list of queues has them
    assert sorted(got.bodies) == sorted(names[::10])
    # A request of 0.1 s and the ones that came within its time were on their way together.
    times = [request.time for request in pulls]
    together = [sum(t <= u < t + 0.095 for u in times) for t in times]
    assert max(together) <= 8
    assert max(together) > within(4, 1)


def test_queues_that_are_empty_share_the_room_of_their_channel(connection, emulator):
    """In whole messages: one of them alone must not take it all."""
    queues = [Queue(name) for name in "abc"]
    with connection.Consumer(queues, callbacks=[Collector()], prefetch_count=10):
        nothing_comes(connection, 0.3)

    asked = [json.loads(pull.body)["batch_size"] for pull in emulator.requests.of("pull")]
    assert {type(size) for size in asked} == {int}
    assert max(asked) == 3  # the first; that of another queue may arrive before it


# --- Queues


def test_a_passive_declare_counts_and_an_active_one_costs_nothing(connection, emulator):
    queue = connection.SimpleQueue("jobs")
    with pytest.raises(ChannelError):
        queue.qsize()
    publish(connection, 1, 2, 3)
    emulator.requests.clear()
    channel = connection.channel()
    assert channel.queue_declare("jobs").message_count == 0
    assert len(emulator.requests) == 0
    until(lambda: queue.qsize() == 3)  # the metrics may be old
    queue.close()


def test_purge_counts_and_empties(connection, emulator):
    publish(connection, *range(6))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=2) as consumer:
        drain(connection, 1)
        until(lambda: [m.state for m in emulator.messages("jobs")].count("leased") == 2)
        counts = (4, 6)  # what is leased counts or not
        queue = connection.SimpleQueue("jobs")
        until(lambda: queue.qsize() in counts)  # the metrics may be old
        assert consumer.purge() in counts
        got.messages[0].ack()
        nothing_comes(connection, 0.3)
    assert len(got.bodies) == 1


def test_delete_if_empty_spares_what_has_messages(connection, emulator):
    publish(connection, 1)
    channel = connection.channel()
    channel.queue_delete("jobs", if_empty=True)
    assert "jobs" in emulator.queue_names()
    channel.queue_purge("jobs")

    def goes():
        channel.queue_delete("jobs", if_empty=True)
        return "jobs" not in emulator.queue_names()

    until(goes)  # a purge takes its time, and the metrics may be old


def test_delete_if_empty_spares_what_is_unknown(connection, emulator):
    publish(connection, 1)
    channel = connection.channel()
    channel.queue_purge("jobs")
    emulator.faults.null_result("metrics")
    channel.queue_delete("jobs", if_empty=True)
    assert "jobs" in emulator.queue_names()


def test_an_auto_delete_queue_goes_with_its_consumer(connection, emulator):
    buffer = connection.SimpleBuffer("scratch")
    buffer.put("x")
    assert buffer.get(timeout=30).payload == "x"
    assert "scratch" in emulator.queue_names()
    buffer.close()
    buffer.channel.close()
    assert "scratch" not in emulator.queue_names()


def test_control_queues_cause_no_request(connection, emulator):
    connection.connect()
    emulator.requests.clear()
    with consume(connection, Collector(), queue="host.celery.pidbox", no_ack=True):
        nothing_comes(connection, 0.2)
    assert connection.SimpleQueue("reply.celery.pidbox").queue.get() is None
    assert len(emulator.requests) == 0


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_exchanges_are_consumed_in_the_process_that_declares_them(connection, kind):
    exchange = Exchange("orders", type=kind)
    queues = [Queue("eu", exchange, routing_key="new"), Queue("us", exchange, routing_key="new")]
    got = Collector()
    with connection.Consumer(queues, callbacks=[got]):
        connection.Producer().publish({"n": 1}, exchange=exchange, routing_key="new")
        drain(connection, 2)
    assert got.bodies == [{"n": 1}, {"n": 1}]


def test_a_broadcast_queue_says_that_it_hears_only_its_own_process(connection, caplog):
    queue = Queue("bcast.1", Exchange("everyone", type="fanout"), auto_delete=True)
    with connection.Consumer(queue, callbacks=[Collector()]):
        pass
    assert sum("receives only what this process" in r.getMessage() for r in caplog.records) == 1


# --- Closing


def test_close_gives_back_what_was_not_delivered_or_not_settled(emulator):
    emulator.create_queue("jobs", consumer=PULL)
    with Connection(emulator.broker_url) as connection:
        publish(connection, *range(10))
        got = Collector(ack=False)
        with consume(connection, got, prefetch_count=10):
            drain(connection, 4)
            got.messages[0].ack()
    states = [message.state for message in emulator.messages("jobs")]
    assert states == ["ready"] * 9


def test_what_a_pull_brings_after_the_cancel_is_given_back(emulator):
    """Also when the process ends right after, as a worker does."""
    emulator.create_queue("jobs", consumer=PULL)
    with Connection(emulator.broker_url) as connection:
        publish(connection, *range(10))
    program = dedent("""
        import select, sys, kombu, kombu_cfqueues
        connection = kombu.Connection(sys.argv[1])
        connection.Consumer(kombu.Queue("jobs"), callbacks=[print], prefetch_count=10).consume()
        while not select.select([sys.stdin], [], [], 0)[0]:
            try:
                connection.drain_events(timeout=0.05)
            except TimeoutError:
                pass
        connection.close()
        """)
    fault = emulator.faults.latency("pull", seconds=3)
    command = [sys.executable, "-c", program, emulator.broker_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        until(lambda: fault.hits)
        process.stdin.close()
        assert process.wait(60) == 0
    assert len(emulator.requests.of("pull")) == 1
    assert [message.state for message in emulator.messages("jobs")] == ["ready"] * 10


def test_close_waits_until_what_a_last_pull_brought_is_on_its_way_back(emulator, monkeypatch):
    emulator.create_queue("jobs", consumer=PULL)
    connection = Connection(emulator.broker_url)
    publish(connection, *range(10))
    give_back = Settlement.give_back

    def hesitate(*arguments):
        time.sleep(0.05)  # as a busy machine would, here where it hurts
        give_back(*arguments)

    monkeypatch.setattr(Settlement, "give_back", hesitate)
    fault = emulator.faults.latency("pull", seconds=1)
    Consumer(connection.channel(), Queue("jobs"), callbacks=[print], prefetch_count=10).consume()
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=0.05)
    until(lambda: fault.hits)
    connection.close()
    assert [message.state for message in emulator.messages("jobs")] == ["ready"] * 10


@pytest.mark.parametrize("gone", ["refuses", "hangs"])
def test_close_does_not_wait_long_for_a_server_that_is_gone(emulator, gone):
    connection = Connection(emulator.broker_url, transport_options=FAST)
    got = Collector(ack=False)
    for queue in ("jobs", "more"):
        publish(connection, 1, queue=queue)
        Consumer(connection.channel(), Queue(queue), callbacks=[got], prefetch_count=5).consume()
    drain(connection, 2)
    if gone == "hangs":
        # Both channels have something to give back, and a pull that nobody answers.
        fault = emulator.faults.hang(times=None)
        until(lambda: fault.hits >= 2)
        started = time.monotonic()
        connection.close()
    else:
        with emulator.outage():
            started = time.monotonic()
            connection.close()
    assert time.monotonic() - started < within(6, 9)
    emulator.faults.clear()


def test_a_script_that_ends_unclosed_has_acknowledged_all_the_same(emulator):
    emulator.create_queue("jobs", consumer=PULL)
    with Connection(emulator.broker_url) as connection:
        publish(connection, 1, 2, 3)
    program = dedent("""
        import sys, kombu, kombu_cfqueues
        connection = kombu.Connection(sys.argv[1])
        def ack(body, message):
            message.ack()
        connection.Consumer(kombu.Queue("jobs"), callbacks=[ack], prefetch_count=3).consume()
        connection.drain_events(timeout=30)
        """)
    subprocess.run([sys.executable, "-c", program, emulator.broker_url], check=True, timeout=60)
    until(lambda: len(emulator.messages("jobs")) == 2)


def test_a_connection_that_is_forgotten_unclosed_is_pulled_for_no_more(emulator):
    options = {"polling_interval": 0.05, "max_polling_interval": 0.05}
    connection = Connection(emulator.broker_url, transport_options=options)
    consume(connection, Collector()).consume()
    nothing_comes(connection, 0.3)
    del connection
    gc.collect()
    # Ten times its pause without a pull.
    until(lambda: emulator.requests.of("pull")[-1].time < time.time() - 0.5)


FORKING = """
import os, sys, kombu, kombu_cfqueues
connection = kombu.Connection(sys.argv[1], transport_options={"polling_interval": 0.05})
got = []
queue = kombu.Queue("jobs")
connection.Consumer(queue, callbacks=[lambda _, m: got.append(m)], prefetch_count=4).consume()
connection.drain_events(timeout=30)
connection.drain_events(timeout=30)
pid = os.fork()
if pid == 0:
    if sys.argv[2] == "closes":
        connection.close()
    else:  # consumes, with what it has inherited
        os.write(1, b"child:%d " % len(got))
        connection.drain_events(timeout=30)
        got.pop().ack()
        connection.close()
    os.write(1, b"pulled:%d " % kombu_cfqueues.stats()["pulled"])
    sys.exit()
os.waitpid(pid, 0)
for message in got:
    message.ack()
got.clear()
print("parent", flush=True)
while True:
    try:
        connection.drain_events(timeout=1)
        got.pop().ack()
    except TimeoutError:
        break
connection.close()
"""


@pytest.mark.parametrize("child", ["closes", "consumes"])
def test_a_forked_child_leaves_its_parents_messages_alone(emulator, child):
    emulator.create_queue("jobs", consumer=PULL)
    with Connection(emulator.broker_url) as connection:
        publish(connection, *range(6))
    # It forks on purpose while threads run, which Python warns of.
    warnings = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
    command = [sys.executable, *warnings, "-c", FORKING, emulator.broker_url, child]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "parent" in done.stdout
    settled(emulator)
    given_back = sum(
        request.body.count(b"delay_seconds") for request in emulator.requests.of("ack")
    )
    # Only what the child pulled itself, and had no time for; nothing that is its parent's.
    pulled = int(re.search(r"pulled:(\d+)", done.stdout)[1])
    assert given_back == (pulled - 1 if child == "consumes" else 0)


def test_threads_are_gone_soon_after_the_last_consumer(connection):
    with consume(connection, Collector()):
        nothing_comes(connection, 0.1)

    def ours():
        return [t.name for t in threading.enumerate() if t.name == "cfqueues-pull"]

    until(lambda: not ours())


# --- Failures


def test_connecting_to_a_host_that_is_not_there_fails():
    url = "cfqueues://0123456789abcdef0123456789abcdef:token@127.0.0.1:9/"
    with pytest.raises(ConnectionFailed):
        Connection(url).connect()


def test_fail_over_goes_on_to_the_second_url(emulator):
    dead = "cfqueues://0123456789abcdef0123456789abcdef:token@127.0.0.1:9/"
    with Connection(f"{dead};{emulator.broker_url}", transport_options=FAST) as connection:
        connection.ensure_connection(max_retries=3, interval_start=0)
        publish(connection, 1)
        got = Collector()
        with consume(connection, got):
            drain(connection, 1)
    assert got.bodies == [1]


@pytest.mark.parametrize(
    "storm",
    [
        lambda faults: faults.error("pull", "ack", status=503, retry_after=0, times=4),
        lambda faults: faults.error("pull", "ack", status=429, code=10250, retry_after=0, times=4),
        lambda faults: faults.html_page("pull", "ack", status=502, times=3),
        lambda faults: faults.html_page("pull", "ack", status=403, times=2),
        lambda faults: faults.reset("pull", "ack", times=4),
        lambda faults: faults.lost_response("ack", times=4),
        lambda faults: faults.broken_json("pull", times=2),
        lambda faults: faults.null_result("pull", "ack", times=3),
    ],
    ids=["503", "429", "html", "html 403", "resets", "lost acks", "broken", "null"],
)
def test_failures_that_pass_are_not_raised_and_lose_nothing(emulator, storm, caplog):
    options = {**FAST, "visibility_timeout": 30}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        publish(connection, *range(40))
        got = Collector()
        with consume(connection, got, prefetch_count=4):
            drain(connection, 10)
            storm(emulator.faults)
            while emulator.messages("jobs"):
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    # A pull whose answer was lost has leased what it would have brought.
                    emulator.clock.advance(31)
    assert set(got.bodies) == set(range(40))
    told = [r for r in caplog.records if "cannot be pulled" in r.getMessage()]
    assert len(told) <= 1


def test_an_outage_is_logged_once_and_consuming_resumes_by_itself(connection, emulator, caplog):
    caplog.set_level(logging.INFO, "kombu_cfqueues")
    publish(connection, *range(4))
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=4):
        drain(connection, 1)
        until(lambda: len(connection.transport.session.inbox._arrivals) == 3)
        with emulator.outage():
            got.messages[0].ack()
            for _ in range(3):
                drain(connection, 1)
            for _ in range(8):
                nothing_comes(connection, 0.2)
        for message in got.messages[1:]:
            message.ack()
        publish(connection, "after")
        drain(connection, 1)
        got.messages[-1].ack()
        settled(emulator)
    assert got.bodies[-1] == "after"
    texts = [record.getMessage() for record in caplog.records]
    assert sum("cannot be pulled" in text for text in texts) <= 1
    assert sum("pulled again" in text for text in texts) <= 1


@pytest.mark.parametrize("position", ["accept", "warn"])
def test_a_lease_that_ends_before_the_ack_frees_its_slot(position, caplog):
    options = {"polling_interval": 1, "visibility_timeout": 30}
    with (
        Emulator(late_ack=position) as emulator,
        Connection(emulator.broker_url, transport_options=options) as connection,
    ):
        publish(connection, 1)
        got = Collector(ack=False)
        with consume(connection, got, prefetch_count=2):
            drain(connection, 1)
            until(lambda: len(emulator.requests.of("pull")) == 2)
            emulator.clock.advance(31)
            got.messages[0].ack()
            assert got.messages[0].channel.qos.can_consume_max_estimate() == 2
            until(lambda: emulator.requests.of("ack"))
    expected = position == "warn"
    assert any("visibility_timeout" in r.getMessage() for r in caplog.records) == expected


@pytest.mark.parametrize("result", ["counts", "no_counts", "warnings_list", "warnings_null"])
def test_any_form_of_an_ack_answer_is_accepted(result):
    with (
        Emulator(ack_result=result, unknown_lease="reject") as emulator,
        Connection(emulator.broker_url, transport_options=FAST) as connection,
    ):
        publish(connection, *range(5))
        with consume(connection, Collector(), prefetch_count=5):
            drain(connection, 5)
        settled(emulator)


def test_one_lease_that_the_server_refuses_does_not_keep_the_others(caplog):
    with (
        Emulator(unknown_lease="reject") as emulator,
        Connection(emulator.broker_url, transport_options=FAST) as connection,
    ):
        publish(connection, *range(10))
        got = Collector(ack=False)
        with consume(connection, got, prefetch_count=10):
            drain(connection, 10)
            qos = got.messages[0].channel.qos
            tag = got.messages[3].delivery_tag
            qos._deliveries[tag] = qos._deliveries[tag]._replace(lease_id="forged")
            for message in got.messages:
                message.ack()
            until(lambda: len(emulator.messages("jobs")) == 1)
    assert sum("could not be settled" in r.getMessage() for r in caplog.records) == 1


def test_a_revoked_token_is_raised_once_and_says_so(emulator, caplog):
    token = ["emulator-token"]
    connection = Connection(
        transport="kombu_cfqueues:Transport",
        transport_options={
            **FAST,
            "account_id": emulator.account_id,
            "api_token": lambda: token[0],
            "base_url": emulator.base_url,
        },
    )
    with connection, consume(connection, Collector(), prefetch_count=2):
        publish(connection, 1)
        drain(connection, 1)
        token[0] = "withdrawn"
        with pytest.raises((AuthenticationFailed, PermissionDenied), match="revoked or mistyped"):
            drain_until_it_fails(connection)
        token[0] = "emulator-token"
        publish(connection, 2)
        # A pull that was on its way may have failed as well.
        for _ in range(2):
            with contextlib.suppress(AuthenticationFailed, PermissionDenied):
                drain(connection, 1)
                break


def test_a_queue_that_is_deleted_and_made_again_is_found(connection, emulator):
    publish(connection, 1)
    got = Collector(ack=False)
    with consume(connection, got, prefetch_count=1):
        drain(connection, 1)  # and pulls no more before it is settled
        with Connection(emulator.broker_url) as other:
            other.channel().queue_delete("jobs")
        emulator.create_queue("jobs", consumer=PULL)
        publish(connection, 2)
        got.messages[0].ack()
        drain(connection, 1)
    assert got.bodies == [1, 2]


def test_a_queue_that_is_gone_is_raised(connection, emulator):
    publish(connection, 1)
    with consume(connection, Collector()):
        drain(connection, 1)
        with Connection(emulator.broker_url) as other:
            other.channel().queue_delete("jobs")
        with pytest.raises(QueueNotFound):
            drain_until_it_fails(connection)
        emulator.create_queue("jobs")


def test_a_queue_that_a_worker_consumes_is_a_clear_error(connection, emulator):
    emulator.create_queue("jobs", consumer={"type": "worker", "script_name": "w"})
    with pytest.raises(PullNotEnabled, match="'jobs' is consumed by a Worker"):
        consume(connection, Collector()).consume()
    with pytest.raises(PullNotEnabled, match="'jobs' is consumed by a Worker"):
        connection.SimpleQueue("jobs").get_nowait()


@pytest.mark.parametrize("position", ["409", "429/10252"] if MATRIX else ["409"])
def test_a_paused_queue_is_waited_for_with_one_warning(position, caplog):
    with Emulator(paused_pull=position) as emulator:
        emulator.create_queue("jobs", consumer=PULL, delivery_paused=True)
        with Connection(emulator.broker_url, transport_options=FAST) as connection:
            publish(connection, 1)
            got = Collector()
            with consume(connection, got):
                nothing_comes(connection, 1.5)
                queue = emulator._queue("jobs")
                queue.delivery_paused = False
                drain(connection, 1)
    told = [r for r in caplog.records if "cannot be pulled" in r.getMessage()]
    assert len(told) == 1
    assert "'jobs'" in told[0].getMessage()


@pytest.mark.parametrize("get", ["drain", "get_nowait"])
def test_the_refusals_of_a_new_pull_consumer_are_ridden_out(get, caplog):
    """Nobody is warned of what is usual."""
    with (
        Emulator(pull_enable_delay=1.5) as emulator,
        Connection(emulator.broker_url, transport_options=FAST) as connection,
    ):
        publish(connection, "x")
        if get == "drain":
            got = Collector()
            with consume(connection, got):
                drain(connection, 1)
            assert got.bodies == ["x"]
        else:
            connection.SimpleQueue("jobs").get_nowait().ack()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_pull_consumer_that_takes_long_to_be_in_force_is_warned_of_once(
    connection, emulator, caplog, monkeypatch
):
    monkeypatch.setattr(pull_failures, "ENABLE_QUIET_SECONDS", 0.5)
    emulator.knobs = replace(emulator.knobs, pull_enable_delay=3)
    publish(connection, "x")
    with consume(connection, Collector()):
        drain(connection, 1)
    told = [r for r in caplog.records if "cannot be pulled" in r.getMessage()]
    assert len(told) == 1


def test_a_pull_consumer_that_was_removed_since_we_looked_is_made_again(connection, emulator):
    emulator.create_queue("jobs", consumer=PULL)
    connection.connect()  # brings the list of queues, with their consumers
    queue = emulator._queue("jobs")
    emulator._service.queues.delete_consumer(queue, next(iter(queue.consumers.values())))
    publish(connection, 1)
    got = Collector()
    with consume(connection, got):
        drain(connection, 1)
    assert len(emulator.consumers("jobs")) == 1


def test_a_consumer_that_allows_few_retries_gets_one_warning(connection, emulator, caplog):
    emulator.create_queue("jobs", consumer={"type": "http_pull"})
    for _ in range(2):
        with consume(connection, Collector()):
            pass
    told = [r for r in caplog.records if "allows 3 deliveries" in r.getMessage()]
    assert len(told) == 1


def test_consumers_that_we_make_allow_100_deliveries(connection, emulator):
    with consume(connection, Collector()):
        pass
    (consumer,) = emulator.consumers("jobs")
    assert consumer.max_retries == 100


def test_acks_reach_the_server_after_their_connection_has_failed(emulator):
    """Celery drops the connection while tasks run, and they still acknowledge."""
    emulator.create_queue("jobs", consumer=PULL)
    connection = Connection(emulator.broker_url, transport_options=FAST)
    publish(connection, *range(5))
    got = Collector(ack=False)
    consume(connection, got, prefetch_count=5).consume()
    drain(connection, 2)
    connection.collect()
    until(lambda: [m.state for m in emulator.messages("jobs")].count("ready") == 3)
    for message in got.messages:
        message.ack()
    until(lambda: len(emulator.messages("jobs")) == 3)
