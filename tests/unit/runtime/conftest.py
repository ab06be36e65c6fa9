"""Signal handlers that raise."""

import gc
import random
import signal
from typing import NamedTuple

import pytest


class Interrupted(Exception):
    """Raised by the signal handler, as Ctrl-C and time limits do."""


class Raising(NamedTuple):
    """A signal whose handler raises, and what it raises."""

    signal: int
    error: type[Exception]


@pytest.fixture
def raising():
    """A signal whose handler raises."""

    def raise_interrupted(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, raise_interrupted)
    yield Raising(signal.SIGALRM, Interrupted)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def interrupted(raising):
    """Repeats a call until the handler raises, within 0.2 ms, what is expected of the call."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def repeat(call):
        # Python swallows what is raised in a callback of the garbage collector, of which Hypothesis
        # has one.  So the signal comes again.
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 2e-4), 5.0)
        while True:
            call()

    def repeat_until_interrupted(call):
        with pytest.raises(raising.error):
            repeat(call)
        signal.setitimer(signal.ITIMER_REAL, 0)

    collects = gc.isenabled()
    gc.disable()
    yield repeat_until_interrupted
    signal.setitimer(signal.ITIMER_REAL, 0)
    if collects:
        gc.enable()
