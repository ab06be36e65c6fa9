"""A process that meets new queues for ever, such as a reply queue for each request, stays small.

The test knows no table by its name: it walks through everything that the library holds, so it also
finds a table that is added later.
"""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import sys
import types
from collections import deque

import pytest
from kombu import Connection
from support.forms import long
from support.processes import eventually

import kombu_cfqueues
from kombu_cfqueues import account, errors, metrics
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.runtime import recent

QUEUES = 80
KEPT = 5
CONTAINERS = (dict, list, set, frozenset, tuple, deque)
#: The walk does not enter these: what they lead to is not the library's.
FOREIGN = (types.ModuleType, types.FrameType, types.TracebackType, Emulator, sqlite3.Connection)


@pytest.fixture(autouse=True)
def everything_is_old_at_once(monkeypatch):
    """An hour in no time: what was not used last is unused for long."""
    monkeypatch.setattr(recent, "RECENT_SECONDS", -1.0)
    monkeypatch.setattr(recent, "KEPT", KEPT)
    monkeypatch.setattr(metrics, "MAX_QUEUES", KEPT)
    metrics.metrics.renew_after_fork()  # earlier tests may have counted queues of the same names


@pytest.fixture
def emulator():
    with Emulator() as running:
        yield running


def children(thing):
    """What *thing* refers to, as far as it is the library's or plain data."""
    if isinstance(thing, FOREIGN) or getattr(thing, "cache_parameters", dict)().get("maxsize"):
        return []  # a cache with a maximum is no table that grows
    if isinstance(thing, types.FunctionType):
        return [*(thing.__closure__ or ()), *(thing.__defaults__ or ())]
    if isinstance(thing, type) and not thing.__module__.startswith("kombu_cfqueues"):
        return []
    return gc.get_referents(thing)


def sizes(*roots):
    """How many entries each container has that the library holds, and a way to it, by its id.

    The way is the first that the walk finds, which may be another one in the next walk.
    """
    library = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("kombu_cfqueues") and ".emulator" not in name
    ]
    named = [value for module in library for value in vars(module).values()]
    gc.collect()
    found, seen = {}, set()
    stack = [(thing, "") for thing in (*roots, account._registry.accounts, *named)]
    while stack:
        thing, path = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        here = f"{path}/{type(thing).__name__}"[-200:]
        if isinstance(thing, CONTAINERS):
            found[id(thing)] = len(thing), here
        stack += [(child, here) for child in children(thing)]
    return found


def grown(before, after):
    """The containers that have met most of the queues and kept them."""
    return {path: size for key, (size, path) in after.items()
            if size - before.get(key, (0, ""))[0] > QUEUES // 2}  # fmt: skip


def publish_to_each(connection, names):
    producer = connection.Producer()
    for name in names:
        producer.publish("x", routing_key=name)


def publish_a_batch(connection, names):
    producer = connection.Producer()
    with kombu_cfqueues.batch(producer.connection):
        publish_to_each(connection, names)


def publish_what_is_refused(connection, names):
    """Each queue refuses some messages of a batch, and accepts others."""
    emulator = connection.emulator
    producer = connection.Producer()
    for name in names:
        emulator.faults.error("batch", status=400, code=10207, message="bad", times=1)
        with kombu_cfqueues.batch(producer.connection):
            producer.publish("x", routing_key=name)
            producer.publish("x", routing_key=name)


def consume(connection, names):
    channel = connection.default_channel
    for name in names:
        channel.basic_publish(channel.prepare_message("x"), "", name)
        channel.basic_get(name, no_ack=True)


def open_consumers(connection, names):
    for name in names:
        with connection.channel() as channel:
            channel.queue_declare(queue=name)
            channel.basic_consume(name, True, lambda _: None, "tag")


def miss(connection, names):
    options = connection.transport_options | {"create_missing_queues": False}
    channel = connection.clone(transport_options=options).default_channel
    for name in names:
        with contextlib.suppress(errors.QueueNotFound):  # the spool tells it later
            channel.basic_publish(channel.prepare_message("x"), "", name)


@pytest.mark.parametrize(
    "options",
    [
        long({}, id="alone"),
        pytest.param({"request_rate": 10_000.0, "request_burst": 10_000}, id="shared"),
        long(
            {"request_rate": 10_000.0, "request_burst": 10_000, "publish_mode": "spool"},
            id="spool",
        ),
    ],
)
@pytest.mark.parametrize(
    "use",
    [
        publish_to_each,
        *map(long, [publish_a_batch, publish_what_is_refused, consume, open_consumers, miss]),
    ],
)
def test_what_is_not_used_is_forgotten(emulator, tmp_path, use, options):
    """Nothing that a process keeps grows with the number of queues that it has met."""
    options |= {"spool_dir": str(tmp_path / "spool"), "polling_interval": 0.05}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.emulator = emulator
        use(connection, [f"first-{n}" for n in range(KEPT)])
        before = sizes(connection)
        use(connection, [f"queue-{n}" for n in range(QUEUES)])
        # The spool keeps its promises until it has posted the messages.
        eventually(lambda: not grown(before, sizes(connection)), 10)
        assert grown(before, sizes(connection)) == {}
