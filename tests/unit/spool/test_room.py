"""What waits in the spool, who may post it, and what becomes of it: the rules, one by one."""

import math
import time

import pytest
from support.spools import CLAIM_SECONDS, packed, texts

from kombu_cfqueues import errors
from kombu_cfqueues.publish.sender import QUEUE_BACKOFF, REFUSED_ALIKE, Sender
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.spool.election import RELAY_SILENCE_SECONDS
from kombu_cfqueues.spool.listing import Listing
from kombu_cfqueues.spool.liveness import LivenessLocks
from kombu_cfqueues.spool.permit_scheduler import PERMIT_RESERVED_SECONDS
from kombu_cfqueues.waiting_room import Claim, Kind, Wait, Withdrawn


def refusal(code=10203):
    return errors.InvalidMessage("refused", code=code, status=400)


# -- sharing requests


def test_whoever_gets_the_permit_carries_what_all_processes_wait_to_publish(peer):
    """Sixteen processes with one message each need one request."""
    processes = [peer() for _ in range(16)]
    for number, process in enumerate(processes):
        process.enter(str(number))

    claim = processes[7].claim()

    assert texts(claim) == [str(number) for number in range(16)]
    assert [item.owned_here for item in claim.items] == [number == 7 for number in range(16)]


def test_a_permit_that_is_free_is_taken_at_once_and_nothing_enters(peer):
    """A lone publisher costs the file one small transaction."""
    process = peer()
    assert process.enter(may_skip=True) is None
    assert isinstance(process.try_claim(), Wait)


def test_nobody_takes_the_straight_way_past_those_who_wait(peer, clock):
    waiting, late = peer(), peer()
    waiting.enter("first")
    clock.now += 60
    assert late.enter("second", may_skip=True) is not None
    assert texts(late.claim()) == ["first", "second"]


def test_what_another_process_posted_is_told_to_its_owner_alone(peer):
    owner, poster, other = peer(), peer(), peer()
    row = owner.enter()
    claim = poster.claim()
    poster.settle(claim)

    assert other.outcomes() == ({}, False)
    assert owner.outcomes() == ({row: None}, False)
    assert owner.outcomes() == ({}, False)


def test_a_refusal_reaches_its_owner_as_the_error_that_it_was(peer):
    owner, poster = peer(), peer()
    row = owner.enter()
    claim = poster.claim()
    poster.settle(claim, dict.fromkeys(claim.items, refusal()))

    [(told, error)] = owner.outcomes()[0].items()
    assert told == row
    assert type(error) is errors.InvalidMessage
    assert (str(error), error.code, error.status, error.delivered) == ("refused", 10203, 400, "no")


def test_a_batch_is_cut_by_count_and_by_bytes(peer):
    process = peer()
    process.spool(count=130)
    assert len(process.claim().items) == 100
    assert len(process.claim().items) == 30
    process.spool("x" * 100_000, count=3)
    assert len(process.claim().items) == 2


# -- permits and turns


def test_permits_are_one_allowance_for_all(peer, clock):
    """Sixteen buckets of their own would cause the very block that they are to avoid."""
    processes = [peer(limit=Limit(1.0, 5)) for _ in range(16)]
    spent = [process.enter(may_skip=True) is None for process in processes]
    assert spent.count(True) == 5


def test_the_queue_that_waits_longest_goes_first_whoever_posts(peer):
    process = peer()
    for queue in ("c", "a", "b"):
        process.enter(queue, queue=queue)
    assert [texts(process.claim()) for _ in range(3)] == [["c"], ["a"], ["b"]]


def test_a_batch_never_takes_two_permits_in_a_row_while_others_wait(peer):
    """Twenty thousand messages in one process hold the others off for one interval."""
    process, other = peer(), peer()
    process.enter("bulk", kind=Kind.BULK, count=200)
    other.enter("single", queue="other")
    other.enter("late", queue="third")

    order = [texts(process.claim())[0] for _ in range(4)]

    assert order == ["bulk", "single", "bulk", "late"]


def test_a_backlog_in_the_spool_gets_every_second_permit_and_no_more(peer):
    process = peer()
    process.spool("old", count=300)
    for number in range(3):
        process.enter(f"new{number}", queue=f"other{number}")

    order = [texts(process.claim())[0] for _ in range(6)]

    assert order == ["old", "new0", "old", "new1", "old", "new2"]


