"""Simulates a day of a fleet of machines that share a token and know nothing of each other.

Discrete events around the library's own arithmetic (`kombu_cfqueues.rate_limit.Allowance`), against
a server with Cloudflare's limit.  A machine makes one request at a time, which carries all that
waits there; a publish that no request can carry before its deadline fails at once, and its thread
publishes again after a pause.

    python -m benchmarks.fleet            the table of docs/performance.md (a minute)
    python -m benchmarks.fleet --seed 9   the same with other arrivals
"""

from __future__ import annotations

import argparse
import heapq
import multiprocessing
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kombu_cfqueues import limits
from kombu_cfqueues.rate_limit import CLOUDFLARE_LIMIT, Allowance
from kombu_cfqueues.runtime.rng import rng

HOUR: Final = 3600.0
ROUND_TRIP_SECONDS: Final = 0.06
PUBLISH_TIMEOUT_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 10.0
"""Pause of a thread whose publish has failed."""


class World:
    """Events in virtual time, and the server: 1,200 requests in a window, then a block.

    Args:
        sliding: Whether the window slides; else it opens with its first request.
        seed: Of all that is random.
    """

    def __init__(self, *, sliding: bool = False, seed: int = 1) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.blocks: list[float] = []
        self.days: list[float] = []
        """The same, with the time that was left out."""
        self.accepted = 0
        self.skipped = 0.0
        """Seconds that `leap` has left out."""
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._sliding = sliding
        self._times: deque[float] = deque()
        self._opened, self._used = -1e9, 0
        self._blocked_until = 0.0

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        """Call *call* at a time, or now if it has passed."""
        self._count += 1
        heapq.heappush(self._events, (max(when, self.now), self._count, call, args))

    def run(self, end: float) -> None:
        """Let all happen until *end*."""
        while self._events and self._events[0][0] <= end:
            self.now, _, call, args = heapq.heappop(self._events)
            call(*args)
        self.now = end

    def leap(self, machines: list[Machine], until: float) -> None:
        """Leave out the time until then, as far as nothing new can happen in it.

        Nothing new happens while all publish as fast as they can, nobody has been blocked for a
        while, and nobody tries more than its share: each window is as the last one was.
        """
        if self.now - max(self.blocks, default=0.0) < 3 * limits.WINDOW_SECONDS:
            return
        shares = [machine.allowance.share for machine in machines]
        grow = min((share.grows_at for share in shares if not share.is_whole), default=until)
        seconds = min(grow, until) - 2 * limits.WINDOW_SECONDS - self.now
        if seconds <= 0:
            return
        self.skipped += seconds
        for machine in machines:
            machine.leap(seconds)

    def request(self) -> float | None:
        """Make a request; return None if it is accepted, else the seconds that the block lasts."""
        if self.now < self._blocked_until:
            return self._blocked_until - self.now
        if self._is_over():
            self._blocked_until = self.now + limits.WINDOW_SECONDS
            self.blocks.append(self.now)
            self.days.append(self.now + self.skipped)
            self._opened, self._used = -1e9, 0
            self._times.clear()
            return float(limits.WINDOW_SECONDS)
        self.accepted += 1
        return None

    def _is_over(self) -> bool:
        if not self._sliding:
            if self.now >= self._opened + limits.WINDOW_SECONDS:
                self._opened, self._used = self.now, 0
            self._used += 1
            return self._used > limits.REQUESTS_PER_WINDOW
        while self._times and self._times[0] <= self.now - limits.WINDOW_SECONDS:
            self._times.popleft()
        self._times.append(self.now)
        return len(self._times) > limits.REQUESTS_PER_WINDOW


class Load(NamedTuple):
    """What a machine publishes.

    Attributes:
        threads: Threads that publish one message after the other, without a pause.
        rate: Messages per second besides, at random times.
        quiet_hours: The machine publishes only in every other span of this length; 0: always.
    """

    threads: int = 0
    rate: float = 0.0
    quiet_hours: float = 0.0


BUSY: Final = Load(threads=8)


class Bucket:
    """The allowance of a machine, or with ``budget_url`` that of several.

    Args:
        machines: How many share it.
    """

    def __init__(self, machines: int = 1) -> None:
        self.machines = machines
        self.allowance = Allowance.new(CLOUDFLARE_LIMIT, 0.0)


