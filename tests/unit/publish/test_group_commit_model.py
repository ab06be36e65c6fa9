"""The promises of group commit over both rooms, held against any sequence of events."""

import random
import tempfile

import pytest
from group_commit_parts import Commit
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from support.forms import LONG
from support.spools import Peer
from virtual_time import VirtualTime

from kombu_cfqueues import limits, retry
from kombu_cfqueues.errors import (
    AuthenticationFailed,
    CFQueuesError,
    ConnectionFailed,
    InvalidMessage,
    RateLimited,
    ServerError,
)
from kombu_cfqueues.publish import callers, group_commit, memory_room
from kombu_cfqueues.publish.group_commit import BULK_IN_FLIGHT
from kombu_cfqueues.rate_limit import Limit
from kombu_cfqueues.runtime.rng import rng
from kombu_cfqueues.spool import outcomes
from kombu_cfqueues.waiting_room import Claim

RANDOM = [retry, callers, group_commit, memory_room, outcomes]

MAX_ITEMS = 7
MAX_BYTES = 1_000

sizes = st.one_of(st.integers(1, 300), st.integers(900, 1_200))
timeouts = st.sampled_from([0.01, 0.5, 3.0, 30.0])


def use(numbers):
    """Let group commit and its rooms draw from *numbers*."""
    for module in RANDOM:
        module.rng = numbers


class Item:
    """One message; what its publisher was told; what became of it."""

    def __init__(self, size, bad):
        self.size, self.bad = size, bad
        self.told = []  # (outcome): exactly one in the end
        self.delivered = 0  # times that the queue got it
        self.confirmed = 0  # times that an answer said so


class CommitMachine(RuleBasedStateMachine):
    """Callers come, wait, run out of time and are interrupted; the server has its moods."""

    max_items = MAX_ITEMS
    max_bytes = MAX_BYTES

    def __init__(self):
        super().__init__()
        # Pauses are random, and a history that is tried again has to be the same.  Threads that
        # earlier tests have left take numbers too, so this has a generator of its own.
        use(random.Random(0))
        self.time = VirtualTime()
        self.mood = "well"
        self.round_trip = 0.03
        self.permit_every = 0.0
        self.next_permit = 0.0
        self.in_flight = 0
        self.bulk_used = False
        self.tasks = []  # (task, items, bulk, deadline)
        self.requests = []

    @initialize(in_flight=st.integers(1, 4), retry_uncertain=st.booleans())
    def begin(self, in_flight, retry_uncertain):
        self.retry_uncertain = retry_uncertain
        self.allowed = in_flight
        self.lane = self.commit(
            self.post,
            self,
            max_in_flight=in_flight,
            retry_uncertain=retry_uncertain,
            clock=self.time,
        )

    def commit(self, *given, **options):
        return Commit(*given, max_batch=MAX_ITEMS, max_bytes=MAX_BYTES, **options)

    # -- around the lane -------------------------------------------------------------------

    def try_take(self, place, *, queue):
        now = self.time.now
        place.ready_at = max(now, self.next_permit)
        if place.ready_at > now:
            return RateLimited("none in time", retry_after=place.ready_at - now)
        self.next_permit = now + self.permit_every
        return None

    def leave(self, place):
        pass

    def post(self, items, deadline):
        assert 1 <= len(items) <= self.max_items
        assert len(set(items)) == len(items)
        assert len(items) == 1 or sum(item.size for item in items) <= self.max_bytes
        assert not any(item.told for item in items), "posted after its publisher was told"
        self.requests.append(items)
        self.in_flight += 1
        limit = max(self.allowed, BULK_IN_FLIGHT) if self.bulk_used else self.allowed
        assert self.in_flight <= limit
        try:
            left = deadline - self.time.now
            self.time.sleep(min(self.round_trip, left))
            if left < self.round_trip:
                raise ConnectionFailed("no answer in time", delivered="unknown")
        finally:
            self.in_flight -= 1
        self.answer(items)

    def answer(self, items):
        if self.mood == "down":
            raise ConnectionFailed("refused")
        if self.mood == "busy":
            raise RateLimited("wait", status=429, retry_after=2)
        if self.mood == "revoked":
            raise AuthenticationFailed("revoked", status=401)
        if self.mood == "broken":
            raise ServerError("error", status=500, delivered="unknown")
        if self.mood == "buggy":
            raise TypeError("a bug in the posting code")
        if any(item.bad for item in items):
            raise InvalidMessage("bad", status=400, code=10203)
        for item in items:
            item.delivered += 1
        if self.mood == "answers lost":
            raise ConnectionFailed("lost", delivered="unknown")
        for item in items:
            item.confirmed += 1

    def publish(self, items, timeout):
        for item in items:
            try:
                self.lane.submit(item, item.size, self.time.now + timeout)
            except BaseException as error:
                item.told.append(error)
                if not isinstance(error, CFQueuesError):
                    raise
            else:
                item.told.append(None)

    def publish_many(self, items, timeout):
        try:
            outcomes = self.lane.submit_many([(i, i.size) for i in items], self.time.now + timeout)
        except BaseException as error:
            outcomes = [error] * len(items)
            raise
        finally:
            for item, outcome in zip(items, outcomes, strict=True):
                item.told.append(outcome)

    # -- what may happen ---------------------------------------------------------------------

    @rule(
        items=st.lists(st.tuples(sizes, st.sampled_from([False] * 9 + [True])), max_size=20),
        timeout=timeouts,
        bulk=st.booleans(),
        threads=st.integers(1, 10),
    )
    def callers_come(self, items, timeout, bulk, threads):
        self.bulk_used |= bulk
        for _ in range(1 if bulk else threads):
            mine = [Item(size, bad) for size, bad in (items if bulk else items[:3])]
            publish = self.publish_many if bulk else self.publish
            worst = timeout * (1 if bulk else len(mine))
            task = self.time.spawn(publish, mine, timeout)
            self.tasks.append((task, mine, bulk, self.time.now + worst))
        self.time.run(until=self.time.now)

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.035, 0.3, 2.0, 10.0]))
    def time_passes(self, seconds):
        self.time.run(until=self.time.now + seconds)

    @rule(
        mood=st.sampled_from(
            ["well", "well", "down", "busy", "revoked", "broken", "buggy", "answers lost"]
        )
    )
    def the_server_changes(self, mood):
        self.mood = mood

    @rule(round_trip=st.sampled_from([0.0, 0.03, 1.0]), every=st.sampled_from([0.0, 0.27, 4.0]))
    def the_pace_changes(self, round_trip, every):
        self.round_trip, self.permit_every = round_trip, every

    @precondition(lambda self: any(not task.done for task, *_ in self.tasks))
    @rule(data=st.data(), error=st.sampled_from([KeyboardInterrupt, SystemExit, RuntimeError]))
    def a_caller_is_interrupted(self, data, error):
        waiting = [task for task, *_ in self.tasks if not task.done]
        data.draw(st.sampled_from(waiting)).kill(error())
        self.time.run(until=self.time.now)

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def nobody_waits_past_its_deadline(self):
        for task, _, _, deadline in self.tasks:
            assert task.done or self.time.now <= deadline + 1e-6

    @invariant()
    def nothing_fails_but_by_an_outcome(self):
        for task, *_ in self.tasks:
            assert not isinstance(task.error, AssertionError), task.error

    @invariant()
    def each_publisher_is_told_the_truth(self):
        for task, items, _, _ in self.tasks:
            for item in items:
                assert len(item.told) <= 1
                if item.told:
                    self.is_true(item, item.told[0])
                elif task.done:  # interrupted before its turn came
                    assert item.delivered == 0
                    assert task.error is not None

    def is_true(self, item, outcome):
        if outcome is None:
            assert item.confirmed == 1
        elif isinstance(outcome, CFQueuesError) and outcome.delivered == "no":
            assert item.delivered == 0
        if not self.retry_uncertain:
            assert item.delivered <= 1

    @invariant()
    def the_order_of_one_thread_is_kept(self):
        seen = {}
        for request in self.requests:
            for item in request:
                seen.setdefault(item, len(seen))
        for _, items, _, _ in self.tasks:
            order = [seen[item] for item in items if item in seen]
            assert order == sorted(order)

    def teardown(self):
        use(rng)
        if not hasattr(self, "lane"):
            return
        self.time.run()
        assert all(task.done for task, *_ in self.tasks)
        self.each_publisher_is_told_the_truth()
        self.mood, self.round_trip, self.permit_every = "well", 0.03, 0.0
        last = Item(1, bad=False)
        task = self.time.spawn(self.publish, [last], 60.0)
        self.time.run()
        assert task.done
        assert last.told == [None]
        assert self.in_flight == 0