def test_who_waits_for_an_answer_goes_before_what_is_spooled_in_the_same_request(peer):
    process = peer()
    process.spool("spooled", count=3)
    process.enter("waits")
    assert texts(process.claim()) == ["waits", "spooled", "spooled", "spooled"]


def test_many_who_wait_leave_the_backlog_half_of_its_request(peer):
    process = peer()
    process.spool("spooled", count=100)
    process.enter("waits", count=100)
    found = texts(process.claim())
    assert (found.count("waits"), found.count("spooled")) == (50, 50)


@pytest.mark.parametrize("kind", [Kind.BULK, Kind.SPOOLED])
def test_large_messages_do_not_take_the_turn_of_a_backlog(peer, kind):
    """Two that do not fit into one request: the one whose turn it is goes."""
    process = peer()
    if kind is Kind.BULK:
        process.enter("b" * 127_000, kind=kind)
    else:
        process.spool("b" * 127_000)
    process.enter("s" * 124_000)

    assert texts(process.claim())[0][0] == "b"
    assert texts(process.claim())[0][0] == "s"


def test_admin_requests_stand_in_the_same_line(peer, clock):
    """A queue that has to be looked up is not looked up after an endless stream of messages."""
    publisher, admin, late = peer(), peer(), peer()
    publisher.enter("first", queue="a")
    ticket, wait = admin.request_permit(None, clock.now + 900)
    late.enter("second", queue="b")
    assert wait is not None

    assert texts(late.claim()) == ["first"]
    clock.now += 1
    assert isinstance(late.try_claim(), Wait), "it is the admin request's turn"
    assert admin.request_permit(ticket, clock.now + 900) == (None, None)
    assert texts(late.claim()) == ["second"]


def test_an_admin_request_comes_between_two_permits_of_a_batch(peer, clock):
    publisher, admin = peer(), peer()
    publisher.enter("bulk", kind=Kind.BULK, count=300)
    publisher.claim()
    ticket, _ = admin.request_permit(None, clock.now + 900)
    clock.now += 1

    assert admin.request_permit(ticket, clock.now + 900) == (None, None)


def test_many_who_connect_take_every_second_permit_and_no_more(peer, clock):
    """A deploy of a hundred processes is no reason to keep messages waiting."""
    processes = [peer() for _ in range(6)]
    places = {p: p.request_permit(None, clock.now + 900)[0] for p in processes}
    for number in range(3):
        processes[0].enter(f"message {number}", queue=f"q{number}")
    order = []
    for _ in range(6):
        clock.now += 1
        for process, place in list(places.items()):
            if place and process.request_permit(place, clock.now + 900) == (None, None):
                order.append("connect")
                del places[process]
                break
        else:
            order += texts(processes[0].try_claim())

    assert order == ["message 0", "connect", "message 1", "connect", "message 2", "connect"]


def test_a_look_up_for_a_message_ranks_as_that_message(peer, clock):
    publisher, asks, late = peer(), peer(), peer()
    publisher.request_permit(None, clock.now + 900)
    place, _ = asks.request_permit(None, clock.now + 900, Kind.LOOKUP)
    late.enter("late")
    clock.now += 1

    assert isinstance(late.try_claim(), Wait), "it is the look-up's turn"
    assert asks.request_permit(place, clock.now + 900, Kind.LOOKUP) == (None, None)
    assert texts(late.claim()) == ["late"]


def test_who_does_not_take_its_turn_holds_nobody_off_for_long(peer, clock):
    """A stopped process has a place in the line, and no use for it."""
    stopped, other = peer(), peer()
    stopped.request_permit(None, clock.now + 900, Kind.LOOKUP)
    stopped.request_permit(None, clock.now + 900, Kind.LOOKUP)
    other.enter("waits")
    clock.now += 60
    assert isinstance(other.try_claim(), Wait)
    clock.now += PERMIT_RESERVED_SECONDS
    assert isinstance(other.try_claim(), Claim)


def test_an_uncontended_permit_for_an_admin_request_is_there_at_once(peer, clock):
    assert peer().request_permit(None, clock.now + 1) == (None, None)


