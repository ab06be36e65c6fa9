"""Locks amid signal handlers that raise."""

import re
import threading
from pathlib import Path

import pytest

import kombu_cfqueues
from kombu_cfqueues.runtime.locks import _SafeLock, new_lock, new_reentrant_lock


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
def test_no_interrupt_leaves_a_lock_locked(interrupted, make):
    lock = make()

    def enter():
        with lock:
            pass

    for _ in range(3_000):
        interrupted(enter)
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
