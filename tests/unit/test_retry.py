"""Another try: when, how often, and what is known after the last one."""

import time

import pytest

from kombu_cfqueues import retry
from kombu_cfqueues.errors import ConnectionFailed, InvalidMessage, RateLimited, ServerError


def failing(*outcomes):
    """A call that fails in this order, the last way for ever; `calls` counts."""

    def call():
        outcome = outcomes[min(call.calls, len(outcomes) - 1)]
        call.calls += 1
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    call.calls = 0
    return call


def until(deadline, call):
    return retry.until(deadline, call, lambda _: False)


def soon(seconds):
    return time.monotonic() + seconds


def test_what_works_is_called_once():
    call = failing("done")

    assert until(soon(1), call) == "done"
    assert call.calls == 1


def test_what_may_work_later_is_tried_again(monkeypatch):
    monkeypatch.setattr(retry, "REQUEST_BACKOFF", retry.Backoff(0.001, 0.001))

    assert until(soon(1), failing(ServerError("x"), ConnectionFailed("y"), "done")) == "done"


def test_what_cannot_work_is_raised_at_once():
    call = failing(InvalidMessage("x"))

    with pytest.raises(InvalidMessage):
        until(soon(1), call)
    assert call.calls == 1


def test_the_caller_may_give_up():
    call = failing(ServerError("x"))

    with pytest.raises(ServerError):
        retry.until(soon(1), call, lambda _: True)
    assert call.calls == 1


def test_nothing_is_tried_after_the_deadline():
    began = time.monotonic()

    with pytest.raises(ServerError):
        until(began + 0.2, failing(ServerError("x")))

    assert time.monotonic() - began < 5


def test_who_cannot_wait_for_retry_after_hears_so_at_once():
    """A token blocked for 5 minutes is no reason to hold a web request for 30 s."""
    began = time.monotonic()

    with pytest.raises(RateLimited):
        until(began + 5, failing(RateLimited("x", retry_after=300.0)))

    assert time.monotonic() - began < 4


def test_retry_after_is_waited_for():
    began = time.monotonic()

    assert until(soon(2), failing(RateLimited("x", retry_after=0.3), "done")) == "done"

    assert time.monotonic() - began >= 0.3


def test_a_retry_after_of_zero_is_no_leave_to_hammer():
    """The server says so when it restarts, or when our clocks differ."""
    call = failing(RateLimited("x", retry_after=0.0))

    with pytest.raises(RateLimited):
        until(soon(0.3), call)

    assert call.calls < 15


def test_what_was_in_doubt_once_stays_in_doubt():
    """The first try may have delivered, whatever became of the second."""
    lost = ConnectionFailed("lost", delivered="unknown")

    for last in (RateLimited("x", retry_after=300.0), InvalidMessage("y")):
        with pytest.raises(type(last)) as raised:
            until(soon(1), failing(lost, last))
        assert raised.value.delivered == "unknown"


def test_a_deadline_that_is_no_number_ends_it_too():
    call = failing(ServerError("x"))

    with pytest.raises(ServerError):
        until(float("nan"), call)
    assert call.calls == 1


def test_pauses_grow_and_end_growing():
    backoff, ceilings = retry.Backoff(first_seconds=0.2, longest_seconds=10.0), []
    assert backoff.pause_seconds() == 0.0, "nothing has failed"
    for _ in range(9):
        backoff = backoff.after_failure()
        ceilings.append(backoff.ceiling_seconds)

    assert ceilings == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]
    drawn = {backoff.pause_seconds() for _ in range(50)}
    assert 0 <= min(drawn) < 5 < max(drawn) <= 10.0
    assert len(drawn) == 50, "those that failed together do not come back together"


def test_the_pauses_of_ten_thousand_failures_are_numbers():
    backoff = retry.Backoff(first_seconds=0.2, longest_seconds=10.0, failures=10_000)

    assert backoff.ceiling_seconds == 10.0


def test_a_pause_leaves_time_for_a_last_try(monkeypatch):
    """An outage that ends before the deadline fails nobody, however long the pauses are."""
    monkeypatch.setattr(retry, "REQUEST_BACKOFF", retry.Backoff(3600.0, 3600.0))
    up_at = time.monotonic() + 0.3

    def call():
        if time.monotonic() < up_at:
            raise ServerError("down")
        return "done"

    assert until(up_at + 0.2, call) == "done"


def test_what_the_server_asks_for_is_not_cut():
    call = failing(ServerError("down", retry_after=100.0))

    with pytest.raises(ServerError):
        until(soon(1), call)
    assert call.calls == 1