def test_waiting_requests_know_when_it_is_their_turn(peer, clock):
    """Sixty-four who wait do not all wake for each permit."""
    limit = Limit(4.0, 1)
    assert peer(limit=limit).request_permit(None, clock.now + 900) == (None, None)
    waits = [peer(limit=limit).request_permit(None, clock.now + 900) for _ in range(3)]
    assert [wait.until - clock.now for _, wait in waits] == pytest.approx([0.25, 0.5, 0.75])


# -- what the server says


def test_a_stop_of_the_token_reaches_every_process_at_once(peer, clock):
    told, other = peer(), peer()
    blocked = errors.RateLimited("blocked", status=429, code=971, retry_after=200)
    told.permits.stop(blocked, None)
    other.enter()
    clock.now += 100
    wait = other.try_claim()
    assert wait.until == pytest.approx(clock.now + 100)
    assert wait.why.retry_after == pytest.approx(100)
    assert other.request_permit(None, clock.now + 1)[1].why is not None


def test_a_stop_of_publishing_stops_messages_and_no_admin_requests(peer, clock):
    process = peer()
    process.enter()
    used_up = errors.RateLimited("used up", status=429, code=10253, retry_after=200)
    process.permits.stop(used_up, None)

    wait = process.try_claim()
    assert wait.until == clock.now + 200
    assert "publishing" in str(wait.why)
    ticket, _ = process.request_permit(None, clock.now + 100)
    clock.now += PERMIT_RESERVED_SECONDS
    assert process.request_permit(ticket, clock.now + 100) == (None, None)
    clock.now = wait.until
    assert texts(process.try_claim()) == ["x"]


def test_a_stop_of_one_queue_stops_that_queue(peer, clock):
    process = peer()
    process.enter("full", queue="a")
    full = errors.QueueFull("full", status=429, code=10251, retry_after=300)
    process.permits.stop(full, "id-of-a")
    process.enter("other", queue="b")
    assert texts(process.claim()) == ["other"]
    clock.now += 300
    assert texts(process.claim()) == ["full"]


@pytest.mark.parametrize(
    ("header", "permits"),
    [('"default";r=1000;t=10', 5), ('"default";r=4;t=10', 2), ('"default";r=0;t=10', 0)],
)
def test_what_the_server_has_left_is_shared_by_all(peer, clock, header, permits):
    """The header acts only if it grants less than the bucket would spend until its reset."""
    told, other = peer(limit=Limit(1.0, 1)), peer(limit=Limit(1.0, 1))
    clock.now += 60
    told.permits.heed(header)
    spent = 0
    for _ in range(50):
        clock.now += 0.1
        other.spool()
        spent += isinstance(other.try_claim(), Claim)
    assert spent == permits


def test_a_new_token_finds_the_messages_and_the_debt_of_the_old_one(peer, clock):
    """Rotating a token strands nothing, and is no way to a second allowance."""
    old = peer(limit=Limit(1.0, 60), token="old")
    for _ in range(5):
        assert old.enter(may_skip=True) is None
    old.spool("waits")
    new = peer(limit=Limit(1.0, 60), token="new")
    assert isinstance(new.try_claim(), Wait)
    assert texts(new.claim()) == ["waits"]


# -- claims


def test_a_claim_is_free_the_moment_its_poster_is_dead(peer, clock):
    """Nobody waits out a timeout for a process that was killed."""
    victim, other = peer(), peer()
    other.enter("waits")
    victim.claim()
    victim.die()
    other.room.sweep()
    assert texts(other.claim()) == ["waits"]


def test_a_process_that_was_about_to_show_itself_alive_loses_no_outcome(peer, monkeypatch):
    """Its lock's file exists before it is locked, and a sweep may wait for the file meanwhile."""
    starts, poster = peer(), peer()
    row = starts.enter()
    poster.settle(poster.claim())
    look = LivenessLocks.dead

    def dead(locks):
        starts.file._alive.release()
        try:
            return look(locks)
        finally:
            assert starts.file._alive.acquire()

    monkeypatch.setattr(LivenessLocks, "dead", dead)
    poster.room.sweep()

    assert starts.outcomes() == ({row: None}, False)
    assert poster.file.is_alive(starts.file.me)


