"""Queues that are known and not used: they cost a claim nothing, and are forgotten."""

import math
import sqlite3

import pytest
from support.spools import texts

from kombu_cfqueues.envelope import Address
from kombu_cfqueues.rate_limit import CLOUDFLARE_LIMIT
from kombu_cfqueues.spool.fleet_bucket import FleetBucket
from kombu_cfqueues.spool.message_table import MAX_ROWS, queue_row
from kombu_cfqueues.spool.room import FORGET_SECONDS
from kombu_cfqueues.spool.sweep import ROW_UNUSED_SECONDS
from kombu_cfqueues.waiting_room import ClaimTerms, Wait

MANY = 10_000


def know(process, count, *, days=0.0):
    """Note *count* reply queues, last used *days* ago."""

    def work(connection):
        for number in range(count):
            queue_row(connection, Address(f"reply-{number}", cloudflare_id=f"id-{number}"))
        connection.execute(
            "UPDATE queue SET used_at = used_at - ? WHERE address LIKE 'reply-%'",
            (days * 86_400,),
        )

    process.file.write(work)


def known(process):
    query = "SELECT address FROM queue ORDER BY address"
    return [name for (name,) in process.file.read(lambda c: c.execute(query).fetchall())]


def steps_of(process, monkeypatch, call):
    """Count the steps of SQLite's machine, which no load of this computer changes."""
    steps = 0

    def count():
        nonlocal steps
        steps += 1
        return 0

    def counted(begin):
        def inner(self, work, **given):
            def watched(connection: sqlite3.Connection):
                connection.set_progress_handler(count, 1)
                try:
                    return work(connection)
                finally:
                    connection.set_progress_handler(None, 0)

            return begin(self, watched, **given)

        return inner

    kind = type(process.file)
    with monkeypatch.context() as patch:
        patch.setattr(kind, "read", counted(kind.read))
        patch.setattr(kind, "write", counted(kind.write))
        result = call()
    return steps, result


def claim_steps(process, monkeypatch, clock):
    process.enter("x")
    process.spool("y", queue="others")
    clock.now += 60
    claiming, claim = steps_of(process, monkeypatch, process.try_claim)
    assert texts(claim)
    process.settle(claim)
    waiting, wait = steps_of(process, monkeypatch, process.try_claim)
    assert isinstance(wait, Wait)
    process.settle(process.claim())
    idle, wait = steps_of(process, monkeypatch, lambda: process.room.claim(ClaimTerms(99)))
    assert isinstance(wait, Wait)
    return claiming + waiting + idle


def test_a_claim_costs_the_same_whatever_number_of_queues_is_known(peer, monkeypatch, clock):
    """Reply queues add one each, and something waits most of the time."""
    one, many = peer(), peer()
    few = claim_steps(one, monkeypatch, clock)
    know(many, MANY)
    assert claim_steps(many, monkeypatch, clock) < 1.5 * few + 100


def test_queues_that_nobody_uses_are_forgotten(peer, clock):
    process = peer()
    know(process, 100, days=2)
    process.enter("x")
    clock.now += FORGET_SECONDS
    process.room.sweep(until=math.inf)

    assert known(process) == ["jobs"]


def test_they_are_forgotten_where_no_message_ever_waits(peer, clock):
    """Then nobody looks for outcomes, or after processes that have died."""
    process = peer()
    assert process.enter("x", may_skip=True) is None
    know(process, 3 * MAX_ROWS, days=2)
    clock.now += 10
    assert process.enter("x", may_skip=True) is None
    assert len(known(process)) == 3 * MAX_ROWS + 1
    clock.now += FORGET_SECONDS
    for left in (2, 1, 0):
        clock.now += 10  # for a permit
        assert process.enter("x", may_skip=True) is None
        assert len(known(process)) == left * MAX_ROWS + 1


def test_a_queue_that_has_messages_is_not_forgotten(peer, clock):
    """They wait, or are on their way, or were refused and are kept; or the queue is stopped."""
    process = peer()
    names = ["claimed", "refused", "stopped", "waiting"]
    for name in names:
        process.spool(queue=name)
    first = process.claim()
    assert first.address.name == "claimed"

    def age(connection):
        connection.execute("UPDATE queue SET used_at = used_at - ?", (2 * ROW_UNUSED_SECONDS,))
        connection.execute(
            "UPDATE message SET state = 3 WHERE queue = "
            "(SELECT id FROM queue WHERE address = 'refused')"
        )
        connection.execute(
            "DELETE FROM message WHERE queue = (SELECT id FROM queue WHERE address = 'stopped')"
        )
        connection.execute(
            "UPDATE queue SET stopped_until = ? WHERE address = 'stopped'", (clock.now + 9999,)
        )

    process.file.write(age)
    clock.now += FORGET_SECONDS
    process.file.write(
        lambda c: c.execute("UPDATE message SET claimed_until = ? WHERE state = 1", (1e12,))
    )
    process.room.sweep(until=math.inf)

    assert known(process) == names


def test_a_use_is_noted_so_that_a_busy_queue_is_kept(peer, clock):
    process = peer()
    know(process, 1, days=2)
    process.spool(queue="reply-0")
    process.settle(process.claim())
    clock.now += FORGET_SECONDS
    process.room.sweep(until=math.inf)

    assert known(process) == ["reply-0"]


@pytest.mark.parametrize("table", ["bucket", "token"])
def test_tokens_that_expired_are_forgotten(peer, clock, table):
    process = peer()
    for number in range(3):
        process.token = f"token-{number}"
        process.enter("x", may_skip=True)
        process.spool_.facts.note_page(1, {}, has_more=False)
        clock.now += 2 * ROW_UNUSED_SECONDS
    process.room.sweep(until=math.inf)

    count = process.file.read(lambda c: c.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    assert count <= 1


def test_tokens_that_expired_are_forgotten_by_a_machine_of_a_fleet_too(peer, clock):
    """The permit that Redis has reserved for the token in use stays."""
    process = peer()

    def bucket(connection, token):
        return FleetBucket(connection, token, CLOUDFLARE_LIMIT, clock.now)

    process.file.write(lambda c: bucket(c, "troubled").failed("no answer", 3.0))
    for number in range(3):
        process.file.write(lambda c, token=f"token-{number}": bucket(c, token).granted(1.0))
        clock.now += 2 * ROW_UNUSED_SECONDS
    process.file.write(lambda c: bucket(c, "in use").granted(1.0))
    process.room.sweep(until=math.inf)

    rows = process.file.read(lambda c: c.execute("SELECT token FROM fleet").fetchall())
    assert rows == [("in use",)]
    assert process.file.read(lambda c: bucket(c, "in use").ready_at()) == clock.now + 1.0
