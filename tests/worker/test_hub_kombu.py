"""Kombu's own integration tests over the hub, on both servers."""

from __future__ import annotations

import pytest
from kombu import Connection
from support.kombu_integration import (
    BaseEventLoop,
    BaseExchangeTypes,
    BaseFailover,
    BaseMessage,
    BasicFunctionality,
)
from support.redis_server import free_port


@pytest.fixture
def connection(connect_to):
    return connect_to()


@pytest.fixture
def invalid_connection():
    with Connection(f"cfhub://:token@127.0.0.1:{free_port()}/tests") as connection:
        yield connection


@pytest.fixture
def failover_connection(hub):
    dead = f"cfhub://:token@127.0.0.1:{free_port()}/tests"
    with Connection(f"{dead};{hub.url()}", connect_timeout=10) as connection:
        yield connection


class TestBasicFunctionality(BasicFunctionality):
    pass


class TestExchangeTypes(BaseExchangeTypes):
    pass


class TestMessage(BaseMessage):
    pass


class TestEventLoop(BaseEventLoop):
    pass


class TestFailover(BaseFailover):
    pass