def test_what_a_process_that_ends_has_claimed_is_free_at_once(peer):
    """Nobody has to find out first that it is gone."""
    ends, owner = peer(), peer()
    owner.enter("waits")
    ends.claim()

    ends.file.close()

    assert texts(owner.claim()) == ["waits"]


def test_a_claim_of_a_living_poster_is_its_own_until_time_is_up(peer, clock):
    slow, other = peer(), peer()
    other.enter("waits")
    claim = slow.claim()
    clock.now += CLAIM_SECONDS - 1
    other.room.sweep()
    assert isinstance(other.try_claim(), Wait)
    clock.now += 2
    other.room.sweep()
    assert texts(other.claim()) == ["waits"]
    # And the slow one has no say in it any more.
    slow.settle(claim)
    assert other.outcomes() == ({}, False)


def test_what_must_not_be_sent_twice_is_given_up_when_its_poster_dies(peer):
    """``retry_uncertain=False``: it may have arrived, so its publisher is told just that."""
    victim, owner = peer(), peer()
    row = owner.enter(repeats=False)
    victim.claim()
    victim.die()
    owner.room.sweep()
    [(told, error)] = owner.outcomes()[0].items()
    assert (told, error.delivered) == (row, "unknown")


def test_a_dead_admin_request_leaves_the_line(peer, clock):
    victim, other = peer(), peer()
    victim.request_permit(None, clock.now + 900)
    victim.request_permit(None, clock.now + 900)
    victim.die()
    other.enter("waits")
    other.room.sweep()
    assert texts(other.claim()) == ["waits"]


# -- deadlines


def test_a_message_past_its_deadline_is_never_posted(peer, clock):
    owner, other = peer(), peer()
    owner.enter("late", seconds=5)
    clock.now += 6
    assert isinstance(other.try_claim(), Wait)


def test_withdrawing_says_whether_it_surely_did_not_arrive(peer, clock):
    owner, other = peer(), peer()
    unclaimed, claimed = owner.enter(queue="a"), owner.enter(queue="b")
    uncertain = owner.enter(queue="a", uncertain=True)
    clock.now += 60
    assert isinstance(other.try_claim(busy=["a"]), Claim)

    known = owner.room.withdraw([unclaimed, claimed, uncertain], claimed=True, until=math.inf)

    assert known == {
        unclaimed: Withdrawn.NOT_SENT,
        claimed: Withdrawn.PERHAPS_SENT,
        uncertain: Withdrawn.PERHAPS_SENT,
    }
    assert isinstance(owner.try_claim(), Wait)


def test_what_nobody_reads_any_more_is_forgotten(peer, clock):
    owner, poster = peer(), peer()
    owner.enter(seconds=90)
    poster.settle(poster.claim())
    clock.now += 100
    poster.room.sweep()
    assert owner.outcomes() == ({}, False)


# -- refusals


def post_until_quiet(process, is_bad):
    """Post as a server answers that refuses what *is_bad*; return requests, accepted, refused."""
    requests, accepted = 0, []

    def post(_address, messages, _deadline):
        nonlocal requests
        requests += 1
        bodies = [message.fragment.split(b'"')[3].decode() for message in messages]
        if any(map(is_bad, bodies)):
            raise refusal()
        accepted.extend(bodies)

    sender = Sender(process.room, post, post_seconds=10, clock=process.clock)
    while True:
        process.clock.now += 0.02  # a permit, and no end of a pause
        claim = process.try_claim(sample=sender.suspected())
        if isinstance(claim, Wait):
            if not claim.why:
                return requests, accepted
        else:
            sender.send(claim, lambda _: None, deadline=math.inf)


def refused_rows(process):
    return process.file.read(
        lambda c: c.execute("SELECT id FROM message WHERE state = 3").fetchall()
    )


def test_a_refused_batch_is_split_until_the_bad_message_is_alone(peer):
    """One bad message costs a few requests, and no other message."""
    process = peer(limit=Limit(100.0, 100))
    for number in range(50):
        process.spool(f"bad{number}" if number == 17 else "good")
    requests, accepted = post_until_quiet(process, lambda text: text.startswith("bad"))
    assert accepted == ["good"] * 49
    assert len(refused_rows(process)) == 1
    assert requests <= 14


