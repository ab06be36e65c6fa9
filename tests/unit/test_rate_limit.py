"""The request allowance: what may leave, when, and what a 429 stops."""

import os
import subprocess
import sys
import threading
import time as real_time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import VirtualTime

from kombu_cfqueues import limits
from kombu_cfqueues.errors import QueueFull, RateLimited, Scope, ServerError
from kombu_cfqueues.rate_limit import (
    CLOUDFLARE_LIMIT,
    INITIAL_TOKENS,
    Allowance,
    Budget,
    Limit,
    parse_ratelimit,
)
from kombu_cfqueues.runtime.clock import Clock

FOUR = Limit(rate=4.0, burst=10)


@pytest.fixture
def time():
    return VirtualTime(now=1_000.0)


@pytest.fixture
def budget(time):
    """A budget with a full bucket."""
    budget = Budget(FOUR, clock=time)
    time.now += 1_000.0
    return budget


@pytest.fixture
def acquire(time, budget):
    """Ask for a permit from a thread of its own; its result is the seconds that it waited."""

    def acquire(*, timeout=30.0, at=None, **scope):
        def wait():
            began = time.now
            budget.acquire(began + timeout, **scope)
            return time.now - began

        return time.spawn(wait, at=at)

    return acquire


def waited(callers):
    return [pytest.approx(caller.result) for caller in callers]


def refused(seconds, code=None):
    return RateLimited("429", status=429, code=code, retry_after=seconds)


# -- the bucket --------------------------------------------------------------------------------


def test_the_default_leaves_room_for_other_users_of_the_token():
    """The dashboard and other tools count against the same limit."""
    spent = CLOUDFLARE_LIMIT.rate * limits.WINDOW_SECONDS + CLOUDFLARE_LIMIT.burst
    assert spent <= limits.REQUESTS_PER_WINDOW - 30


def test_after_a_quiet_time_a_burst_leaves_at_once_and_then_the_rate(time, acquire):
    callers = [acquire() for _ in range(13)]
    time.run()

    assert waited(callers) == [0.0] * 10 + [0.25, 0.5, 0.75]


def test_a_new_bucket_starts_with_little(time):
    """Nobody knows what was sent before this process came: a restart loop must not block."""
    budget = Budget(CLOUDFLARE_LIMIT, clock=time)
    callers = [time.spawn(budget.acquire, time.now + 30) for _ in range(INITIAL_TOKENS + 1)]
    time.run(until=time.now)

    assert [caller.done for caller in callers] == [True] * INITIAL_TOKENS + [False]


def test_a_wait_that_would_miss_the_deadline_is_refused_at_once(time, budget, acquire):
    """A publisher that cannot be served in time hears so now, and costs nobody a request."""
    for _ in range(10):
        acquire()
    hasty, patient = acquire(timeout=0.2), acquire(timeout=0.3)
    time.run()

    assert isinstance(hasty.error, RateLimited)
    assert hasty.error.retry_after == pytest.approx(0.25)
    assert patient.result == pytest.approx(0.25)


def test_permits_go_to_those_who_came_first(time, acquire):
    callers = [acquire(at=time.now + n / 1_000) for n in range(20)]
    time.run()

    ends = [n / 1_000 + caller.result for n, caller in enumerate(callers)]
    assert ends == sorted(ends)


def test_one_that_gives_up_holds_nobody_off(time, acquire):
    callers = [acquire() for _ in range(13)]
    time.run(until=time.now + 0.1)
    callers[10].kill(KeyboardInterrupt())
    late = acquire()
    time.run()

    assert isinstance(callers[10].error, KeyboardInterrupt)
    assert waited(callers[11:]) == [0.5, 0.75]  # they sleep on, and the token is not lost:
    assert late.result == pytest.approx(0.65)


def test_without_a_limit_nobody_waits(time):
    budget = Budget(None, clock=time)
    for _ in range(10_000):
        budget.acquire(deadline=time.now)
    assert time.now == 1_000.0


