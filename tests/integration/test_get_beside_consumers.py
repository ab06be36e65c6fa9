"""``Queue.get()`` takes what the connection has pulled for its consumers, as elsewhere in Kombu.

A consumer that the application has forgotten would otherwise keep what was pulled for it until the
connection is closed or the lease ends.
"""

from __future__ import annotations

import pytest
from kombu import Connection, Queue
from support.processes import eventually

from kombu_cfqueues.emulator import Emulator

FAST = {"polling_interval": 0.05, "max_polling_interval": 0.1}


@pytest.fixture
def emulator():
    with Emulator(order="fifo") as emulator:
        for name in ("jobs", "others"):
            emulator.create_queue(name)
        yield emulator


@pytest.fixture
def connection(emulator):
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        yield connection


@pytest.fixture(params=["cfqueues", "memory"])
def any_connection(request):
    """The same with a virtual transport of Kombu's own, which shows what is expected."""
    if request.param == "cfqueues":
        yield request.getfixturevalue("connection")
    else:
        with Connection("memory://") as connection:
            yield connection


def publish(connection, *bodies, queue="jobs"):
    producer = connection.Producer()
    bound = Queue(queue)(connection.default_channel)
    bound.declare()
    for body in bodies:
        producer.publish(body, routing_key=queue)


def consumer(connection, *, queue="jobs", prefetch=0):
    """A consumer with a channel of its own, and the bodies that it is given."""
    channel = connection.channel()
    if prefetch:
        channel.basic_qos(0, prefetch, False)
    got = []

    def callback(body, message):
        got.append(body)
        message.ack()

    consumer = connection.Consumer([Queue(queue)], callbacks=[callback], channel=channel)
    consumer.consume()
    return consumer, got


def start(connection):
    """Ask for a message: from now on, the connection pulls for its consumers."""
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.05)


def get_all(connection):
    """The bodies that ``Queue.get()`` gives on another channel until there is none."""
    queue, found = Queue("jobs")(connection.channel()), []
    while (message := queue.get()) is not None:
        found.append(message.payload)
        message.ack()
    return found


def all_leased(emulator, queue="jobs"):
    return {message.state for message in emulator.messages(queue)} == {"leased"}


def none_leased(emulator, queue="jobs"):
    return "leased" not in {message.state for message in emulator.messages(queue)}


@pytest.mark.parametrize(("published", "taken"), [(4, 1), (8, 2), (40, 5), (40, 20)])
def test_get_gives_all_that_an_abandoned_consumer_was_not_given(any_connection, published, taken):
    connection = any_connection
    _abandoned, got = consumer(connection)
    publish(connection, *range(published))
    for _ in range(taken):
        connection.drain_events(timeout=5)

    assert sorted(got + get_all(connection)) == list(range(published))


def test_the_slots_of_the_prefetch_count_are_given_back(connection, emulator):
    """The consumer goes on with what comes next."""
    _consumer, got = consumer(connection, prefetch=2)
    start(connection)
    publish(connection, 1, 2)
    assert eventually(lambda: all_leased(emulator))
    assert sorted(get_all(connection)) == [1, 2]

    publish(connection, 3, 4)
    for _ in range(2):
        connection.drain_events(timeout=5)

    assert sorted(got) == [3, 4]


def test_what_is_taken_counts_at_the_channel_that_has_it(connection, emulator):
    """Its prefetch count lets it have one message, which is not settled yet."""
    consumer(connection, prefetch=2)
    other, got = consumer(connection, queue="others", prefetch=1)
    start(connection)
    publish(connection, 1)
    assert eventually(lambda: all_leased(emulator))
    message = Queue("jobs")(other.channel).get()
    publish(connection, 2, queue="others")
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.3)

    message.ack()
    connection.drain_events(timeout=5)

    assert got == [2]


def test_messages_of_other_queues_are_left_alone(connection, emulator):
    _consumer, got = consumer(connection, queue="others", prefetch=2)
    start(connection)
    publish(connection, 1, 2, queue="others")
    assert eventually(lambda: all_leased(emulator, "others"))

    assert get_all(connection) == []
    for _ in range(2):
        connection.drain_events(timeout=5)
    assert sorted(got) == [1, 2]


def test_a_message_whose_lease_has_ended_is_not_given(connection, emulator):
    """Another consumer has had it since."""
    options = FAST | {"visibility_timeout": 1}
    with Connection(emulator.broker_url, transport_options=options) as short:
        consumer(short, prefetch=2)
        start(short)
        publish(short, 1, 2)
        assert eventually(lambda: all_leased(emulator))
        assert eventually(lambda: none_leased(emulator))

        assert sorted(get_all(connection)) == [1, 2]
        assert get_all(short) == []


def test_a_message_that_a_consumer_pulls_at_the_same_time_is_found(connection):
    """Publishing wakes the consumer, whose pull may come just before that of the get."""
    consumer(connection, prefetch=10)
    start(connection)
    queue = Queue("jobs")(connection.channel())
    producer = connection.Producer()
    for number in range(300):
        producer.publish(number, routing_key="jobs")
        message = queue.get()
        assert message is not None, f"message {number} is with the consumer"
        message.ack()


def test_a_purge_on_another_channel_drops_what_was_pulled_ahead(connection, emulator):
    """For all that the application knows, it is in the queue."""
    consumer(connection, prefetch=2)
    start(connection)
    publish(connection, 1, 2)
    assert eventually(lambda: all_leased(emulator))

    Queue("jobs")(connection.channel()).purge()

    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.3)
    assert eventually(lambda: not emulator.messages("jobs"))
