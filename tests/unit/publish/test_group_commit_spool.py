"""Group commit over the spool's file: what other processes, and the file itself, may do."""

import threading
import time

import pytest
from support.processes import eventually
from support.spools import Peer, packed
from virtual_time import VirtualTime

from kombu_cfqueues import errors
from kombu_cfqueues.envelope import Address
from kombu_cfqueues.publish.group_commit import (
    FIRST_POST_DELAY_SECONDS,
    PERMIT_JITTER_SECONDS,
    GroupCommit,
)
from kombu_cfqueues.publish.sender import Sender
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.runtime.clock import Clock
from kombu_cfqueues.waiting_room import Claim, Wait

ADDRESS = Address("jobs", cloudflare_id="id-of-jobs")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limit():
    return Limit(20.0, 1)


def commit(process, post, *, repeats=True):
    clock = process.clock
    sender = Sender(process.room, post, post_seconds=10, clock=clock)
    return GroupCommit(process.room, sender, max_in_flight=1, repeats=repeats, clock=clock)


def submit(a_commit, text="x", seconds=60.0):
    a_commit.submit(ADDRESS, packed(text), deadline=time.monotonic() + seconds)


def claim(process):
    while not isinstance(found := process.try_claim(), Claim):
        time.sleep(0.005)
    return found


def test_a_lone_caller_writes_no_message_into_the_file(peer):
    process, waiting = peer(), []
    count = "SELECT count(*) FROM message"

    def post(*_):
        waiting.append(process.file.read(lambda c: c.execute(count).fetchone()))

    submit(commit(process, post))
    assert waiting == [(0,)]


def test_a_caller_posts_what_other_processes_wait_for_with_its_own(peer):
    owner, other = peer(), peer()
    theirs = other.enter("other")
    posted = []
    submit(commit(owner, lambda address, batch, deadline: posted.append(len(batch))))
    assert posted == [2]
    assert other.outcomes() == ({theirs: None}, False)


def test_an_answer_is_heard_long_before_the_next_permit(peer):
    """Another process has taken our message along: its answer comes in milliseconds."""
    slow = Limit(0.05, 1)
    owner, other = peer(limit=slow), peer(limit=slow)
    assert owner.enter("spends the permit", may_skip=True) is None
    caller = threading.Thread(target=submit, args=(commit(owner, None),))
    caller.start()
    assert eventually(lambda: owner.outcomes()[1])
    other.file._limit = Limit(1e6, 1)
    taken = claim(other)
    time.sleep(0.03)
    other.settle(taken)
    caller.join(30)
    assert not caller.is_alive()


def test_what_must_not_be_sent_twice_is_not(peer):
    """``retry_uncertain=False``: an answer that was lost is the end of it."""
    process, posts = peer(), []

    def post(*_):
        posts.append(1)
        raise errors.ConnectionFailed("lost", delivered="unknown")

    peer().enter("first")  # or it would skip the line
    with pytest.raises(errors.ConnectionFailed) as failed:
        submit(commit(process, post, repeats=False))
    assert failed.value.delivered == "unknown"
    assert len(posts) == 1


@pytest.mark.parametrize("repeats", [True, False])
def test_a_lost_answer_of_what_skipped_the_line_is_the_end_only_where_duplicates_are_worse(
    peer, repeats
):
    process, posts = peer(), []

    def post(*_):
        posts.append(1)
        if len(posts) == 1:
            raise errors.ConnectionFailed("lost", delivered="unknown")

    shared = commit(process, post, repeats=repeats)
    if repeats:
        submit(shared)
        assert len(posts) == 2
        return
    with pytest.raises(errors.ConnectionFailed) as failed:
        submit(shared)
    assert failed.value.delivered == "unknown"
    assert len(posts) == 1


@pytest.mark.parametrize(
    ("seconds", "theirs", "posted"),
    [(0.9, 900.0, ["x"]), (0.9, 1.2, ["theirs", "x"]), (30.0, 900.0, ["theirs", "x"])],
)
def test_a_caller_in_a_hurry_takes_only_what_is_in_a_hurry_too(peer, seconds, theirs, posted):
    """It might have to give up on a slow answer, and what it took would be sent twice, if there
    was time for that."""
    process, bodies = peer(limit=Limit(1e6, 2)), []

    def post(_address, batch, _deadline):
        bodies.extend(one.fragment.split(b'"')[3].decode() for one in batch)

    peer().enter("theirs", seconds=theirs)
    submit(commit(process, post), seconds=seconds)
    assert bodies == posted


def test_a_failed_process_takes_nothing_of_others_until_it_succeeds(peer):
    """It may be its proxy, or its token: the messages have other ways."""
    broken, owner = peer(), peer()
    owner.enter("waits")
    answers = [errors.PermissionDenied("not with this token", status=403)]

    def post(*_):
        if answers:
            raise answers.pop()

    relay = commit(broken, post)
    assert eventually(lambda: relay.post_backlog() is None)
    assert not relay.sender.trusted
    relay.sender.pause = None
    time.sleep(0.1)
    assert isinstance(relay.post_backlog(), Wait)
    submit(relay)
    assert eventually(lambda: relay.post_backlog() is None)


# -- in virtual time


@pytest.fixture
def virtual(tmp_path):
    virtual_time = VirtualTime(1000.0)
    made = [Peer(tmp_path / "spool", virtual_time, limit=Limit(0.5, 1)) for _ in range(2)]
    yield (virtual_time, *made)
    for each in made:
        each.file.close()


