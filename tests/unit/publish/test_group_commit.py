"""A lane: many callers, few requests, an outcome for each."""

import gc
import itertools
import math
import pickle
import random
import weakref

import pytest
from group_commit_parts import ADDRESS, POST_SECONDS, ROUND_TRIP, Commit, Permits, Server, bad
from virtual_time import VirtualTime

from kombu_cfqueues.envelope import Packed
from kombu_cfqueues.errors import (
    AuthenticationFailed,
    CFQueuesError,
    ConnectionFailed,
    InvalidMessage,
    PermanentError,
    PublishTimeout,
    RateLimited,
    ServerError,
)
from kombu_cfqueues.publish.callers import Caller
from kombu_cfqueues.publish.group_commit import ROOM_TIMEOUT_SECONDS
from kombu_cfqueues.publish.memory_room import MemoryRoom
from kombu_cfqueues.publish.sender import REFUSED_ALIKE
from kombu_cfqueues.runtime.rng import rng
from kombu_cfqueues.waiting_room import ClaimTerms, Item, RoomBusy


@pytest.fixture
def time():
    return VirtualTime()


@pytest.fixture
def server(time):
    return Server(time)


@pytest.fixture
def permits(time):
    return Permits(time)


@pytest.fixture
def lane(time, server, permits):
    return Commit(server.post, permits, clock=time)


@pytest.fixture
def submit(time, lane):
    """Submit from a thread of its own, now or later."""

    def submit(item, *, size=1_000, timeout=30.0, at=None):
        def publish():
            lane.submit(item, size, time.now + timeout)
            return time.now

        return time.spawn(publish, at=at)

    return submit


def outcomes(callers):
    return [caller.error for caller in callers]


def kinds(callers):
    return [type(caller.error) for caller in callers]


def until(moment, time, error):
    """A server that answers with *error* until a moment comes."""
    return lambda items: error if time.now < moment else None


# -- sharing -----------------------------------------------------------------------------------


def test_callers_that_come_while_a_request_is_in_flight_share_the_next(time, server, submit):
    """Sixty-five publishers at once cost two requests, not sixty-five."""
    callers = [submit(0), *(submit(n, at=0.001) for n in range(1, 65))]
    time.run()

    assert server.requests == [[0], list(range(1, 65))]
    assert outcomes(callers) == [None] * 65


def test_the_permit_comes_first_and_then_the_items(time, server, permits, submit):
    """Who comes while the leader waits for its permit still travels with it."""
    permits.at = [5.0]
    submit("first")
    submit("while it waits", at=4.9)
    time.run()

    assert server.requests == [["first", "while it waits"]]


def test_a_lone_publisher_never_waits(time, lane, server):
    """One thread pays the round trip and nothing else."""

    def publish():
        for n in range(50):
            lane.submit(n, 1_000, time.now + 30)
        return time.now

    publisher = time.spawn(publish)
    time.run()

    assert publisher.result == pytest.approx(50 * ROUND_TRIP)


def test_callers_regroup_instead_of_splitting_into_two_lines(time, lane, server):
    """Eight busy threads cost about an eighth of the requests that each alone would."""

    def publish(name):
        for n in range(100):
            lane.submit((name, n), 1_000, time.now + 30)
            time.sleep(random.Random(n).uniform(0, 0.001))

    for name in range(8):
        time.spawn(publish, name)
    time.run()

    assert len(server.accepted) == 800
    assert len(server.requests) < 800 / 7


def test_sixty_callers_that_wake_one_after_the_other_stay_together(time, lane, server):
    """Waking so many takes longer than the hold; they still need a request a round, not two."""

    def publish(name):
        for n in range(20):
            time.sleep(name * 0.0001)  # waits for its turn, 6.4 ms at most
            lane.submit((name, n), 1_000, time.now + 30)

    for name in range(64):
        time.spawn(publish, name)
    time.run()

    assert len(server.requests) <= 21


def test_a_request_leaves_as_soon_as_all_have_come_again(time, lane, server):
    """What is left of the hold is nothing that anybody waits for."""

    def publish(name):
        for n in range(20):
            lane.submit((name, n), 1_000, time.now + 30)
        return time.now

    publishers = [time.spawn(publish, name) for name in range(8)]
    time.run()

    # One round more than 20: the first request left with one item, before the others came.
    assert max(publisher.result for publisher in publishers) < 21 * (ROUND_TRIP + 0.001)


