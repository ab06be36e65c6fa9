"""What people see of a spool, and what they decide on it."""

import time

import pytest
from support.spools import packed

from kombu_cfqueues import errors
from kombu_cfqueues.errors import Scope
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.spool.listing import Listing, QueueState
from kombu_cfqueues.spool.liveness import KernelLock

SIZE = packed().size


@pytest.fixture
def limit():
    return Limit(1.0, 5)


@pytest.fixture
def process(peer):
    return peer()


@pytest.fixture
def listing(process):
    return Listing(process.file)


def refuse(process, text="bad", code=10203, **given):
    """Have one spooled message refused; return its row."""
    ((_, row),) = process.spool(text, **given)
    refused = errors.InvalidMessage("it is bad", code=code, status=400)
    claim = process.claim()
    process.settle(claim, dict.fromkeys(claim.items, refused))
    return row


def ages(monkeypatch, seconds):
    """Let the wall clock go on."""
    now = time.time() + seconds
    monkeypatch.setattr(time, "time", lambda: now)


def test_an_empty_spool_has_nothing_to_show(listing):
    assert listing.queues() == []
    assert listing.refused() == []
    assert listing.sharers() == []


def test_each_queue_says_what_it_holds(listing, process, monkeypatch):
    process.spool(queue="b", count=3)
    process.claim()
    process.spool(queue="b", count=2)
    process.enter(queue="b", count=4)
    process.enter(queue="a")
    ages(monkeypatch, 7)

    a, b = listing.queues()

    assert a[:6] == ("a", 1, 0, 0, 0, SIZE)
    assert b[:6] == ("b", 4, 2, 3, 0, 9 * SIZE)
    assert a.oldest_seconds == pytest.approx(7, abs=5)
    assert (a.paused_seconds, a.why) == (0.0, None)


def test_what_was_refused_is_counted_apart_and_has_no_age(listing, process):
    refuse(process, "x")

    assert listing.queues() == [QueueState("jobs", 0, 0, 0, 1, SIZE, None, 0.0, None)]


def test_a_queue_that_waits_says_how_long_still_and_why(listing, process, clock):
    process.enter()
    stop = errors.RateLimited("overloaded", status=429, code=10251, retry_after=30)
    process.permits.stop(stop, "id-of-jobs")
    clock.now += 10

    (jobs,) = listing.queues()

    assert jobs.paused_seconds == pytest.approx(20)
    assert "overloaded" in jobs.why


def test_a_message_that_was_refused_says_why(listing, process, monkeypatch):
    first, second = refuse(process, "one"), refuse(process, "three", code=None, queue="other")
    ages(monkeypatch, 7)

    one, other = listing.refused()

    assert (one.id, one.queue, one.bytes, one.code) == (first, "jobs", packed("one").size, 10203)
    assert (other.id, other.queue, other.code) == (second, "other", None)
    assert "it is bad" in one.reason
    assert one.age_seconds == pytest.approx(7, abs=5)


def test_an_age_is_never_negative(listing, process, monkeypatch):
    refuse(process)
    process.spool()
    ages(monkeypatch, -100)

    assert listing.refused()[0].age_seconds == 0.0
    assert listing.queues()[0].oldest_seconds == 0.0


def test_the_refusal_of_a_message_with_an_owner_is_its_owners(listing, peer, process):
    _, row = peer().enter().place
    claim = process.claim()
    process.settle(claim, dict.fromkeys(claim.items, errors.InvalidMessage("bad")))

    assert listing.refused() == []
    assert listing.drop([row]) == listing.retry([row]) == 0


def test_what_is_left_of_the_allowance(listing, process, clock):
    clock.now += 60
    assert listing.allowed() == (5, 0.0)

    process.enter(may_skip=True)
    assert listing.allowed() == (4, 0.0)

    for _ in range(4):
        process.enter(may_skip=True)
    assert listing.allowed() == (0, 0.0)

    process.file.write(lambda c: process.file.bucket(c).stop(Scope.PUBLISHING, 90.0))
    clock.now += 30
    assert listing.allowed() == (5, 60.0)


def test_the_others_who_share_it_are_told_once_each(listing, process, peer):
    peer().enter()  # of this process as well, which is no other
    folder = process.file.path.with_suffix(".posters")
    locks = [KernelLock(folder / name, 0o600) for name in ("99-a", "7-a", "7-b")]
    assert all(lock.acquire() for lock in locks)
    (folder / "5-dead").touch()

    assert listing.sharers() == [7, 99]


def test_what_was_refused_can_be_tried_again_alone(listing, process):
    row, stays = refuse(process), refuse(process, "other")
    process.spool("more")

    assert listing.retry([row, 12345]) == 1

    assert [item.place[1] for item in process.claim().items] == [row], "it may be bad still"
    assert [one.id for one in listing.refused()] == [stays]


def test_what_was_refused_can_be_dropped(listing, process):
    row, stays = refuse(process), refuse(process, "other")
    ((_, waits),) = process.spool("waits")

    assert listing.drop([row, waits]) == 1

    assert [one.id for one in listing.refused()] == [stays]
    assert listing.queues()[0].waiting == 1
