"""What a poster makes of the server's answers: outcomes, pauses, and whom it posts for."""

import logging
import math

import pytest
from support.spools import packed, texts

from kombu_cfqueues import errors
from kombu_cfqueues.envelope import Address
from kombu_cfqueues.publish.group_commit import GroupCommit
from kombu_cfqueues.publish.sender import QUICK_FAILURE_SECONDS, ROOM_RETRY_SECONDS, Sender
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.runtime.rng import rng
from kombu_cfqueues.spool.listing import Listing
from kombu_cfqueues.spool.schema import State
from kombu_cfqueues.waiting_room import Item, Kind, Wait

POST_SECONDS = 10.0


@pytest.fixture
def limit():
    return Limit(100.0, 100)


@pytest.fixture(autouse=True)
def longest_pauses(monkeypatch):
    """Pauses are random up to a length: here they have it."""
    monkeypatch.setattr(rng, "uniform", lambda low, high: high)


class Poster:
    """A process that posts, and the server that answers it."""

    def __init__(self, process, clock):
        self.process, self.clock = process, clock
        self.posts = []
        self.answers = []  # errors, or None; at last always None
        self.seconds = 0.0  # until an answer
        self.sender = Sender(process.room, self.post, post_seconds=POST_SECONDS, clock=clock)
        self.commit = GroupCommit(
            process.room, self.sender, max_in_flight=1, repeats=True, clock=clock
        )

    def post(self, address, batch, deadline):
        self.posts.append((address.name, [one.fragment for one in batch], deadline))
        self.clock.now += self.seconds
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    @property
    def resumes_at(self):
        pause = self.sender.pause
        return self.clock.now if pause is None else pause.until

    def carry(self, *answers, deadline=math.inf):
        """Claim, post, and hear these answers, one after the other, whatever pauses they cause.

        Returns what the callers of this process were told by the last one.
        """
        for answer in answers:
            self.answers = [answer]
            self.clock.now = max(self.clock.now, self.resumes_at)
            told = {}
            self.sender.send(self.process.claim(), told.update, deadline=deadline)
        return told


@pytest.fixture
def poster(peer, clock):
    return Poster(peer(), clock)


DOWN = errors.ConnectionFailed("gone")
LOST = errors.ConnectionFailed("no answer", delivered="unknown")
BUSY = errors.ServerError("busy", status=503)
BROKEN = errors.ServerError("broken", status=500, delivered="unknown")
REVOKED = errors.AuthenticationFailed("revoked", status=401)
BAD = errors.InvalidMessage("bad", status=400, code=10203)
MISSING = errors.QueueNotFound("no such queue", status=404)


def texts_of(item):
    return item.message.fragment.split(b'"')[3].decode()


def posted(poster):
    """What one more request of the relay's carries."""
    before = len(poster.posts)
    poster.clock.now += 0.02
    assert poster.commit.post_backlog() is None
    ((_, fragments, _),) = poster.posts[before:]
    return [fragment.split(b'"')[3].decode() for fragment in fragments]


# -- outcomes


def test_each_message_remembers_why_its_own_request_failed(poster):
    """Its time-out says so, also if the server has answered others in the meantime."""
    mine = poster.process.enter("mine", queue="away")
    poster.carry(DOWN)
    poster.process.enter("theirs", queue="well")
    poster.carry(None)

    assert mine.error is DOWN


def test_each_owner_hears_that_its_message_was_accepted(poster, peer):
    other = peer()
    mine, theirs = poster.process.enter("mine"), other.enter("theirs")

    assert poster.carry(None) == {mine: None}
    assert other.outcomes() == ({theirs: None}, False)
    assert len(poster.posts) == 1


def test_a_post_ends_with_its_caller_and_never_takes_longer_than_any_may(poster, clock):
    for n in range(2):
        poster.process.enter(str(n), queue=f"q{n}")
    poster.carry(None, deadline=clock.now + 60 + 3)
    poster.carry(None)

    now = clock.now
    assert [deadline - now for _, _, deadline in poster.posts] == [3 - 60, POST_SECONDS]