class SpoolMachine(CommitMachine):
    """The same over the spool's file, as one of several processes of a machine."""

    max_items = limits.BATCH_MESSAGES
    max_bytes = limits.BATCH_BYTES

    def commit(self, *given, **options):
        self.folder = tempfile.TemporaryDirectory()
        self.peer = Peer(self.folder.name, self.time, limit=Limit(1e6, 1))
        self.others = [Peer(self.folder.name, self.time, limit=Limit(1e6, 1)) for _ in range(2)]
        return Commit(*given, room=self.peer.room, **options)

    @rule(round_trip=st.sampled_from([0.0, 0.03, 1.0]), every=st.sampled_from([0.0, 0.27, 4.0]))
    def the_pace_changes(self, round_trip, every):
        self.round_trip = round_trip
        for peer in (self.peer, *self.others):
            peer.file._limit = Limit(1 / every if every else 1e6, 1)

    @rule(seconds=st.sampled_from([0.0, 0.05, 2.0]), returns=st.booleans())
    def another_process_posts(self, seconds, returns):
        """It takes what waits, and posts it; or gives it back, since its own proxy is broken."""

        def post():
            claim = self.others[0].try_claim()
            if not isinstance(claim, Claim):
                return
            items = [self.lane._items[item.message.fragment] for item in claim.items]
            assert not any(item.told for item in items), "posted after its publisher was told"
            if returns:
                self.time.sleep(seconds)
                self.others[0].settle(claim, returned=claim.items)
                return
            self.requests.append(items)  # it leaves now, and is answered later
            self.time.sleep(seconds)
            for item in items:
                item.delivered += 1
                item.confirmed += 1
            self.others[0].settle(claim)

        self.time.spawn(post)
        self.time.run(until=self.time.now)

    @rule()
    def another_process_dies_with_what_it_has_claimed(self):
        self.others[1].try_claim()
        self.others[1].die()
        self.others[1] = Peer(self.folder.name, self.time, limit=self.peer.file._limit)

    def teardown(self):
        use(rng)
        if hasattr(self, "lane"):
            self.the_pace_changes(0.03, 0.0)
            super().teardown()
            for peer in (self.peer, *self.others):
                peer.file.close()
            self.folder.cleanup()


TestMemoryKeepsItsPromises = pytest.mark.longer(CommitMachine.TestCase)
TestMemoryKeepsItsPromises.settings = settings(
    max_examples=300 if LONG else 60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

TestSpoolKeepsItsPromises = pytest.mark.longer(SpoolMachine.TestCase)
TestSpoolKeepsItsPromises.settings = settings(
    max_examples=100 if LONG else 25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
