"""An hour of publishing against a server that blocks, in virtual time, with the real lane."""

import random

import pytest
from group_commit_parts import ROUND_TRIP, Commit
from support.forms import LONG, long
from virtual_time import VirtualTime

from kombu_cfqueues import limits
from kombu_cfqueues.errors import RateLimited
from kombu_cfqueues.rate_limit import CLOUDFLARE_LIMIT, Budget

HOUR = 3_600.0
WINDOW_AND_MORE = 330.0  # one window shows what twelve do; `make long` runs the whole hour


class StrictServer:
    """Lets 1,200 requests pass in each window, and blocks for five minutes once that is passed."""

    def __init__(self, time):
        self.time = time
        self.window, self.spent = -1, 0
        self.blocked_until = 0.0
        self.requests = self.blocks = 0

    def post(self, items, deadline):
        self.requests += 1
        window = self.time.now // limits.WINDOW_SECONDS
        if window != self.window:
            self.window, self.spent = window, 0
        self.spent += 1
        self.time.sleep(ROUND_TRIP)
        if self.spent > limits.REQUESTS_PER_WINDOW or self.time.now < self.blocked_until:
            self.blocks += 1
            self.blocked_until = self.time.now + limits.WINDOW_SECONDS
            raise RateLimited("blocked", status=429, code=971, retry_after=limits.WINDOW_SECONDS)


class Publishers:
    """Each message has a publisher of its own, as in a web server with many threads."""

    def __init__(self, limit=CLOUDFLARE_LIMIT):
        self.time = VirtualTime(now=3_333 * limits.WINDOW_SECONDS)
        self.server = StrictServer(self.time)
        self.budget = Budget(limit, clock=self.time)
        self.lane = Commit(self.server.post, self.budget, clock=self.time)
        self.waits = []

    def publish(self):
        began = self.time.now
        self.lane.submit(b"message", 1_000, began + 120.0)
        self.waits.append(self.time.now - began)

    def publish_at(self, rate, seconds):
        arrivals = random.Random(rate)

        def come():
            end = self.time.now + seconds
            while self.time.now < end:
                self.time.spawn(self.publish)
                self.time.sleep(arrivals.expovariate(rate))

        self.time.spawn(come)
        self.time.run()

    def rest(self, seconds=600.0):
        self.time.run(until=self.time.now + seconds)

    def wait(self, share):
        return sorted(self.waits)[int(share * (len(self.waits) - 1))]


@pytest.mark.longer
@pytest.mark.parametrize(
    ("rate", "p50", "p99"),
    [(1, 0.031, 0.060), (10, 0.165, 0.300), long(100, 0.170, 0.300), long(350, 0.185, 0.350)],
)
def test_an_hour_of_publishing_is_never_blocked(rate, p50, p99):
    """Up to 350 messages a second wait for a permit, and for nothing else."""
    publishers = Publishers()
    publishers.publish_at(rate, HOUR if rate <= (100 if LONG else 1) else WINDOW_AND_MORE)

    assert publishers.server.blocks == 0
    assert publishers.wait(0.50) < p50
    assert publishers.wait(0.99) < p99


def test_a_thousand_at_once_after_a_quiet_time_wait_for_eleven_requests():
    publishers = Publishers()
    publishers.rest()
    for _ in range(1_000):
        publishers.time.spawn(publishers.publish)
    publishers.time.run()

    assert len(publishers.waits) == 1_000
    assert publishers.server.requests == 11
    assert publishers.wait(0.99) < 0.36


@pytest.mark.long
def test_bursts_of_twenty_thousand_are_never_blocked():
    """Around the window's end, which is the worst moment."""
    publishers = Publishers()
    pauses = [600.0, 250.0, 20.0, 100.0]
    for pause in pauses:
        publishers.rest(pause)
        for _ in range(20_000):
            publishers.time.spawn(publishers.publish)
        publishers.rest(60.0)

    assert len(publishers.waits) == 20_000 * len(pauses)
    assert publishers.server.blocks == 0
    assert publishers.wait(1.0) < 56  # (201 requests - 5 saved) at 3.7 a second, and two seconds


def test_a_batch_of_twenty_thousand_takes_two_hundred_requests():
    publishers = Publishers()
    publishers.rest()
    chunks = iter(range(200))
    outcomes = []

    def work():
        for _ in chunks:
            deadline = publishers.time.now + 30.0
            outcomes.extend(publishers.lane.submit_many([(b"m", 1_000)] * 100, deadline))

    began = publishers.time.now
    for _ in range(2):
        publishers.time.spawn(work)
    publishers.time.run()

    assert outcomes == [None] * 20_000
    assert publishers.server.requests == 200
    assert publishers.server.blocks == 0
    assert publishers.time.now - began < (200 - 60) / 3.7 + 1


def test_the_server_of_this_simulation_does_block():
    """Without an allowance, the same hour ends at once: what the others show is no accident."""
    publishers = Publishers(limit=None)
    publishers.publish_at(10, WINDOW_AND_MORE)

    assert publishers.server.blocks > 0
