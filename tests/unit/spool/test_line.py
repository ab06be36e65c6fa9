"""How callers wait for what others post, and what ends a poster half-way."""

import threading
import time

import pytest
from support.processes import eventually
from support.spools import Peer, packed, texts
from virtual_time import VirtualTime

from kombu_cfqueues import errors
from kombu_cfqueues.envelope import Address
from kombu_cfqueues.publish.group_commit import Verdict
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.runtime.clock import Clock
from kombu_cfqueues.spool.carrier import Carrier
from kombu_cfqueues.spool.claims import Claim, Fate
from kombu_cfqueues.spool.line import JITTER_SECONDS, Line
from kombu_cfqueues.spool.turns import Wait

ADDRESS = Address("jobs", cloudflare_id="id-of-jobs")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limit():
    return Limit(20.0, 1)


def judge(error):
    if isinstance(error, errors.TransientError):
        return Verdict.NOT_NOW
    if isinstance(error, errors.InvalidMessage):
        return Verdict.THE_ITEMS
    return Verdict.NEVER


def carrier(process, post):
    return Carrier(process.claims, post, judge, post_seconds=10)


def line(process, post, **given):
    return Line(process.intake, process.claims, carrier(process, post), **given)


def submit(a_line, text="x", seconds=60.0):
    deadline = time.monotonic() + seconds
    a_line.submit(ADDRESS, packed(text), deadline=deadline, judge=judge)


def claim(process):
    while not isinstance(found := process.claims.claim(), Claim):
        time.sleep(0.005)
    return found


def test_an_answer_is_heard_long_before_the_next_permit(peer, monkeypatch):
    """Whoever was faster has taken our message along: its answer comes in milliseconds."""
    owner, other = peer(), peer()
    monkeypatch.setattr("kombu_cfqueues.spool.line.SWEEP_SECONDS", 60.0)

    class Slower:
        """Another process claims, and posts, just before us."""

        def __init__(self):
            self.taken = None
            self.calls = 0

        def sweep(self):
            pass

        def claim(self, **_):
            self.calls += 1
            if self.calls == 2:  # a caller is woken once for nothing, when it begins to lead
                self.taken = claim(other)
                rows = [entry.row for entry in self.taken.entries]
                settle = threading.Timer(
                    0.03, other.claims.settle, (self.taken, Fate(dict.fromkeys(rows)))
                )
                settle.start()
            return Wait(time.monotonic() + 60)

    slower = Slower()
    owner.enter("first")  # or the way would be straight
    began = time.monotonic()
    shared = Line(owner.intake, slower, Carrier(slower, None, judge, post_seconds=10))
    submit(shared, seconds=120)
    assert time.monotonic() - began < 30


def test_a_lone_caller_writes_no_message_into_the_file(peer):
    process, waiting = peer(), []
    count = "SELECT count(*) FROM message"

    def post(*_):
        waiting.append(process.file.read(lambda c: c.execute(count).fetchone()))

    submit(line(process, post))
    assert waiting == [(0,)]


def test_a_caller_posts_what_other_processes_wait_for_with_its_own(peer):
    owner, other = peer(), peer()
    other_row = other.enter("other")
    posted = []
    submit(line(owner, lambda address, batch, deadline: posted.append(len(batch))))
    assert posted == [2]
    assert other.intake.outcomes() == ({other_row: None}, False)


@pytest.mark.parametrize("end", [KeyboardInterrupt, ZeroDivisionError])
def test_whatever_ends_a_poster_what_it_had_claimed_waits_again(peer, end):
    """Ctrl-C, a killed greenlet, a bug: nobody else would ever send these messages."""
    victim, owner = peer(), peer()
    row = owner.enter("waits")

    def post(*_):
        raise end

    with pytest.raises(end):
        carrier(victim, post).carry(claim(victim))
    assert texts(claim(owner)) == ["waits"]
    assert owner.intake.withdraw([row]).popitem()[1] is not None


