"""`Producer.batch()`: many messages of one thread, few requests, an account of each message."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import kombu
import pytest
from celery import Celery
from kombu import Producer
from support.processes import eventually

from kombu_cfqueues.errors import (
    BatchPublishError,
    CFQueuesError,
    InvalidMessage,
    MessageTooLarge,
    PublishTimeout,
    QueueNotFound,
)

from .test_publish import pushes

pytestmark = pytest.mark.skipif(
    not hasattr(Producer, "batch"), reason="Producer.batch() came with Kombu 5.7"
)


@pytest.fixture
def producer(connect):
    return connect().Producer()


def publish(producer, values, queue="jobs", **options):
    for value in values:
        producer.publish(value, routing_key=queue, serializer="json", **options)


def arrived(emulator, queue="jobs"):
    """What is in the queue, and how often."""
    envelopes = [json.loads(message.value) for message in emulator.messages(queue)]
    return Counter(json.loads(envelope["body"]) for envelope in envelopes)


def once(values):
    return Counter(values)


def posts(emulator):
    return emulator.requests.of("push", "batch")


def values(outcomes):
    return [json.loads(outcome.message["body"]) for outcome in outcomes]


def senders():
    return [t for t in threading.enumerate() if t.name.startswith("cfqueues-batch")]


# -- few requests ------------------------------------------------------------------------------


def test_five_thousand_messages_cost_fifty_requests(producer, emulator):
    with producer.batch():
        publish(producer, range(5_000))
    assert len(posts(emulator)) <= 55
    assert arrived(emulator) == once(range(5_000))


def test_messages_leave_in_full_requests_while_the_block_goes_on(producer, emulator):
    """A block of any length needs the memory of two thousand messages, no more."""
    with producer.batch():
        publish(producer, range(2_950))
        assert {len(json.loads(r.body)["messages"]) for r in posts(emulator)} == {100}
        assert sum(arrived(emulator).values()) >= 1_000
    assert arrived(emulator) == once(range(2_950))


def test_requests_are_cut_by_bytes_as_well(producer, emulator):
    """Celery's headers make tasks large: a hundred of them may not fit."""
    with producer.batch():
        publish(producer, (f"{n:05d}" + "x" * 9_000 for n in range(100)))
    assert len(posts(emulator)) == 4
    assert {request.status for request in posts(emulator)} == {200}


def test_several_queues_in_one_block(producer, emulator):
    with producer.batch():
        for n in range(250):
            for queue in ("one", "two", "three"):
                producer.publish(n, routing_key=queue)
    assert len(posts(emulator)) == 9
    for queue in ("one", "two", "three"):
        assert arrived(emulator, queue) == once(range(250))


def test_nested_blocks_share_a_batch(producer, emulator):
    with producer.batch():
        publish(producer, range(10))
        with producer.batch():
            publish(producer, range(10, 20))
        assert not posts(emulator)
    assert len(posts(emulator)) == 1
    assert arrived(emulator) == once(range(20))


def test_flush_sends_what_is_collected(producer, emulator):
    with producer.batch() as batch:
        publish(producer, range(10))
        batch.flush()
        assert arrived(emulator) == once(range(10))
        publish(producer, range(10, 15))
    assert len(posts(emulator)) == 2
    assert arrived(emulator) == once(range(15))


def test_an_empty_block_costs_nothing(producer, emulator):
    with producer.batch():
        pass
    assert not posts(emulator)


def test_delays_of_messages_in_a_batch(producer, emulator):
    with producer.batch():
        publish(producer, [1], delay_seconds=30)
        publish(producer, [2])
        publish(producer, [3], delay_seconds=0)
    assert [posted.get("delay_seconds") for posted in pushes(emulator)] == [30, None, 0]


def test_a_delay_is_counted_from_the_publish_not_from_the_request(producer, emulator):
    with producer.batch():
        publish(producer, [1], delay_seconds=30)
        time.sleep(1.1)
    (posted,) = pushes(emulator)
    assert posted["delay_seconds"] == 29


def test_a_batch_of_celery_tasks(emulator):
    """Celery has no call for it; the producer is handed to `apply_async`."""
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"

    @app.task(name="shop.add", shared=False)
    def add(a, b):
        return a + b

    with app.producer_pool.acquire(block=True) as producer, producer.batch():
        results = [add.apply_async((n, n), producer=producer) for n in range(250)]
    headers = [json.loads(message.value)["headers"] for message in emulator.messages("celery")]
    assert {header["id"] for header in headers} == {result.id for result in results}
    assert len(posts(emulator)) <= 5
    app.close()


