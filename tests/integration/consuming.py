"""What the tests of consuming share: a consumer that keeps what it gets, and how to wait."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from kombu import Consumer, Queue

from .workers import until

PULL = {"type": "http_pull", "settings": {"max_retries": 100}}

FAST = {"polling_interval": 0.05, "max_polling_interval": 0.1}


def publish(connection, *bodies, queue="jobs", **kwargs):
    producer = connection.Producer()
    for body in bodies:
        producer.publish(body, routing_key=queue, **kwargs)


def drain(connection, count, timeout=60):
    for _ in range(count):
        connection.drain_events(timeout=timeout)


class Collector:
    """A consumer's callback that keeps what it gets."""

    def __init__(self, *, ack: bool = True) -> None:
        self.messages = []
        self.bodies = []
        self._ack = ack

    def __call__(self, body, message) -> None:
        self.bodies.append(body)
        self.messages.append(message)
        if self._ack:
            message.ack()


def consume(connection, callback, queue="jobs", **kwargs) -> Consumer:
    return connection.Consumer(queues=Queue(queue), callbacks=[callback], **kwargs)


def nothing_comes(connection, seconds):
    with pytest.raises(socket.timeout):
        connection.drain_events(timeout=seconds)


def drain_until_it_fails(connection):
    """Raise what draining raises other than that nothing has come."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)


def arrived(emulator, queue="jobs"):
    """What was published can be pulled: a server may take a moment from the one to the other."""
    until(lambda: {message.state for message in emulator.messages(queue)} == {"ready"})


def at_rest(emulator, queue="jobs"):
    """Wait until the queue is empty, and its consumers have not pulled for a second.

    A message that is published earlier may be taken by a pull that is on its way.  Its bell is in
    vain then, and the bell of the next message waits for the polling interval.
    """
    pulls = emulator.requests.of
    until(lambda: pulls("pull") and time.time() - pulls("pull")[-1].time > 1, what="no pulls")
    settled(emulator, queue)


def settled(emulator, queue="jobs"):
    until(lambda: not emulator.messages(queue), what=f"{queue} is empty")
