"""Who empties the spool, and what its publishers hear of it."""

import signal
import threading
import time
from collections import OrderedDict

import pytest
from support.processes import eventually
from support.spools import Peer

from kombu_cfqueues import errors
from kombu_cfqueues.cli._stop import Stop
from kombu_cfqueues.publish import relay as module
from kombu_cfqueues.publish.group_commit import GroupCommit
from kombu_cfqueues.publish.relay import Relay
from kombu_cfqueues.publish.sender import Sender
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.runtime.clock import Clock


class Process:
    """A process that spools, and the server that it posts to."""

    def __init__(self, folder):
        self.peer = Peer(folder, Clock(), limit=Limit(500.0, 50))
        self.posted = []
        self.down = False
        self.bad = b"bad"
        self.machine = self.peer.spool_
        self.sender = Sender(self.peer.room, self.post, post_seconds=10)
        self.relay = Relay(
            self.machine, GroupCommit(self.peer.room, self.sender, max_in_flight=1, repeats=True)
        )

    def post(self, address, batch, deadline):
        if self.down:
            raise errors.ConnectionFailed("gone")
        if any(self.bad in one.fragment for one in batch):
            raise errors.InvalidMessage("it is bad", status=400, code=10203)
        self.posted += [address.name] * len(batch)

    def spool(self, text="x", **given):
        """Spool; return the promise."""
        return self.relay.promise(self.peer.spool(text, **given))


@pytest.fixture
def process(tmp_path):
    made = []

    def make():
        made.append(Process(tmp_path / "spool"))
        return made[-1]

    yield make
    for each in made:
        each.relay.finish(0)
        eventually(lambda each=each: not (each.relay._thread and each.relay._thread.is_alive()))
        each.peer.file.close()


def test_what_is_spooled_is_delivered_and_its_promise_kept(process):
    one = process()
    promise = one.spool(count=150)

    assert eventually(lambda: promise.ready)
    assert not promise.failed
    assert one.posted == ["jobs"] * 150


def test_a_promise_is_rejected_by_the_message_that_was_refused(process):
    one = process()
    heard = []
    rows = one.peer.spool("good") + one.peer.spool("bad") + one.peer.spool("good")
    promise = one.relay.promise(rows)
    promise.then(lambda: heard.append("fulfilled"), on_error=heard.append)

    assert eventually(lambda: heard)
    assert eventually(lambda: len(one.posted) == 2)
    assert [type(error) for error in heard] == [errors.InvalidMessage]
    assert promise.failed


def test_the_promise_of_nothing_is_kept_at_once(process):
    one = process()

    assert one.relay.promise([]).ready
    assert one.relay._thread is None, "a process that spools nothing needs no thread"


def test_nothing_is_worked_for_a_promise_that_nobody_keeps(process):
    one = process()
    one.spool()

    assert eventually(lambda: one.posted)
    assert eventually(lambda: not one.relay._promises)


class SpooledMeanwhile(OrderedDict):
    """Promises to which another thread adds one whenever somebody begins to go through them.

    Python may switch threads between the making of an iterator and its first step.
    """

    more = 3

    def __iter__(self):
        iterator = super().__iter__()
        if self.more:
            self.more -= 1
            self["jobs", -self.more - 1] = lambda: None  # whose promise nobody keeps
        return iterator


def test_promises_are_kept_while_other_threads_spool(process, caplog):
    one = process()
    one.relay._promises = promises = SpooledMeanwhile()
    promise = one.spool()

    assert eventually(lambda: promise.ready)
    assert promises.more == 0
    assert "emptying the spool failed" not in caplog.text


def test_one_process_at_a_time_empties_the_spool(process):
    one, other = process(), process()
    other.down = True
    assert one.machine.election.win()
    promise = other.spool()
    time.sleep(0.1)
    assert other.sender.pause is None, "it has not tried"

    one.machine.election.resign()
    assert eventually(lambda: other.sender.pause)
    one.relay.notify()
    assert eventually(lambda: promise.ready), "in trouble, it let the other one do it"
    assert one.posted == ["jobs"]