def test_what_was_accepted_is_forgotten_at_once(time):
    """A thread that sends a million messages needs no garbage collector to stay small."""
    lane = Commit(lambda items, deadline: None, clock=time)
    sent = []

    def publish():
        items = [({number}, 1_000) for number in range(3)]
        sent.extend(weakref.ref(item) for item, _ in items)
        lane.submit_many(items, 30.0)

    gc.disable()
    try:
        time.spawn(publish)
        time.run()
        assert [item() for item in sent] == [None] * 3
    finally:
        gc.enable()


def test_a_request_has_at_most_a_hundred_items(time, server, submit):
    for n in range(301):
        submit(n, at=n / 1_000_000)
    time.run()

    assert [len(request) for request in server.requests] == [1, 100, 100, 100]
    assert server.accepted == list(range(301))


def test_a_request_has_at_most_250_000_bytes(time, server, submit):
    """Celery's headers make a small task 3.3 KB: then bytes cut a batch, not its count."""
    for n in range(11):
        submit(n, size=60_000, at=n / 1_000)
    time.run()

    assert [len(request) for request in server.requests] == [1, 4, 4, 2]


def test_an_item_over_the_limit_goes_alone(time, server, submit):
    """It is for the server to refuse it; the lane must not keep it for ever."""
    for n, size in enumerate([1, 10, 300_000, 10]):
        submit(n, size=size, at=n / 1_000)
    time.run()

    assert server.requests == [[0], [1], [2], [3]]


@pytest.mark.parametrize("allowed", [1, 4])
def test_no_more_requests_are_in_flight_than_allowed(time, server, permits, allowed):
    lane = Commit(server.post, permits, max_in_flight=allowed, clock=time)
    for n in range(1_000):
        time.spawn(lane.submit, n, 1_000, 30.0)
    time.run()

    assert server.most_in_flight == allowed
    assert sorted(server.accepted) == list(range(1_000))


def test_a_leader_does_not_serve_others_for_ever(time, submit):
    """The first of a thousand publishers returns after its own round trip."""
    callers = [submit(n) for n in range(1_000)]
    time.run()

    assert callers[0].result == pytest.approx(ROUND_TRIP)


# -- refused for what it is ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad_items",
    [{0}, {137}, {249}, {3, 4, 5, 6, 7}, {0, 1, 2}, {1, 30, 31, 99, 100, 180, 249}],
    ids=str,
)
def test_only_the_publisher_of_a_bad_message_gets_the_error(time, server, submit, bad_items):
    """A message that the server refuses costs no other message its delivery."""
    server.refuse = bad(*bad_items)
    callers = [submit(n) for n in range(250)]
    time.run()

    assert {n for n, caller in enumerate(callers) if caller.error} == bad_items
    assert sorted(server.accepted) == sorted(set(range(250)) - bad_items)
    assert {type(callers[n].error) for n in bad_items} == {InvalidMessage}


def test_each_half_of_a_refused_batch_takes_its_own_permit(time, server, permits, submit):
    permits.at = [1.0]
    server.refuse = bad(42)
    for n in range(100):
        submit(n)
    time.run()

    assert permits.taken == len(server.requests)
    assert len(server.requests) <= 1 + 2 * 7


def test_a_server_that_refuses_everything_costs_a_bounded_number_of_requests(
    time, server, permits, submit
):
    """A wrong content type must not spend the allowance of five minutes."""
    permits.at = [1.0]
    server.refuse = lambda items: InvalidMessage("no", status=400, code=10207)
    callers = [submit(n) for n in range(100)]
    time.run()

    halvings = 7  # of 100, 50, 25, 13, 7, 4, 2
    assert len(server.requests) <= halvings + REFUSED_ALIKE
    assert kinds(callers).count(InvalidMessage) == REFUSED_ALIKE, "those that were asked"
    unsent = [caller.error for caller in callers if type(caller.error) is PermanentError]
    assert len(unsent) == 100 - REFUSED_ALIKE
    assert {error.delivered for error in unsent} == {"no"}
    assert all("was not sent" in str(error) for error in unsent)
    assert {type(error.__cause__) for error in unsent} == {InvalidMessage}