class Machine:
    """One publisher.

    Args:
        world: Where it is.
        bucket: Its allowance.
        load: What it publishes.
        start: When it comes.
        end: When it goes.
    """

    def __init__(
        self, world: World, bucket: Bucket, load: Load, start: float = 0.0, end: float = 1e12
    ) -> None:
        self.world, self.load, self.start, self.end = world, load, start, end
        self._bucket = bucket
        self.waits: list[tuple[float, int]] = []  # seconds, and of how many messages
        self.failed = 0
        self.requests = 0
        self.skipped = 0.0
        """Requests in the time that was left out."""
        self._waiting: deque[tuple[float, int, bool]] = deque()  # since when; number; of threads
        self._flies = False
        self._wakes_at = 1e12
        world.at(start, self._begin)

    @property
    def allowance(self) -> Allowance:
        """What it may request."""
        return self._bucket.allowance

    @allowance.setter
    def allowance(self, allowance: Allowance) -> None:
        self._bucket.allowance = allowance

    def _begin(self) -> None:
        if self._bucket.machines == 1:
            self.allowance = Allowance.new(CLOUDFLARE_LIMIT, self.world.now)
        if self.load.threads:
            self.publish(self.load.threads, True)
        if self.load.rate:
            self._come(0)

    def _come(self, messages: int = 1) -> None:
        if messages:
            self.publish(messages, False)
        wait = self.world.random.expovariate(self.load.rate)
        if self.world.now < self.end:
            self.world.at(self.world.now + wait, self._come)

    def publish(self, messages: int, of_threads: bool) -> None:
        """Publish messages, each of a thread that goes on publishing, or of none."""
        now, quiet = self.world.now, self.load.quiet_hours * HOUR
        if now >= self.end:
            return
        if quiet and int(now / quiet) % 2:
            if of_threads:
                self.world.at((int(now / quiet) + 1) * quiet, self.publish, messages, True)
            return
        self._waiting.append((now, messages, of_threads))
        self.act()

    def leap(self, seconds: float) -> None:
        """Go on as if these seconds had passed, with as many requests as in the last ones."""
        share = self.allowance.share
        self.allowance = self.allowance._replace(
            share=share._replace(grows_at=share.grows_at - seconds)
        )
        rate = self.allowance.mine(CLOUDFLARE_LIMIT).rate / self._bucket.machines
        self.skipped += seconds * rate

    def act(self) -> None:
        """Send what waits, wait for a permit, or let those fail that cannot wait so long."""
        now = self.world.now
        if self._flies or not self._waiting:
            return
        self.allowance = allowance = self.allowance.counted(CLOUDFLARE_LIMIT, now)
        ready = max(allowance.ready_at(CLOUDFLARE_LIMIT), allowance.stopped_until)
        while self._waiting and self._waiting[0][0] + PUBLISH_TIMEOUT_SECONDS < ready:
            _, messages, of_threads = self._waiting.popleft()
            self.failed += messages
            if of_threads:
                self.world.at(now + PAUSE_SECONDS, self.publish, messages, True)
        if not self._waiting:
            return
        if ready > now + 1e-9:
            if not now < self._wakes_at <= ready + 1e-9:
                self._wakes_at = ready
                self.world.at(ready, self._wake)
            return
        self.allowance = allowance.spent(CLOUDFLARE_LIMIT, now - self._waiting[0][0])
        self.requests += 1
        self._flies = True
        self.world.at(now + ROUND_TRIP_SECONDS, self._answered, self.world.request())

    def _wake(self) -> None:
        self._wakes_at = 1e12
        self.act()

    def _answered(self, block: float | None) -> None:
        # What came while the request was under way goes with it: less than a tenth of a second.
        now = self.world.now
        self._flies = False
        if block is not None:
            counted = self.allowance.counted(CLOUDFLARE_LIMIT, now)
            self.allowance = counted.blocked(CLOUDFLARE_LIMIT, now + int(block) + 1)
            self.act()
            return
        batch, self._waiting = self._waiting, deque()
        for since, messages, of_threads in batch:
            self.waits.append((now - since, messages))
            if of_threads:
                self.publish(messages, True)


class Result(NamedTuple):
    """What a run has shown.

    Attributes:
        blocks: When the token was blocked, in hours.
        efficiency: Accepted requests, as a part of what the limit allows.
        succeeded: The part of the publishes that succeeded.
        jain: Fairness of the requests among the machines that want more: 1 is equal.
        p99: 99 of 100 publishes that succeeded took at most so many seconds.
    """

    blocks: list[float]
    efficiency: float
    succeeded: float
    jain: float
    p99: float


class Plan(NamedTuple):
    """A machine of a fleet: what it publishes, when it comes and when it goes, in seconds."""

    load: Load
    start: float = 0.0
    end: float = 1e12


