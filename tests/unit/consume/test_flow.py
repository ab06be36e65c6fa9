"""How far the pulls of one queue overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kombu_cfqueues.consume.flow import (
    FLOWING_PULLS,
    FULL_FOR_EACH,
    FULL_PULLS,
    OVERLAPPING_PULLS,
    SHARED_PULLS,
    Flow,
)

LONG_FLOW = [True] * FULL_FOR_EACH * FLOWING_PULLS


def after(*full: bool) -> Flow:
    flow = Flow()
    for one in full:
        flow.pulled(full=one)
    return flow


def most(flow: Flow, *of_others: int) -> int:
    """How many pulls may be in flight."""
    return next(n for n in range(100) if not flow.allows(n, [n, *of_others]))


def test_a_queue_that_may_be_empty_is_pulled_once_at_a_time():
    assert most(after()) == most(after(True, False)) == 1


def test_a_full_pull_may_be_followed_by_two():
    assert most(after(False, True)) == OVERLAPPING_PULLS


def test_pulls_overlap_further_after_several_full_ones_in_a_row():
    assert most(after(*[True] * (FULL_PULLS - 1))) == OVERLAPPING_PULLS
    assert most(after(*[True] * FULL_PULLS)) == FULL_PULLS // FULL_FOR_EACH
    assert most(after(*LONG_FLOW)) == most(after(*LONG_FLOW, True, True)) == FLOWING_PULLS


def test_a_queue_that_flows_leaves_pulls_to_the_other_queues():
    """A server that hangs for one queue must not keep the others from being pulled."""
    flow = after(*LONG_FLOW)

    assert most(flow, 0) == SHARED_PULLS
    assert most(flow, 1, 1) == SHARED_PULLS - 2
    assert most(flow, 2, 4) == OVERLAPPING_PULLS


def test_a_pull_that_is_not_full_or_fails_ends_the_flow():
    flow = after(*[True] * FULL_PULLS)
    assert flow.failed(1.0, now=2.0)

    assert not flow.is_steady
    assert most(flow) == most(after(*[True] * FULL_PULLS, False)) == 1


def test_pulls_that_fail_together_are_one_failure():
    flow = after()

    assert flow.failed(1.0, now=2.0)
    assert not flow.failed(1.5, now=2.1)
    assert not flow.failed(1.9, now=2.2)
    assert flow.failed(2.3, now=2.4)


@given(st.lists(st.booleans(), max_size=100))
def test_an_almost_empty_queue_is_pulled_no_more_often_than_its_last_answer_justifies(full):
    """An empty pull is billed.  Each of more than two needs `FULL_FOR_EACH` full ones before."""
    flow = after(*full)

    assert most(flow) <= OVERLAPPING_PULLS or all(full[-FULL_FOR_EACH * most(flow) :])
    assert most(flow) <= OVERLAPPING_PULLS or all(full[-FULL_PULLS:])
    assert most(flow) == 1 or full[-1]