@pytest.mark.parametrize("bad_items", [{0, 1, 99}, {0, 99}, set(range(10)), {0, 1, 2, 3, 99}])
def test_bad_messages_at_both_ends_condemn_none_between_them(
    time, server, permits, submit, bad_items
):
    """Giving up on a queue that seems to take nothing must not refuse what was never asked."""
    permits.at = [1.0]
    server.refuse = bad(*bad_items)
    callers = [submit(n) for n in range(100)]
    time.run()

    assert {n for n, caller in enumerate(callers) if caller.error} == bad_items
    assert len(server.requests) < 16 * len(bad_items)


@pytest.mark.parametrize("seed", range(20))
def test_seven_bad_messages_of_nine_do_not_condemn_the_others(time, server, permits, seed):
    """Whatever is asked at random may be bad, where most of a small batch are."""
    bad_items = set(random.Random(seed).sample(range(9), 7))
    permits.at = [1.0]
    server.refuse = bad(*bad_items)
    lane = Commit(server.post, permits, clock=time)
    batch = time.spawn(lambda: lane.submit_many([(n, 1_000) for n in range(9)], time.now + 30))
    time.run()

    assert {n for n, error in enumerate(batch.result) if error} == bad_items


def test_after_a_queue_that_took_nothing_new_messages_are_asked(time, server, permits, submit):
    permits.at = [1.0]
    server.refuse = until(1.9, time, InvalidMessage("no", status=400, code=10207))
    for n in range(100):
        submit(n)
    later = [submit(n, at=2.0) for n in range(100, 150)]
    time.run()

    assert outcomes(later) == [None] * 50


def test_items_that_split_do_not_mix_with_new_ones(time, server, permits, submit):
    """Who comes while others are suspected is not drawn into it."""
    permits.at = [1.0]
    server.refuse = bad("bad")
    submit("bad")
    submit("good")
    for n in range(10):
        submit(n, at=1.001)
    time.run()

    assert server.requests == [["bad", "good"], ["bad"], ["good"], list(range(10))]


def test_a_refusal_that_no_repeating_mends_fails_the_whole_batch(time, server, permits, submit):
    """A revoked token: everybody hears of it now, and one request was enough."""
    permits.at = [1.0]
    server.refuse = lambda items: AuthenticationFailed("revoked", status=401)
    callers = [submit(n) for n in range(50)]
    time.run()

    assert set(kinds(callers)) == {AuthenticationFailed}
    assert len(server.requests) == 1


def test_each_caller_raises_an_error_of_its_own(time, server, permits, submit):
    """Raising adds to a traceback: one object for all would grow and keep every frame alive."""
    permits.at = [1.0]
    cause = OSError("reset by peer")

    def refuse(items):
        error = AuthenticationFailed("revoked", status=401, ray_id="8f3")
        error.__cause__ = cause
        return error

    server.refuse = refuse
    callers = [submit(n) for n in range(50)]
    time.run()

    errors = outcomes(callers)
    assert len({id(error) for error in errors}) == 50
    assert {(str(e), e.status, e.ray_id, e.__cause__) for e in errors} == {
        ("revoked", 401, "8f3", cause)
    }
    frames = []
    traceback = errors[7].__traceback__
    while traceback:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert frames.count("submit") == 1
    assert frames[-1] == "post"  # where it happened is still to be seen
    assert pickle.loads(pickle.dumps(errors[7])).ray_id == "8f3"


# -- not now -------------------------------------------------------------------------------------


def test_an_outage_is_waited_out_and_the_order_kept(time, server, permits, submit):
    """Ten seconds without a server lose nothing."""
    server.refuse = until(10.0, time, ConnectionFailed("refused"))
    callers = [submit(n) for n in range(120)]
    time.run()

    assert outcomes(callers) == [None] * 120
    assert server.accepted == list(range(120))
    assert permits.taken == len(server.requests) < 30


@pytest.mark.parametrize("allowed", [1, 4])
def test_the_order_survives_failures_of_several_requests(time, server, permits, allowed):
    """What failed goes back to where it stood, whichever request failed last."""
    lane = Commit(server.post, permits, max_in_flight=allowed, clock=time)
    server.refuse = until(1.0, time, ConnectionFailed("refused"))
    callers = [time.spawn(lane.submit, n, 1_000, 30.0) for n in range(1_000)]
    time.run()

    assert outcomes(callers) == [None] * 1_000
    assert server.accepted == list(range(1_000))


