"""The ways to publish that are compared.  Each imports what it needs when it is chosen.

A contender is a function of `Settings` that returns ``connect``: called in each thread, it returns
``publish``, which publishes so many messages and returns when all of them are accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import message
from .server import ACCOUNT_ID, QUEUE_ID, TOKEN

Publish = Callable[[int], None]
Connect = Callable[[], Publish]

QUEUE = "benchmark"


class Settings(NamedTuple):
    """What a contender is told.

    Attributes:
        port: Of the server, or of Redis.
        in_flight: Requests that this transport may have on their way at once.
    """

    port: int
    in_flight: int = 1

    @property
    def api_url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.port}/client/v4"


def confirmed(settings: Settings) -> Connect:
    """This transport: `Producer.publish` returns when the server has the message."""

    def connect() -> Publish:
        producer = _connection(settings).Producer(serializer="json")

        def publish(count: int) -> None:
            for _ in range(count):
                producer.publish(message.body(), routing_key=QUEUE)

        return publish

    return connect


def batch(settings: Settings) -> Connect:
    """This transport: `Producer.batch`."""
    return lambda: _publish_in_batch(_connection(settings))


def memory(_: Settings) -> Connect:
    """Kombu's memory transport, by the same loop as `batch`: what Kombu itself costs."""
    from kombu.connection import Connection

    def connect() -> Publish:
        connection = Connection("memory://")
        channel = connection.default_channel
        in_batch = _publish_in_batch(connection)

        def publish(count: int) -> None:
            in_batch(count)
            channel.queue_purge(QUEUE)  # or memory would hold the messages of the whole run

        return publish

    return connect


def redis(settings: Settings) -> Connect:
    """Kombu's Redis transport."""

    def connect() -> Publish:
        producer = _redis(settings).Producer(serializer="json")

        def publish(count: int) -> None:
            for _ in range(count):
                producer.publish(message.body(), routing_key=QUEUE)

        return publish

    return connect


def redis_batch(settings: Settings) -> Connect:
    """Kombu's Redis transport, `Producer.batch`."""
    return lambda: _publish_in_batch(_redis(settings))


def sdk(settings: Settings) -> Connect:
    """Cloudflare's own SDK, one message a request; its threads share a client."""
    push = _sdk(settings).queues.messages.push

    def publish(count: int) -> None:
        for _ in range(count):
            push(QUEUE_ID, account_id=ACCOUNT_ID, body=message.text(), content_type="text")

    return lambda: publish


def sdk_bulk(settings: Settings) -> Connect:
    """Cloudflare's own SDK, as many messages a request as it is asked for: 100 at most."""
    push = _sdk(settings).queues.messages.bulk_push

    def publish(count: int) -> None:
        messages = [{"body": message.text(), "content_type": "text"} for _ in range(count)]
        push(QUEUE_ID, account_id=ACCOUNT_ID, messages=messages)

    return lambda: publish


def bare_requests(settings: Settings) -> Connect:
    """A `requests.Session` a thread and one POST a message."""
    import requests

    url = f"{settings.api_url}/accounts/{ACCOUNT_ID}/queues/{QUEUE_ID}/messages"

    def connect() -> Publish:
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {TOKEN}"

        def publish(count: int) -> None:
            for _ in range(count):
                posted = {"body": message.text(), "content_type": "text"}
                session.post(url, json=posted, timeout=30).raise_for_status()

        return publish

    return connect


CONTENDERS: dict[str, Callable[[Settings], Connect]] = {
    contender.__name__: contender
    for contender in (confirmed, batch, sdk, sdk_bulk, bare_requests, memory, redis, redis_batch)
}


def _connection(settings: Settings) -> Any:
    from kombu.connection import Connection

    return Connection(
        f"cfqueues://{ACCOUNT_ID}:{TOKEN}@127.0.0.1:{settings.port}/",
        transport="kombu_cfqueues:Transport",
        transport_options={"max_in_flight": settings.in_flight, "queues": {QUEUE: QUEUE_ID}},
    )


def _redis(settings: Settings) -> Any:
    from kombu.connection import Connection

    return Connection(f"redis://127.0.0.1:{settings.port}/0")


def _sdk(settings: Settings) -> Any:
    import cloudflare

    # With its own retries: under many threads its pool of connections fails now and then.
    return cloudflare.Cloudflare(api_token=TOKEN, base_url=settings.api_url)


def _publish_in_batch(connection: Any) -> Publish:
    producer = connection.Producer(serializer="json")

    def publish(count: int) -> None:
        with producer.batch():
            for _ in range(count):
                producer.publish(message.body(), routing_key=QUEUE)

    return publish
