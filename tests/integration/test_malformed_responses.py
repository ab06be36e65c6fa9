"""Responses with two lengths (RFC 9112 forbids them): to a publish, to a batch, to a pull.

requests raises the same class for them as for a header of a request that cannot be sent.
"""

from __future__ import annotations

import pytest
from kombu import Connection
from support.scripted import Api, Raw, ScriptedServer, Success

import kombu_cfqueues
from kombu_cfqueues.errors import BatchPublishError, CFQueuesError, ConfigurationError

TWO_LENGTHS = Raw(
    b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\nContent-Length: 17\r\n\r\n" + b" " * 17
)


class Malformed:
    """An API that takes messages, but answers them with two lengths."""

    def __init__(self):
        self.api = Api(["jobs"])

    def __call__(self, request):
        said = self.api(request)
        return TWO_LENGTHS if "/messages" in request.path else said


@pytest.fixture
def stored():
    return Malformed()


def connect(server):
    options = {"publish_timeout": 2, "retry_uncertain": False}
    return Connection(server.broker_url, transport_options=options)


def test_a_publish_whose_response_has_two_lengths_may_have_arrived(stored):
    with (
        ScriptedServer(otherwise=stored) as server,
        connect(server) as connection,
        pytest.raises(CFQueuesError) as raised,
    ):
        connection.Producer().publish("x", routing_key="jobs")

    assert len(stored.api.messages["jobs"]) == 1
    assert not isinstance(raised.value, ConfigurationError)
    assert raised.value.delivered == "unknown"


def test_a_batch_whose_response_has_two_lengths_may_have_arrived(stored):
    def send(connection):
        with kombu_cfqueues.batch(connection):
            for number in range(5):
                connection.Producer().publish(number, routing_key="jobs")

    with (
        ScriptedServer(otherwise=stored) as server,
        connect(server) as connection,
        pytest.raises(BatchPublishError) as raised,
    ):
        send(connection)

    assert len(stored.api.messages["jobs"]) == 5
    assert len(raised.value.uncertain) == 5
    assert not raised.value.refused


def test_a_pull_whose_response_has_two_lengths_is_repeated():
    """The application waits as before; a `ConfigurationError` would end its worker."""
    message = {
        "body": '{"number": 1}',
        "id": "m",
        "attempts": 1,
        "lease_id": "l",
        "timestamp_ms": 1,
    }
    pulls = [TWO_LENGTHS, Success({"messages": [message]})]
    consumer = {"type": "http_pull", "settings": {"max_retries": 100}}
    api = Api(["jobs"])

    def answer(request):
        if request.path.endswith("/consumers"):
            return Success([consumer])
        if request.path.endswith("/pull"):
            return pulls.pop(0) if pulls else Success({"messages": []})
        if request.path.endswith("/ack"):
            return Success({"ackCount": 1})
        return api(request)

    options = {"polling_interval": 0.05, "max_polling_interval": 0.1}
    with (
        ScriptedServer(otherwise=answer) as server,
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        received = connection.SimpleQueue("jobs").get(timeout=20)
        assert received.payload == {"number": 1}
        received.ack()