def test_where_batches_are_off_messages_leave_one_by_one(connect, emulator):
    """Kombu lets a channel veto them; then, as on Kombu before 5.7, nothing is kept back."""
    channel = connect().channel()
    channel.supports_batch_publish = False
    producer = Producer(channel)
    with producer.batch():
        for n in range(3):
            producer.publish(n, routing_key="jobs")
            assert arrived(emulator) == once(range(n + 1))
    assert len(posts(emulator)) == 3


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [{0}, {17}, {249}, {0, 100, 249}, {5, 6, 7}, {98, 99, 100, 101}, set(range(0, 250, 10))],
    ids=["first", "one", "last", "one a request", "neighbours", "at the cut", "each tenth"],
)
def test_only_the_messages_that_the_server_refuses_are_lost(producer, emulator, bad):
    marked = {json.dumps(f"bad {n}") for n in bad}
    emulator.faults.refuse_messages(lambda body: json.loads(body)["body"] in marked)
    names = [f"bad {n}" if n in bad else f"good {n}" for n in range(250)]
    good = [name for name in names if name.startswith("good")]
    with pytest.raises(BatchPublishError) as refusal, producer.batch():
        publish(producer, names)

    error = refusal.value
    assert sorted(values(error.refused)) == sorted(set(names) - set(good))
    assert sorted(values(error.accepted)) == sorted(good)
    assert error.uncertain == []
    assert all(isinstance(outcome.error, InvalidMessage) for outcome in error.refused)
    assert all(outcome.error.code == 10203 for outcome in error.refused)
    assert arrived(emulator) == once(good)
    assert f"of 250 messages, {len(good)} were accepted, {len(bad)} certainly did not" in str(error)
    # Finding one in a hundred takes seven halvings, two requests each.
    assert len(posts(emulator)) <= 3 + 14 * len(bad)


def test_a_server_that_refuses_everything_costs_a_bounded_number_of_requests(producer, emulator):
    """Splitting 5,000 messages to the last one would be 10,000 requests: 40 minutes of them."""
    emulator.faults.refuse_messages(lambda body: True)
    with pytest.raises(BatchPublishError) as refusal, producer.batch(max_size=5_000):
        publish(producer, range(5_000))
    assert sorted(values(refusal.value.refused)) == list(range(5_000))
    assert refusal.value.accepted == []
    assert len(posts(emulator)) <= 60


def test_the_error_names_the_queue_of_each_message(producer, emulator):
    emulator.create_queue("full")
    emulator.create_queue("open")
    emulator.faults.refuse_messages(lambda body: '"full"' in body)
    with pytest.raises(BatchPublishError) as refusal, producer.batch():  # noqa: PT012  the block is what fails
        publish(producer, range(10), queue="full")
        publish(producer, range(10), queue="open")
    assert {outcome.queue for outcome in refusal.value.refused} == {"full"}
    assert {outcome.queue for outcome in refusal.value.accepted} == {"open"}


def test_the_error_is_kombus_own(producer, emulator):
    emulator.faults.refuse_messages(lambda body: True)
    with pytest.raises(kombu.exceptions.BatchPublishError), producer.batch():
        publish(producer, [1])


def test_a_message_that_can_never_be_sent_fails_alone_and_at_once(producer, emulator):
    with producer.batch():
        publish(producer, [1])
        with pytest.raises(MessageTooLarge):
            publish(producer, [os.urandom(130_000).hex()])
        publish(producer, [2])
    assert arrived(emulator) == once([1, 2])


# -- interruptions -----------------------------------------------------------------------------


def test_an_exception_in_the_block_discards_what_has_not_left(producer, emulator):
    with pytest.raises(KeyError), producer.batch():  # noqa: PT012  the block is what fails
        publish(producer, range(500))
        raise KeyError
    assert not posts(emulator)
    assert not senders()

    with producer.batch():  # the producer is as good as before
        publish(producer, range(5))
    assert arrived(emulator) == once(range(5))


def test_after_an_exception_nothing_is_on_its_way(producer, emulator):
    publish(producer, ["the queue is there"])
    emulator.latency = 0.1
    with pytest.raises(KeyError), producer.batch(max_size=300):  # noqa: PT012  the block is what fails
        publish(producer, range(550))
        raise KeyError
    sent = len(posts(emulator))
    assert eventually(lambda: not senders())  # one that is just starting finds nothing to send
    time.sleep(0.3)
    assert len(posts(emulator)) == sent


