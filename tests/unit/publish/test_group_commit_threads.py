"""A lane among real threads, processes and greenlets."""

import ctypes
import importlib.util
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
from group_commit_parts import Commit

from kombu_cfqueues.errors import CFQueuesError, ConnectionFailed, InvalidMessage, RateLimited

ROOT = Path(__file__).parents[3]


class Interrupted(BaseException):
    """What a signal handler raises, at any line."""


class ChaoticServer:
    """Fails in every way, and counts what got through."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.gate = threading.Lock()  # who posts is not interrupted in our own bookkeeping
        self.posting = set()
        self.most_in_flight = self.most_items = self.most_bytes = self.requests = 0
        self.delivered, self.confirmed = Counter(), Counter()
        self.answered = {}  # by thread: what its last request confirmed
        self.repeatable = set()  # confirmed, but its poster may not have come to tell it

    def post(self, items, deadline):
        me = threading.get_ident()
        try:
            with self.gate:
                self.posting.add(me)
            self.requests += 1
            self.most_in_flight = max(self.most_in_flight, len(self.posting))
            self.most_items = max(self.most_items, len(items))
            self.most_bytes = max(self.most_bytes, sum(size for _, _, size in items))
            time.sleep(self.random.uniform(0, 0.004))
            chance = self.random.random()
            if chance < 0.02:
                raise ConnectionFailed("refused")
            if chance < 0.03:
                raise RateLimited("busy", status=429, retry_after=0.01)
            if any(number % 50 == 49 for _, number, _ in items):
                raise InvalidMessage("bad", status=400, code=10203)
            self.delivered.update(items)
            if chance < 0.08:
                raise ConnectionFailed("response lost", delivered="unknown")
            if chance < 0.10:
                raise Interrupted  # the poster itself
            self.confirmed.update(items)
            self.answered[me] = items
        finally:
            with self.gate:
                self.posting.discard(me)

    def lost_poster(self):
        """Note that an interrupt may have hit this thread before it told of the answer."""
        self.repeatable.update(self.answered.get(threading.get_ident(), ()))


class Publishers:
    """Two hundred threads that publish, fail, are interrupted and go on."""

    def __init__(self, lane, server, seed, seconds):
        self.lane, self.server, self.seed = lane, server, seed
        self.stop_at = time.monotonic() + seconds
        self.numbers = count()
        self.told = {}  # what each item's publisher heard
        self.struck = set()  # threads with an interrupt that they have not met yet
        self.threads = [
            threading.Thread(target=self.run, args=(n,), daemon=True) for n in range(200)
        ]

    def run(self, name):
        generator = random.Random(self.seed + name)
        while True:
            try:
                while time.monotonic() < self.stop_at:
                    self.publish(name, generator)
                return
            except Interrupted:
                self.struck.discard(threading.get_ident())
                self.server.lost_poster()

    def publish(self, name, generator):
        self.server.answered.pop(threading.get_ident(), None)  # that is told by now
        size = generator.choice([100] * 5 + [1_000] * 5 + [120_000])
        item = (name, next(self.numbers), size)
        self.told[item] = "interrupted"
        deadline = time.monotonic() + generator.choice([0.005, 0.5, 10.0])
        try:
            if generator.random() < 0.1:
                (self.told[item],) = self.lane.submit_many([(item, size)], deadline)
            else:
                self.lane.submit(item, size, deadline)
                self.told[item] = None
        except CFQueuesError as error:
            self.told[item] = error

    def interrupt_some(self):
        chaos = random.Random(self.seed)
        while time.monotonic() < self.stop_at - 0.2:
            victim = chaos.choice(self.threads).ident
            with self.server.gate:
                if victim not in self.server.posting and victim not in self.struck:
                    self.struck.add(victim)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(
                        ctypes.c_ulong(victim), ctypes.py_object(Interrupted)
                    )
            time.sleep(0.002)


# An interrupt may also hit what others have Python's garbage collector call.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_two_hundred_threads_amid_failures_and_interrupts(max_in_flight):
    """Each item has one outcome, and a true one; nobody waits for ever."""
    seed = int(os.environ.get("LANE_SEED") or random.randrange(10**6))
    print(f"LANE_SEED={seed}")
    server = ChaoticServer(seed)
    lane = Commit(server.post, max_in_flight=max_in_flight)
    publishers = Publishers(lane, server, seed, seconds=3.0)
    for thread in publishers.threads:
        thread.start()
    publishers.interrupt_some()
    for thread in publishers.threads:
        thread.join(timeout=15.0)

    told = publishers.told
    kinds = Counter(getattr(outcome, "delivered", outcome) for outcome in told.values())
    print(f"{len(told)} items, {server.requests} requests, outcomes: {dict(kinds)}")
    assert not any(thread.is_alive() for thread in publishers.threads), "somebody waits for ever"
    assert len(told) > 200  # more than one of each thread, on any machine
    for item, outcome in told.items():
        assert server.confirmed[item] <= (2 if item in server.repeatable else 1)
        if outcome is None:
            assert server.confirmed[item] >= 1
        elif isinstance(outcome, CFQueuesError) and outcome.delivered == "no":
            assert server.delivered[item] == 0
    assert server.most_in_flight <= max(max_in_flight, 2)
    assert server.most_items <= 100
    assert server.most_bytes <= 250_000

    began = time.monotonic()
    server.random = random.Random(5)
    lane.submit(("afterwards", 1, 1), 1, began + 10.0)
    assert time.monotonic() - began < 10.0


def test_a_signal_that_raises_ends_a_follower_at_once():
    """Ctrl-C, or a task's time limit, while another thread's request takes its time."""
    release = threading.Event()
    posted = []

    def post(items, deadline):
        posted.extend(items)
        release.wait(10)

    lane = Commit(post)
    leader = threading.Thread(target=lane.submit, args=("leader", 1, time.monotonic() + 20))
    leader.start()
    while not posted:
        time.sleep(0.001)

    def strike(number, frame):
        raise Interrupted

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Interrupted):
            lane.submit("follower", 1, time.monotonic() + 20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        release.set()
        leader.join()
    assert posted == ["leader"]


def run_python(script):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_starts_with_an_empty_lane():
    """Gunicorn and Celery fork while others publish: the child neither hangs nor repeats."""
    out = run_python("""
        import os, threading, time
        from group_commit_parts import Commit

        parent, busy, go_on = os.getpid(), threading.Event(), threading.Event()

        def post(items, deadline):
            if os.getpid() == parent:
                busy.set()
                go_on.wait(20)
            posted.extend(items)

        posted = []
        lane = Commit(post)
        deadline = time.monotonic() + 30
        threads = [threading.Thread(target=lane.submit, args=(n, 1, deadline)) for n in range(10)]
        for thread in threads:
            thread.start()
        busy.wait(20)
        time.sleep(0.05)
        lane.commit._lock.acquire()  # as if another thread held it at the moment of the fork
        child = os.fork()
        if not child:
            lane.submit("child", 1, time.monotonic() + 5)
            os._exit(0 if posted == ["child"] else 1)
        lane.commit._lock.release()
        _, status = os.waitpid(child, 0)
        go_on.set()
        for thread in threads:
            thread.join(20)
        print(os.waitstatus_to_exitcode(status), sorted(posted))
    """)
    assert out.split("\n")[0] == f"0 {list(range(10))}"


GREEN = """
    import random, time, threading
    from group_commit_parts import Commit
    from kombu_cfqueues.errors import ConnectionFailed

    requests, posted, failures = [], [], []

    def post(items, deadline):
        requests.append(len(items))
        time.sleep(0.02)
        if random.random() < 0.2:
            raise ConnectionFailed("refused")
        posted.extend(items)

    def publish(name):
        for n in range(5):
            lane.submit((name, n), 1_000, time.monotonic() + 30)

    lane = Commit(post)
    began = time.monotonic()
