"""How many messages a channel may hold."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kombu_cfqueues.consume.prefetch_window import (
    GATHER_SECONDS,
    MAX_PULLS_AHEAD,
    PULLS_AHEAD,
    QUEUES_AHEAD,
    SMALL_PULL,
    SMALL_WINDOW,
    PrefetchWindow,
)

BATCH = 10


def window(prefetch: int = 0) -> PrefetchWindow:
    made = PrefetchWindow(BATCH)
    made.prefetch = prefetch
    return made


def test_a_prefetch_count_is_asked_for_at_once():
    assert window(4).room == 4
    assert window(4).pull_at(flows=False) == 0


def test_what_is_held_and_what_is_unsettled_both_take_room():
    made = window(10)
    made.held, made.unsettled = 3, 4

    assert made.room == 3


def test_no_more_is_pulled_ahead_than_two_pulls_whatever_the_prefetch_count():
    """It would lie here while another process has nothing to do."""
    made = window(10_000)

    assert made.room == PULLS_AHEAD * BATCH
    made.held = PULLS_AHEAD * BATCH
    assert made.room == 0


def hungry(made: PrefetchWindow, now: float) -> None:
    """The application waits for a message, which comes."""
    made.held += 1
    made.delivered(now, had_to_wait=True)
    made.unsettled -= 1


def test_more_is_pulled_ahead_for_an_application_that_waits_all_the_same():
    """Pulls of a far server overlap, until the application is what is slow."""
    made = window(10_000)

    for n in range(4):
        hungry(made, n / 10)

    assert made.room == MAX_PULLS_AHEAD * BATCH


def test_less_is_pulled_ahead_again_once_the_application_does_not_wait():
    made = window(10_000)
    for n in range(4):
        hungry(made, n / 10)

    for n in range(4, 30):
        made.held += 1
        made.delivered(n / 10, had_to_wait=False)
        made.unsettled -= 1

    assert made.room == PULLS_AHEAD * BATCH


def test_the_prefetch_count_bounds_what_is_pulled_ahead_for_an_application_that_waits():
    made = window(25)

    for n in range(4):
        hungry(made, n / 10)

    assert made.room == 25


def test_without_a_prefetch_count_nothing_is_pulled_until_a_message_is_wanted():
    made = window()
    assert made.room == 0

    made.missed()

    assert made.room == 1


def take(made: PrefetchWindow, now: float) -> None:
    """One message is asked for, comes, and is delivered."""
    made.missed()
    made.held += 1
    made.delivered(now, had_to_wait=True)


def test_without_a_prefetch_count_one_message_is_not_followed_by_others():
    made = window()

    take(made, 0.0)

    assert made.room == 0


def test_an_application_that_loops_gets_more_and_more_at_once():
    made = window()
    for n in range(12):
        take(made, n / 10)

    assert made.room == MAX_PULLS_AHEAD * BATCH


def test_an_application_that_comes_back_now_and_then_gets_one_at_a_time():
    made = window()
    for n in range(12):
        take(made, n * 5.0)

    assert made.capacity == 1


def test_an_empty_queue_begins_small_again():
    made = window()
    for n in range(12):
        take(made, n / 10)

    made.queue_was_empty()

    assert made.capacity == 1


def test_without_a_prefetch_count_several_queues_are_asked_together():
    """One after the other, fifty empty queues would hold up the one with messages."""
    made = window()
    made.queue_count = 50

    made.missed()

    assert made.room == QUEUES_AHEAD


def test_little_room_waits_a_moment_for_more():
    """Short tasks free their slots one after the other."""
    made = window(8)
    made.held, made.unsettled = 1, 7

    made.unsettled -= 1
    assert made.freed(100.0)

    assert made.pull_at(flows=False) == 100 + GATHER_SECONDS


def test_much_room_or_an_empty_hand_does_not_wait():
    made = window(8)
    made.held = 1
    assert made.pull_at(flows=False) == 0  # room for 7 of 8

    made.held, made.unsettled = 0, 7
    assert made.pull_at(flows=False) == 0  # nothing to deliver


def test_a_quarter_of_the_room_is_enough_while_messages_flow():
    """The next pull starts when the first messages of the window are settled."""
    made = window(16)
    made.held, made.unsettled = 3, 9

    assert made.pull_at(flows=True) == 0
    assert made.pull_at(flows=False) == GATHER_SECONDS


@pytest.mark.parametrize(("capacity", "share"), [(8, 1), (12, 2), (SMALL_WINDOW, 4)])
def test_an_eighth_of_a_small_window_is_enough_while_messages_flow(capacity, share):
    """As long as the application has to wait for them."""
    made = PrefetchWindow(100)
    made.prefetch = capacity
    made.held = 2
    made.delivered(10.0, had_to_wait=True)
    made.delivered(11.5, had_to_wait=False)
    assert made.enough_room(flows=True) == capacity / 4

    made.held = 1
    made.delivered(11.6, had_to_wait=True)
    made.held, made.unsettled = 1, capacity - 1
    for _ in range(2):  # again while the first pull is in flight
        for _ in range(share):
            assert made.pull_at(flows=True) > 0
            made.unsettled -= 1
        assert made.freed(100.0)
        assert made.pull_at(flows=True) == 0
        made.held += share
    assert made.pull_at(flows=False) > 0


def test_a_quarter_of_a_larger_window_is_pulled_for_though_the_application_waits():
    made = PrefetchWindow(100)
    made.prefetch = SMALL_WINDOW + 1
    made.held = 1
    made.delivered(10.0, had_to_wait=True)
    assert made.enough_room(flows=True) == 9


def test_a_window_of_many_messages_is_not_divided_into_more_pulls():
    """Each of them costs CPU."""
    made = PrefetchWindow(100)
    made.prefetch = 4 * SMALL_PULL + 4

    assert made.enough_room(flows=True) == made.enough_room(flows=False) == made.prefetch / 2


def test_no_pull_is_made_smaller_than_what_is_held():
    """There is time until it is as large, and requests cost CPU."""
    made = window(40)
    made.held, made.unsettled = 3, 36
    assert made.pull_at(flows=True) == math.inf

    made.held -= 1
    made.unsettled += 1
    assert made.freed(100.0)
    assert made.pull_at(flows=True) < 101


def test_a_window_knows_how_long_its_application_had_no_message():
    made = window(4)
    made.held = 2
    made.delivered(10.0, had_to_wait=True)
    before = made.idle_seconds
    made.delivered(11.0, had_to_wait=True)
    made.unsettled -= 1
    made.freed(12.0)
    made.unsettled -= 1
    made.freed(13.0)

    made.held = 1
    made.delivered(13.5, had_to_wait=True)

    assert made.idle_seconds - before == 0.5


def test_no_room_is_no_pull():
    made = window(1)
    made.unsettled = 1

    assert made.pull_at(flows=False) == math.inf
    assert not made.may_deliver


class Holding(RuleBasedStateMachine):
    """Whatever happens in whatever order, no more is held than the application said."""

    def __init__(self) -> None:
        super().__init__()
        self.window = window(7)
        self.asked: list[int] = []

    @precondition(lambda self: self.window.room > 0)
    @rule(data=st.data())
    def ask(self, data) -> None:
        most = data.draw(st.integers(1, self.window.room))
        self.window.held += most
        self.asked.append(most)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def come(self, data) -> None:
        most = self.asked.pop()
        self.window.held -= most - data.draw(st.integers(0, most))

    @precondition(lambda self: self.window.held > sum(self.asked) and self.window.may_deliver)
    @rule()
    def deliver(self) -> None:
        self.window.delivered(0.0, had_to_wait=False)

    @precondition(lambda self: self.window.unsettled)
    @rule()
    def settle(self) -> None:
        self.window.unsettled -= 1

    @invariant()
    def bounded(self) -> None:
        assert 0 <= self.window.held + self.window.unsettled <= 7


TestHolding = Holding.TestCase


@given(prefetch=st.integers(1, 500), held=st.integers(0, 500), unsettled=st.integers(0, 500))
def test_room_is_never_negative_and_never_beyond_the_prefetch_count(prefetch, held, unsettled):
    made = window(prefetch)
    made.held, made.unsettled = held, unsettled

    assert 0 <= made.room <= max(0, prefetch - held - unsettled)