def test_what_was_published_over_a_connection_that_is_closed_in_the_block_arrives(
    connect, emulator
):
    connection = connect()
    producer = connection.Producer()
    with producer.batch() as batch:
        publish(producer, range(100))
        batch.flush()
        publish(producer, range(100, 250))
        connection.close()
    assert arrived(emulator) == once(range(250))


def test_after_a_failed_flush_the_batch_takes_no_more(producer, emulator):
    emulator.faults.refuse_messages(lambda body: '"bad"' in json.loads(body)["body"])
    batch = producer.batch()
    batch.__enter__()
    publish(producer, ["bad"])
    with pytest.raises(BatchPublishError):
        batch.flush()
    with pytest.raises(RuntimeError, match="a flush failed"):
        publish(producer, ["good"])
    with pytest.raises(RuntimeError, match="a flush failed"):
        batch.__exit__(None, None, None)
    assert not arrived(emulator)


def test_each_message_since_the_last_good_flush_is_accounted_for(producer, emulator):
    """Those that were only collected when an earlier request failed are in the error too."""
    emulator.faults.refuse_messages(lambda body: json.loads(body)["body"] == "150")
    published = []
    with pytest.raises(BatchPublishError) as refusal, producer.batch(max_size=200):  # noqa: PT012  the block is what fails
        for n in range(2_000):
            published.append(n)
            producer.publish(n, routing_key="jobs")

    error = refusal.value
    accounted = values(error.accepted) + values(error.refused) + values(error.uncertain)
    earlier = set(published) - set(accounted)
    assert len(accounted) == len(set(accounted))
    assert arrived(emulator) == once([*earlier, *values(error.accepted)])
    assert 150 in values(error.refused)
    assert len(published) < 1_000, "the failure is raised soon, not at the end"


def test_lost_answers_are_uncertain_where_duplicates_are_worse(connect, emulator):
    producer = connect(retry_uncertain=False).Producer()
    publish(producer, ["the queue is there"])
    emulator.faults.lost_response("batch")
    with pytest.raises(BatchPublishError) as refusal, producer.batch():
        publish(producer, range(250))
    error = refusal.value
    assert len(error.uncertain) == 100
    assert len(error.accepted) == 150
    assert error.refused == []
    assert {outcome.error.delivered for outcome in error.uncertain} == {"unknown"}
    assert "100 are uncertain" in str(error)


def test_lost_answers_are_repeated_by_default(producer, emulator):
    publish(producer, ["the queue is there"])
    emulator.faults.lost_response("batch")
    with producer.batch():
        publish(producer, range(250))
    assert set(arrived(emulator)) == {*range(250), "the queue is there"}


def test_when_the_error_is_raised_nothing_is_on_its_way(producer, emulator):
    """Whoever publishes the rest again must not race with the first try."""
    publish(producer, ["the queue is there"])
    emulator.faults.refuse_messages(lambda body: json.loads(body)["body"] == "5")
    emulator.latency = (0.0, 0.2)
    with pytest.raises(BatchPublishError) as refusal, producer.batch():
        publish(producer, range(600))
    sent = len(posts(emulator))
    assert eventually(lambda: not senders())
    assert values(refusal.value.refused) == [5]
    time.sleep(0.4)
    assert len(posts(emulator)) == sent


def test_the_timeout_begins_anew_with_each_request_that_is_accepted(connect, emulator):
    """A block may take as long as it needs, as long as it gets on."""
    producer = connect(publish_timeout=2.0).Producer()
    publish(producer, ["the queue is there"], timeout=30)
    emulator.latency = 0.4
    started = time.monotonic()
    with producer.batch(max_size=1_500):
        publish(producer, range(1_500))
    assert time.monotonic() - started > 2.5
    assert sum(arrived(emulator).values()) == 1_501


def test_without_progress_a_batch_fails_after_the_timeout(connect, emulator):
    """Once, and not once for each of its requests."""
    producer = connect(publish_timeout=1.0).Producer()
    publish(producer, ["the queue is there"], timeout=30)
    with emulator.outage():
        started = time.monotonic()
        with pytest.raises(BatchPublishError) as refusal, producer.batch(max_size=2_000):
            publish(producer, range(2_000))
        assert time.monotonic() - started < 8, "its 20 requests would wait for 10 s"
    assert len(refusal.value.refused) == 2_000
    assert PublishTimeout in {type(outcome.error) for outcome in refusal.value.refused}


