"""Waits for other threads, amid signal handlers that raise."""

import signal
import threading
import time

import pytest

from kombu_cfqueues.runtime.condition import Condition
from kombu_cfqueues.runtime.flag import Event
from kombu_cfqueues.runtime.locks import new_lock

ROUNDS = 3_000


@pytest.fixture
def notifies():
    """Notifies a condition without end, in a thread, so that its waits end in every way."""
    ends, threads = threading.Event(), []

    def begin(lock, condition):
        def notify():
            while not ends.is_set():
                with lock:
                    condition.notify_all()

        threads.append(threading.Thread(target=notify))
        threads[0].start()

    yield begin
    ends.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(("is_notified", "rounds"), [(False, ROUNDS), (True, 500)])
def test_no_interrupt_of_a_wait_loses_the_lock(interrupted, notifies, is_notified, rounds):
    """It is not over with the `RuntimeError` of a lock that is not locked, either."""
    lock = new_lock()
    condition = Condition(lock)

    def wait():
        with lock:
            condition.wait(0.00001)

    if is_notified:
        notifies(lock, condition)
    for _ in range(rounds):
        interrupted(wait)
    assert lock.acquire(timeout=30)
    lock.release()


def test_an_interrupt_does_not_end_a_wait_while_another_thread_has_the_lock(raising):
    lock = new_lock()
    condition = Condition(lock)
    waiter, has_let_go = threading.get_ident(), []

    def interrupt_and_keep_the_lock():
        with lock:
            for _ in range(20):
                signal.pthread_kill(waiter, raising.signal)
                time.sleep(0.002)
            has_let_go.append(True)

    def wait():
        with lock:
            keeper.start()  # and it takes the lock once the wait has given it up
            try:
                condition.wait(30)
            finally:
                assert has_let_go

    keeper = threading.Thread(target=interrupt_and_keep_the_lock)
    try:
        with pytest.raises(raising.error):
            wait()
    finally:
        signal.signal(raising.signal, signal.SIG_IGN)
        keeper.join(30)
    assert not lock.locked()


def test_no_interrupt_of_a_wait_keeps_an_event_from_happening(interrupted):
    for _ in range(ROUNDS):
        event = Event()
        interrupted(lambda event=event: event.wait(0.00001))
        setter = threading.Thread(target=event.set, daemon=True)
        setter.start()
        setter.join(30)
        assert not setter.is_alive()
        assert event.wait(0)


def test_a_wait_says_whether_it_was_notified():
    lock = new_lock()
    condition = Condition(lock)
    heard = []

    def listen():
        with lock:
            heard.append(condition.wait(30))

    listener = threading.Thread(target=listen)
    with lock:
        assert not condition.wait(0)
        listener.start()
        while not condition._waiters:
            condition.wait(0.001)
        condition.notify()  # the wait that is over is forgotten, so this wakes the listener
    listener.join(30)
    assert heard == [True]


def test_all_who_wait_for_an_event_are_woken():
    event, heard = Event(), []
    listeners = [threading.Thread(target=lambda: heard.append(event.wait(30))) for _ in range(5)]
    for listener in listeners:
        listener.start()
    assert not event.wait(0)
    event.set()
    for listener in listeners:
        listener.join(30)
    assert heard == [True] * 5