@given(
    limit=st.builds(Limit, rate=st.floats(0.1, 100), burst=st.integers(1, 100)),
    gaps=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.1, 3.0, 100.0]), max_size=100),
)
def test_in_no_time_does_more_leave_than_the_limit_says(limit, gaps):
    """For any span of s seconds: at most ``rate * s + burst``."""
    time = VirtualTime()
    budget = Budget(limit, clock=time)
    sent = []

    def ask():
        budget.acquire(deadline=1e9)
        sent.append(time.now)

    at = 0.0
    for gap in gaps:
        at += gap
        time.spawn(ask, at=at)
    time.run()

    assert len(sent) == len(gaps)
    for first, began in enumerate(sent):
        for last in range(first, len(sent)):
            assert last - first + 1 <= limit.rate * (sent[last] - began) + limit.burst + 1e-6


def test_a_clock_that_began_anew_earns_nothing():
    """A file outlives a boot: what it says of time means nothing then."""
    saved = Allowance(tokens=9.0, counted_at=5_000.0)
    anew = saved.counted(FOUR, now=10.0)
    assert (anew.tokens, anew.counted_at) == (1.0, 10.0)


def test_an_allowance_is_numbers_alone():
    """So that a row of a file can hold it."""
    allowance = Allowance.new(FOUR, now=3.0).guarded(FOUR, 1, 30.0).stopped(Scope.EVERYTHING, 9.0)
    assert all(isinstance(value, int | float) for value in allowance.row)
    assert Allowance.of_row(allowance.row) == allowance


# -- what the server says is left -------------------------------------------------------------


def test_what_the_server_has_left_is_spread_over_the_time_to_its_reset(time, budget, acquire):
    """Somebody else spends the same token's allowance: we slow down instead of being blocked."""
    budget.observe('"default";r=3;t=30')
    callers = [acquire(timeout=100) for _ in range(5)]
    time.run()

    assert waited(callers) == [10.0, 20.0, 30.0, 30.25, 30.5]


def test_nothing_left_means_waiting_for_the_reset(time, budget, acquire):
    budget.observe('"default";r=0;t=30')
    caller, hasty = acquire(timeout=100), acquire(timeout=29)
    time.run()

    assert isinstance(hasty.error, RateLimited)
    assert caller.result == pytest.approx(30.25)


def test_a_header_that_grants_enough_changes_nothing(time, budget, acquire):
    budget.observe('"default";r=130;t=30')  # 10 saved, 4 a second for 30 seconds
    callers = [acquire() for _ in range(11)]
    time.run()

    assert waited(callers) == [0.0] * 10 + [0.25]


def test_the_newest_answer_wins(time, budget, acquire):
    budget.observe('"default";r=1;t=300')
    budget.observe('"default";r=1200;t=300')
    caller = acquire()
    time.run()

    assert caller.result == pytest.approx(0.25)


def test_who_waits_already_heeds_a_new_answer(time, budget, acquire):
    for _ in range(10):
        acquire()
    time.run(until=time.now)
    caller = acquire(timeout=100)
    time.run(until=time.now + 0.1)
    budget.observe('"default";r=1;t=20')
    time.run()

    assert caller.result == pytest.approx(20.1)


@pytest.mark.parametrize(
    ("header", "grant"),
    [
        ('"default";r=50;t=30', (50, 30)),
        ('"default"; r=50; t=30', (50, 30)),
        ('"burst";t=60;r=0', (0, 60)),
        ('"burst";r=99;t=60, "default";r=5;t=300', (5, 300)),
        ('"burst";q=100;w=60', None),
        ('"default";r=-1;t=30', None),
        ('"default";r=5;t=0', None),
        ('"default";r=5;t=1', (5, 1)),
        ('"default";r=1e3;t=30', (1, 30)),
        ('"default";r=0;t=86400', (0, 300)),
        ('"day";r=9;t=86400, "default";r=1;t=1', (9, 300)),
        ("limit=100, remaining=50, reset=50", None),
        ("r" * 10_000, None),
        (f'"default";r={"9" * 5_000};t=30', None),
        ("\x00;;;=,", None),
        ("", None),
    ],
)
def test_a_header_is_a_hint_and_what_cannot_be_read_is_none(header, grant):
    assert parse_ratelimit(header) == grant


@given(st.text())
def test_no_header_can_fail_a_request(header):
    budget = Budget(FOUR, clock=VirtualTime())
    budget.observe(header)
    budget.acquire(deadline=1e12)