def test_a_failure_that_may_pass_ends_the_try_of_a_caller_with_another_broker_alone(poster, peer):
    """A caller with other servers to go to gives up; those who wait for this one go on."""
    hasty, patient = poster.process.enter("hasty", switches=True), poster.process.enter("patient")
    peer().enter("theirs")

    told = poster.carry(DOWN)

    assert told == {hasty: DOWN}
    waiting = poster.process.claim().items
    assert {texts_of(item) for item in waiting} == {"patient", "theirs"}
    assert patient in waiting


def test_a_refused_token_is_told_to_ones_own_callers_alone(poster, peer):
    mine, other = poster.process.enter("mine"), peer()
    other.enter("theirs")

    assert poster.carry(REVOKED) == {mine: REVOKED}
    assert texts(other.claim()) == ["theirs"]


def test_what_may_have_arrived_and_must_not_twice_is_over_whosever_it_is(poster, peer):
    other = peer()
    once, again = poster.process.enter("once", repeats=False), poster.process.enter("again")
    theirs = other.enter("theirs", repeats=False)

    assert poster.carry(LOST) == {once: LOST}

    told, _ = other.outcomes()
    assert told[theirs].delivered == "unknown"
    (entry,) = poster.process.claim().items
    assert (entry, entry.uncertain) == (again, True)


def test_what_surely_did_not_arrive_is_sent_again_also_where_it_must_not_twice(poster):
    row = poster.process.enter("once", repeats=False)

    assert poster.carry(DOWN) == {}
    (entry,) = poster.process.claim().items
    assert (entry, entry.uncertain) == (row, False)


def test_a_refusal_after_a_lost_answer_is_no_proof_that_nothing_arrived(poster):
    row = poster.process.enter()

    told = poster.carry(LOST, BAD)

    assert isinstance(told[row], errors.InvalidMessage)
    assert told[row].delivered == "unknown"
    assert BAD.delivered == "no"


def test_the_bad_message_is_found_by_halves(poster, peer):
    other = peer()
    for n in range(4):
        other.enter(str(n))
    mine = poster.process.enter("mine")

    assert poster.carry(BAD) == {}  # all five
    assert poster.carry(None) == {}  # the first three
    assert poster.carry(BAD) == {}  # the other two
    assert poster.carry(None) == {}
    assert poster.carry(BAD) == {mine: BAD}
    assert [len(batch) for _, batch, _ in poster.posts] == [5, 3, 2, 1, 1]
    assert len(other.outcomes()[0]) == 4


def test_while_the_bad_message_is_looked_for_the_queue_says_why(poster):
    poster.process.enter(count=5)
    poster.carry(BAD, BAD)

    assert Listing(poster.process.file).queues()[0].why == str(BAD)


def test_a_spooled_message_that_is_refused_is_kept_and_told(poster, caplog):
    (row,) = poster.process.spool("bad")

    assert poster.carry(BAD) == {}

    assert isinstance(poster.process.spool_.messages.left([row])[row], errors.InvalidMessage)
    assert "1 spooled messages to queue 'jobs' were refused and are kept" in caplog.text
    assert str(BAD) in caplog.text


def test_the_refusal_of_a_message_with_an_owner_is_its_owners_to_log(poster, caplog):
    poster.process.enter("bad")
    poster.carry(BAD)

    assert not caplog.records


def test_what_expired_in_the_spool_is_not_posted(poster, caplog, clock):
    poster.process.spool("stale", count=3, expires=1.0)

    poster.carry(None)

    assert not poster.posts
    assert "3 spooled messages to queue 'jobs' expired" in caplog.text


# -- pauses


def test_pauses_double_up_to_five_seconds(poster, clock):
    poster.process.enter(seconds=9000.0)
    pauses = []
    for _ in range(8):
        poster.carry(DOWN)
        pauses.append(round(poster.resumes_at - clock.now, 3))

    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert poster.sender.pause.why is DOWN


def test_a_pause_may_be_none_at_all(poster, clock, monkeypatch):
    """So those whom one outage stopped do not come back as one."""
    monkeypatch.setattr(rng, "uniform", lambda low, high: low)
    poster.process.enter()
    poster.carry(DOWN)

    assert poster.resumes_at == clock.now


