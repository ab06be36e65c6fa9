"""When an empty, a busy and a failing queue are pulled next."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kombu_cfqueues import limits
from kombu_cfqueues.consume.poll_interval import (
    BACKOFF,
    MIN_INTERVAL_SECONDS,
    PollInterval,
)


def pulls_of_an_empty_queue(poll_interval: PollInterval, seconds: float) -> list[float]:
    times = []
    while poll_interval.due <= seconds:
        times.append(poll_interval.due)
        poll_interval.empty(poll_interval.due)
    return times


def test_an_empty_queue_costs_few_pulls():
    """Each is billed: at most 8 in the first ten seconds, then at most one every ten."""
    times = pulls_of_an_empty_queue(PollInterval(1, 10, 0.0), 600)

    assert times[:6] == [0, 1, 3, 7, 15, 25]
    assert len([time for time in times if time <= 10]) <= 8
    late = [time for time in times if time > 10]
    assert all(after - before >= 10 for before, after in pairwise(late))
    assert all(after - before <= 10 for before, after in pairwise(times))


def test_a_message_makes_the_pace_quick_again():
    poll_interval = PollInterval(1, 10, 0.0)
    pulls_of_an_empty_queue(poll_interval, 60)

    poll_interval.reset(60)

    assert poll_interval.due == 60
    poll_interval.empty(60)
    assert poll_interval.due == 61


def test_an_interval_of_nothing_is_no_busy_loop():
    poll_interval = PollInterval(0, 0, 0.0)

    poll_interval.empty(5)

    assert poll_interval.due == 5 + MIN_INTERVAL_SECONDS


@given(st.integers(0, 40))
def test_failures_are_tried_again_later_and_later_and_never_later_than_the_longest(failures):
    poll_interval = PollInterval(1, 10, 0.0)
    for _ in range(failures):
        poll_interval.failed(0.0)

    poll_interval.failed(100.0)

    assert 100 < poll_interval.due <= 100 + BACKOFF.longest_seconds


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
            interval.empty(now)
            pulls += 1
        now += 0.01
    assert pulls < 5 * 60