def test_an_answer_without_the_header_changes_nothing(time, budget, acquire):
    budget.observe(None)
    caller = acquire()
    time.run()
    assert caller.result == 0.0


# -- what a 429 stops --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "this_queue", "other_queue", "other_calls"),
    [(10250, 20.0, 0.0, 0.0), (10253, 20.0, 20.0, 0.0), (971, 20.0, 20.0, 20.0)],
)
def test_a_429_stops_its_scope_until_retry_after(
    time, budget, acquire, code, this_queue, other_queue, other_calls
):
    """A full queue does not stop the others; a blocked token stops everything."""
    budget.refused(refused(20, code), queue="emails")
    callers = [
        acquire(timeout=99, queue="emails"),
        acquire(timeout=99, queue="reports"),
        acquire(timeout=99),
    ]
    time.run()

    if code == 971:  # which teaches a share, and so a time of the machine's own
        assert all(caller.result >= 20 for caller in callers)
    else:
        assert waited(callers) == [this_queue, other_queue, other_calls]


def test_who_cannot_wait_for_the_end_of_a_block_fails_at_once(time, budget, acquire):
    budget.refused(refused(300))
    caller = acquire(timeout=30)
    time.run()

    assert isinstance(caller.error, RateLimited)
    assert caller.error.retry_after == pytest.approx(300)
    assert time.now == 2_000.0


@pytest.mark.parametrize(
    ("code", "why"),
    [(10250, "the queue takes"), (10253, "stopped publishing"), (971, "stopped every call")],
)
def test_who_fails_hears_what_stops_it(time, budget, acquire, code, why):
    budget.refused(refused(300, code), queue="emails")
    caller = acquire(queue="emails", timeout=30)
    time.run()

    assert why in str(caller.error)


def test_who_cannot_wait_for_what_the_server_has_left_fails_at_once(time, budget, acquire):
    budget.observe('"default";r=2;t=100')
    caller = acquire(timeout=49)
    time.run()

    assert caller.error.retry_after == pytest.approx(50)
    assert "used up" in str(caller.error)
    assert time.now == 2_000.0


def test_a_block_without_retry_after_lasts_for_the_window(time, budget, acquire):
    budget.refused(refused(None))
    caller = acquire(timeout=1_000)
    time.run()

    assert caller.result == limits.WINDOW_SECONDS


def test_an_overloaded_queue_that_names_no_time_is_left_to_the_back_off_of_its_lane(
    time, budget, acquire
):
    """Five minutes of silence for a short overload would be far too much."""
    budget.refused(refused(None, 10250), queue="emails")
    caller = acquire(queue="emails")
    time.run()

    assert caller.result == 0.0


def test_a_shorter_block_does_not_end_a_longer_one(time, budget, acquire):
    budget.refused(refused(100))
    budget.refused(refused(5))
    caller = acquire(timeout=200)
    time.run()

    assert caller.result == 100


def test_a_stopped_queue_does_not_hold_off_those_behind_it(time, budget, acquire):
    """Its publisher gives up its place in the line while it has to wait."""
    for _ in range(10):
        acquire()
    time.run(until=time.now)
    stopped, other = acquire(queue="emails", timeout=60), acquire(queue="reports")
    time.run(until=time.now)
    budget.refused(QueueFull("full", status=429, code=10251, retry_after=20), queue="emails")
    late = acquire(at=time.now + 0.3)
    time.run()

    assert other.result == pytest.approx(0.5)  # as promised when it came
    assert late.result == pytest.approx(0.2)  # with the token that the stopped one left
    assert stopped.result == pytest.approx(20.0)


def test_an_error_that_is_no_429_stops_nothing(time, budget, acquire):
    budget.refused(ServerError("down", status=503, retry_after=60))
    caller = acquire()
    time.run()

    assert caller.result == 0.0


def test_a_429_stops_also_where_there_is_no_limit(time):
    """A gateway that says "wait" is heard."""
    budget = Budget(None, clock=time)
    budget.refused(refused(20))
    caller = time.spawn(budget.acquire, time.now + 30)
    time.run()

    assert caller.error is None
    assert time.now == 1_020.0


