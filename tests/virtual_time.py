"""Many callers in one thread, and hours in no time: a clock whose sleepers take turns.

Each task is a greenlet.  It runs until it sleeps or waits for a lock, so what happens is the same
in each run; and it can be killed where it waits, as a signal or a greenlet's end would do.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count

import greenlet

from kombu_cfqueues.runtime.clock import Clock

STEPS_AT_ONCE = 100_000
"""So much does not happen in one moment, unless somebody goes round and round."""


class Task:
    """A function that runs on the virtual clock; ``result`` or ``error`` once it is ``done``."""

    def __init__(self, time, function, args):
        self._time = time
        self._greenlet = greenlet.greenlet(self._run, time._hub)
        self._function, self._args = function, args
        self.done = False
        self.result = self.error = None
        self.turn = 0  # an event for an earlier turn comes too late

    def _run(self):
        try:
            self.result = self._function(*self._args)
        except BaseException as error:  # noqa: BLE001 - a test looks at it
            self.error = error
        self.done = True

    def kill(self, error):
        """Raise *error* where the task waits, at once."""
        if not self.done:
            self.turn += 1
            self._time.step(self, kill=error)


class VirtualTime(Clock):
    """A clock that jumps to the next thing that happens."""

    def __init__(self, now=0.0):
        self.now = now
        self._events = []
        self._order = count()
        self._running = None
        self._hub = greenlet.getcurrent()  # only from here is run() or kill() called

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self._wait(self.now + max(0.0, seconds))

    def lock(self):
        return VirtualLock(self)

    def spawn(self, function, *args, at=None):
        """Start *function* in a task of its own, now or at a later time."""
        task = Task(self, function, args)
        self._schedule(self.now if at is None else at, task)
        return task

    def run(self, until=float("inf")):
        """Run all that happens, and is over, by *until*."""
        steps = 0
        while self._events and self._events[0][0] <= until:
            at, _, task, turn = heapq.heappop(self._events)
            if turn == task.turn and not task.done:
                steps = 0 if at > self.now else steps + 1
                assert steps < STEPS_AT_ONCE, "time stands still"
                self.now = max(self.now, at)
                self.step(task)
        if until != float("inf"):
            self.now = max(self.now, until)

    def step(self, task, kill=None):
        task.turn += 1
        before, self._running = self._running, task
        if kill is None:
            task._greenlet.switch()
        elif task._greenlet:
            task._greenlet.throw(kill)
        else:
            task.done, task.error = True, kill  # it never began
        self._running = before

    def _schedule(self, at, task):
        heapq.heappush(self._events, (at, next(self._order), task, task.turn))

    def _wait(self, until):
        if until < float("inf"):
            self._schedule(until, self._running)
        self._hub.switch()


class VirtualLock:
    """A lock whose timeouts run on the virtual clock."""

    def __init__(self, time):
        self._time = time
        self._held = False
        self._waiters = deque()

    def acquire(self, blocking=True, timeout=-1):
        if self._held and blocking:
            until = float("inf") if timeout < 0 else self._time.now + timeout
            task = self._time._running
            self._waiters.append(task)
            try:
                while self._held and self._time.now < until:
                    self._time._wait(until)
            finally:
                self._waiters.remove(task)
        if self._held:
            return False
        self._held = True
        return True

    def release(self):
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False
        if self._waiters:
            self._time._schedule(self._time.now, self._waiters[0])

    def locked(self):
        return self._held

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *error):
        self.release()