def test_a_server_that_refuses_everything_does_not_cost_the_allowance(peer):
    process = peer(limit=Limit(100.0, 100))
    process.spool("bad", count=100)
    requests, accepted = post_until_quiet(process, lambda _: True)
    assert (accepted, len(refused_rows(process))) == ([], REFUSED_ALIKE)
    assert requests <= 7 + REFUSED_ALIKE, "100 are halved seven times"
    (jobs,) = Listing(process.file).queues()
    assert jobs.waiting == 100 - REFUSED_ALIKE, "what was never asked is not refused"
    assert jobs.paused_seconds > 0
    assert "refused" in jobs.why


def test_bad_neighbours_do_not_condemn_the_rest(peer):
    process = peer(limit=Limit(100.0, 100))
    process.spool("bad", count=3)
    process.spool("good", count=97)
    _, accepted = post_until_quiet(process, lambda text: text == "bad")
    assert len(accepted) == 97


# -- the spool


def test_the_spool_refuses_more_bytes_than_it_may_hold(peer):
    process = peer()
    size = packed().size
    process.spool(count=2, max_bytes=3 * size)
    with pytest.raises(errors.SpoolFull, match="spool_max_bytes"):
        process.spool(count=2, max_bytes=3 * size)
    process.settle(process.claim())
    process.spool(count=3, max_bytes=3 * size)


def test_an_expired_message_is_dropped_for_no_permit(peer):
    process = peer()
    process.spool("stale", expires=1.0)
    process.spool("fresh")
    claim = process.claim()
    assert (texts(claim), claim.expired) == (["fresh"], 1)


def test_where_nothing_may_be_posted_it_is_known_from_when_on(peer, clock):
    process = peer(limit=Limit(100.0, 100))
    process.enter(queue="stopped")
    overloaded = errors.RateLimited("overloaded", status=429, code=10251, retry_after=30)
    process.permits.stop(overloaded, "id-of-stopped")
    wait = process.try_claim()
    assert (wait.until, wait.queue) == (clock.now + 30, "stopped")
    assert "takes no messages now" in str(wait.why)

    process.spool(queue="paused")
    claim = process.try_claim()
    process.settle(claim, returned=claim.items, pause=QUEUE_BACKOFF)
    clock.now += 0.2
    assert process.try_claim(kinds=[Kind.SINGLE]).until == clock.now + 29.8
    clock.now += 0.2
    assert process.try_claim().until < clock.now + 1, "the first pause is short"


def test_where_nothing_waits_there_is_no_time_to_wait_for(peer):
    assert peer().try_claim() == Wait(None)


def test_a_paused_queue_holds_no_other_up(peer, clock):
    process = peer()
    process.spool("paused", queue="a")
    process.spool("other", queue="b")
    clock.now += 60
    claim = process.try_claim()
    process.settle(claim, returned=claim.items, pause=QUEUE_BACKOFF)
    assert texts(process.claim()) in (["other"], ["paused"])


# -- who empties it


def test_one_process_at_a_time_empties_the_spool(peer, clock):
    first, second = peer(), peer()
    assert first.spool_.election.win()
    assert not second.spool_.election.win()
    assert first.spool_.election.win()
    first.spool_.election.resign()
    assert second.spool_.election.win()
    second.die()
    first.room.sweep()
    assert first.spool_.election.win(), "the dead one is not waited for"


def test_who_is_elected_and_stuck_is_replaced(peer, clock):
    stopped, other = peer(), peer()
    assert stopped.spool_.election.win()
    clock.now += RELAY_SILENCE_SECONDS - 1
    assert not other.spool_.election.win()
    clock.now += 2
    assert other.spool_.election.win()
    assert not stopped.spool_.election.win()


# -- clocks


def test_after_a_reboot_nothing_is_earned_and_nobody_waits(peer, clock, tmp_path):
    before = peer(limit=Limit(1.0, 60))
    before.spool("kept", count=2)
    before.enter("of the dead")
    before.permits.stop(errors.RateLimited("", status=429, retry_after=200), None)
    before.file.close()

    clock.now = 5.0
    after = peer(limit=Limit(1.0, 60), boot="another")
    wait = after.try_claim()
    assert wait.until == pytest.approx(205), "no time has passed for the stop"
    clock.now = 206
    assert texts(after.try_claim()) == ["kept", "kept"]