def test_tries_are_spread_further_and_further(time, server, submit):
    """A few tries in the first seconds, then one every few seconds."""
    random.seed(1)
    server.refuse = lambda items: ServerError("down", status=503)
    submit(1, timeout=120.0)
    time.run()

    assert 20 < len(server.requests) < 80
    assert max(b - a for a, b in zip(server.sent_at, server.sent_at[1:], strict=False)) < 5.1


def test_retry_after_is_honoured(time, server, submit):
    server.refuse = until(1.0, time, RateLimited("slow down", status=429, retry_after=12))
    caller = submit(1)
    time.run()

    assert caller.error is None
    assert server.sent_at[1] >= 12


def test_who_cannot_wait_as_long_as_the_server_asks_fails_at_once(time, server, permits, submit):
    """Five minutes of block: nobody with a timeout of 30 seconds sits them out."""
    permits.at = [1.0]
    server.refuse = until(50.0, time, RateLimited("blocked", status=429, retry_after=300))
    patient = submit("patient", timeout=900.0)
    callers = [submit(n) for n in range(10)]
    late = submit("late", at=100.0)
    time.run(until=1.0 + ROUND_TRIP)
    assert kinds(callers) == [PublishTimeout] * 10
    time.run(until=100.0)

    for caller in [*callers, late]:
        assert isinstance(caller.error, PublishTimeout)
        assert caller.error.delivered == "no"
        assert isinstance(caller.error.__cause__, RateLimited)
    assert not patient.done
    assert len(server.requests) == 1

    time.run()
    assert patient.error is None
    assert server.accepted == ["patient"]


@pytest.mark.parametrize("retry_after", [None, 90.0])
def test_a_timeout_says_what_failed_last_and_when_it_may_be_over(time, server, submit, retry_after):
    server.round_trip = 0.0
    server.refuse = lambda items: ServerError("the server is down", retry_after=retry_after)
    caller = submit(1, timeout=5.0)
    time.run()

    assert str(caller.error) == (
        "the message to queue 'jobs' was not sent: no request could be made before the deadline "
        "(last failure: the server is down)"
    )
    assert caller.error.retry_after == retry_after


def test_each_caller_lives_until_its_own_deadline(time, server, submit):
    server.round_trip = 0.0
    server.refuse = lambda items: ConnectionFailed("refused")
    callers = [submit(timeout, timeout=timeout) for timeout in (1.0, 7.0, 30.0)]
    time.run()

    for caller in callers:
        assert isinstance(caller.error, PublishTimeout)
        assert isinstance(caller.error.__cause__, ConnectionFailed)
        assert caller.error.delivered == "no"
    assert 20.0 < time.now <= 30.0


def test_the_publisher_is_told_when_its_message_may_have_arrived(time, server, submit):
    """A response was lost on the way: "unknown" is the truth, whatever the later tries say."""
    server.round_trip = 0.0  # else a last try may have no time for its answer
    answers = [ConnectionFailed("response lost", delivered="unknown")]
    server.refuse = lambda items: answers.pop() if answers else ServerError("down", status=503)
    caller = submit(1, timeout=5.0)
    time.run()

    assert isinstance(caller.error, PublishTimeout)
    assert caller.error.delivered == "unknown"
    assert isinstance(caller.error.__cause__, ServerError)


def test_a_message_whose_publisher_is_gone_is_not_posted_again(time, server, permits, submit):
    """It was told that the message may have arrived, and may have published it anew."""
    permits.at = [5.0]
    server.round_trip = 20.0
    server.refuse = lambda items: ServerError("down", status=503) if time.now < 30 else None
    patient = submit("patient", timeout=100.0)
    gone = submit("gone", timeout=15.0)
    time.run()

    assert kinds([patient, gone]) == [type(None), PublishTimeout]
    assert server.requests[0] == ["patient", "gone"]
    assert all("gone" not in items for items in server.requests[1:])


def test_a_lost_response_is_repeated_by_default(time, server, submit):
    server.round_trip = 0.0  # else a last try may have no time for its answer
    answers = [ConnectionFailed("response lost", delivered="unknown")]
    server.refuse = lambda items: answers.pop() if answers else None
    caller = submit(1)
    time.run()

    assert caller.error is None
    assert len(server.requests) == 2


