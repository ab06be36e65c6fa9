"""What is said once, and by everybody in the same way."""

import re
from pathlib import Path

import kombu_cfqueues
from kombu_cfqueues.runtime import recent
from kombu_cfqueues.runtime.once import Once, once

LIBRARY = Path(kombu_cfqueues.__file__).parent


def test_each_is_said_once():
    said = []

    @once
    def say(*words):
        said.append(words)

    for words in [("a",), ("b", 1), ("a",), ("b", 1), ()]:
        say(*words)
    assert said == [("a",), ("b", 1), ()]


def test_what_was_said_long_ago_is_forgotten(monkeypatch):
    """The text of an error may be new each time."""
    monkeypatch.setattr(recent, "KEPT", 10)
    monkeypatch.setattr(recent, "RECENT_SECONDS", -1.0)
    said = Once()
    assert all(said.is_new(number) for number in range(100))
    assert not said.is_new(99)
    assert len(said._said) == 10


def test_no_cache_of_results_is_used_to_say_something_once():
    """A cache keeps what a function returns; a function that only logs returns nothing."""
    found = []
    for path in LIBRARY.rglob("*.py"):
        text = path.read_text()
        found += re.findall(r"@functools\.(?:lru_)?cache.*\n *def (\w+)\([^)]*\) -> None", text)
    assert found == []