def test_what_must_not_be_sent_twice_is_not(peer):
    """``retry_uncertain=False``: an answer that was lost is the end of it."""
    process, posts = peer(), []

    def post(*_):
        posts.append(1)
        raise errors.ConnectionFailed("lost", delivered="unknown")

    process.enter("first")  # or the way would be straight
    with pytest.raises(errors.ConnectionFailed) as failed:
        submit(line(process, post, retry_uncertain=False))
    assert failed.value.delivered == "unknown"
    assert len(posts) == 1


@pytest.mark.parametrize("repeats", [True, False])
def test_a_lost_answer_on_the_straight_way_is_the_end_only_where_duplicates_are_worse(
    peer, repeats
):
    process, posts = peer(), []

    def post(*_):
        posts.append(1)
        if len(posts) == 1:
            time.sleep(0.1)  # so that the next permit is there
            raise errors.ConnectionFailed("lost", delivered="unknown")

    shared = line(process, post, retry_uncertain=repeats)
    if repeats:
        submit(shared)
        assert len(posts) == 2
        return
    with pytest.raises(errors.ConnectionFailed) as failed:
        submit(shared)
    assert failed.value.delivered == "unknown"
    assert len(posts) == 1


@pytest.mark.parametrize(("seconds", "hurried"), [(0.5, True), (3.0, False)])
def test_a_caller_in_a_hurry_takes_nothing_of_other_processes(peer, seconds, hurried):
    """It might have to give up on a slow answer, and what it took would be sent twice."""
    process, asked = peer(), []

    class Asked(Never):
        def claim(self, **given):
            asked.append(given["only_mine"])
            raise KeyboardInterrupt

    process.enter("first")  # or the way would be straight
    with pytest.raises(KeyboardInterrupt):
        submit(Line(process.intake, process.claims, Asked()), seconds=seconds)
    assert asked == [hurried]


def test_an_answer_that_is_faster_than_its_caller_is_not_lost(peer):
    """Another caller of the process may hear of it before its own has come back from the file."""
    process, other, over = peer(), peer(), threading.Event()

    class UntilTheEnd(Never):
        def claim(self, **_):
            if over.is_set():
                raise KeyboardInterrupt
            return Wait(None)

    shared = Line(process.intake, process.claims, UntilTheEnd())
    enter = process.intake.enter

    def gone(row):
        look = "SELECT 1 FROM message WHERE id = ?"
        return not process.file.read(lambda c: c.execute(look, (row,)).fetchone())

    def slow(kind, address, messages, **given):
        rows = enter(kind, address, messages, **given)
        if b"fast" in messages[0].fragment:
            taken = claim(other)
            fate = {entry.row: None for entry in taken.entries if entry.row in rows}
            rest = [entry.row for entry in taken.entries if entry.row not in rows]
            other.claims.settle(taken, Fate(fate, returned=rest))
            assert eventually(lambda: gone(rows[0])), "the leader hears of it"
        return rows

    process.intake.enter = slow
    process.enter("first")  # or the way would be straight
    leader = threading.Thread(target=interrupted, args=(submit, shared, "slow"))
    leader.start()
    assert eventually(lambda: shared._leader)
    submit(shared, "fast")
    over.set()
    leader.join()


def interrupted(function, *given):
    with pytest.raises(KeyboardInterrupt):
        function(*given)


@pytest.mark.parametrize("seconds", [-1.0, 0.2])
def test_a_caller_without_a_permit_hears_at_its_deadline_that_nothing_was_sent(peer, seconds):
    process = peer()
    process.enter("first")  # or the way would be straight
    shared = Line(process.intake, process.claims, Never())
    began = time.monotonic()

    with pytest.raises(errors.PublishTimeout) as late:
        submit(shared, seconds=seconds)

    assert late.value.delivered == "no"
    assert str(late.value) == "no request could leave for the message in time"
    assert max(0.0, seconds) <= time.monotonic() - began < 20
    assert process.intake.outcomes() == ({}, True), "but what others wait for still waits"