def simulate(
    plans: list[Plan], *, hours: float = 24.0, sliding: bool = False, seed: int = 1,
    budget_url: bool = False,
) -> Result:  # fmt: skip
    """Simulate a fleet for some hours, whose machines share one allowance with *budget_url*.

    A fleet whose machines all publish as fast as they can, and never change, is as it is between
    two blocks: that time is left out, and counted.
    """
    rng.seed(seed)
    world = World(sliding=sliding, seed=seed)
    shared = Bucket(len(plans)) if budget_url else None
    machines = [Machine(world, shared or Bucket(), *plan) for plan in plans]
    last = max(plan.start for plan in plans)
    leaps = all(plan.load == BUSY and plan.end >= 1e12 for plan in plans)
    while (left := hours * HOUR - world.skipped) > world.now:
        world.run(min(world.now + limits.WINDOW_SECONDS, left))
        if leaps and world.now > last:
            world.leap(machines, left)
    return result(world, machines)


def result(world: World, machines: list[Machine]) -> Result:
    """Sum up a run that has ended."""
    waits = sorted(wait for machine in machines for wait in machine.waits)
    failed = sum(machine.failed for machine in machines)
    skipped = sum(machine.skipped for machine in machines)
    succeeded = sum(messages for _, messages in waits)
    busy = [
        (machine.requests + machine.skipped) / (min(machine.end, world.now) - machine.start)
        for machine in machines
        if machine.load.threads and machine.start < world.now
    ]
    squares = sum(rate * rate for rate in busy)
    return Result(
        [round(at / HOUR, 2) for at in world.days],
        (world.accepted + skipped)
        / (limits.REQUESTS_PER_WINDOW / limits.WINDOW_SECONDS * (world.now + world.skipped)),
        (succeeded + skipped * BUSY.threads) / max(1, succeeded + skipped * BUSY.threads + failed),
        sum(busy) ** 2 / (len(busy) * squares) if squares else 1.0,
        _percentile(waits, 0.99 * succeeded),
    )


def _percentile(waits: list[tuple[float, int]], messages: float) -> float:
    for wait, number in waits:
        messages -= number
        if messages <= 0:
            return wait
    return 0.0


SCENES: Final[dict[str, list[Plan]]] = {
    "1, busy": [Plan(BUSY)],
    "4, busy": [Plan(BUSY)] * 4,
    "8, busy, 40 s apart at the start": [Plan(BUSY, start=40.0 * n) for n in range(8)],
    "17, busy": [Plan(BUSY)] * 17,
    "17, busy, with budget_url": [Plan(BUSY)] * 17,
    "28, busy, 5 s apart at the start": [Plan(BUSY, start=5.0 * n) for n in range(28)],
    "45, busy": [Plan(BUSY)] * 45,
    "3 busy, 12 with a message in 8 s": [*[Plan(BUSY)] * 3, *[Plan(Load(rate=0.125))] * 12],
    "8, busy every other hour or so": [Plan(Load(8, quiet_hours=1 + n / 3)) for n in range(8)],
    "6 busy, one more after 3, 5, 7 h": [
        *[Plan(BUSY)] * 6,
        *[Plan(BUSY, start=hours * HOUR) for hours in (3, 5, 7)],
    ],
    "12 busy, of which 6 go after 4 h": [
        *[Plan(BUSY)] * 6,
        *[Plan(BUSY, end=4 * HOUR)] * 6,
    ],
    "8 pods, one replaced every hour": [
        Plan(BUSY, start=max(0, n - 7) * HOUR, end=(n + 1) * HOUR) for n in range(31)
    ],
}
"""Fleets that were not used to choose the numbers of `kombu_cfqueues.rate_limit.share`."""


def _row(name: str, seed: int) -> str:
    shares = "budget_url" in name
    found = simulate(SCENES[name], sliding=bool(seed % 2), seed=seed, budget_url=shares)
    return (
        f"| {name} | {len(found.blocks)} | {found.efficiency:.0%} | {found.succeeded:.1%} "
        f"| {found.jain:.2f} | {found.p99:.1f} s |"
    )


def main() -> None:
    """Print the table of docs/performance.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=71, help="odd: the window slides")
    seed = parser.parse_args().seed
    print(f"seed {seed}, a window that {'slides' if seed % 2 else 'opens with a request'}")
    print("| machines, 24 hours | blocks | of the limit | succeeded | Jain | p99 |")
    print("|---|---|---|---|---|---|")
    with multiprocessing.Pool(2) as pool:
        for row in pool.starmap(_row, [(name, seed) for name in SCENES]):
            print(row)


if __name__ == "__main__":
    main()