def test_a_lost_response_is_not_repeated_if_duplicates_are_worse(time, server, permits):
    lane = Commit(server.post, permits, retry_uncertain=False, clock=time)
    server.round_trip = 0.0  # else a last try may have no time for its answer
    answers = [ConnectionFailed("response lost", delivered="unknown")]
    server.refuse = lambda items: answers.pop() if answers else None
    lost = time.spawn(lane.submit, 1, 1, 30.0)
    follower = time.spawn(lane.submit, 2, 1, 30.0, at=0.01)
    time.run()

    assert isinstance(lost.error, ConnectionFailed)
    assert lost.error.delivered == "unknown"
    assert follower.error is None
    assert len(server.requests) == 2


def test_a_follower_returns_at_its_own_deadline(time, server, permits, submit):
    """Its leader's request may take longer than it can wait."""
    server.round_trip = 20.0
    permits.at = [20.0]
    submit("leader", timeout=60.0)
    follower = submit("follower", timeout=25.0)
    time.run(until=25.0)

    assert isinstance(follower.error, PublishTimeout)
    assert follower.error.delivered == "unknown"
    time.run()
    assert server.requests == [["leader", "follower"]]


def test_who_was_told_that_nothing_was_sent_can_rely_on_it(time, server, submit):
    """Publishing again after "no" makes no duplicate: nothing is delivered behind its back."""
    server.round_trip = 20.0
    submit("in flight")
    caller = submit("late", timeout=1.0, at=1.0)
    time.run()

    assert caller.error.delivered == "no"
    assert "last failure" not in str(caller.error)
    assert server.accepted == ["in flight"]


def test_a_post_must_end_by_its_leaders_deadline(time, server, submit):
    submit(1, timeout=7.0)
    time.run()

    assert server.deadlines == [7.0]


def test_without_a_permit_in_time_a_caller_hears_so_at_once(time, server, permits, submit):
    """Those who can wait longer go on, under another leader."""
    permits.at = [10.0]
    hasty = submit("hasty", timeout=5.0)
    patient = submit("patient", timeout=20.0)
    time.run(until=0.001)

    assert isinstance(hasty.error, PublishTimeout)
    assert isinstance(hasty.error.__cause__, RateLimited)
    time.run()
    assert patient.error is None
    assert server.requests == [["patient"]]


def test_a_permit_that_leaves_no_time_to_post_is_not_taken(time, server, permits, submit):
    """It would be lost, and the cut post would leave every message of it uncertain."""
    server.round_trip = 1.0
    submit("teaches the lane how long a post takes")
    time.run()
    permits.at = [time.now + 4.5]
    hasty = submit("hasty", timeout=5.0)
    patient = submit("patient", timeout=20.0)
    time.run()

    assert hasty.error.delivered == "no"
    assert patient.error is None


def test_who_gives_up_no_longer_waits_for_a_permit(time, permits, submit):
    permits.at = [60.0]
    hasty = submit("hasty", timeout=30.0)
    time.run(until=0.0)
    assert isinstance(hasty.error, PublishTimeout)
    assert not permits.waiting


def test_a_caller_with_another_broker_hears_of_the_first_failure(time, lane, server):
    server.refuse = lambda items: ConnectionFailed("refused")
    message = lane._packed("item", 1_000)
    caller = time.spawn(
        lambda: lane.commit.submit(ADDRESS, message, deadline=time.now + 30, switches=True)
    )
    time.run()
    assert type(caller.error) is ConnectionFailed
    assert server.requests == [["item"]]


def test_a_lane_works_again_after_an_outage_that_nobody_outlived(time, server, submit):
    server.refuse = until(40.0, time, ConnectionFailed("refused"))
    lost = submit("lost", timeout=30.0)
    later = submit("later", at=60.0)
    time.run()

    assert isinstance(lost.error, PublishTimeout)
    assert later.result == pytest.approx(60.0 + ROUND_TRIP)


# -- whatever ends a caller -------------------------------------------------------------------


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, RuntimeError])
@pytest.mark.parametrize("moment", [2.0, 5.01], ids=["waiting for a permit", "posting"])
def test_whatever_ends_a_leader_the_others_are_served(time, server, permits, submit, end, moment):
    """Ctrl-C, a time limit or a killed greenlet takes along no one else's message."""
    permits.at = [5.0]
    leader = submit("leader")
    others = [submit(n) for n in range(20)]
    time.run(until=moment)
    leader.kill(end())
    time.run()

    assert type(leader.error) is end
    assert outcomes(others) == [None] * 20
    assert time.now < 6.0 or moment > 5.0


