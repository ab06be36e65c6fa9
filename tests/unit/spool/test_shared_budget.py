"""Permits of the machine, as a client wants them, and what happens where there is no file."""

import pytest
from support.spools import ONE_A_SECOND, Peer, texts

from kombu_cfqueues import limits
from kombu_cfqueues.errors import RateLimited, ServerError, SpoolUnavailable
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.spool.shared_budget import FILE_RETRY_PAUSE_SECONDS, SharedBudget


@pytest.fixture
def shared(peer):
    """The budget of one process, of which another one takes its part."""
    return SharedBudget(peer().file, ONE_A_SECOND)


@pytest.fixture
def without(tmp_path, clock):
    """The budget of a process that can use no file."""
    (tmp_path / "file").touch()
    alone = Peer(tmp_path / "file", clock, limit=Limit(16.0, 5))
    return SharedBudget(alone.file, Limit(16.0, 5))


def stopped(seconds=30.0, **given):
    return RateLimited("slow down", status=429, retry_after=seconds, **given)


def took(clock, budget, seconds=900.0, **given):
    began = clock.now
    budget.acquire(began + seconds, **given)
    return clock.now - began


def test_a_permit_is_waited_for(shared, clock):
    assert took(clock, shared) == 0
    assert [took(clock, shared) for _ in range(3)] == [pytest.approx(1.0, abs=0.05)] * 3


def test_permits_of_two_processes_are_one_allowance(shared, peer, clock):
    other = SharedBudget(peer().file, ONE_A_SECOND)
    began = clock.now
    for _ in range(5):
        shared.acquire(clock.now + 900)
        other.acquire(clock.now + 900)

    assert clock.now - began == pytest.approx(9.0, abs=0.5)


def test_a_permit_that_does_not_come_in_time_is_refused_at_once(shared, clock):
    """Nobody waits in vain."""
    shared.acquire(clock.now)
    began = clock.now
    with pytest.raises(RateLimited) as refused:
        shared.acquire(clock.now + 0.4)

    assert clock.now == began
    assert refused.value.retry_after == pytest.approx(1.0, abs=0.05)
    assert took(clock, shared) == pytest.approx(1.0, abs=0.05), "nothing was spent"


def test_who_gives_up_leaves_the_line(shared, peer, clock):
    shared.acquire(clock.now)
    with pytest.raises(RateLimited):
        shared.acquire(clock.now + 0.4)
    clock.now += 1

    assert peer().enter(may_skip=True) is None


def test_a_place_that_cannot_be_given_back_changes_nothing(shared, clock, monkeypatch, caplog):
    """Its own deadline ends it; whoever waited hears of the allowance."""
    caplog.set_level("DEBUG")

    def stuck(_):
        raise SpoolUnavailable("the disk is gone")

    monkeypatch.setattr(shared._permits, "give_back", stuck)
    shared.acquire(clock.now)
    with pytest.raises(RateLimited, match="used up"):
        shared.acquire(clock.now + 0.4)
    assert "could not be given back: the disk is gone" in caplog.text
    clock.now += 1.1
    shared.acquire(clock.now)


def test_a_stop_that_outlasts_the_deadline_is_told_at_once(shared, clock):
    shared.refused(stopped())

    with pytest.raises(RateLimited, match="stopped every call") as refused:
        took(clock, shared, seconds=29.0)

    assert refused.value.retry_after == 30.0
    assert took(clock, shared, seconds=31.0) == pytest.approx(30.0, abs=0.1)


def test_a_stop_that_names_no_time_lasts_for_the_window(shared, clock):
    shared.refused(stopped(None))

    assert took(clock, shared) == pytest.approx(limits.WINDOW_SECONDS, abs=0.1)


def test_a_stop_of_a_queue_that_names_no_time_stops_nothing(shared, peer):
    """Whoever repeats the request backs off."""
    shared.refused(stopped(None, code=10252), queue="id-of-jobs")
    process = peer()

    assert process.enter() is not None
    assert texts(process.claim()) == ["x"]


def test_a_stop_holds_for_every_process(shared, peer, clock):
    shared.refused(stopped())

    assert took(clock, SharedBudget(peer().file, ONE_A_SECOND)) == pytest.approx(30.0, abs=0.1)


def test_what_is_no_429_stops_nothing(shared, clock):
    shared.refused(ServerError("broken", status=503, retry_after=30.0))

    assert took(clock, shared) == 0


def test_what_the_server_has_left_is_heeded(shared, clock):
    shared.observe('"default";r=2;t=100')
    shared.observe(None)
    shared.observe("nonsense")

    assert took(clock, shared) == pytest.approx(50.0, abs=0.1)


# -- without the file


def test_without_a_file_a_process_takes_its_share(without, clock, caplog):
    """Sixteen processes with the whole allowance each would cause the very block."""
    assert took(clock, without) == 0
    assert [took(clock, without) for _ in range(3)] == [
        pytest.approx(1.0)
    ] * 3  # the machine: 16 per second
    assert caplog.text.count("paces its requests alone") == 1


def test_the_file_is_tried_again_some_time(without, clock, tmp_path):
    without.acquire(clock.now)
    assert not without.is_shared()
    (tmp_path / "file").unlink()

    clock.now += FILE_RETRY_PAUSE_SECONDS - 1
    assert not without.is_shared()
    clock.now += 1
    assert without.is_shared()
    assert [took(clock, without) for _ in range(5)] == [0] * 5, "its burst is the machine's"


def test_trouble_that_comes_again_is_not_told_again(shared, caplog, clock):
    shared.give_up(SpoolUnavailable("gone"))
    clock.now += 2 * FILE_RETRY_PAUSE_SECONDS
    shared.give_up(SpoolUnavailable("gone"))

    assert caplog.text.count("paces its requests alone") == 1
    assert "gone" in caplog.text
    assert not shared.is_shared()


def test_a_forked_child_tries_the_file_at_once(shared, caplog):
    shared.give_up(SpoolUnavailable("gone"))
    shared.renew_after_fork()

    assert shared.is_shared()
    shared.give_up(SpoolUnavailable("gone"))
    assert caplog.text.count("paces its requests alone") == 2


def test_without_a_file_a_stop_and_a_header_hold_as_well(without, clock):
    without.acquire(clock.now)
    without.refused(stopped(code=10252), queue="q")
    assert took(clock, without, queue="other") < 2
    assert took(clock, without, queue="q") == pytest.approx(30.0, abs=2.0)

    without.refused(stopped(60.0))
    # Nothing is earned meanwhile, and there was nothing left.
    assert took(clock, without) == pytest.approx(61.0, abs=0.1)

    without.give_up(SpoolUnavailable("still"))
    without.observe('"default";r=1;t=250')
    assert took(clock, without) == pytest.approx(250.0, abs=2.0)
