"""Threads that come when there is work."""

from __future__ import annotations

import _thread
import threading
import time

import pytest

from kombu_cfqueues.runtime import thread_pool as module
from kombu_cfqueues.runtime.condition import Condition
from kombu_cfqueues.runtime.locks import new_lock
from kombu_cfqueues.runtime.thread_pool import Job, ThreadPool


class Work:
    made = 0

    def __init__(self, most: int) -> None:
        Work.made += 1
        self.name = f"test-pool-{Work.made}"
        self.lock = new_lock()
        self.jobs = []
        self.raises = []
        self.pool = ThreadPool(self.name, most, self.lock, self.next_job)

    def next_job(self) -> Job:
        if self.raises:
            raise self.raises.pop()
        if not self.jobs:
            return Job()
        return Job(self.jobs.pop(0), more=bool(self.jobs))

    @property
    def threads(self) -> int:
        return sum(thread.name == self.name for thread in threading.enumerate())

    def add(self, *jobs) -> None:
        with self.lock:
            self.jobs += jobs
            self.pool.call()


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_so_many_work_at_once_and_no_more():
    work, gate, running = Work(3), threading.Event(), []

    def job():
        running.append(1)
        gate.wait(30)

    work.add(*[job] * 10)
    wait_for(lambda: len(running) == 3)
    time.sleep(0.05)

    assert len(running) == 3
    assert work.threads == 3
    gate.set()
    wait_for(lambda: len(running) == 10)


def test_one_job_needs_one_thread():
    work, done = Work(8), []

    work.add(lambda: done.append(1))
    wait_for(lambda: done)
    work.add(lambda: done.append(2))
    wait_for(lambda: len(done) == 2)

    assert work.threads == 1


def test_threads_without_work_leave(monkeypatch):
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.05)
    work, done = Work(2), []

    work.add(lambda: done.append(1))

    wait_for(lambda: done and not work.threads)
    work.add(lambda: done.append(2))
    wait_for(lambda: len(done) == 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.logs_bugs
def test_a_bug_is_logged_and_the_thread_goes_on(monkeypatch, caplog):
    """A thread that dies would stop consuming without a word."""
    monkeypatch.setattr(module, "BUG_PAUSE_SECONDS", 0.01)
    work, done = Work(1), []

    work.add(lambda: 1 / 0, lambda: done.append(1))

    wait_for(lambda: done)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.logs_bugs
def test_a_bug_in_handing_out_work_costs_no_thread(monkeypatch, caplog):
    monkeypatch.setattr(module, "BUG_PAUSE_SECONDS", 0.01)
    work, done = Work(1), []
    work.raises.append(ZeroDivisionError())

    work.add(lambda: done.append(1))

    wait_for(lambda: done)
    assert "ZeroDivisionError" in caplog.text
    assert work.threads == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("where", ["in a job", "between jobs"])
def test_a_thread_that_is_stopped_by_force_is_replaced(where):
    """As gevent does when an application kills all greenlets."""
    work, done = Work(1), []
    if where == "in a job":
        work.add(_stop, lambda: done.append(1))
    else:
        work.raises.append(SystemExit())
        work.add(lambda: done.append(1))

    wait_for(lambda: done)
    wait_for(lambda: work.threads == 1)


def _stop():
    raise SystemExit


def test_a_wait_for_a_condition_starts_threads_too():
    work = Work(1)
    changed = Condition(work.lock)

    def job():
        with work.lock:
            changed.notify_all()

    with work.lock:
        work.jobs.append(job)
        work.pool.call()
        assert changed.wait(30)


def test_no_thread_keeps_a_process_alive():
    work, done = Work(2), threading.Event()
    work.add(done.set)
    assert done.wait(30)

    assert all(t.daemon for t in threading.enumerate() if t.name == work.name)


def test_a_caller_that_holds_the_lock_waits_for_no_thread(monkeypatch):
    """Under gevent, another greenlet would run meanwhile, and may want the lock."""
    work, done = Work(1), threading.Event()
    start = threading.Thread.start

    def start_with_the_lock(thread):
        with work.lock:
            start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_with_the_lock)
    work.add(done.set)
    assert done.wait(30)


def test_the_last_thread_of_a_machine_does_the_work(monkeypatch):
    work, done = Work(1), threading.Event()

    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    work.add(done.set)
    assert done.wait(30)


def test_a_start_that_was_interrupted_counts_no_thread(monkeypatch):
    """The place of a thread that never comes would be taken forever."""
    start = _thread.start_new_thread
    for starts in (False, True):
        work, done = Work(1), threading.Event()

        def interrupt(function, args, starts=starts):
            if starts:
                start(function, args)
            raise KeyboardInterrupt

        with monkeypatch.context() as interrupted:
            interrupted.setattr(_thread, "start_new_thread", interrupt)
            with pytest.raises(KeyboardInterrupt):
                work.add(done.set)
        work.add()
        assert done.wait(30)
        wait_for(lambda work=work: work.threads == 1)


def test_a_thread_that_is_stopped_while_it_starts_is_replaced(monkeypatch):
    """As gevent does when an application kills all greenlets."""
    work, done = Work(1), threading.Event()
    start, stops = threading.Thread.start, [SystemExit()]

    def stop_first(thread):
        if stops:
            raise stops.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", stop_first)
    work.add(done.set)
    assert done.wait(30)
