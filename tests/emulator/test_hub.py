"""The emulator's hub, beside what both servers of the hub are tested for in tests/worker."""

from __future__ import annotations

import pytest
import requests
from kombu import Connection, Exchange, Queue
from support.hub_servers import drain
from support.processes import needs

from kombu_cfqueues.emulator import Emulator, server
from kombu_cfqueues.errors import ConfigurationError, ConnectionFailed


@pytest.fixture(autouse=True)
def websockets():
    needs("websockets")


def test_the_state_says_who_is_connected(emulator):
    """The page shows it."""

    def state():
        return requests.get(f"{emulator.page_url}_emulator/state", timeout=30).json()["hub"]

    assert state() == {}
    with Connection(emulator.control_url) as connection:
        Queue("listener", Exchange("news", "fanout"))(connection.default_channel).declare()
        (client,) = state()["emulator"]["clients"]
        assert client["queues"] == ["listener"]


def test_a_command_comes_once_from_an_emulator_that_was_started_anew():
    """It counts from the beginning then, and what it has replayed once it does not replay again."""
    got = []
    queue = Queue("one@host.celery.pidbox", Exchange("celery.pidbox", "fanout", durable=False))

    def listen(connection):
        callback = lambda body, message: (message.ack(), got.append(body))  # noqa: E731
        connection.Consumer(queue, callbacks=[callback]).consume()

    with Emulator() as first, Connection(first.control_url) as connection:
        listen(connection)
        for number in range(2):
            connection.Producer().publish(number, exchange=queue.exchange)
        drain(connection, lambda: got == [0, 1])
    with Emulator(port=first.port) as second, Connection(second.control_url) as other:
        other.Producer().publish(2, exchange=queue.exchange)
        for number in (2, 3):
            with Connection(second.control_url) as connection:
                listen(connection)
                drain(connection, lambda: got[-1] == number)  # noqa: B023  called at once
            other.Producer().publish(number + 1, exchange=queue.exchange)
    assert got == [0, 1, 2, 3]


def test_an_emulator_without_the_package_says_so(monkeypatch):
    monkeypatch.setattr(server, "websocket_class", lambda: "none")
    with (
        Emulator() as emulator,
        Connection(emulator.control_url) as connection,
        pytest.raises(ConnectionFailed, match="websockets"),
    ):
        connection.transport.establish_connection()


@pytest.mark.parametrize(
    "url",
    ["cfhub://:token@host/", "cfhub://host/shop", "cfhub://:a%20b@host/shop", "cfhub:///shop"],
)
def test_a_url_that_names_no_hub_is_refused_before_anything_is_sent(emulator, url):
    """As the other options are."""
    with (
        Connection(emulator.broker_url, transport_options={"control_url": url}) as connection,
        pytest.raises(ConfigurationError, match=r"control_url.*cfhub://:TOKEN@HOST/NAMESPACE"),
    ):
        connection.connect()
    assert list(emulator.requests) == []


def test_a_web_page_of_another_site_cannot_connect(emulator):
    """A browser sends no token of its own accord, and the default token is no secret."""
    url = f"{emulator.page_url}hub/emulator"
    headers = {"Authorization": f"Bearer {emulator.token}", "Origin": "https://example.com"}
    assert requests.get(url, headers=headers, timeout=30).status_code == 403
