"""One process that spools some of its messages and waits for the confirmation of others.

A web application does so whose signals spool and whose payments are confirmed, and so does each
consumer that spools: its dead letters are copied with a confirmation.
"""

import contextlib
import json

import pytest
from kombu import Connection
from support.processes import eventually
from support.publishers import Publisher

import kombu_cfqueues

from .consuming import FAST, Collector, consume

BACKLOG = 4000
"""Spooled messages: 40 requests, which is more than any test here waits for."""


@pytest.fixture
def mixed(tmp_path):
    """Options of a process that publishes in both modes."""
    return {
        "request_rate": 8.0,
        "request_burst": 1,
        "spool_dir": str(tmp_path / "spool"),
        "modes": ["confirm", "spool"],
        "publish_timeout": 6.0,
    }


SERVER = {"latency": 0.03, "tokens": {"consumer": "edit"}}


def bodies(server, queue="jobs"):
    found = [json.loads(json.loads(m.body)["body"]) for m in server.messages(queue)]
    return [body for body in found if not body.startswith("spooled")]


def posted(server):
    return len(server.requests.of("push", "batch"))


@contextlib.contextmanager
def busy_publisher(server, options):
    """A process whose spool has a backlog, which is being delivered."""
    options = options | {"queues": {"jobs": server.queue_id("jobs")}}
    with Publisher(server.broker_url, options) as publisher:
        before = posted(server)
        publisher.publish_batch(*(f"spooled {n}" for n in range(BACKLOG)), mode="spool")
        [kept] = publisher.outcomes(1).values()
        assert kept.told == "returned", kept
        assert eventually(lambda: posted(server) > before)
        yield publisher


def in_waves(server, count, publish):
    """Call *publish* with each number, each time after one more request has come."""
    for number in range(count):
        before = posted(server)
        publish(number)
        assert eventually(lambda: posted(server) > before)  # noqa: B023
    assert len(server.messages("jobs")) < BACKLOG, "the backlog is too short for this test"


def test_a_confirmed_publish_beside_a_backlog_of_the_same_process_hears_that_it_arrived(
    server, mixed
):
    """Whichever of its threads carries a message, the caller gets the answer, and gets it soon."""
    with busy_publisher(server, mixed) as publisher:

        def publish(wave):
            publisher.publish(*(f"paid {wave}-{m}" for m in range(3)), mode="confirm")

        in_waves(server, 4, publish)
        outcomes = publisher.outcomes(12, 15)
        arrived = bodies(server)
    assert len(outcomes) == 12
    deaf = [body for body, outcome in outcomes.items() if outcome.told != "returned"]
    assert not deaf, f"{len(deaf)} of 12 did not hear of {len({*deaf} & {*arrived})} that arrived"
    assert sorted(arrived) == sorted(outcomes)


def test_a_confirmed_batch_beside_a_backlog_of_the_same_process_hears_that_it_arrived(
    server, mixed
):
    """The end of the block tells which messages were accepted: all, since all arrived."""
    with busy_publisher(server, mixed) as publisher:
        in_waves(
            server, 3,
            lambda n: publisher.publish_batch(*(f"paid {n}-{m}" for m in range(9)), mode="confirm"),
        )  # fmt: skip
        outcomes = publisher.outcomes(3, 15)
        arrived = bodies(server)
    assert {body: outcome.text for body, outcome in outcomes.items() if outcome.text} == {}
    assert sorted(arrived) == sorted(f"paid {n}-{m}" for n in range(3) for m in range(9))


def test_a_confirmed_message_that_is_refused_beside_a_backlog_raises_the_refusal(server, mixed):
    """What is wrong with the message is what its caller is told, not that time ran out."""
    server.faults.refuse_messages(lambda body: "unwanted" in body)
    with busy_publisher(server, mixed) as publisher:
        in_waves(server, 3, lambda n: publisher.publish(f"unwanted {n}", mode="confirm"))
        outcomes = publisher.outcomes(3, 15)
    assert len(outcomes) == 3
    told = {body: outcome.text.partition(":")[0] for body, outcome in outcomes.items()}
    assert told == dict.fromkeys(outcomes, "InvalidMessage")
    assert {outcome.told for outcome in outcomes.values()} == {"no"}


def test_rejected_messages_of_a_consumer_with_a_busy_spool_are_copied_once(server, mixed):
    """Five dead letters are five messages in the dead-letter queue, and gone from their own."""
    server.create_queue("graves")
    with Connection(server.broker_url) as other:
        for number in range(5):
            other.Producer().publish(f"letter {number}", routing_key="jobs", serializer="json")
        server.create_queue("backlog")
    options = {**mixed, **FAST, "publish_mode": "spool", "dead_letter_queue": "graves"}
    options |= {"queues": {"backlog": server.queue_id("backlog")}}
    url = server.broker_url.replace(server.token, "consumer")
    with Connection(url, transport_options=options) as connection:
        got = Collector(ack=False)
        with consume(connection, got):
            while len(got.messages) < 5:
                connection.drain_events(timeout=60)
            producer = connection.Producer()
            with kombu_cfqueues.batch(producer.connection):
                for number in range(BACKLOG):
                    producer.publish(f"spooled {number}", routing_key="backlog", serializer="json")
            assert eventually(lambda: server.messages("backlog"))
            for message in got.messages:
                message.reject()
            gone = eventually(lambda: not server.messages("jobs"), 9)
        copies = bodies(server, "graves")
    assert gone, f"{len(server.messages('jobs'))} of 5 wait, of {len(copies)} copied"
    assert sorted(copies) == [f"letter {number}" for number in range(5)]
