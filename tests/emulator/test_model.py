"""The store against a plain model, under random operations and time.

The model is a dict of messages and a few lines for each rule.  What is held: no message is lost,
none is leased to two at once, delays and retries are kept to the millisecond, attempts and dead
letters are counted, and the tallies agree with what is there.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from support.forms import LONG

from kombu_cfqueues.emulator.knobs import Knobs
from kombu_cfqueues.emulator.queues import Consumer
from kombu_cfqueues.emulator.service import Service
from kombu_cfqueues.emulator.store import Draft

RETENTION_MS = 3_600_000
LEASES = st.sampled_from([0, 1, 1_000, 30_000, 120_000])
SECONDS = st.sampled_from([0, 1, 5, 60])


@dataclass
class Message:
    """What the model knows of a message."""

    queue: str
    published: int
    visible: int
    attempts: int = 0
    lease: str | None = None  # the one in force
    old: set[str] = field(default_factory=set)


class StandingClock:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.ms


class StoreMachine(RuleBasedStateMachine):
    """Random operations on a queue with a dead-letter queue."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.service: Service | None = None
        self.model: dict[str, Message] = {}  # by body, which is unique
        self.owner: dict[str, str] = {}  # body by lease id
        self.number = 0
        self.ever: set[str] = set()
        self.gone: set[str] = set()

    @initialize(
        max_retries=st.integers(0, 3),
        retry_delay=SECONDS,
        deliveries=st.sampled_from(["one_more", "max_retries"]),
        late_ack=st.sampled_from(["accept", "warn"]),
        dead=st.booleans(),
        order=st.sampled_from(["fifo", "shuffled"]),
    )
    def start(self, max_retries, retry_delay, deliveries, late_ack, dead, order):
        knobs = Knobs(deliveries=deliveries, late_ack=late_ack, order=order, seed=0)
        self.clock = StandingClock()
        self.service = Service("account", None, knobs, self.clock)
        self.late_ack, self.retry_delay, self.dead = late_ack, retry_delay, dead
        self.deliveries = max(1, max_retries + (deliveries == "one_more"))
        queues = self.service.queues
        settings = {"message_retention_period": RETENTION_MS // 1000}
        self.queues = {
            "jobs": queues.create("jobs", None, settings),
            "dead": queues.create("dead", None, settings),
        }
        consumer = Consumer(
            "0" * 32,
            0,
            "http_pull",
            None,
            "dead" if dead else "",
            {"max_retries": max_retries, "retry_delay": retry_delay},
        )
        queues.put_consumer(self.queues["jobs"], consumer)

    # --- what clients and time do

    @rule(delays=st.lists(SECONDS, min_size=1, max_size=5))
    def publish(self, delays):
        drafts = []
        for delay in delays:
            self.number += 1
            body = str(self.number)
            drafts.append(Draft(body.encode(), "text", delay))
            now = self.clock.ms
            self.model[body] = Message("jobs", now, now + delay * 1000)
            self.ever.add(body)
        self.service.store.add(self.queues["jobs"], drafts)

    @rule(target=leases, most=st.integers(1, 4), lease_ms=LEASES)
    def pull(self, most, lease_ms):
        self.catch_up()
        now = self.clock.ms
        ready = {b for b, m in self.model.items() if m.queue == "jobs" and m.visible <= now}
        pulled = self.service.store.pull(self.queues["jobs"], most, lease_ms)
        assert len(pulled) == min(most, len(ready))
        for delivery in pulled:
            body = delivery.body.decode()
            assert body in ready, "a message that is hidden, or leased, was delivered"
            ready.remove(body)
            message = self.model[body]
            message.attempts += 1
            assert delivery.attempts == message.attempts
            if message.lease:
                message.old.add(message.lease)
            message.lease, message.visible = delivery.handle, now + lease_ms
            assert delivery.handle not in self.owner
            self.owner[delivery.handle] = body
        return multiple(*(delivery.handle for delivery in pulled))

    @rule(lease=leases)
    def ack(self, lease):
        self.catch_up()
        message = self.model.get(self.owner[lease])
        here = message is not None and message.queue == "jobs"
        accepted = here and (message.lease == lease or self.late_ack == "accept")
        settled = self.service.store.settle(self.queues["jobs"], [lease], [])
        assert settled.acked == int(accepted)
        assert (lease in settled.warnings) is not accepted
        if accepted:
            self.forget(self.owner[lease])

    @rule(lease=leases, delay=st.none() | SECONDS)
    def retry(self, lease, delay):
        self.catch_up()
        body = self.owner[lease]
        message = self.model.get(body)
        here = message is not None and message.queue == "jobs"
        ours = here and message.lease == lease
        free = here and message.lease is None
        accepted = ours or (free and self.late_ack == "accept")
        settled = self.service.store.settle(self.queues["jobs"], [], [(lease, delay)])
        assert settled.retried == int(accepted)
        if accepted:
            if message.attempts >= self.deliveries:
                self.die(body, self.clock.ms)
            else:
                message.lease = None
                message.visible = self.clock.ms + 1000 * (
                    self.retry_delay if delay is None else delay
                )

    @rule(target=leases, lease=consumes(leases), lease_ms=LEASES)
    def extend(self, lease, lease_ms):
        self.catch_up()
        message = self.model.get(self.owner[lease])
        ours = message is not None and message.queue == "jobs" and message.lease == lease
        renewed, _ = self.service.store.extend(self.queues["jobs"], [lease], lease_ms)
        assert bool(renewed) == bool(ours)
        if not ours:
            return lease
        self.owner[renewed[lease]] = self.owner[lease]
        message.lease, message.visible = renewed[lease], self.clock.ms + lease_ms
        return renewed[lease]

    @rule(ms=st.sampled_from([0, 1, 999, 1_000, 30_000, 600_000, RETENTION_MS]))
    def time_passes(self, ms):
        self.clock.ms += ms

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def a_person_retries_one(self, data):
        self.catch_up()
        body = data.draw(st.sampled_from(sorted(self.model))) if self.model else None
        if body is None:
            return
        message = self.model[body]
        queue = self.queues[message.queue]
        stored = {one.body: one for one in self.service.store.stored(queue)}[body]
        self.service.store.retry_now(queue, [stored.number])
        if message.queue == "dead":
            self.model[body] = Message("jobs", self.clock.ms, self.clock.ms)
        elif message.visible > self.clock.ms:
            message.visible, message.lease = self.clock.ms, None

    # --- the model's own rules

    def catch_up(self):
        """What time alone has done: leases that ran out, messages that outlived the queue."""
        now = self.clock.ms
        for body, message in list(self.model.items()):
            if message.lease is not None and message.visible <= now:
                message.lease = None
                if message.attempts >= self.deliveries:
                    self.die(body, message.visible)
        for body, message in list(self.model.items()):
            if message.published + RETENTION_MS <= now:
                self.forget(body)

    def die(self, body, when):
        if self.dead:
            self.model[body] = Message("dead", when, when)
        else:
            self.forget(body)

    def forget(self, body):
        del self.model[body]
        self.gone.add(body)

    @invariant()
    def the_store_holds_what_the_model_holds(self):
        if self.service is None:
            return
        self.catch_up()
        now = self.clock.ms
        for name, queue in self.queues.items():
            metrics = self.service.store.metrics(queue)
            stored = {one.body: one for one in self.service.store.stored(queue)}
            wanted = {b: m for b, m in self.model.items() if m.queue == name}
            assert set(stored) == set(wanted), "a message was lost, or came back"
            for body, message in wanted.items():
                state = (
                    "ready"
                    if message.visible <= now
                    else "leased"
                    if message.lease is not None
                    else "delayed"
                )
                one = stored[body]
                assert (one.state, one.attempts) == (state, message.attempts)
                assert round(one.visible_at * 1000) == message.visible or state == "ready"
            assert metrics.backlog_count == len(wanted)
            assert metrics.backlog_bytes == sum(map(len, wanted))
            counts = self.service.store.counts(queue)
            states = [one.state for one in stored.values()]
            assert [counts.ready, counts.delayed, counts.leased] == [
                states.count("ready"),
                states.count("delayed"),
                states.count("leased"),
            ]
        assert set(self.model) | self.gone == self.ever

    def teardown(self):
        if self.service is not None:
            self.service.close()


TestStore = pytest.mark.longer(StoreMachine.TestCase)
TestStore.settings = settings(
    max_examples=int(os.environ.get("MODEL_EXAMPLES", "150" if LONG else "50")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
