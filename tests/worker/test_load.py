"""Many messages through the gateway: each arrives, once, also when the Worker is restarted."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from kombu import Connection, Producer

import kombu_cfqueues  # noqa: F401  registers cfqueues://


def arrivals(edge, count):
    """How often each body arrived, once *count* different ones have."""
    deadline = time.monotonic() + 60
    while len(arrived := Counter(record["body"] for record in edge.records("bulk"))) < count:
        if time.monotonic() > deadline:
            raise AssertionError(f"{len(arrived)} of {count} messages came")
        time.sleep(0.2)
    return arrived


def publish_range(connection, numbers):
    """Publishes each number, one after the other; returns those that `publish` confirmed."""
    with connection.channel() as channel:
        producer = Producer(channel)
        for number in numbers:
            producer.publish(str(number), routing_key="bulk", serializer="raw")
    return list(numbers)


def test_64_threads_publish_without_loss_or_duplicate(edge):
    """No option but the URL, and no request limit: 64 callers that each wait for each message."""
    threads, each = 64, 100
    with Connection(edge.broker_url) as connection, ThreadPoolExecutor(threads) as pool:
        starts = range(0, threads * each, each)
        done = pool.map(lambda first: publish_range(connection, range(first, first + each)), starts)
        confirmed = [str(number) for numbers in done for number in numbers]
    assert arrivals(edge, len(confirmed)) == Counter(confirmed)


def test_a_batch_block_publishes_a_hundred_thousand_without_loss_or_duplicate(edge):
    """How one thread fills a queue; the rate is printed, because it is the machine's."""
    with Connection(edge.broker_url) as connection:
        if not connection.transport.implements.batch_publish:
            pytest.skip("this transport does not publish in batches yet")
        producer = Producer(connection)
        started = time.monotonic()
        with producer.batch():
            for number in range(100_000):
                producer.publish(str(number), routing_key="bulk", serializer="raw")
        print(f"{100_000 / (time.monotonic() - started):,.0f} messages/s")
    assert arrivals(edge, 100_000) == Counter(map(str, range(100_000)))


def test_a_restart_of_the_gateway_loses_nothing(restartable_edge):
    """The runtime is killed three times while eight threads publish.

    What was confirmed has arrived.  A request that was under way may have been written before its
    answer was lost; the transport repeats it, and its messages arrive twice: as many as eight
    threads had under way, each time, and no other.
    """
    edge = restartable_edge
    threads, each, restarts = 8, 400, 3
    with Connection(edge.broker_url) as connection, ThreadPoolExecutor(threads) as pool:
        futures = [
            pool.submit(publish_range, connection, range(first, first + each))
            for first in range(0, threads * each, each)
        ]
        for _ in range(restarts):
            time.sleep(0.3)
            edge.restart_gateway()
        confirmed = {str(number) for future in futures for number in future.result()}
    arrived = arrivals(edge, len(confirmed))
    assert arrived.keys() == confirmed
    duplicates = arrived.total() - len(arrived)
    print(f"{duplicates} duplicates of {len(confirmed)} messages after {restarts} restarts")
    assert duplicates <= restarts * threads
