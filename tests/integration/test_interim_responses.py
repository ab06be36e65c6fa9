"""Interim answers (1xx) of HTTP are not the answer: what follows them on the connection is.

Python's http.client skips 100 and takes 102 (Processing), 103 (Early Hints) and every other one for
the answer.  Then each later request on the connection reads the answer of the one before it.
"""

from __future__ import annotations

import pytest
from kombu import Connection
from support.scripted import Api, Failure, Raw, Say, ScriptedServer, Step, Success

from kombu_cfqueues.errors import CFQueuesError, ConnectionFailed, InvalidMessage

INTERIM = {
    "100": "HTTP/1.1 100 Continue\r\n\r\n",
    "102": "HTTP/1.1 102 Processing\r\n\r\n",
    "103": "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
    "104": "HTTP/1.1 104 Upload Resumption Supported\r\n\r\n",
    "199": "HTTP/1.1 199 Unassigned\r\n\r\n",
}


class Preceded(Step):
    """Answer with *step*, and interim answers before it."""

    def __init__(self, interim: str, step: Say) -> None:
        self.interim, self.answer = interim.encode(), step.text()

    def play(self, connection, server) -> bool:
        connection.sendall(self.interim)
        # The answer takes its time, or who stops reading here never meets it.
        server.released.wait(0.02)
        connection.sendall(self.answer)
        return True


def preceded(interim, api):
    """Make *interim* come before each answer to a publish; refuse what says "wrong"."""

    def answer(request):
        if not request.path.endswith("/messages"):
            return api(request)
        if b"wrong" in request.body:
            return Preceded(interim, Failure(400, 10207, "the message says wrong"))
        return Preceded(interim, api(request))

    return answer


def statements(server):
    """Send alternately what the server takes and what it refuses; return who was told what."""
    told = []
    with Connection(server.broker_url, transport_options={"publish_timeout": 1}) as connection:
        producer = connection.Producer()
        for number in range(6):
            body = "wrong" if number % 2 else "good"
            try:
                producer.publish(body, routing_key="jobs")
            except InvalidMessage:
                told.append((body, "refused"))
            except CFQueuesError as error:
                told.append((body, type(error).__name__))
            else:
                told.append((body, "accepted"))
    return told


@pytest.mark.parametrize("interim", INTERIM.values(), ids=INTERIM)
def test_each_publish_is_told_its_own_outcome(interim):
    """A refused message that is told accepted is lost."""
    api = Api(["jobs"])
    with ScriptedServer(otherwise=preceded(interim, api)) as server:
        told = statements(server)

    assert told == [("good", "accepted"), ("wrong", "refused")] * 3
    assert len(api.messages["jobs"]) == 3


def test_several_interim_answers_come_before_one():
    api = Api(["jobs"])
    interim = INTERIM["103"] + INTERIM["102"] + INTERIM["103"]
    with ScriptedServer(otherwise=preceded(interim, api)) as server:
        told = statements(server)

    assert told == [("good", "accepted"), ("wrong", "refused")] * 3


def test_a_pull_gets_its_own_answer():
    """Who reads the answer of another pull leases messages that nobody ever sees."""
    api = Api(["jobs"])
    pulls = iter(range(100))

    def answer(request):
        if request.path.endswith("/pull"):
            message = {
                "id": "1", "body": f"message {next(pulls)}", "attempts": 1, "lease_id": "lease",
                "metadata": {"CF-Content-Type": "text"},
            }  # fmt: skip
            return Preceded(INTERIM["103"], Success({"messages": [message]}))
        if request.path.endswith("/consumers"):
            return Success([{"type": "http_pull", "settings": {"max_retries": 100}}])
        if request.path.endswith("/ack"):
            return Preceded(INTERIM["103"], Success({"ackCount": 1}))
        return api(request)

    options = {"publish_timeout": 1}
    with (
        ScriptedServer(otherwise=answer) as server,
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        channel = connection.default_channel
        first = channel.basic_get("jobs", no_ack=True)
        assert first is not None
        second = channel.basic_get("jobs", no_ack=True)
        assert second is not None
        assert [first.payload, second.payload] == ["message 0", "message 1"]


def test_interim_answers_without_end_do_not_outlast_the_timeout():
    """Each one would start the waiting anew."""

    class Endless(Step):
        def play(self, connection, server) -> bool:
            while not server.released.wait(0.05):
                connection.sendall(INTERIM["102"].encode())
            return False

    api = Api(["jobs"])
    with ScriptedServer(
        otherwise=lambda r: Endless() if r.path.endswith("/messages") else api(r)
    ) as server:
        options = {"publish_timeout": 2, "read_timeout": 0.5, "retry_uncertain": False}
        with Connection(server.broker_url, transport_options=options) as connection:
            with pytest.raises(CFQueuesError) as raised:
                connection.Producer().publish("x", routing_key="jobs")
            assert raised.value.delivered == "unknown"
            cause = raised.value.__cause__ or raised.value
            assert isinstance(cause, ConnectionFailed)


@pytest.mark.parametrize("after", [b"", Success().text()], ids=["silence", "an answer"])
def test_a_switch_of_protocols_ends_the_connection(after):
    """101 was not asked for.  What follows is another protocol, even if it looks like an answer."""
    api = Api(["jobs"])
    switch = Raw(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n" + after
    )
    with ScriptedServer(
        otherwise=lambda r: switch if r.path.endswith("/messages") else api(r)
    ) as server:
        options = {"publish_timeout": 1}
        with Connection(server.broker_url, transport_options=options) as connection:
            with pytest.raises(CFQueuesError) as raised:
                connection.Producer().publish("x", routing_key="jobs")
            assert raised.value.delivered == "unknown"


# -- siblings: what else makes the next request read another one's answer


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_by_its_status_leaves_nothing_behind(status):
    """A server that sends one all the same, and late, would answer the next request with it."""
    api = Api(["jobs"])
    accepted = Success().text()
    odd = []  # connections that wait for a body

    class Odd(Step):
        def play(self, connection, server) -> bool:
            odd.append(connection)
            head = f"HTTP/1.1 {status} Odd\r\nContent-Length: {len(accepted)}\r\n\r\n"
            connection.sendall(head.encode())
            return True

    class Refusal(Step):
        def play(self, connection, server) -> bool:
            if connection in odd:
                connection.sendall(accepted)
            return Failure(400, 10207, "the message says wrong").play(connection, server)

    def answer(request):
        if b"odd" in request.body:
            return Odd()
        return Refusal() if b"wrong" in request.body else api(request)

    options = {"publish_timeout": 1, "retry_uncertain": False}
    with (
        ScriptedServer(otherwise=answer) as server,
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        producer = connection.Producer()
        with pytest.raises(CFQueuesError):
            producer.publish("odd", routing_key="jobs")
        assert odd
        with pytest.raises(InvalidMessage):
            producer.publish("wrong", routing_key="jobs")


def test_bytes_after_an_answer_are_not_the_next_ones():
    """A proxy that answers twice; the connection is not used again."""
    api = Api(["jobs"])
    accepted = Success()

    class Twice(Step):
        def play(self, connection, server) -> bool:
            connection.sendall(accepted.text() + accepted.text())
            return True

    def answer(request):
        if b"wrong" in request.body:
            return Failure(400, 10207, "the message says wrong")
        return Twice() if request.path.endswith("/messages") else api(request)

    with ScriptedServer(otherwise=answer) as server, Connection(server.broker_url) as connection:
        producer = connection.Producer()
        producer.publish("good", routing_key="jobs")
        with pytest.raises(InvalidMessage):
            producer.publish("wrong", routing_key="jobs")
