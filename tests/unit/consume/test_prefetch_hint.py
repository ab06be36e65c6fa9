"""When a worker is told that it may hold too few messages."""

from __future__ import annotations

import pytest

from kombu_cfqueues.consume import prefetch_hint
from kombu_cfqueues.consume.prefetch_hint import STARVED_PULLS, PrefetchHint
from kombu_cfqueues.metrics import Metrics
from kombu_cfqueues.runtime.once import Once


@pytest.fixture
def hints(monkeypatch):
    """What `stats` has of hints."""
    metrics = Metrics()
    monkeypatch.setattr(prefetch_hint, "metrics", metrics)
    monkeypatch.setattr(prefetch_hint, "_once", Once())
    return lambda: metrics.snapshot()["hints"]


def pulls(hint: PrefetchHint, number: int, *, found_idle: bool, every: float = 0.05) -> None:
    """Pulls of 30 ms, answered in the given interval."""
    for n in range(number):
        now = 100 + n * every
        hint.pulled(now - 0.03, now, found_idle=found_idle)


def test_a_worker_that_is_without_work_when_pulls_are_answered_is_told_once(hints, caplog):
    hint = PrefetchHint()

    for _ in range(3):
        pulls(hint, STARVED_PULLS, found_idle=True)
        hint.give("celery", 8)

    assert "worker_prefetch_multiplier" in hints()
    (line,) = caplog.messages
    assert "worker_prefetch_multiplier" in line
    assert "the 8 messages" in line
    assert "30 ms" in line


def test_a_worker_that_has_work_when_pulls_are_answered_is_told_nothing(hints, caplog):
    hint = PrefetchHint()
    pulls(hint, STARVED_PULLS - 1, found_idle=True)
    pulls(hint, STARVED_PULLS, found_idle=False)
    pulls(hint, STARVED_PULLS - 1, found_idle=True)

    hint.give("celery", 8)

    assert not hints()
    assert not caplog.messages


def test_a_worker_that_holds_one_long_task_is_told_nothing(hints, caplog):
    """It has nothing whenever a pull is answered, and waits for a small part of its time."""
    hint = PrefetchHint()
    pulls(hint, 10 * STARVED_PULLS, found_idle=True, every=0.1 + 0.03)

    hint.give("celery", 1)

    assert not hints()
    assert not caplog.messages
