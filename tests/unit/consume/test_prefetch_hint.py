"""When a worker is told that it may hold too few messages."""

from __future__ import annotations

import pytest

from kombu_cfqueues.consume import prefetch_hint
from kombu_cfqueues.consume.prefetch_hint import JUDGED_PULLS, PrefetchHint
from kombu_cfqueues.metrics import Metrics
from kombu_cfqueues.runtime.once import Once


@pytest.fixture
def hints(monkeypatch):
    """What `stats` has of hints."""
    metrics = Metrics()
    monkeypatch.setattr(prefetch_hint, "metrics", metrics)
    monkeypatch.setattr(prefetch_hint, "_once", Once())
    return lambda: metrics.snapshot()["hints"]


def pulls(hint: PrefetchHint, number: int, *, idle: float, flows: bool = True) -> None:
    """Pulls of 30 ms, 50 ms apart, during which the worker is idle for a share of the time."""
    for n in range(number):
        now = 100 + n * 0.05
        hint.pulled(now - 0.03, now, idle_seconds=7 + idle * n * 0.05, flows=flows)


def test_a_worker_that_mostly_waits_for_pulls_is_told_once(hints, caplog):
    hint = PrefetchHint()

    for _ in range(3):
        pulls(hint, JUDGED_PULLS + 1, idle=0.7)
        hint.give("celery", 8)

    assert "worker_prefetch_multiplier" in hints()
    (line,) = caplog.messages
    assert "worker_prefetch_multiplier" in line
    assert "the 8 messages" in line
    assert "30 ms" in line


@pytest.mark.parametrize(
    ("number", "idle", "flows"),
    [
        pytest.param(JUDGED_PULLS, 1.0, True, id="too few pulls"),
        # With one message at a time, and tasks of 100 ms, it waits for 23 % of the time.
        pytest.param(200, 0.23, True, id="busy"),
        pytest.param(200, 1.0, False, id="queue almost empty"),
    ],
)
def test_other_workers_are_told_nothing(hints, caplog, number, idle, flows):
    hint = PrefetchHint()

    pulls(hint, number, idle=idle, flows=flows)
    hint.give("celery", 1)

    assert not hints()
    assert not caplog.messages


def test_the_time_without_messages_in_a_queue_does_not_count(hints):
    hint = PrefetchHint()
    pulls(hint, JUDGED_PULLS, idle=0.0)
    hint.pulled(200.0, 200.03, idle_seconds=100.0, flows=False)

    pulls(hint, JUDGED_PULLS, idle=0.0)
    hint.give("celery", 8)

    assert not hints()