def test_a_leader_whose_thread_does_not_run_is_replaced(time, server, permits, submit, monkeypatch):
    """Its thread has died without a word, or nobody wakes its greenlet."""
    sleep, stopped = Caller.sleep, []

    def sleep_or_stop(caller, seconds):
        stopped.append(caller)
        if caller is stopped[0]:
            time.sleep(1_000)
        else:
            sleep(caller, seconds)

    monkeypatch.setattr(Caller, "sleep", sleep_or_stop)
    permits.at = [5.0]
    submit("leader")
    others = [submit(n, at=0.1) for n in range(3)]
    time.run()

    assert outcomes(others) == [None] * 3


def test_who_came_first_leads_if_there_is_time_for_a_whole_request(time, server, submit):
    """A caller with even more time does not pass it."""
    submit("in flight")
    submit("leads now", at=0.001, size=200_000)
    first = submit("first", at=0.002, size=200_000, timeout=2 * POST_SECONDS)
    second = submit("second", at=0.003, size=200_000, timeout=20 * POST_SECONDS)
    server.refuse = lambda items: KeyboardInterrupt() if len(server.requests) == 3 else None
    time.run()

    assert kinds([first, second]) == [KeyboardInterrupt, type(None)]


def test_who_has_time_for_a_whole_request_leads_before_the_only_other_one(time, server, submit):
    """The leader's deadline ends the request."""
    submit("in flight")
    submit("leads now", at=0.001, size=200_000)
    submit("hasty", at=0.002, size=200_000, timeout=POST_SECONDS / 2)
    submit("patient", at=0.003, size=200_000, timeout=20 * POST_SECONDS)
    time.run()

    assert server.requests[2:] == [["hasty"], ["patient"]]
    assert server.deadlines[2] > POST_SECONDS / 2 + 1


def test_who_has_no_time_left_when_a_request_fails_hears_so_at_once(time, lane, server, permits):
    """Its message was on its way when the last moment for another request passed."""
    permits.at, server.round_trip, ends = [1.0], 3.0, []
    lane.commit.sender.request_time.note(2.0)
    server.refuse = lambda items: ConnectionFailed("down") if len(server.requests) == 1 else None

    def publish(item, deadline):
        try:
            lane.submit(item, 1, deadline)
        finally:
            ends.append((item, time.now))

    time.spawn(publish, "patient", 60.0)
    hasty = time.spawn(publish, "hasty", 5.0)
    time.run()

    assert server.requests == [["patient", "hasty"], ["patient"]]
    assert isinstance(hasty.error, PublishTimeout)
    assert hasty.error.delivered == "no"
    assert dict(ends)["hasty"] < 4.5


def test_a_look_for_messages_ends_soon_where_the_room_is_busy(time, lane, submit, monkeypatch):
    """Others may lead meanwhile."""
    claim, left = lane.room.claim, []

    def note(terms):
        left.append(terms.until - time.now)
        return claim(terms)

    monkeypatch.setattr(lane.room, "claim", note)
    submit("one")
    time.run()

    assert left == [ROOM_TIMEOUT_SECONDS]


def test_who_cannot_enter_the_room_in_time_hears_that_nothing_was_sent(
    time, lane, server, submit, monkeypatch
):
    """The room's file was busy until the deadline, which says nothing of the next publish."""
    enter = lane.room.enter

    def busy(items, *, until, **_):
        time.sleep(until - time.now)
        raise RoomBusy("the file is busy")

    monkeypatch.setattr(lane.room, "enter", busy)
    caller = submit("one", timeout=2.0)
    time.run()
    monkeypatch.setattr(lane.room, "enter", enter)
    submit("two")
    time.run()

    assert isinstance(caller.error, PublishTimeout)
    assert caller.error.delivered == "no"
    assert isinstance(caller.error.__cause__, RoomBusy)
    assert server.requests == [["two"]]


