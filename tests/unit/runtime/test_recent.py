"""What is forgotten because nobody used it."""

import threading

import pytest
from virtual_time import VirtualTime

from kombu_cfqueues.runtime import recent as module
from kombu_cfqueues.runtime.recent import Recent


@pytest.fixture
def time():
    return VirtualTime(now=100.0)


@pytest.fixture
def recent(time, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    return Recent(clock=time)


def test_what_is_used_is_kept_and_what_is_not_is_forgotten(time, recent):
    for key in "abc":
        recent.put(key, key.upper())
    time.now += module.RECENT_SECONDS / 2
    assert recent.get("a") == "A"
    assert recent.get_or_make("b", lambda: "another") == "B"
    time.now += module.RECENT_SECONDS / 2 + 1
    recent.put("d", "D")

    assert [recent.get(key) for key in "abcd"] == ["A", "B", None, "D"]


def test_nothing_is_forgotten_before_it_is_old(time, recent):
    """A look-up costs a request: to forget the queues that are in use would cost one each time."""
    for key in range(100):
        recent.put(key, key)
    time.now += module.RECENT_SECONDS

    assert [recent.get(key) for key in range(100)] == list(range(100))


def test_a_small_table_forgets_nothing(time, recent):
    """An application with few queues looks each up once, even if it uses it once a day."""
    recent.put("a", "A")
    time.now += 10 * module.RECENT_SECONDS
    recent.put("b", "B")

    assert recent.get("a") == "A"


def test_a_value_is_made_once(recent):
    made = iter("xy")
    assert recent.get_or_make("a", lambda: next(made)) == "x"
    assert recent.get_or_make("a", lambda: next(made)) == "x"


def test_none_is_a_value(recent):
    recent.put("a", None)
    assert "a" in recent
    recent.pop("a")
    recent.pop("a")
    assert "a" not in recent
    assert recent.items() == []


def test_threads_make_one_value(recent):
    """Two names that are translated to one must not both get it."""
    together = threading.Barrier(16)
    found = []

    def get(number):
        together.wait(60)
        found.append(recent.get_or_make("a", lambda: number))

    threads = [threading.Thread(target=get, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 16
    assert len(set(found)) == 1
