"""When a request for a caller may leave, amid the pauses after failures."""

import math
import threading
from types import SimpleNamespace

import pytest
from group_commit_parts import ADDRESS

from kombu_cfqueues.errors import ConnectionFailed
from kombu_cfqueues.publish.callers import Caller
from kombu_cfqueues.publish.sender import Pause
from kombu_cfqueues.publish.try_times import TryTimes
from kombu_cfqueues.waiting_room import Item, Kind


def caller(seconds, *, failed=True):
    """One whose time began at 100."""
    made = Caller(
        ADDRESS, Kind.SINGLE, now=100.0, deadline=100.0 + seconds, asleep=threading.Lock()
    )
    item = Item(ADDRESS, None)
    item.error = ConnectionFailed("down") if failed else None
    made.unsettled = {item: None}
    return made


def times(*, since=100.0, asked_until=100.0, request_seconds=0.0, shared=False):
    pause = Pause(since, 160.0, asked_until, ConnectionFailed("down"))
    sender = SimpleNamespace(pause=pause, request_seconds=request_seconds)
    return TryTimes(sender, shared=shared)


@pytest.mark.parametrize(("seconds", "resumes_at"), [(30.0, 129.5), (1.0, 100.9)])
def test_a_pause_ends_for_a_last_try(seconds, resumes_at):
    """Half a second before the end, or a tenth of the time of a caller that has little."""
    assert times().resumes_at(caller(seconds)) == pytest.approx(resumes_at)


def test_a_pause_ends_for_a_first_try_in_the_middle_of_the_time():
    assert times().resumes_at(caller(30.0, failed=False)) == 115.0


@pytest.mark.parametrize("failed", [True, False])
def test_what_the_server_asks_for_is_kept(failed):
    assert times(asked_until=140.0).resumes_at(caller(30.0, failed=failed)) == 140.0


@pytest.mark.parametrize(
    ("now", "failed", "looks_at"),
    [
        (100.0, False, 115.0),
        (115.0, False, 129.5),
        (100.0, True, 129.5),
        (129.5, False, math.inf),
        (129.5, True, math.inf),
    ],
)
def test_a_caller_looks_for_a_pause_when_it_may_try_within_one(now, failed, looks_at):
    assert times().next_within_pause(caller(30.0, failed=failed), now) == looks_at


def test_a_request_leaves_early_enough_for_its_answer():
    """But half of the time is open to tries, however slow the last answer was."""
    assert times(request_seconds=4.0).last_moment(caller(30.0)) == 126.0
    assert times(request_seconds=40.0).last_moment(caller(30.0)) == 115.0


@pytest.mark.parametrize("shared", [True, False])
def test_a_pause_that_outlasts_the_caller_is_too_long_unless_others_may_post(shared):
    """Where the server asked for the pause, other processes may not post either."""
    last_try = times(since=129.8, shared=shared)
    assert last_try.pause_is_too_long(caller(30.0)) is not shared
    assert times(asked_until=131.0, shared=shared).pause_is_too_long(caller(30.0))
    assert not times(shared=shared).pause_is_too_long(caller(30.0))