def test_a_server_that_never_answers_is_waited_for_once(connect, emulator):
    producer = connect(publish_timeout=1.0).Producer()
    publish(producer, ["the queue is there"], timeout=30)
    emulator.faults.hang("batch", times=None)
    started = time.monotonic()
    with pytest.raises(BatchPublishError) as refusal, producer.batch(max_size=2_000):
        publish(producer, range(2_000))
    assert time.monotonic() - started < 8, "its 20 requests would wait for 10 s"
    error = refusal.value
    assert len(error.uncertain) == 200, "two requests were on their way, and the others never left"
    assert len(error.refused) == 1_800


def test_a_short_outage_is_waited_out(producer, emulator):
    publish(producer, ["the queue is there"])
    emulator.faults.error("batch", status=503, times=3)
    with producer.batch():
        publish(producer, range(500))
    assert set(arrived(emulator)) == {*range(500), "the queue is there"}


def test_a_queue_that_is_deleted_in_the_middle_is_made_again(producer, emulator):
    with producer.batch() as batch:
        publish(producer, range(150))
        batch.flush()
        first = emulator.queue_id("jobs")
        delete(producer, first)
        publish(producer, range(150, 400))
    assert emulator.queue_id("jobs") != first
    assert arrived(emulator) == once(range(150, 400))


def test_a_queue_that_must_not_be_made_again_is_named_by_the_error(connect, emulator):
    queue_id = emulator.create_queue("jobs")
    producer = connect(create_missing_queues=False).Producer()
    with pytest.raises(BatchPublishError) as refusal, producer.batch() as batch:  # noqa: PT012  the block is what fails
        publish(producer, range(150))
        batch.flush()
        delete(producer, queue_id)
        publish(producer, range(150, 400))
    assert sorted(values(refusal.value.refused)) == list(range(150, 400))
    told = {type(outcome.error) for outcome in refusal.value.refused}
    assert told - {CFQueuesError} == {QueueNotFound}  # the rest may not even have been sent


def delete(producer, queue_id):
    """As another program would."""
    client = producer.channel.session.account.client
    client.delete_queue(queue_id, deadline=time.monotonic() + 10)


# -- processes ---------------------------------------------------------------------------------


def run(program, emulator):
    """What the program says in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, emulator.broker_url],
        check=True, stdout=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout


def test_a_thread_that_outlives_the_main_thread_can_publish_a_batch(emulator):
    """No thread can be started by then; what publishes has to do the sending itself."""
    program = """
import sys, threading
import kombu_cfqueues
from kombu import Connection

def work():
    threading.main_thread().join()
    with Connection(sys.argv[1]) as connection:
        producer = connection.Producer()
        with producer.batch(max_size=200):
            for number in range(500):
                producer.publish(number, routing_key="jobs", serializer="json")
    print("done")

threading.Thread(target=work).start()
"""
    assert run(program, emulator) == "done\n"
    assert arrived(emulator) == once(range(500))
    assert len(posts(emulator)) == 5


def test_a_child_that_is_forked_in_the_block_sends_nothing_of_the_batch(emulator):
    """It is the parent's to send, whose threads the child does not have."""
    program = """
import os, sys
from kombu import Connection

with Connection(sys.argv[1], transport="kombu_cfqueues:Transport") as connection:
    producer = connection.Producer()
    try:
        with producer.batch(max_size=200):
            for number in range(450):
                producer.publish(number, routing_key="jobs", serializer="json")
            child = os.fork()
    except RuntimeError as error:
        print("child:", error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    assert "forked" in run(program, emulator)
    assert arrived(emulator) == once(range(450))


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.long
def test_memory_does_not_grow_with_the_number_of_messages(emulator):
    """Four times the messages in one block need the same memory, give or take a request's worth."""
    program = """
import sys, tracemalloc
from kombu import Connection

with Connection(sys.argv[1], transport="kombu_cfqueues:Transport") as connection:
    producer = connection.Producer()
    tracemalloc.start()
    for count in (2_500, 10_000):
        tracemalloc.reset_peak()
        with producer.batch(max_size=500):
            for number in range(count):
                producer.publish("x" * 1_000, routing_key="jobs")
        print(tracemalloc.get_traced_memory()[1])
"""
    few, many = map(int, run(program, emulator).split())
    assert many - few < 500_000, "7,500 messages are 8 MB"
