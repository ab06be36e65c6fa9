"""The package's own client in each position of each knob: whatever Cloudflare does, it copes."""

from __future__ import annotations

from dataclasses import fields

import pytest
from kombu import Connection
from support.forms import first_of

from kombu_cfqueues.emulator import Emulator, Knobs
from kombu_cfqueues.emulator.knobs import positions

#: Files of tests/integration that ``make positions`` runs.
TESTS = ("test_publish", "test_celery_publish", "test_consume")

# Where a knob is open, a position that makes a difference.
OPEN = {
    "rate_limit": 1200,
    "rate_window_seconds": 10,
    "rate_block_seconds": 10,
    "queue_429_retry_after": 1,
    "pull_enable_delay": 0.2,
    "list_page_size": 1,
    "max_leases_per_ack": 100,
    "metadata_bytes": 0,
    "max_batch_bytes": 288_000,
    "max_backlog_bytes": 1_000_000,
    "max_consumers": 2,
    "purge_delay": 1,
    "metrics_lag": 1,
    "min_visibility_ms": 1000,
    "late_visibility": 0.1,
    "duplicate_rate": 1,
    "seed": 1,
}

# These say something of a limit, of which there is none by default.
OF_A_LIMIT = (
    "rate_window_seconds",
    "rate_block_seconds",
    "rate_limit_answer",
    "rate_limited_routes",
)

POSITIONS = [
    pytest.param(knob.name, position)
    for knob in fields(Knobs)
    for position in (
        [OPEN[knob.name]]
        if knob.name in OPEN
        else [True, False]
        if positions(knob.name) == [bool]
        else positions(knob.name)
    )
    if position != knob.default
]


def knobs_for(knob, position):
    """That position, and what gives it a meaning."""
    return {knob: position} | ({"rate_limit": OPEN["rate_limit"]} if knob in OF_A_LIMIT else {})


def test_no_knob_is_left_out():
    assert {position.values[0] for position in POSITIONS} == {knob.name for knob in fields(Knobs)}


@pytest.mark.parametrize(("knob", "position"), POSITIONS, ids=str)
@pytest.mark.parametrize("content_type", first_of(["json", "text"]))
def test_what_was_published_is_consumed(knob, position, content_type):
    """Each message arrives, is given back once, arrives again, and is done with."""
    with Emulator(**knobs_for(knob, position)) as emulator:
        publish_and_consume(emulator, content_type=content_type)


@pytest.mark.parametrize("routes", positions("rate_limited_routes"))
def test_a_block_is_waited_out(routes):
    """Whatever of it Cloudflare counts: nothing is lost, and nobody sees an error."""
    limit = {"rate_limit": 3, "rate_window_seconds": 1, "rate_block_seconds": 1}
    with Emulator(**limit, rate_limited_routes=routes) as emulator:
        publish_and_consume(emulator)
        assert [request for request in emulator.requests if request.status == 429]


@pytest.mark.parametrize("name", TESTS)
def test_the_tests_of_make_positions_run_in_that_position(pytestconfig, name):
    """They take the emulator of tests/conftest.py, which is the one that has the position."""
    folder = pytestconfig.rootpath / "tests" / "integration"
    for file in (folder / f"{name}.py", folder / "conftest.py"):
        assert "def emulator(" not in file.read_text(), file


@pytest.mark.parametrize("answer", positions("rate_limit_answer"))
def test_a_block_is_waited_out_under_any_status(answer):
    """The limit is known by its code, so nobody goes on asking and prolongs the block."""
    limit = {"rate_limit": 3, "rate_window_seconds": 1, "rate_block_seconds": 1}
    status, code = map(int, answer.split("/"))
    with Emulator(**limit, rate_limit_answer=answer) as emulator:
        publish_and_consume(emulator)
        refused = [request for request in emulator.requests if request.code == code]
    assert {request.status for request in refused} == {status}
    assert len(refused) < 10


def publish_and_consume(emulator, **options):
    for name in ("aaa", "bbb"):
        emulator.create_queue(name)
    with Connection(emulator.broker_url, transport_options=options) as connection:
        queue = connection.SimpleQueue("jobs")
        for n in range(3):
            queue.put({"n": n})
        first = queue.get(timeout=60)
        first.requeue()
        seen = set()
        while seen != {0, 1, 2}:
            message = queue.get(timeout=60)
            seen.add(message.payload["n"])
            message.ack()
        queue.close()