def test_why_what_is_spooled_waits_is_noted(poster):
    poster.process.spool()
    mine = poster.process.enter()

    assert poster.carry(REVOKED) == {mine: REVOKED}
    (jobs,) = Listing(poster.process.file).queues()
    assert (jobs.waiting, jobs.why) == (1, str(REVOKED))
    poster.carry(None)
    poster.process.spool()
    assert Listing(poster.process.file).queues()[0].why is None


def test_a_refused_token_is_asked_again_ever_more_seldom(poster, clock):
    poster.process.spool()
    pauses = []
    for _ in range(11):
        poster.carry(REVOKED)
        pauses.append(round(poster.resumes_at - clock.now, 3))

    assert pauses[5:] == [6.4, 12.8, 25.6, 51.2, 60.0, 60.0]


def test_nothing_is_posted_in_a_pause(poster, clock):
    poster.process.enter()
    poster.carry(DOWN)

    assert poster.commit.post_backlog() == Wait(poster.resumes_at)
    assert len(poster.posts) == 1
    clock.now = poster.resumes_at
    assert poster.commit.post_backlog() == Wait(None), "it is not ours to post: no success yet"


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (errors.ServerError("later", status=503, retry_after=77.0), 77.0),
        (errors.ServerError("soon", status=503, retry_after=0.01), 0.2),
        (errors.RateLimited("slow down", status=429, retry_after=77.0), 0.2),
    ],
    ids=["longer", "shorter", "a 429 stops all processes in the file"],
)
def test_the_server_may_ask_for_a_longer_pause(poster, clock, error, pause):
    poster.process.enter()
    poster.carry(error)

    assert poster.resumes_at - clock.now == pytest.approx(pause)


def test_success_ends_the_trouble(poster, clock):
    poster.process.enter()
    poster.carry(DOWN, DOWN, DOWN, None)

    assert poster.resumes_at <= clock.now
    assert poster.sender.pause is None
    poster.process.enter()
    poster.carry(DOWN)
    assert poster.resumes_at - clock.now == pytest.approx(0.2), "as after the first failure"


def test_a_missing_queue_holds_up_what_is_spooled_for_it_alone(poster, clock):
    poster.process.spool("lost", queue="missing")
    poster.carry(MISSING)
    poster.process.spool("fine")

    clock.now += 0.5
    assert posted(poster) == ["fine"]
    clock.now += 0.5
    assert posted(poster) == ["lost"]


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [(DOWN, 0.0), (LOST, 0.0), (REVOKED, 0.0), (BROKEN, 0.0), (BUSY, QUICK_FAILURE_SECONDS)],
    ids=["not reached", "no answer", "refused", "an answer that leaves it open", "slow"],
)
def test_after_a_failure_others_are_left_to_themselves_until_a_success(
    poster, peer, clock, answer, seconds
):
    """It may be this process's proxy, or its token: what others wait for has other ways."""
    poster.process.enter("mine")
    poster.seconds = seconds
    poster.carry(answer)
    poster.seconds = 0.0
    peer().enter("theirs")
    clock.now += 60

    assert not poster.sender.trusted
    claim = poster.process.try_claim(only_own=True)
    assert answer is REVOKED or texts(claim) == ["mine"]
    poster.process.spool("spooled")
    clock.now += 60
    assert posted(poster) == ["spooled"]
    assert poster.sender.trusted
    assert posted(poster) == ["theirs"]


def test_a_caller_whom_the_server_tells_to_come_again_still_takes_others_along(poster, peer, clock):
    """It says so to all processes, and afterwards there is no permit for each of them."""
    poster.process.enter("mine")
    poster.carry(BUSY)
    peer().enter("theirs")
    clock.now += 60

    assert poster.sender.trusted
    assert texts(poster.process.try_claim(only_own=True)) == ["mine"]
    poster.process.spool("spooled")
    clock.now += 60
    assert posted(poster) == ["spooled"], "without a caller, it leaves them to themselves"
    assert posted(poster) == ["theirs"]