def test_what_a_released_claim_held_waits_again(permits):
    """Its thread ended between the claim and the request."""
    room = MemoryRoom(permits, "", extends=False)
    item = Item(ADDRESS, Packed(b"x", 1))
    room.enter([item], number=1, may_skip=False, until=math.inf)
    room.claim(ClaimTerms(2))
    assert not room.outcomes(until=math.inf).waiting
    room.release(2)
    assert room.outcomes(until=math.inf).waiting
    assert room.claim(ClaimTerms(3)).items == [item]
    assert item.uncertain  # nobody knows how far the request came


def test_a_caller_in_a_hurry_tries_once_amid_the_pauses_of_others(time, server, submit):
    """An outage that is over does not fail those who have no time to wait for a long pause."""
    server.refuse = until(10.0, time, ConnectionFailed("down"))
    patient = submit("patient", timeout=60)
    hasty = [submit(n, timeout=0.5, at=10.0 + n / 10) for n in range(50)]
    time.run()

    assert outcomes([patient, *hasty]) == [None] * 51


@pytest.mark.parametrize("first", ["patient", "hasty"])
def test_a_caller_tries_a_last_time_amid_a_pause_that_began_while_it_waited(
    time, server, submit, monkeypatch, first
):
    monkeypatch.setattr(rng, "uniform", lambda low, high: high)  # tries after 3.15 and 6.38 seconds
    server.refuse = until(5.0, time, ConnectionFailed("down"))
    timeouts = {"patient": 60.0, "hasty": 6.0}
    order = sorted(timeouts, key=lambda name: name != first)
    callers = {
        name: submit(name, timeout=timeouts[name], at=n / 10) for n, name in enumerate(order)
    }
    time.run()

    assert callers["hasty"].error is None
    assert callers["patient"].error is None
    assert 5.0 < callers["hasty"].result < 6.0


def test_pauses_double_up_to_five_seconds(time, server, submit, monkeypatch):
    """At the longest: each is random up to a length."""
    monkeypatch.setattr(rng, "uniform", lambda low, high: high)
    server.refuse = lambda items: ConnectionFailed("down")
    submit("x", timeout=30.0)
    time.run()

    pauses = [
        round(after - before - ROUND_TRIP, 3)
        for before, after in itertools.pairwise(server.sent_at)
    ]
    assert pauses[:8] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


@pytest.mark.parametrize("seed", range(5))
def test_callers_in_a_hurry_do_not_take_turns_without_a_pause(time, server, seed):
    """They stand so far behind that each time only messages of others leave, and fail at once."""
    rng.seed(seed)
    permits = Permits(time, *(number / 1000 for number in range(1, 2000)))
    lane = Commit(server.post, permits, max_batch=2, max_in_flight=2, clock=time)
    server.round_trip = 0.001
    server.refuse = lambda items: ConnectionFailed("down")
    callers = [time.spawn(lane.submit, n, 1, 2.0) for n in range(7)]
    time.run()

    assert kinds(callers) == [PublishTimeout] * 7
    assert len(server.requests) < 50


def test_a_leader_that_ends_in_a_pause_hands_on(time, server, submit):
    server.refuse = until(3.0, time, RateLimited("wait", status=429, retry_after=10))
    leader, other = submit("leader"), submit("other")
    time.run(until=5.0)
    leader.kill(KeyboardInterrupt())
    time.run()

    assert other.error is None
    assert server.accepted == ["other"]


def test_an_interrupted_post_is_not_repeated_if_duplicates_are_worse(time, server, permits):
    lane = Commit(server.post, permits, retry_uncertain=False, clock=time)
    permits.at = [1.0]
    leader, other = (time.spawn(lane.submit, n, 1, 30.0) for n in range(2))
    time.run(until=1.01)
    leader.kill(KeyboardInterrupt())
    time.run()

    assert isinstance(other.error, ConnectionFailed)
    assert other.error.delivered == "unknown"


def test_an_item_that_ends_whoever_posts_it_does_not_go_through_all(time, server, permits, submit):
    """A bug in posting costs two requests, not one for each caller, and nobody waits for ever."""

    def refuse(items):
        raise TypeError("a bug")

    server.refuse = refuse
    permits.at = [1.0]
    callers = [submit(n) for n in range(50)]
    time.run()

    assert kinds(callers).count(TypeError) == 2
    assert kinds(callers).count(ConnectionFailed) == 48
    assert len(server.requests) == 2


def test_an_interrupted_follower_takes_its_item_back(time, server, submit):
    submit("in flight")
    follower, other = submit("follower", at=0.001), submit("other", at=0.001)
    time.run(until=ROUND_TRIP / 2)
    follower.kill(KeyboardInterrupt())
    time.run()

    assert server.accepted == ["in flight", "other"]
    assert other.error is None