def test_a_process_that_has_not_posted_leaves_the_backlog_to_one_that_has(process):
    """Its first post would load the HTTP client; it posts only if nobody else does."""
    old, new = process(), process()

    def steps(one, text):
        """Spool a message; do the steps that *one* needs to post it, and return their pauses."""
        one.peer.spool(text)  # starts no thread
        pauses = []
        while not one.posted:
            pauses.append(one.relay._step())
            time.sleep(pauses[-1])
        return pauses

    assert steps(old, "first")[0] > 0, "nobody had posted"
    new.peer.spool("second")
    assert 0 < new.relay._step() <= module.BACKLOG_DELAY_SECONDS
    assert old.relay._step() == 0.0
    assert (len(old.posted), new.posted) == (2, [])

    assert old.relay._step() is None
    assert new.relay._step() is None
    pauses = steps(new, "third")
    assert len(pauses) > 1
    assert new.posted == ["jobs"]


def test_an_outage_is_outlasted(process):
    one = process()
    one.down = True
    promise = one.spool(count=3)
    assert eventually(lambda: one.sender.pause)

    one.down = False
    assert eventually(lambda: promise.ready)
    assert one.posted == ["jobs"] * 3


def test_each_time_a_file_cannot_be_used_is_told_at_its_begin_and_end(process, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(module, "RELAY_RETRY_SECONDS", 0.01)  # the pauses are long
    one, fails = process(), []
    has_backlog = one.machine.messages.has_backlog

    def look():
        if fails:
            raise fails.pop()
        return has_backlog()

    monkeypatch.setattr(one.machine.messages, "has_backlog", look)
    for times in (1, 2):
        fails += [errors.SpoolUnavailable("the disk is gone")] * 3
        promise = one.spool()

        assert eventually(lambda promise=promise: promise.ready)
        begins = caplog.text.count("the spool cannot be emptied now; retrying until it can: the")
        assert begins == caplog.text.count("the spool can be emptied again") == times


@pytest.mark.logs_bugs
def test_a_bug_ends_nothing(process, caplog, monkeypatch):
    monkeypatch.setattr(module, "RELAY_RETRY_SECONDS", 0.01)
    one, answers = process(), [ZeroDivisionError("a bug")]
    post = one.sender._post

    def buggy(*given):
        if answers:
            raise answers.pop()
        post(*given)

    one.sender._post = buggy
    promise = one.spool()

    assert eventually(lambda: promise.ready)
    assert "a bug" in caplog.text


def test_a_command_empties_the_spool_until_it_is_told_to_stop(process):
    one, stop = process(), Stop()
    one.peer.spool(count=3)
    runner = threading.Thread(
        target=one.relay.run, args=(stop,), kwargs={"idle_seconds": 0.02}, daemon=True
    )
    runner.start()

    assert eventually(lambda: len(one.posted) == 3)
    one.peer.spool(count=2)
    assert eventually(lambda: len(one.posted) == 5)
    stop.handle_signal(signal.SIGTERM, None)
    runner.join(30)
    assert not runner.is_alive()
    assert process().machine.election.win(), "it has stood down"


def test_a_process_that_ends_goes_on_while_it_succeeds(process):
    one = process()
    gate = threading.Event()
    post = one.sender._post
    one.sender._post = lambda *given: gate.wait(30) and post(*given)
    one.spool()
    assert eventually(lambda: one.relay._elected)
    threading.Timer(0.1, gate.set).start()

    one.relay.finish(30)

    assert one.posted == ["jobs"]


def test_a_process_that_ends_in_an_outage_does_not_wait(process):
    one = process()
    one.down = True
    one.spool()
    assert eventually(lambda: one.sender.pause)
    started = time.monotonic()

    one.relay.finish(60)

    assert time.monotonic() - started < 30
    assert eventually(lambda: not one.relay._thread.is_alive())
    assert one.machine.messages.has_backlog()


def test_a_forked_child_has_no_thread_until_it_spools(process):
    one = process()
    kept = one.spool()
    assert eventually(lambda: kept.ready)
    one.relay.finish(0)  # the thread is the parent's
    one.relay.renew_after_fork()
    assert one.relay._thread is None

    promise = one.spool()
    assert eventually(lambda: promise.ready)
