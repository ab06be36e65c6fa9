"""What a process did, in numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from kombu_cfqueues import metrics as module
from kombu_cfqueues.errors import RateLimited, ServerError
from kombu_cfqueues.metrics import MAX_QUEUES, OTHER_QUEUES, Metrics


@pytest.fixture
def metrics():
    return Metrics()


def test_a_request_that_publishes_counts_its_messages(metrics):
    with metrics.request("publish", "jobs", messages=60):
        pass
    with metrics.request("publish", "jobs", messages=40):
        pass

    found = metrics.snapshot()
    assert (found["published"], found["publish_requests"]) == (100, 2)
    assert found["publish_seconds"] > 0
    assert found["queues"]["jobs"]["published"] == 100


def test_a_failed_request_says_so_and_raises_its_error(metrics):
    """An alert on failures fires, and nobody believes that the messages were published."""
    for error in (ServerError("", status=502), RateLimited("", status=429)):
        with pytest.raises(type(error)), metrics.request("publish", "jobs", messages=3):
            raise error

    found = metrics.snapshot()["queues"]["jobs"]
    assert (found["published"], found["publish_failed"]) == (0, 6)
    assert (found["failed_requests"], found["limited_requests"]) == (2, 1)


def test_a_limit_is_counted_by_its_code(metrics):
    error = RateLimited("", status=200, code=971)
    with pytest.raises(RateLimited), metrics.request("publish", "jobs", messages=3):
        raise error

    assert metrics.snapshot()["limited_requests"] == 1


def test_an_interrupted_request_is_a_failed_one(metrics):
    with pytest.raises(KeyboardInterrupt), metrics.request("publish", "jobs", messages=1):
        raise KeyboardInterrupt

    assert metrics.snapshot()["failed_requests"] == 1


def test_pulls_that_bring_nothing_are_told_apart(metrics):
    """They are billed: who sees many of them polls less often."""
    for messages in (5, 0, 0):
        with metrics.request("pull", "jobs") as request:
            request.messages = messages

    found = metrics.snapshot()
    assert (found["pulled"], found["pull_requests"], found["empty_pulls"]) == (5, 3, 2)


def test_what_belongs_to_no_queue_is_counted_for_the_process(metrics):
    with metrics.request("admin"):
        pass
    metrics.waited(0.25)
    metrics.retried(ServerError(""))

    found = metrics.snapshot()
    assert found["queues"] == {}
    assert (found["admin_requests"], found["permits"], found["retries"]) == (1, 1, 1)
    assert found["permit_wait_seconds"] == 0.25


def test_a_snapshot_is_json_and_of_its_moment(metrics):
    metrics.expired("jobs", 2)
    before = metrics.snapshot()
    metrics.settled("jobs", acks=3, retries=1)

    assert json.loads(json.dumps(before)) == before
    assert (before["leases_expired"], before["acked"]) == (2, 0)
    assert (metrics.snapshot()["acked"], metrics.snapshot()["given_back"]) == (3, 1)


def test_threads_lose_no_count(metrics):
    def count():
        for _ in range(2000):
            with metrics.request("publish", "jobs", messages=2):
                pass

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)

    assert metrics.snapshot()["published"] == 32_000


def test_the_names_of_reply_queues_do_not_fill_the_memory(metrics):
    for number in range(MAX_QUEUES + 10):
        metrics.expired(f"reply-{number}")

    found = metrics.snapshot()
    assert len(found["queues"]) == MAX_QUEUES + 1
    assert found["queues"][OTHER_QUEUES]["leases_expired"] == 10
    assert found["leases_expired"] == MAX_QUEUES + 10


def test_a_forked_child_begins_at_0_although_its_parent_was_counting(metrics):
    """The sum over processes is right, and a lock that a thread of the parent had stops nobody."""
    metrics.expired("jobs", 7)
    held, over = threading.Event(), threading.Event()

    def hold():
        with metrics._lock:
            held.set()
            over.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    child = os.fork()
    if child == 0:
        metrics.expired("jobs", 1)
        os._exit(metrics.snapshot()["leases_expired"])
    over.set()
    holder.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert metrics.snapshot()["leases_expired"] == 7


@pytest.mark.parametrize("trouble", ["AttributeError", "TypeError", "RuntimeError"])
def test_with_a_broken_opentelemetry_all_is_counted_all_the_same(trouble):
    """An observer that is missing never costs a message."""
    program = f"""
import sys, types
def get_meter(name):
    raise {trouble}(name)
class HalfLoaded(types.ModuleType):
    def __getattr__(self, name):
        raise {trouble}(name)
import kombu_cfqueues
from kombu_cfqueues.metrics import metrics
sys.modules["opentelemetry.metrics"] = HalfLoaded("opentelemetry.metrics")
metrics.expired("jobs")
sys.modules["opentelemetry.metrics"].get_meter = get_meter
with metrics.request("publish", "jobs", messages=1):
    pass
metrics.settled("jobs", 1, 0), metrics.expired("jobs"), metrics.waited(1.0)
metrics.retried(kombu_cfqueues.errors.ServerError(""))
assert kombu_cfqueues.stats()["published"] == 1
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_every_count_is_in_every_snapshot():
    """A dashboard finds 0, not a hole, before the first message."""
    found = Metrics().snapshot()

    counts = {*module.QUEUE_COUNTS, *module.PROCESS_COUNTS}
    notes = {"pid", "since", "share", "hints", "queues", "shared_budgets"}
    assert set(found) == counts | notes