def test_queues_that_are_busy_are_not_claimed(poster, clock):
    poster.process.enter("first", queue="busy")
    poster.process.enter("second", queue="free")
    clock.now += 60

    assert texts(poster.process.try_claim(busy=["busy"])) == ["second"]


# -- the file


class Stuck:
    """A room that cannot be written for a while."""

    shared = True
    max_batch = 100

    def __init__(self, clock, times, *, at_once=False):
        self.clock, self.times, self.at_once = clock, times, at_once
        self.outcomes = []

    def settle(self, claim, outcome, *, until):
        if self.times > 0:
            self.times -= 1
            if not self.at_once:
                self.clock.now = max(self.clock.now, until)
            raise errors.SpoolUnavailable("the disk is gone")
        self.outcomes.append(outcome)
        return {}


@pytest.mark.parametrize(("times", "noted"), [(5, True), (math.inf, False)])
def test_what_became_of_messages_is_noted_as_soon_as_the_file_can_be_written(
    poster, clock, caplog, times, noted
):
    """Its caller is told at once, and whoever comes next writes it down."""
    item = poster.process.enter()
    claim, stuck, told = poster.process.claim(), Stuck(clock, times), {}
    sender = Sender(stuck, poster.post, post_seconds=POST_SECONDS, clock=clock)
    began = clock.now
    caplog.set_level(logging.INFO)

    sender.send(claim, told.update, deadline=math.inf)

    assert told == {item: None}
    assert clock.now - began < 2
    assert "1 messages to queue 'jobs' is not recorded yet" in caplog.text
    for _ in range(30):
        clock.now += 1
        sender.catch_up(told.update)
    assert bool(stuck.outcomes) is noted
    assert ("1 messages to queue 'jobs' is recorded now" in caplog.text) is noted
    assert ("1 messages to queue 'jobs' could not be recorded" in caplog.text) is not noted


def test_a_file_that_fails_for_a_moment_is_written_by_the_poster_itself(poster, clock, caplog):
    item = poster.process.enter()
    claim, stuck, told = poster.process.claim(), Stuck(clock, 2, at_once=True), {}
    sender = Sender(stuck, poster.post, post_seconds=POST_SECONDS, clock=clock)
    began = clock.now

    sender.send(claim, told.update, deadline=math.inf)

    assert told == {item: None}
    assert len(stuck.outcomes) == 1
    assert caplog.text == ""
    assert clock.now - began == pytest.approx(2 * ROOM_RETRY_SECONDS)


@pytest.mark.parametrize("end", [KeyboardInterrupt, ZeroDivisionError])
def test_whatever_ends_a_poster_what_it_had_claimed_waits_again(poster, peer, end):
    """Ctrl-C, a killed greenlet, a bug: nobody else would ever send these messages."""
    owner = peer()
    row = owner.enter("waits")
    with pytest.raises(end):
        poster.carry(end())

    assert texts(owner.claim()) == ["waits"]
    assert row.uncertain


def test_a_message_that_skipped_the_line_enters_the_file_when_it_failed(poster, clock):
    clock.now += 60
    item = Item(Address("jobs"), packed("straight"), deadline=clock.now + 900, owner=poster)
    claim = poster.process.room.enter([item], number=1, may_skip=True, until=math.inf)
    poster.answers = [DOWN]
    poster.sender.send(claim, lambda _: None, deadline=math.inf)
    clock.now += 60

    found = poster.process.try_claim(only_own=True)
    assert found.items == [item]


def test_a_forked_child_has_no_trouble_yet(poster):
    poster.process.enter()
    poster.carry(DOWN, DOWN)
    poster.sender.renew_after_fork()

    assert poster.sender.pause is None
    assert poster.sender.trusted


def test_kinds_and_states_are_what_files_hold():
    """Other processes, of other versions too, read these numbers."""
    assert {kind.name: kind.value for kind in Kind} == {
        "SINGLE": 0, "BULK": 1, "SPOOLED": 2, "ADMIN": 3, "LOOKUP": 4,
    }  # fmt: skip
    assert {state.name: state.value for state in State} == {
        "WAITING": 0, "CLAIMED": 1, "ACCEPTED": 2, "REFUSED": 3,
    }  # fmt: skip