class Never:
    """A carrier that has no permit, and some trouble."""

    trouble = None
    resume_at = 0.0

    def claim(self, **_):
        return Wait(None)


class Watched:
    """A process in virtual time, whose looks at the file are counted."""

    def __init__(self, folder, time):
        self.peer = Peer(folder, time, limit=Limit(0.5, 1))
        self.looks = self.sweeps = 0
        self.outcomes, self.peer.intake.outcomes = self.peer.intake.outcomes, self.look
        self.sweep, self.peer.claims.sweep = self.peer.claims.sweep, self.count_sweep

    def look(self):
        self.looks += 1
        return self.outcomes()

    def count_sweep(self):
        self.sweeps += 1
        return self.sweep()


@pytest.fixture
def virtual(tmp_path):
    time = VirtualTime(1000.0)
    made = Watched(tmp_path / "spool", time), Watched(tmp_path / "spool", time)
    yield (time, *made)
    for each in made:
        each.peer.file.close()


def publish(time, line, text="x", seconds=10.0):
    deadline = time.now + seconds
    return time.spawn(lambda: line.submit(ADDRESS, packed(text), deadline=deadline, judge=judge))


def test_who_waits_for_a_permit_sleeps_until_it_can_be_there(virtual):
    """Now and then it looks whether those before it are alive."""
    time, own, _ = virtual
    assert own.peer.enter("has the permit", straight=True) is None
    posted = []
    server = Carrier(
        own.peer.claims, lambda *_: posted.append(time.now), judge, post_seconds=10, clock=time
    )
    caller = publish(time, Line(own.peer.intake, own.peer.claims, server, clock=time))
    time.run()

    assert caller.error is None
    assert posted == [pytest.approx(1002.0, abs=JITTER_SECONDS)]
    assert 4 < own.looks < 30
    assert 4 < own.sweeps < 12


def test_who_waits_for_anothers_answer_looks_often_and_then_less_so(virtual):
    time, own, other = virtual
    taken = []

    class Faster(Never):
        def claim(self, **_):
            if not taken:
                taken.append(other.peer.claims.claim())  # and says nothing
            return Wait(None)

    own.peer.enter("first")  # or the way would be straight
    caller = publish(time, Line(own.peer.intake, own.peer.claims, Faster(), clock=time))
    time.run(until=time.now + 0.1)
    assert isinstance(taken[0], Claim)
    assert 10 < own.looks < 20, "every 8 ms"
    time.run()

    assert caller.error.delivered == "unknown"
    assert "was not answered in time" in str(caller.error)
    assert 150 < own.looks < 250, "every 50 ms"
    assert 30 < own.sweeps < 45
    assert time.now == pytest.approx(1010.0)


def test_news_of_others_end_the_patience(virtual):
    """An answer came: the next one is near, too."""
    time, own, other = virtual
    shared = Line(own.peer.intake, own.peer.claims, Never(), clock=time)
    own.peer.enter("first", seconds=900)  # or the way would be straight
    late, early = publish(time, shared, "late", 60.0), publish(time, shared, "early", 60.0)
    time.run(until=time.now + 1)
    claimed = other.peer.claims.claim()
    time.run(until=time.now + 10)
    rows = {entry.packed.fragment: entry.row for entry in claimed.entries}
    other.peer.claims.settle(claimed, Fate({rows[packed("early").fragment]: None}))
    time.run(until=time.now + 0.1)
    assert early.done
    assert not late.done
    before = own.looks
    time.run(until=time.now + 0.1)

    assert own.looks - before > 5