# -- many items of one caller ---------------------------------------------------------------------


@pytest.fixture
def submit_many(time, lane):
    """Submit several items from one thread of its own."""

    def submit_many(items, timeout=30.0):
        def publish():
            return lane.submit_many([(item, 1_000) for item in items], time.now + timeout)

        return time.spawn(publish)

    return submit_many


def test_many_items_leave_in_full_requests_and_in_their_order(time, server, submit_many):
    batch = submit_many(range(250))
    time.run()

    assert batch.result == [None] * 250
    assert [len(request) for request in server.requests] == [100, 100, 50]
    assert server.accepted == list(range(250))


def test_nothing_to_hand_over_costs_nothing(time, server, submit_many):
    batch = submit_many([])
    time.run()

    assert batch.result == []
    assert server.requests == []


def test_each_of_many_items_has_its_own_outcome(time, server, submit_many):
    server.refuse = bad(3, 77)
    batch = submit_many(range(100))
    time.run()

    assert {n for n, error in enumerate(batch.result) if error} == {3, 77}
    assert isinstance(batch.result[3], InvalidMessage)


def test_two_threads_of_a_batch_have_two_requests_in_flight(time, server, submit_many):
    """Where single publishers have one: two reach what a queue takes."""
    for _ in range(2):
        submit_many(range(1_000))
    time.run()

    assert server.most_in_flight == 2
    assert len(server.requests) == 20


def test_a_batch_holds_single_publishers_off_for_no_more_than_one_permit(
    time, permits, submit, submit_many
):
    permits.at = [float(second) for second in range(1, 40)]
    submit_many(range(1_000), timeout=60.0)
    single = submit("single", at=3.5)
    time.run()

    assert single.result == pytest.approx(4.0 + ROUND_TRIP)


def test_what_is_on_its_way_is_waited_for_where_the_rest_has_no_chance(time, permits):
    def post(items, deadline):
        if "late" in items:
            raise RateLimited("wait", status=429, retry_after=100)
        time.sleep(5.0)

    permits.at = [0.01]
    lane = Commit(post, permits, max_batch=2, clock=time)
    single = time.spawn(lane.submit, "single", 1, 30.0)
    many = time.spawn(lane.submit_many, [("goes along", 1), ("late", 1)], 30.0)
    time.run()

    assert single.error is None
    there, late = many.result
    assert there is None
    assert isinstance(late, PublishTimeout)
    assert late.delivered == "no"


def test_single_publishers_do_not_starve_a_batch(time, lane, permits, submit_many):
    """Two hundred busy threads fill every request: the batch gets each second one."""
    permits.at = [second / 4 for second in range(1, 400)]

    def publish():
        for n in range(10):
            lane.submit(n, 1_000, time.now + 90)

    for _ in range(200):
        time.spawn(publish)
    batch = submit_many(range(500), timeout=60.0)
    time.run(until=4.0)

    assert batch.result == [None] * 500


def test_many_items_past_their_deadline_are_told_apart(time, server, permits, submit_many):
    """What was accepted, what is uncertain and what never left."""
    permits.at = [1.0, 2.0, 50.0]
    answers = [None, ConnectionFailed("response lost", delivered="unknown")]
    server.refuse = lambda items: answers.pop(0)
    batch = submit_many(range(250), timeout=10.0)
    time.run()

    delivered = [error and error.delivered for error in batch.result]
    assert delivered == [None] * 100 + ["unknown"] * 100 + ["no"] * 50


def test_an_interrupted_batch_takes_back_what_has_not_left(time, server, permits, submit_many):
    permits.at = [1.0, 2.0, 3.0]
    batch = submit_many(range(300))
    time.run(until=1.5)
    batch.kill(KeyboardInterrupt())
    time.run()

    assert isinstance(batch.error, KeyboardInterrupt)
    assert server.accepted == list(range(100))


def test_every_outcome_of_a_failed_try_is_an_error_of_this_package(time, server, submit_many):
    server.refuse = lambda items: ServerError("down", status=500, delivered="unknown")
    batch = submit_many(range(10), timeout=3.0)
    time.run()

    assert all(isinstance(error, CFQueuesError) for error in batch.result)