# -- real threads, real processes ---------------------------------------------------------------


def test_threads_share_one_allowance():
    """Fifty threads at once: the burst at once, the rest at the rate, nobody twice."""
    budget = Budget(Limit(rate=200.0, burst=5))
    sent = []

    def ask():
        budget.acquire(real_time.monotonic() + 20)
        sent.append(real_time.monotonic())

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(sent) == 50
    assert max(sent) - min(sent) >= 0.9 * 45 / 200


def test_a_forked_child_does_not_spend_the_parents_savings():
    """Sixteen workers of one parent, each with its burst of sixty, would be blocked at once."""
    script = """
import os, time
from kombu_cfqueues.rate_limit import Budget, Limit
from kombu_cfqueues.errors import RateLimited
budget = Budget(Limit(rate=0.001, burst=60))
budget._allowance = budget._allowance._replace(tokens=60.0)
budget._lock.acquire()  # as if another thread held it at the moment of the fork
child = os.fork()
if not child:
    spent = 0
    try:
        while True:
            budget.acquire(time.monotonic())
            spent += 1
    except RateLimited:
        os._exit(spent)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert int(done.stdout) == INITIAL_TOKENS


# -- after a block -----------------------------------------------------------------------------


def test_nothing_is_earned_while_everything_is_stopped():
    """Or all machines that were blocked would come back with a full burst in the same second."""
    full = Allowance(tokens=10.0, counted_at=0.0)
    blocked = full.stopped(Scope.EVERYTHING, 300.0)

    assert blocked.counted(FOUR, 299.0).tokens == INITIAL_TOKENS
    assert blocked.counted(FOUR, 299.0).counted(FOUR, 301.0).tokens == INITIAL_TOKENS + 4.0
    assert blocked.spent().ready_at(FOUR, INITIAL_TOKENS) == pytest.approx(300.25)


def test_what_was_earned_before_a_block_counts(time, budget, acquire):
    for _ in range(10):
        acquire()
    time.run()
    time.now += 0.5  # two tokens
    budget.refused(refused(60))
    callers = [acquire(timeout=100) for _ in range(3)]
    time.run()

    assert waited(callers) == [60.0, 60.0, 60.25]


def test_a_plan_that_is_used_up_stops_no_earning():
    """Other calls go on."""
    stopped = Allowance(tokens=0.0, counted_at=0.0).stopped(Scope.PUBLISHING, 300.0)

    assert stopped.counted(FOUR, 1.0).tokens == 4.0


def lines(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("limit", [FOUR, None])
def test_a_block_is_a_line_when_it_begins_and_one_when_it_is_over(time, caplog, limit):
    budget = Budget(limit, clock=time)
    with caplog.at_level("INFO", "kombu_cfqueues"):
        for _ in range(2):
            for _ in range(3):  # requests that were on their way get the same answer
                budget.refused(refused(60))
            with pytest.raises(RateLimited):
                budget.acquire(time.now)
            time.now += 61
            for _ in range(3):
                budget.acquire(time.now)
    begins, ends = lines(caplog)[::2], lines(caplog)[1::2]
    assert [level for level, _ in begins + ends] == ["WARNING"] * 2 + ["INFO"] * 2
    assert all("429" in text and "60 s" in text for _, text in begins)
    assert all("is over" in text for _, text in ends)


def test_a_queue_that_takes_nothing_is_no_block(budget, caplog):
    budget.refused(refused(60, 10250), queue="emails")

    assert lines(caplog) == []


class HurriedClock(Clock):
    """Each look at it takes 10 ms, as on a machine whose cores are all busy."""

    def __init__(self):
        self.now = 1_000.0

    def monotonic(self):
        self.now += 0.01
        return self.now

    def sleep(self, seconds):
        assert seconds >= 0, "time.sleep raises a ValueError"
        self.now += seconds


def test_a_permit_that_gets_free_between_two_looks_at_the_clock_is_taken():
    """A busy machine may stop a thread for longer than it still had to wait."""
    budget = Budget(Limit(rate=66.0, burst=1), clock=HurriedClock())  # 15 ms a permit
    for _ in range(20):
        budget.acquire(2_000.0)
