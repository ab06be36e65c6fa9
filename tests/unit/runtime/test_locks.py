"""Locks amid signal handlers that raise."""

import random
import re
import signal
import threading
from pathlib import Path

import pytest

import kombu_cfqueues
from kombu_cfqueues.runtime.locks import _SafeLock, new_lock, new_reentrant_lock


class Interrupted(Exception):
    """Raised by the signal handler, as Ctrl-C and time limits do."""


@pytest.fixture
def interrupts():
    def interrupt(*_):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "make",
    [
        new_lock,
        new_reentrant_lock,
        # The mend for one version of Python is tested on each.
        lambda: _SafeLock(threading.Lock()),
        lambda: _SafeLock(threading.RLock()),
    ],
    ids=["lock", "reentrant", "safe", "safe-reentrant"],
)
def test_no_interrupt_leaves_a_lock_locked(interrupts, make):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    lock = make()
    for _ in range(3_000):
        try:
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-5, 2e-4))
            while True:
                with lock:
                    pass
        except Interrupted:
            pass
        with pytest.raises(RuntimeError):  # nobody has it
            lock.release()


def test_a_safe_lock_is_as_any_other():
    lock = _SafeLock(threading.Lock())
    with lock as taken:
        assert taken
        assert lock.locked()
        assert not lock.acquire(timeout=0.01)
    assert not lock.locked()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    assert not lock.locked()


def test_the_library_makes_its_locks_here():
    """The emulator's threads get no signals."""
    library = Path(kombu_cfqueues.__file__).parent
    makers = {
        str(path.relative_to(library))
        for path in library.rglob("*.py")
        if re.search(r"threading\.R?Lock\(\)$", path.read_text(), re.MULTILINE)
    }
    assert not {name for name in makers if not name.startswith("emulator/")}
