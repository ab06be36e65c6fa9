"""How far the pulls of one queue overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kombu_cfqueues.consume.flow import FLOWING_PULLS, FULL_PULLS, OVERLAPPING_PULLS, Flow


def after(*full: bool) -> Flow:
    flow = Flow()
    for one in full:
        flow.pulled(full=one)
    return flow


def test_a_queue_that_may_be_empty_is_pulled_once_at_a_time():
    assert after().max_pulls == after(True, False).max_pulls == 1


def test_a_full_pull_may_be_followed_by_two():
    assert after(False, True).max_pulls == OVERLAPPING_PULLS


def test_pulls_overlap_further_after_several_full_ones_in_a_row():
    assert after(*[True] * FULL_PULLS).max_pulls == FLOWING_PULLS


def test_a_pull_that_is_not_full_or_fails_ends_the_flow():
    flow = after(*[True] * FULL_PULLS)
    assert flow.failed(1.0, now=2.0)

    assert not flow.is_steady
    assert flow.max_pulls == after(*[True] * FULL_PULLS, False).max_pulls == 1


def test_pulls_that_fail_together_are_one_failure():
    flow = after()

    assert flow.failed(1.0, now=2.0)
    assert not flow.failed(1.5, now=2.1)
    assert not flow.failed(1.9, now=2.2)
    assert flow.failed(2.3, now=2.4)


@given(st.lists(st.booleans(), max_size=100))
def test_an_almost_empty_queue_is_pulled_no_more_often_than_its_last_answer_justifies(full):
    """An empty pull is billed.  More than two need as many full ones as `FULL_PULLS` before."""
    flow = after(*full)

    assert flow.max_pulls <= OVERLAPPING_PULLS or all(full[-FULL_PULLS:])
    assert flow.max_pulls == 1 or full[-1]
