"""Kombu's own integration classes on the hub; `tests/worker/test_hub_kombu.py` runs this file.

``KOMBU_SOURCE`` is Kombu's unpacked source package, and ``HUB_URL`` the hub.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from kombu import Connection
from support.redis_server import free_port

DEAD = f"cfhub://:token@127.0.0.1:{free_port()}/tests"

_path = Path(os.environ["KOMBU_SOURCE"]) / "t/integration/common.py"
_spec = importlib.util.spec_from_file_location("kombu_common", _path)
common = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(common)


class Impatient(Connection):
    """Tries to connect twice, as Kombu does, but without the two seconds between."""

    def _ensure_connection(self, **given):
        return super()._ensure_connection(**{**given, "interval_start": 0})


@pytest.fixture
def connection():
    with Connection(os.environ["HUB_URL"]) as connection:
        yield connection


@pytest.fixture
def invalid_connection():
    with Impatient(DEAD) as connection:
        yield connection


@pytest.fixture
def failover_connection():
    with Connection(f"{DEAD};{os.environ['HUB_URL']}", connect_timeout=10) as connection:
        yield connection


class TestBasicFunctionality(common.BasicFunctionality):
    pass


class TestExchangeTypes(common.BaseExchangeTypes):
    pass


class TestMessage(common.BaseMessage):
    pass


class TestEventLoop(common.BaseEventLoop):
    pass


class TestFailover(common.BaseFailover):
    pass
