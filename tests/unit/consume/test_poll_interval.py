"""When an empty, a busy and a failing queue are pulled next."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_cfqueues import limits
from kombu_cfqueues.consume.poll_interval import (
    MIN_INTERVAL_SECONDS,
    PULL_BACKOFF,
    PollInterval,
)


def empty(poll_interval: PollInterval, now, started=None, *, is_alone=False):
    """A pull that found nothing, and took no time if nothing else is said."""
    poll_interval.empty(now, now if started is None else started, is_alone=is_alone)


def pulls_of_an_empty_queue(poll_interval: PollInterval, seconds: float) -> list[float]:
    times = []
    while poll_interval.due <= seconds:
        times.append(poll_interval.due)
        empty(poll_interval, poll_interval.due)
    return times


def test_a_message_waits_for_a_tenth_of_the_quiet_time_before_it():
    """Each pull is billed: at most 36 in the first hundred seconds, then one every ten."""
    times = pulls_of_an_empty_queue(PollInterval(1, 10, 0.0), 600)

    assert times[:12] == [*range(11), 11]
    assert len([time for time in times if time <= 100]) <= 36
    for before, after in pairwise(times):
        assert after - before == pytest.approx(min(max(1, before / 10), 10))


def test_a_longer_first_pause_is_the_longest_too():
    assert pulls_of_an_empty_queue(PollInterval(20, 20, 0.0), 100) == [0, 20, 40, 60, 80, 100]


def test_a_message_makes_the_pace_quick_again():
    poll_interval = PollInterval(1, 10, 0.0)
    pulls_of_an_empty_queue(poll_interval, 60)

    poll_interval.reset(60)

    assert poll_interval.due == 60
    empty(poll_interval, 60)
    assert poll_interval.due == 61


def test_an_interval_of_nothing_is_no_busy_loop():
    poll_interval = PollInterval(0, 0, 0.0)

    empty(poll_interval, 5)

    assert poll_interval.due == 5 + MIN_INTERVAL_SECONDS


@given(st.integers(0, 40))
def test_failures_are_tried_again_later_and_later_and_never_later_than_the_longest(failures):
    poll_interval = PollInterval(1, 10, 0.0)
    for _ in range(failures):
        poll_interval.failed(0.0)

    poll_interval.failed(100.0)

    assert 100 < poll_interval.due <= 100 + PULL_BACKOFF.longest_seconds


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [(None, 0.25, 0.5), (0, 0.25, 0.5), (7, 7, 7), (10**9, 300, limits.WINDOW_SECONDS)],
)
def test_what_a_server_asks_for_is_the_least_and_never_the_rest_of_the_day(asked, least, most):
    """A server may well say 0, or a time that nobody means."""
    poll_interval = PollInterval(1, 10, 0.0)

    poll_interval.failed(100, asked)

    assert 100 + least <= poll_interval.due <= 100 + most


def test_a_result_waits_for_a_quarter_of_the_time_that_its_task_takes():
    """And an idle reply queue costs what any idle queue costs."""
    interval = PollInterval(1, 10, 0.0, is_reply=True)
    times = pulls_of_an_empty_queue(interval, 600)

    assert times[1] == pytest.approx(0.1)
    assert all(after - before <= 0.1 + before / 4 + 1e-9 for before, after in pairwise(times))
    assert times[-1] - times[-2] == 10

    interval.expect(600.0)
    assert interval.due == pytest.approx(600.1)


def test_tasks_that_are_sent_all_the_time_do_not_keep_the_pace_quick():
    """Their results do, if there are any."""
    interval = PollInterval(1, 10, 0.0, is_reply=True)
    pulls, now = 0, 0.0
    while now < 60:
        interval.expect(now)
        if interval.due <= now:
            empty(interval, now)
            pulls += 1
        now += 0.01
    assert pulls < 5 * 60


# The doorbell


def quiet(seconds: float = 60.0) -> PollInterval:
    """An interval whose queue has been empty for some time."""
    poll_interval = PollInterval(1, 10, 0.0)
    pulls_of_an_empty_queue(poll_interval, seconds)
    return poll_interval


def test_a_bell_makes_a_pull_due_and_the_quiet_time_goes_on():
    """Another consumer may get the message, and the polling must not begin anew."""
    poll_interval = quiet()

    poll_interval.ring(60)

    assert poll_interval.due == 60
    empty(poll_interval, 60.03, 60)
    assert poll_interval.due == pytest.approx(60.03 + 6.003)


def test_vain_bells_cause_one_pull_per_polling_interval():
    """Sixteen consumers of one queue hear each message, and one of them gets it."""
    poll_interval, pulls, now = quiet(), 0, 60.0
    while now < 90:
        poll_interval.ring(now)
        if poll_interval.due <= now:
            empty(poll_interval, now)
            pulls += 1
        now += 0.01

    assert pulls <= 31


def test_a_bell_during_a_pull_is_answered_by_another():
    """The server may have answered the pull before it had the message."""
    poll_interval = quiet()
    poll_interval.ring(60.02)

    empty(poll_interval, 60.03, 60.0)

    assert poll_interval.due == 60.03


def test_a_bell_does_not_shorten_the_pause_that_a_server_asks_for():
    poll_interval = quiet()
    poll_interval.failed(60, 30)

    poll_interval.ring(61)

    assert poll_interval.due >= 90
    poll_interval.reset(90)
    empty(poll_interval, 90)
    poll_interval.ring(90.5)
    assert poll_interval.due == 90.5


def test_the_only_consumer_of_a_machine_looks_again_some_times():
    """The server may not show a message as soon as it has accepted it."""
    poll_interval = quiet()
    poll_interval.ring(60)
    looks = []
    while poll_interval.due < 65:
        looks.append(round(poll_interval.due, 3))
        empty(poll_interval, poll_interval.due, is_alone=True)

    assert looks == [60, 60.1, 60.3, 60.7]

    poll_interval.ring(66)
    looks = []
    while poll_interval.due < 70:
        looks.append(poll_interval.due)
        empty(poll_interval, poll_interval.due, is_alone=True)
    assert looks == [66]  # the bell before it was vain too


def test_a_bell_that_brought_a_message_lets_the_next_one_look_again():
    poll_interval = quiet()
    for now in (60.0, 61.0):
        poll_interval.ring(now)
        poll_interval.reset(now)
        empty(poll_interval, now)

        poll_interval.ring(now + 0.2)
        empty(poll_interval, now + 0.2, is_alone=True)

        assert poll_interval.due == pytest.approx(now + 0.3)