def publish(virtual_time, a_commit, text="x", seconds=10.0):
    deadline = virtual_time.now + seconds
    return virtual_time.spawn(lambda: a_commit.submit(ADDRESS, packed(text), deadline=deadline))


def counted(process):
    """How often the process looks for outcomes."""
    looks, outcomes = [], process.room.outcomes

    def look(*, until):
        looks.append(process.clock.now)
        return outcomes(until=until)

    process.room.outcomes = look
    return looks


def test_who_waits_for_a_permit_sleeps_until_it_can_be_there(virtual):
    """Now and then it looks whether those before it are alive."""
    virtual_time, own, _ = virtual
    assert own.enter("has the permit", may_skip=True) is None
    posted, looks = [], counted(own)
    caller = publish(virtual_time, commit(own, lambda *_: posted.append(virtual_time.now)))
    virtual_time.run()

    assert caller.error is None
    latest = FIRST_POST_DELAY_SECONDS + PERMIT_JITTER_SECONDS
    assert posted == [pytest.approx(1002.0, abs=latest)]
    assert 4 < len(looks) < 30


def test_who_has_posted_before_posts_for_those_who_have_not(virtual):
    """The first post of a process takes long, and all would wait for it."""
    virtual_time, own, other = virtual
    posters = []
    commits = {
        process: commit(
            process, lambda *_, p=process: (posters.append(p), virtual_time.sleep(0.03))
        )
        for process in (own, other)
    }
    publish(virtual_time, commits[own])
    virtual_time.run()
    callers = []
    for _ in range(10):
        callers += [publish(virtual_time, each, seconds=30.0) for each in commits.values()]
        virtual_time.run()
    assert [caller.error for caller in callers] == [None] * 20
    assert posters == [own] * 11


def test_who_waits_for_anothers_answer_looks_often_and_then_less_so(virtual):
    virtual_time, own, other = virtual
    looks = counted(own)
    assert own.enter("has the permit", may_skip=True) is None
    caller = publish(virtual_time, commit(own, None))
    virtual_time.run(until=virtual_time.now + 0.1)
    other.file._limit = Limit(1e6, 1)
    assert isinstance(other.try_claim(), Claim)  # and says nothing
    virtual_time.run(until=virtual_time.now + 0.3)
    looks.clear()
    virtual_time.run(until=virtual_time.now + 0.1)
    assert 1 <= len(looks) < 20
    virtual_time.run()

    assert caller.error.delivered == "unknown"
    assert "was not answered before the deadline" in str(caller.error)
    assert 150 < len(looks) < 300, "every 50 ms"
    assert virtual_time.now == pytest.approx(1010.0)


def test_those_for_whom_it_is_too_late_still_hear_of_a_request_under_way(virtual):
    """Another process posts their messages, and they have no time for a request of their own."""
    virtual_time, own, other = virtual
    assert own.enter("has the permit", may_skip=True) is None
    a_commit, ends = commit(own, lambda *_: pytest.fail("another process posts")), []
    a_commit.sender.request_time.note(3.0)

    def submit_and_note(text):
        a_commit.submit(ADDRESS, packed(text), deadline=1010.0)
        ends.append(virtual_time.now)

    callers = [virtual_time.spawn(lambda n=n: submit_and_note(str(n))) for n in range(2)]
    virtual_time.run(until=1001.999)
    virtual_time.now = 1002.0  # the next permit
    under_way = other.try_claim()
    assert len(under_way.items) == 2
    virtual_time.run(until=1008.0)
    other.settle(under_way)
    virtual_time.run()

    assert [caller.error for caller in callers] == [None, None]
    assert max(ends) < 1009


def test_where_the_file_cannot_be_asked_at_the_deadline_nothing_is_known(virtual):
    """Least of all that the message was accepted."""
    virtual_time, own, _ = virtual

    def stuck(*_, **__):
        raise errors.SpoolUnavailable("the disk is gone")

    assert own.enter("has the permit", may_skip=True) is None
    own.room.withdraw = stuck
    own.room.claim = lambda terms: Wait(None)
    caller = publish(virtual_time, commit(own, None))
    virtual_time.run()

    assert isinstance(caller.error, errors.PublishTimeout)
    assert caller.error.delivered == "unknown"


def test_a_file_that_cannot_be_used_for_a_while_is_waited_for(virtual):
    """What is in the file is in other processes' hands as well."""
    virtual_time, own, _ = virtual
    fails, claims = [errors.SpoolUnavailable("the disk is gone")] * 5, own.room.claim

    def claim_sometimes(terms):
        if fails:
            raise fails.pop()
        return claims(terms)

    own.enter("first", seconds=900)  # or it would skip the line
    own.room.claim = claim_sometimes
    caller = publish(virtual_time, commit(own, lambda *_: None))
    virtual_time.run()

    assert caller.error is None
    assert not fails


def test_a_message_that_no_file_can_take_is_not_sent_and_says_so(virtual):
    """Its publisher goes on without the file."""
    virtual_time, own, _ = virtual

    def gone(*_, **__):
        raise errors.SpoolUnavailable("the disk is gone")

    own.room.enter = gone
    caller = publish(virtual_time, commit(own, None))
    virtual_time.run()

    assert isinstance(caller.error, errors.SpoolUnavailable)
