"""What several files need: a server with a queue, connections, the application of the workers."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from kombu import Connection
from support.rabbitmq_server import RabbitServer, needs_rabbitmq
from support.redis_server import RedisServer, free_port, needs_redis

from kombu_cfqueues.emulator import Emulator

from .workers import HERE


@pytest.fixture
def server(request):
    """An emulator with the queue ``jobs``; a file's SERVER holds arguments for it."""
    with Emulator(**getattr(request.module, "SERVER", {})) as emulator:
        emulator.create_queue("jobs")
        yield emulator


@pytest.fixture
def connect(emulator):
    """Connects to the emulator, with the transport options that it is given."""
    connections = []

    def connect(**options):
        connections.append(Connection(emulator.broker_url, transport_options=options))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.release()


@pytest.fixture
def redis_server(tmp_path):
    """A Redis server of this test."""
    needs_redis()
    server = RedisServer(free_port(), tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory):
    """A RabbitMQ server for all tests that need one: it takes seconds to start."""
    needs_rabbitmq()
    server = RabbitServer(tmp_path_factory.mktemp("rabbit"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def tasks(emulator, tmp_path, monkeypatch) -> ModuleType:
    """The application of the workers, to send its tasks from here.  The emulator is 30 ms away."""
    emulator.latency = 0.03
    monkeypatch.setenv("BROKER_URL", emulator.broker_url)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("RESULTS", f"file://{tmp_path / 'results'}")
    monkeypatch.syspath_prepend(str(HERE))
    (tmp_path / "results").mkdir()
    sys.modules.pop("tasks", None)
    import tasks

    yield tasks
    tasks.app.close()
    sys.modules.pop("tasks", None)
