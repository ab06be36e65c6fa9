"""What Kombu producers publish, read back with Cloudflare's own SDK instead of our code."""

from __future__ import annotations

import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from uuid import uuid4

import cloudflare
import pytest
from kombu import Connection, Exchange, Queue
from kombu.serialization import prepare_accept_content
from kombu.transport.virtual import Message

from kombu_cfqueues import account
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import ConnectionFailed, InvalidMessage, MessageTooLarge

from .workers import until

ACCEPT = prepare_accept_content(["json", "pickle"])


class Reader:
    """An independent consumer: the official SDK over HTTP pull, then Kombu's own message class."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.account_id = emulator.account_id
        self.client = cloudflare.Cloudflare(
            api_token=emulator.token, base_url=emulator.base_url, max_retries=0
        )
        self.channel = Connection("memory://").channel()

    def raw(self, queue: str) -> list[dict]:
        queues = self.client.queues
        # The SDK reads one page, which may be short; and a server may ignore the name.
        listed = queues.list(account_id=self.account_id, extra_query={"name": queue})
        (found,) = [one for one in listed if one.queue_name == queue]
        if not found.consumers:
            queues.consumers.create(
                found.queue_id, account_id=self.account_id, type="http_pull", settings={}
            )
        bodies = {}  # by id: a message may come twice

        def all_are_read() -> bool:
            states = {message.state for message in self.emulator.messages(queue)}
            if "ready" in states:
                bodies.update(self._pull(found.queue_id))
            return states == {"leased"}

        until(all_are_read)
        return [json.loads(body) for body in bodies.values()]

    def _pull(self, queue_id: str) -> dict[str, str]:
        messages = self.client.queues.messages
        try:
            pulled = messages.pull(queue_id, account_id=self.account_id, batch_size=100)
        except cloudflare.APIStatusError as refusal:
            if refusal.status_code != 405:  # the pull consumer is not in force yet
                raise
            return {}
        return {message.id: message.body for message in pulled.messages}

    def messages(self, queue: str) -> list[Message]:
        return [Message(raw, channel=self.channel, accept=ACCEPT) for raw in self.raw(queue)]

    def close(self) -> None:
        self.client.close()


@pytest.fixture
def reader(emulator):
    reader = Reader(emulator)
    yield reader
    reader.close()


@pytest.fixture
def connection(emulator):
    with Connection(emulator.broker_url) as connection:
        yield connection


def body(message: Message):
    return message.decode()


@pytest.mark.parametrize(
    "value",
    [
        {"hello": "world", "n": [1, 2.5, None, True]},
        "Grüße, 世界 \U0001f600 \u0000 \u2028",
        ["a" * 1000],
        "",
        {},
    ],
    ids=["object", "unicode", "long", "empty text", "empty object"],
)
def test_json_arrives_as_it_was_published(connection, reader, value):
    connection.Producer().publish(value, routing_key="jobs", serializer="json")
    (message,) = reader.messages("jobs")
    assert body(message) == value


def test_pickle_arrives_as_it_was_published(connection, reader):
    value = {"when": datetime(2026, 1, 2, tzinfo=timezone.utc), "set": {1, 2}, "bytes": b"\xff\x00"}
    connection.Producer().publish(value, routing_key="jobs", serializer="pickle")
    (message,) = reader.messages("jobs")
    assert body(message) == value


@pytest.mark.parametrize(
    "value", [b"plain ascii", b"\x00\xff\xfe\x80", "été".encode(), bytes(range(256))]
)
def test_raw_bytes_arrive_as_bytes(connection, reader, value):
    connection.Producer().publish(
        value, routing_key="jobs", content_type="application/data", content_encoding="binary"
    )
    (raw,) = reader.raw("jobs")
    # As this project's own consumers decode it; others of Kombu get text for text.
    channel = connection.default_channel
    assert channel.decode_body(raw["body"], raw["properties"]["body_encoding"]) == value


@pytest.mark.parametrize("method", ["zlib", "bzip2"])
def test_compressed_bodies_arrive(connection, reader, method):
    value = {"text": "again and again " * 500}
    connection.Producer().publish(value, routing_key="jobs", compression=method)
    (message,) = reader.messages("jobs")
    assert body(message) == value


def test_headers_priority_and_properties_arrive(connection, reader):
    headers = {
        "tenant": "ü", "nested": {"a": [1]}, "id": uuid4(), "price": Decimal("1.10"),
        "when": datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc),
    }  # fmt: skip
    connection.Producer().publish(
        {}, routing_key="jobs", headers=headers, priority=7, correlation_id="c", reply_to="r",
        expiration=10, custom="kept",
    )  # fmt: skip
    (message,) = reader.messages("jobs")
    properties = message.properties
    assert properties["priority"] == 7
    assert properties["correlation_id"] == "c"
    assert properties["reply_to"] == "r"
    assert properties["expiration"] == "10000"
    assert properties["custom"] == "kept"
    assert message.headers["tenant"] == "ü"
    assert message.headers["nested"] == {"a": [1]}


def test_dates_and_decimals_in_headers_survive_as_on_other_transports(connection, emulator):
    headers = {
        "id": uuid4(),
        "price": Decimal("1.10"),
        "when": datetime(2026, 5, 4, tzinfo=timezone.utc),
    }
    connection.Producer().publish({}, routing_key="jobs", headers=headers)
    queue = connection.SimpleQueue("jobs")
    message = queue.get(timeout=30)
    message.ack()
    queue.close()
    assert message.headers == headers


def test_a_text_body_is_no_base64_on_the_wire(connection, emulator):
    """Base64 would cost a third of the 128 KB of a message."""
    connection.Producer().publish({"greeting": "Grüße"}, routing_key="jobs")
    (posted,) = pushes(emulator)
    assert posted["content_type"] == "text"
    envelope = json.loads(posted["body"])
    assert json.loads(envelope["body"]) == {"greeting": "Grüße"}
    assert envelope["properties"]["body_encoding"] == "utf-8"


def test_a_binary_body_is_base64_on_the_wire(connection, emulator):
    connection.Producer().publish({"a": 1}, routing_key="jobs", serializer="pickle")
    (posted,) = pushes(emulator)
    assert json.loads(posted["body"])["properties"]["body_encoding"] == "base64"


def test_one_message_is_one_request(connection, emulator):
    producer = connection.Producer()
    producer.publish(1, routing_key="jobs")
    emulator.requests.clear()
    producer.publish(2, routing_key="jobs")
    assert [(request.method, request.status) for request in emulator.requests] == [("POST", 200)]


def test_every_message_has_an_id_to_tell_duplicates_by(connection, reader):
    producer = connection.Producer()
    producer.publish(1, routing_key="jobs")
    producer.publish(2, routing_key="jobs", message_id="mine")
    ids = [message.properties["message_id"] for message in reader.messages("jobs")]
    assert "mine" in ids
    assert all(ids)


def test_publish_returns_a_promise_that_is_fulfilled(connection):
    queue = Queue("bound", Exchange("orders"), routing_key="new")
    producer = connection.Producer()
    assert producer.publish(1, routing_key="jobs").ready
    assert producer.publish(1, exchange="orders", routing_key="new", declare=[queue]).ready


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_exchanges_deliver_to_each_bound_queue(connection, reader, kind):
    exchange = Exchange("orders", type=kind)
    queues = [Queue("eu", exchange, routing_key="new"), Queue("us", exchange, routing_key="new")]
    connection.Producer().publish({"n": 1}, exchange=exchange, routing_key="new", declare=queues)
    assert [body(m) for q in ("eu", "us") for m in reader.messages(q)] == [{"n": 1}, {"n": 1}]


def test_a_fanout_message_that_nothing_is_bound_for_is_logged_once(connection, caplog):
    """A fanout exchange ignores routing keys, of which there may be any number."""
    exchange = Exchange("lonely", type="fanout")
    producer = connection.Producer()
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            producer.publish({}, exchange=exchange, routing_key=f"{number}", declare=[exchange])
    (record,) = [r for r in caplog.records if "no queue is bound" in r.getMessage()]
    assert "'lonely'" in record.getMessage()


def test_a_mandatory_message_that_nothing_is_bound_for_raises(connection):
    exchange = Exchange("lonely", type="direct")
    with pytest.raises(InvalidMessage, match="no queue is bound to exchange 'lonely'"):
        connection.Producer().publish(
            {}, exchange=exchange, routing_key="nobody", declare=[exchange], mandatory=True
        )


def test_a_queue_that_is_missing_is_created(connection, emulator):
    connection.Producer().publish(1, routing_key="emails.high_priority")
    assert emulator.queue_id("emails-high-priority")


def test_delay_seconds_of_a_publish_becomes_the_queues_own_delay(connection, emulator):
    began = time.monotonic()
    connection.Producer().publish(1, routing_key="jobs", delay_seconds=30)
    (posted,) = pushes(emulator)
    assert 30 - (time.monotonic() - began) <= posted["delay_seconds"] <= 30


def test_an_eta_in_the_past_is_delivered_at_once_whatever_the_queues_own_delay(emulator):
    emulator.create_queue("slow", delivery_delay=600)
    past = (datetime.now(timezone.utc) - timedelta(hours=1)).isoformat()
    with Connection(emulator.broker_url) as connection:
        connection.Producer().publish(
            1, routing_key="slow", headers={"lang": "py", "task": "t", "id": "i", "eta": past}
        )
        queue = connection.SimpleQueue("slow")
        queue.get(timeout=30).ack()
        queue.close()


def test_a_queues_own_delay_holds_for_messages_that_state_none(emulator):
    emulator.create_queue("slow", delivery_delay=600)
    with Connection(emulator.broker_url) as connection:
        connection.Producer().publish(1, routing_key="slow")
        assert "delay_seconds" not in pushes(emulator)[0]


@pytest.mark.parametrize("position", ["null", "absent", "metrics"])
def test_any_form_of_success_is_accepted(position):
    with Emulator(push_result=position) as emulator, Connection(emulator.broker_url) as connection:
        connection.Producer().publish(1, routing_key="jobs")
        assert len(emulator.messages("jobs")) == 1


def test_a_deleted_queue_is_looked_up_once_more(connection, emulator):
    producer = connection.Producer()
    producer.publish(1, routing_key="jobs")
    first = emulator.queue_id("jobs")
    cloudflare.Cloudflare(
        api_token=emulator.token, base_url=emulator.base_url, max_retries=0
    ).queues.delete(first, account_id=emulator.account_id)
    producer.publish(2, routing_key="jobs")
    assert emulator.queue_id("jobs") != first
    assert len(emulator.messages("jobs")) == 1


def test_a_producer_of_a_closed_connection_says_so_and_with_retry_opens_another(emulator):
    connection = Connection(emulator.broker_url)
    producer = connection.Producer()
    producer.publish("first", routing_key="jobs")
    connection.close()

    with pytest.raises(ConnectionFailed, match="closed"):
        producer.publish("second", routing_key="jobs")
    producer.publish("third", routing_key="jobs", retry=True)

    connection.release()
    assert len(emulator.messages("jobs")) == 2


def test_a_connection_may_be_closed_while_others_publish_through_it(emulator):
    """Each goes on over a new one, and loses nothing."""
    emulator.latency = 0.01
    connection = Connection(emulator.broker_url)

    def publish(_):
        producer = connection.Producer()
        for number in range(10):
            policy = {"max_retries": 100}
            producer.publish(number, routing_key="jobs", retry=True, retry_policy=policy)

    with ThreadPoolExecutor(4) as threads:
        published = [threads.submit(publish, number) for number in range(4)]
        while wait(published, timeout=0.05).not_done:
            connection.close()

    assert [one.exception() for one in published] == [None] * 4
    connection.release()
    assert len(emulator.messages("jobs")) == 40


def test_a_connection_that_is_closed_while_it_is_made_says_so(emulator):
    """Then a publish with `retry` opens another, and nothing stays open of this one."""

    def token():
        connection.close()  # as another thread may
        return emulator.token

    options = {
        "account_id": emulator.account_id,
        "api_token": token,
        "base_url": emulator.base_url,
    }
    connection = Connection(transport="kombu_cfqueues:Transport", transport_options=options)
    with pytest.raises(ConnectionFailed, match="closed"):
        connection.transport.establish_connection()
    assert [one._connections for one in account._registry.accounts.values()] == [0]


def test_a_connection_that_is_closed_as_soon_as_it_is_made_is_made_again(emulator, monkeypatch):
    connection = Connection(emulator.broker_url)
    establish = connection.transport.establish_connection

    def close_then():
        made = establish()
        connection.close()  # as another thread may
        return made

    monkeypatch.setattr(connection.transport, "establish_connection", close_then)
    connection.Producer().publish(1, routing_key="jobs")
    connection.release()
    assert len(emulator.messages("jobs")) == 1


def test_too_large_a_message_costs_no_request(connection, emulator):
    producer = connection.Producer()
    producer.publish(1, routing_key="jobs")
    emulator.requests.clear()
    with pytest.raises(MessageTooLarge, match=r"127,900"):
        producer.publish(os.urandom(130_000), routing_key="jobs")
    assert len(emulator.requests) == 0


@pytest.mark.parametrize("content_type", ["text", "json"])
@pytest.mark.parametrize("body_format", ["plain", "kombu"])
def test_body_formats(emulator, content_type, body_format):
    """A Worker that knows nothing of Kombu gets the bare body."""
    options = {"content_type": content_type, "body_format": body_format}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.Producer().publish({"a": [1, "ü"]}, routing_key="jobs")
        connection.Producer().publish(["b"], routing_key="jobs")
        connection.Producer().publish("text", routing_key="jobs", serializer="json")
    posted = pushes(emulator)
    bodies = [p["body"] if content_type == "json" else json.loads(p["body"]) for p in posted]
    if body_format == "kombu":
        bodies = [json.loads(envelope["body"]) for envelope in bodies]
    assert bodies == [{"a": [1, "ü"]}, ["b"], "text"]
    assert {p["content_type"] for p in posted} == {content_type}


def pushes(emulator: Emulator) -> list[dict]:
    """What was posted and accepted, from the wire."""
    posted = []
    # Accepted only: an emulator may get the port of an earlier one, whose queue ids are remembered.
    for request in [request for request in emulator.requests if request.status == 200]:
        if request.path.endswith("/messages"):
            posted.append(json.loads(request.body))
        elif request.path.endswith("/messages/batch"):
            posted += json.loads(request.body)["messages"]
    return posted