def test_a_monotonic_clock_that_began_anew_earns_nothing(peer, clock):
    """Where no boot id tells of a reboot, the clock itself does."""
    process = peer(limit=Limit(1.0, 60))
    assert process.enter(may_skip=True) is None
    clock.now = 10.0
    free = [process.enter(may_skip=True) is None for _ in range(3)]
    assert free == [True, False, False]


def test_a_refusal_after_an_uncertain_try_says_so(peer):
    """The last answer is no; an earlier request, whose answer was lost, may have delivered it."""
    owner, poster = peer(), peer()
    owner.enter(uncertain=True)
    claim = poster.claim()
    poster.settle(claim, dict.fromkeys(claim.items, refusal()))
    [error] = owner.outcomes()[0].values()
    assert error.delivered == "unknown"


def test_withdrawing_before_the_deadline_leaves_what_may_yet_be_answered(peer):
    owner, poster = peer(), peer()
    row = owner.enter()
    claim = poster.claim()
    assert owner.room.withdraw([row], claimed=False, until=math.inf) == {}
    poster.settle(claim)
    assert owner.outcomes() == ({row: None}, False)


@pytest.mark.parametrize("step", [-86_400, 86_400], ids=["back", "forward"])
def test_a_wall_clock_that_is_set_moves_no_permit_claim_or_deadline(peer, monkeypatch, step):
    """Only delays and expirations follow it."""
    process, victim = peer(), peer()
    process.enter("waits")
    process.spool("spooled", queue="other")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)
    assert texts(victim.claim()) == ["waits"]
    assert isinstance(process.try_claim(), Wait), "the permit is spent, whatever the time"
    process.room.sweep()
    assert texts(process.claim()) == ["spooled"], "and the claim is still its poster's"


# -- looking


def test_what_a_killed_publisher_waited_for_is_shown_until_its_deadline(peer, clock):
    """Nothing removes it before a process has something to do here, and nobody will send it."""
    killed, looker = peer(), peer()
    killed.enter(seconds=10)
    killed.enter(seconds=70)
    killed.claim(only_own=True)  # a minute later: of the second, which is all that may be sent
    killed.die()
    (queue,) = Listing(looker.file).queues()
    assert (queue.confirmed, queue.sending) == (0, 1)

    clock.now += CLAIM_SECONDS + 1

    assert Listing(looker.file).queues() == []


# -- a file that was removed, and begun anew


@pytest.fixture
def replace(peer):
    """Remove the file, as somebody does who frees disk space; return the row that comes anew."""

    def replace(process, text="new"):
        for suffix in ("", "-wal", "-shm"):
            path = process.file.path
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        return process.enter(text)

    return replace


def test_a_message_of_the_old_file_takes_none_of_the_new_one_back(peer, replace):
    process = peer()
    old = process.enter("old")
    new = replace(process)
    assert old.place[1] == new.place[1], "the test says nothing"

    withdrawn = process.room.withdraw([old], claimed=True, until=math.inf)

    assert withdrawn == {old: Withdrawn.PERHAPS_SENT}
    assert texts(process.claim()) == ["new"]


def test_a_message_of_the_old_file_ends_as_unknown(peer, replace):
    process = peer()
    old = process.enter("old")
    replace(process)

    settled = process.room.outcomes(until=math.inf).settled

    assert [*settled] == [old]
    assert settled[old].delivered == "unknown"


@pytest.mark.parametrize("takes", [True, False], ids=["has its permit", "gives up"])
def test_a_look_up_that_began_in_the_old_file_deletes_no_row_of_the_new_one(
    peer, replace, clock, takes
):
    process = peer()
    process.request_permit(None, clock.now + 50)
    place, _ = process.request_permit(None, clock.now + 50)
    new = replace(process)
    assert place[1] == new.place[1], "the test says nothing"

    if takes:
        while place is not None:
            clock.now += 0.1
            place, _ = process.request_permit(place, clock.now + 50)
    else:
        process.permits.give_back(place)

    assert texts(process.claim()) == ["new"]