"""


def test_greenlets_of_gevent_share_requests_and_may_be_killed():
    pytest.importorskip("gevent")
    out = run_python(
        "from gevent import monkey; monkey.patch_all()\n"
        + textwrap.dedent(GREEN)
        + textwrap.dedent("""
            import gevent
            greenlets = [gevent.spawn(publish, n) for n in range(200)]
            gevent.sleep(0.01)
            victims = [0, 50, 150]
            gevent.killall([greenlets[n] for n in victims], timeout=5)
            for hasty in range(5):
                with gevent.Timeout(0.001, False):
                    lane.submit(("hasty", hasty), 1, time.monotonic() + 30)
            gevent.joinall(greenlets, timeout=30)
            rest = [n for n in range(200) if n not in victims]
            assert all(greenlets[n].successful() for n in rest)
            assert {item for item in posted if item[0] in rest} == {
                (name, n) for name in rest for n in range(5)
            }
            print(len(requests))
        """)
    )
    assert int(out) < 200


def test_green_threads_of_eventlet_share_requests_and_may_be_killed():
    if importlib.util.find_spec("eventlet") is None:  # importing it here would outlive the test
        pytest.skip("needs eventlet")
    out = run_python(
        "import eventlet; eventlet.monkey_patch()\n"
        + textwrap.dedent(GREEN)
        + textwrap.dedent("""
            threads = [eventlet.spawn(publish, n) for n in range(200)]
            eventlet.sleep(0.01)
            victims = [0, 50, 150]
            for n in victims:
                threads[n].kill()
            rest = [n for n in range(200) if n not in victims]
            for n in rest:
                threads[n].wait()
            assert {item for item in posted if item[0] in rest} == {
                (name, n) for name in rest for n in range(5)
            }
            print(len(requests))
        """)
    )
    assert int(out) < 200


def test_a_patch_that_comes_after_the_import_holds_as_well():
    """Celery and gunicorn patch late: what was imported before must not block the whole hub."""
    pytest.importorskip("gevent")
    out = run_python("""
        from group_commit_parts import Commit
        from gevent import monkey; monkey.patch_all()
        import gevent, time

        lane = Commit(lambda items, deadline: time.sleep(0.05))
        ticks = []
        ticker = gevent.spawn(lambda: [ticks.append(gevent.sleep(0.005)) for _ in range(1000)])
        publishers = [gevent.spawn(lane.submit, n, 1, time.monotonic() + 9) for n in range(50)]
        gevent.joinall(publishers, timeout=9)
        print(len(ticks))
    """)
    assert int(out) > 2
