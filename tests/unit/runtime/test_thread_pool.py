"""Threads that come when there is work."""

from __future__ import annotations

import threading
import time

import pytest

from kombu_cfqueues.runtime import thread_pool as module
from kombu_cfqueues.runtime.thread_pool import Job, StartingLock, ThreadPool


class Work:
    made = 0

    def __init__(self, most: int) -> None:
        Work.made += 1
        self.name = f"test-pool-{Work.made}"
        self.lock = StartingLock()
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


def test_threads_start_when_the_lock_is_free():
    """Starting one switches greenlets, and another greenlet may want the lock."""
    work, done = Work(1), threading.Event()
    with work.lock:
        work.jobs.append(done.set)
        work.pool.call()
        assert work.threads == 0
    assert done.wait(30)


def test_a_wait_for_a_condition_starts_threads_too():
    work = Work(1)
    changed = work.lock.condition()

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
