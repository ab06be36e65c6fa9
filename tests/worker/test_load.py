"""Many messages through the gateway: each arrives, once, also when the Worker is restarted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from kombu import Connection, Producer
from support.forms import LONG
from support.processes import Script

#: At each line that it reads, another thread publishes a message; at last it tells its counts.
PUBLISHER = """
    import threading
    from kombu import Producer

    def publish(number):
        with connection.channel() as channel:
            Producer(channel).publish(str(number), routing_key="bulk", serializer="raw")

    with connect() as connection:
        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        for thread in threads:
            sys.stdin.readline()
            thread.start()
        sys.stdin.readline()
        for thread in threads:
            thread.join()
        print(json.dumps(kombu_cfqueues.stats()), flush=True)
"""


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


@pytest.mark.long
def test_64_threads_publish_without_loss_or_duplicate(edge):
    """No option but the URL, and no request limit: 64 callers that each wait for each message."""
    threads, each = 64, 100
    with Connection(edge.broker_url) as connection, ThreadPoolExecutor(threads) as pool:
        starts = range(0, threads * each, each)
        done = pool.map(lambda first: publish_range(connection, range(first, first + each)), starts)
        confirmed = [str(number) for numbers in done for number in numbers]
    assert arrivals(edge, len(confirmed)) == Counter(confirmed)


class Doorman:
    """Between the transport and the gateway: holds messages back, and counts who is inside."""

    def __init__(self, gateway: str) -> None:
        self.open = threading.Event()
        self.came = threading.Semaphore(0)
        self.inside = self.most_inside = 0
        self._lock = threading.Lock()
        doorman = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._forward(None)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with doorman.let_in():
                    self._forward(body)

            def _forward(self, body: bytes | None) -> None:
                headers = {"Authorization": self.headers["Authorization"]}
                url = gateway + self.path.removeprefix("/")
                answer = requests.request(self.command, url, data=body, headers=headers, timeout=60)
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @contextmanager
    def let_in(self) -> Iterator[None]:
        with self._lock:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        self.came.release()
        try:
            self.open.wait(60)
            yield
        finally:
            with self._lock:
                self.inside -= 1


@pytest.fixture
def doorman(edge) -> Iterator[Doorman]:
    doorman = Doorman(edge.urls["gateway"])
    thread = threading.Thread(target=doorman.server.serve_forever, daemon=True)
    thread.start()
    yield doorman
    doorman.open.set()
    doorman.server.shutdown()
    doorman.server.server_close()
    thread.join(60)


def test_with_the_url_alone_four_requests_are_in_flight_and_none_needs_a_permit(edge, doorman):
    """The host says it all: where it is not Cloudflare's API, no request limit applies."""
    callers, at_once = 8, 4
    url = edge.broker_url.rpartition("@")[0] + f"@127.0.0.1:{doorman.server.server_port}/"
    # In a process of its own: threads of earlier tests may still publish.
    with Script(PUBLISHER, url, {}) as publisher:
        for number in range(callers):
            publisher.go()
            if number < at_once:  # alone, so that none travels with another
                assert doorman.came.acquire(timeout=60)
        assert not doorman.came.acquire(timeout=0.3), "the fifth waits"
        doorman.open.set()
        publisher.go()
        found = publisher.line()
    assert doorman.most_inside == at_once
    assert arrivals(edge, callers) == Counter(map(str, range(callers)))
    assert (found["published"], found["permits"]) == (callers, 0)


@pytest.mark.longer
def test_a_batch_block_publishes_thousands_without_loss_or_duplicate(edge):
    """How one thread fills a queue; the rate is printed, because it is the machine's.

    `make long` publishes a hundred thousand.
    """
    total = 100_000 if LONG else 10_000
    with Connection(edge.broker_url) as connection:
        if not connection.transport.implements.batch_publish:
            pytest.skip("this transport does not publish in batches yet")
        producer = Producer(connection)
        started = time.monotonic()
        with producer.batch():
            for number in range(total):
                producer.publish(str(number), routing_key="bulk", serializer="raw")
        print(f"{total / (time.monotonic() - started):,.0f} messages/s")
    assert arrivals(edge, total) == Counter(map(str, range(total)))


@pytest.mark.long
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
