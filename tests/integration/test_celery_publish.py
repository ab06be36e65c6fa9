"""Celery tasks as they arrive at a queue."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import pytest
from celery import Celery, chain, group
from kombu import Connection

from .test_publish import Reader, pushes


@pytest.fixture
def app(emulator):
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"

    @app.task(name="shop.add", shared=False)
    def add(a, b, note=None):
        return a + b

    yield app
    app.close()


@pytest.fixture
def tasks(emulator):
    """The tasks of a queue: headers and [args, kwargs, embed]."""
    reader = Reader(emulator)

    def read(queue: str = "celery") -> list[tuple[dict, list]]:
        return [(message.headers, message.decode()) for message in reader.messages(queue)]

    yield read
    reader.close()


def test_delay_arrives_with_name_and_arguments(app, tasks):
    result = app.tasks["shop.add"].delay(1, 2, note="Grüße")
    ((headers, (args, kwargs, _)),) = tasks()
    assert headers["task"] == "shop.add"
    assert headers["id"] == result.id
    assert args == [1, 2]
    assert kwargs == {"note": "Grüße"}


def test_countdown_is_the_queues_own_delay_rounded_up(app, emulator):
    began = time.monotonic()
    app.tasks["shop.add"].apply_async((1, 2), countdown=90)
    (posted,) = pushes(emulator)
    assert 90 - (time.monotonic() - began) <= posted["delay_seconds"] <= 90


def test_a_countdown_is_not_in_the_way_of_the_queues_own_delay(app, emulator):
    emulator.create_queue("slow", delivery_delay=600)
    began = time.monotonic()
    app.tasks["shop.add"].apply_async((1, 2), countdown=50, queue="slow")
    assert len(emulator.messages("slow")) == 1
    (posted,) = pushes(emulator)
    assert 50 - (time.monotonic() - began) <= posted["delay_seconds"] <= 50
    emulator.clock.advance(51)
    with Connection(emulator.broker_url) as connection:
        queue = connection.SimpleQueue("slow")
        queue.get(timeout=30).ack()
        queue.close()


def test_an_eta_is_kept_and_beyond_a_day_delayed_by_a_day(app, emulator, tasks):
    eta = datetime.now(timezone.utc) + timedelta(hours=30)
    app.tasks["shop.add"].apply_async((1, 2), eta=eta)
    (posted,) = pushes(emulator)
    assert posted["delay_seconds"] == 86_400
    emulator.clock.advance(86_401)
    ((headers, _),) = tasks()
    assert datetime.fromisoformat(headers["eta"]) == eta


def test_native_delay_off_leaves_the_eta_to_the_worker(app, emulator):
    app.conf.broker_transport_options = {"native_delay": False}
    app.tasks["shop.add"].apply_async((1, 2), countdown=90)
    (posted,) = pushes(emulator)
    assert "delay_seconds" not in posted


def test_expires_arrives(app, emulator):
    app.tasks["shop.add"].apply_async((1, 2), expires=10)
    (posted,) = pushes(emulator)
    envelope = json.loads(posted["body"])
    assert envelope["properties"]["expiration"] == "10000"
    assert envelope["headers"]["expires"]


def test_a_group_arrives_whole(app, tasks):
    add = app.tasks["shop.add"]
    group(add.s(n, n) for n in range(20)).apply_async()
    arrived = tasks()
    assert sorted(args[0] for _, (args, _, _) in arrived) == list(range(20))
    assert len({headers["group"] for headers, _ in arrived}) == 1


def test_a_chain_arrives_with_its_rest_inside(app, tasks):
    add = app.tasks["shop.add"]
    chain(add.s(1, 2), add.s(3), add.s(4)).apply_async()
    ((_, (args, _, embed)),) = tasks()
    assert args == [1, 2]
    assert [task["args"] for task in embed["chain"]] == [[4], [3]]


def test_send_task_goes_to_the_queue_that_is_named(app, tasks):
    app.send_task("elsewhere.run", args=["x"], queue="workers")
    ((headers, (args, _, _)),) = tasks("workers")
    assert headers["task"] == "elsewhere.run"
    assert args == ["x"]


def test_inspect_and_control_cause_no_request(app, emulator):
    with app.connection_for_write() as connection:
        connection.connect()
    emulator.requests.clear()
    assert app.control.inspect(timeout=0.2).ping() is None
    app.control.broadcast("shutdown")
    assert len(emulator.requests) == 0


def test_read_and_write_urls_may_be_different_brokers(emulator):
    app = Celery("two", set_as_current=False)
    import kombu_cfqueues  # noqa: F401  makes the scheme known

    app.conf.update(broker_read_url="memory://", broker_write_url=emulator.broker_url)
    app.send_task("t", queue="outbox")
    assert len(emulator.messages("outbox")) == 1
    assert app.connection_for_read().transport.driver_type == "memory"
    app.close()


PROGRAM = """
from celery import Celery
{imports}
app = Celery("script", broker={url!r})
{settings}
result = app.send_task("shop.add", args=[1, 2])
print(result.id)
"""


@pytest.mark.parametrize(
    ("imports", "settings"),
    [
        ("", "app.conf.broker_transport = 'kombu_cfqueues:Transport'"),
        ("import kombu_cfqueues", ""),
    ],
    ids=["transport named, nothing imported", "imported, only the URL set"],
)
def test_an_app_needs_one_line(emulator, imports, settings):
    program = PROGRAM.format(url=emulator.broker_url, imports=imports, settings=settings)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    (posted,) = pushes(emulator)
    assert json.loads(posted["body"])["headers"]["id"] == done.stdout.strip()


def test_a_fail_over_list_arrives_at_the_second(emulator, tasks):
    dead = f"cfqueues://{emulator.account_id}:{emulator.token}@127.0.0.1:9/"
    app = Celery("failover", set_as_current=False)
    app.conf.update(
        broker_url=f"{dead};{emulator.broker_url}", broker_transport="kombu_cfqueues:Transport"
    )
    app.send_task("shop.add", args=[1, 2])
    assert len(tasks()) == 1
    app.close()
