"""Signal handlers that raise."""

import gc
import random
import signal

import pytest


class Interrupted(Exception):
    """Raised by the signal handler, as Ctrl-C and time limits do."""


@pytest.fixture
def interrupted():
    """Repeats a call until the handler raises, within 0.2 ms, what is expected of the call."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)

    def raise_interrupted(*_):
        raise Interrupted

    def repeat(call):
        # Python swallows what is raised in a callback of the garbage collector, of which Hypothesis
        # has one.  So the signal comes again.
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 2e-4), 5.0)
        while True:
            call()

    def repeat_until_interrupted(call):
        with pytest.raises(Interrupted):
            repeat(call)
        signal.setitimer(signal.ITIMER_REAL, 0)

    before = signal.signal(signal.SIGALRM, raise_interrupted)
    collects = gc.isenabled()
    gc.disable()
    yield repeat_until_interrupted
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    if collects:
        gc.enable()
