"""Ctrl-C and SIGTERM end a command wherever it is."""

from __future__ import annotations

import signal
import threading

from support.interrupts import at, places

from kombu_cfqueues.cli._stop import Stop


def wait(stop):
    stop.wait(0.05)


def ends(work):
    """Whether *work* ends; if not, its thread stays behind."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


def test_a_signal_at_any_moment_of_a_wait_is_heard():
    """The handler would wait forever for a lock that the interrupted wait holds."""
    stop = Stop()
    found = {place for _ in range(2) for place in places(lambda: wait(stop))}  # see TRACES_LATE
    heard = []
    for place in found:
        stop = Stop()

        def stopped(place=place, stop=stop):
            if at(place, lambda: stop.handle_signal(signal.SIGTERM, None), lambda: wait(stop)):
                heard.append(stop.requested)

        assert ends(stopped), str(place)
    assert heard
    assert all(heard)


def test_each_thread_that_waits_hears_a_signal():
    stop = Stop()
    threads = [threading.Thread(target=stop.wait, args=(60,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    stop.handle_signal(signal.SIGTERM, None)
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)


def test_a_wait_that_is_over_before_it_begins_returns_at_once():
    """Such as a pause whose end has passed while the command worked."""
    assert not Stop().wait(-1.0)
