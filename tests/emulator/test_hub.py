"""The emulator's hub, beside what both servers of the hub are tested for in tests/worker."""

from __future__ import annotations

import pytest
import requests
from kombu import Connection, Exchange, Queue
from support.processes import needs

from kombu_cfqueues.emulator import Emulator, server
from kombu_cfqueues.errors import ConnectionFailed


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


def test_an_emulator_without_the_package_says_so(monkeypatch):
    monkeypatch.setattr(server, "websocket_class", lambda: "none")
    with (
        Emulator() as emulator,
        Connection(emulator.control_url) as connection,
        pytest.raises(ConnectionFailed, match="websockets"),
    ):
        connection.connect()


def test_a_web_page_of_another_site_cannot_connect(emulator):
    """A browser sends no token of its own accord, and the default token is no secret."""
    url = f"{emulator.page_url}hub/emulator"
    headers = {"Authorization": f"Bearer {emulator.token}", "Origin": "https://example.com"}
    assert requests.get(url, headers=headers, timeout=30).status_code == 403
