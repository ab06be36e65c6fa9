"""The reply queues of ``rpc://``: each process that waits for results makes one for each thread.

They go when the process ends, or they would stay for ever.
"""

from __future__ import annotations

import re

import pytest
from support.forms import first_of
from support.processes import Script, eventually

from kombu_cfqueues.emulator import Emulator

from .workers import Worker

SETUP = """
import threading
from celery import Celery

app = Celery(broker=URL, backend="rpc://")
app.conf.broker_transport = "kombu_cfqueues:Transport"
app.conf.broker_transport_options = OPTIONS

def ask():
    return app.send_task("tasks.add", [[1, 2]])

def say(what):
    print(json.dumps(what), flush=True)
    sys.stdin.readline()

"""

FAST = {"polling_interval": 0.05, "max_polling_interval": 0.1}


@pytest.fixture(scope="module")
def server():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture(scope="module", autouse=True)
def worker(server, tmp_path_factory):
    """Answers, as any worker does."""
    folder = tmp_path_factory.mktemp("worker")
    environ = {"RESULTS": "rpc://"}
    with Worker(server, folder, pool="solo", options=FAST, environ=environ) as worker:
        yield worker


@pytest.fixture
def reply_queues(server):
    """Returns the reply queues that were made since the test began."""
    before = set(server.queue_names())

    def names():
        made = set(server.queue_names()) - before
        return [name for name in made if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]+){4}", name)]

    return names


def program(server, code):
    return Script(SETUP + code, server.broker_url, FAST)


def test_reply_queues_go_when_the_process_ends(server, reply_queues):
    """One for each thread that has waited, also of threads that have ended."""
    code = """
def wait():
    assert ask().get(timeout=60) == 3
threads = [threading.Thread(target=wait) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
wait()
say("answered")
"""
    with program(server, code) as script:
        script.line()
        assert len(reply_queues()) == 3
        script.go()
        script.wait(60)
    assert reply_queues() == []


def test_the_reply_queue_of_a_process_that_has_not_waited_goes_too(server, reply_queues):
    """The answer makes it."""

    def answered():
        return any(server.messages(name) for name in reply_queues())

    with program(server, "ask()\nsay('asked')\n") as script:
        script.line()
        assert eventually(answered)
        script.go()
        script.wait(60)
    assert reply_queues() == []


ENDS_OF_A_CHILD = {
    "its end": "sys.exit(0)",
    "closing": "app.backend.result_consumer._connection.release(); os._exit(0)",
    "waiting": "assert ask().get(timeout=60) == 3; sys.exit(0)",
}


@pytest.mark.parametrize("end", first_of(ENDS_OF_A_CHILD))
def test_a_forked_child_deletes_no_reply_queue_of_its_parent(server, reply_queues, end):
    """The parent goes on waiting for its results."""
    code = f"""
assert ask().get(timeout=60) == 3
if not (child := os.fork()):
    {ENDS_OF_A_CHILD[end]}
assert os.waitpid(child, 0) == (child, 0)
say("the child has ended")
"""
    with program(server, code) as script:
        script.line()
        assert len(reply_queues()) == 1
        script.go()
        script.wait(60)
    assert reply_queues() == []


def test_a_queue_that_others_use_stays(server):
    """A publisher that declares an ``auto_delete`` queue is not the one who consumes it."""
    code = """
import kombu
with connect() as connection:
    queue = kombu.Queue("theirs", auto_delete=True)
    connection.Producer().publish(1, routing_key="theirs", declare=[queue])
"""
    with program(server, code) as script:
        script.wait(60)
    assert "theirs" in server.queue_names()


def test_results_come_soon(server):
    """The reply queue is pulled often while its result may come: not after half a minute each."""
    code = "for _ in range(4):\n    assert ask().get(timeout=100) == 3\n    time.sleep(0.2)\n"
    options = {"polling_interval": 30, "max_polling_interval": 30}
    with Script(SETUP + code, server.broker_url, options) as script:
        script.wait(60)


def test_a_process_that_consumes_what_it_publishes_does_not_wait_for_the_next_pull(server):
    """The fixtures of ``celery.contrib.pytest`` run a worker in the process that sends tasks."""
    server.create_queue("own")
    code = """
simple = connect(polling_interval=60, max_polling_interval=60).SimpleQueue("own")
try:
    simple.get(timeout=0.5)  # pulled, and not again for a minute
except simple.Empty:
    pass
simple.put("here")
assert simple.get(timeout=30).payload == "here"
"""
    with Script(SETUP + code, server.broker_url, {}) as script:
        script.wait(60)