def test_where_the_file_cannot_be_asked_at_the_deadline_nothing_is_known(virtual):
    """Least of all that the message was accepted."""
    time, own, _ = virtual

    def stuck(*_, **__):
        raise errors.SpoolUnavailable("the disk is gone")

    own.peer.enter("first")  # or the way would be straight
    own.peer.intake.withdraw = stuck
    caller = publish(time, Line(own.peer.intake, own.peer.claims, Never(), clock=time))
    time.run()

    assert isinstance(caller.error, errors.PublishTimeout)
    assert caller.error.delivered == "unknown"


def test_the_last_trouble_is_the_cause_of_a_late_failure(peer):
    process = peer()

    def post(*_):
        raise errors.ServerError("broken", status=503, retry_after=40.0)

    with pytest.raises(errors.PublishTimeout, match="broken") as late:
        submit(line(process, post), seconds=0.3)

    assert isinstance(late.value.__cause__, errors.ServerError)
    assert late.value.retry_after == 40.0
    assert late.value.delivered == "no"


def test_an_interrupted_caller_leaves_nothing_behind(peer):
    process = peer()

    class Interrupted(Never):
        def claim(self, **_):
            raise KeyboardInterrupt

    row = process.enter("first")  # or the way would be straight
    shared = Line(process.intake, process.claims, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        submit(shared)

    assert [entry.row for entry in claim(process).entries] == [row]


def test_nothing_to_publish_costs_nothing(peer):
    assert line(peer(), None).submit_many(ADDRESS, [], deadline=0.0, judge=judge) == []


def test_a_failed_poster_takes_nothing_of_others_until_it_succeeds(peer):
    """It may be its proxy, or its token: the messages have other ways."""
    bad, owner = peer(), peer()
    owner.enter("waits")
    answers = [errors.PermissionDenied("not with this token", status=403)]

    def post(*_):
        if answers:
            raise answers.pop()

    poster = carrier(bad, post)
    assert poster.carry(claim(bad)) == {}
    poster.resume_at = 0.0
    time.sleep(0.1)
    assert isinstance(poster.claim(), Wait)
    poster.direct(ADDRESS, packed(), time.monotonic() + 1)
    assert texts(poster.claim()) == ["waits"]


def test_threads_of_a_process_share_requests_too(peer):
    process, batches = peer(), []

    def post(_address, batch, _deadline):
        batches.append(len(batch))
        time.sleep(0.01)

    shared = line(process, post)
    threads = [threading.Thread(target=submit, args=(shared, str(n))) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(batches) == 40
    assert len(batches) <= 20


def test_a_refusal_reaches_the_one_whose_message_it_was(peer):
    process = peer()

    def post(_address, batch, _deadline):
        if any(b"bad" in each.fragment for each in batch):
            raise errors.InvalidMessage("refused", code=10203)

    shared, outcomes = line(process, post), {}

    def publish(text):
        try:
            submit(shared, text)
            outcomes[text] = None
        except errors.CFQueuesError as error:
            outcomes[text] = type(error)

    texts_ = ["good1", "good2", "bad", "good3", "good4"]
    threads = [threading.Thread(target=publish, args=(text,)) for text in texts_]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == dict.fromkeys(texts_) | {"bad": errors.InvalidMessage}


def test_a_batch_that_ends_at_its_deadline_says_of_each_message_what_is_known(peer):
    process = peer()
    blocked = errors.RateLimited("blocked", status=429, code=971, retry_after=100)
    process.permits.stop(blocked, None)
    shared = line(process, lambda *_: None)
    deadline = time.monotonic() + 60
    began = time.monotonic()
    outcomes = shared.submit_many(ADDRESS, [packed()] * 3, deadline=deadline, judge=judge)
    assert time.monotonic() - began < 30, "the stop outlasts the deadline: no use waiting"
    assert [type(error) for error in outcomes] == [errors.PublishTimeout] * 3
    assert {error.delivered for error in outcomes} == {"no"}
    assert len({id(error) for error in outcomes}) == 3
