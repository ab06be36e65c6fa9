"""Many processes that start at once, as a deploy has them, and what else takes permits.

Connecting, looking queues up and asking how full they are need permits of the same allowance as
messages do.  They do not push messages aside.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kombu import Connection
from support.processes import Script

from kombu_cfqueues import errors

SERVER = {"latency": 0.02}


@pytest.fixture
def limited(tmp_path):
    """Cloudflare's own allowance, of which nothing is saved up."""
    return {"request_rate": 3.7, "request_burst": 60, "spool_dir": str(tmp_path / "spool")}


def bodies(server):
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages("jobs")]


def is_post(request):
    return request.route in ("push", "batch")


FLEET = """
    # Processes that have nothing of one another but the machine; forked, as that is faster.
    starts, begin = os.pipe()

    def say(what):  # in one piece, as many processes say something
        os.write(1, json.dumps(what).encode() + b"\\n")

    def work(name):
        os.close(begin)
        os.read(starts, 1)
        producer = connect().Producer()
        for number in range(3):
            started, said = time.monotonic(), ""
            try:
                producer.publish([name, number], routing_key="jobs", serializer="json")
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            say([name, number, round(time.monotonic() - started, 1), said])

    children = []
    for name in range(COUNT):
        pid = os.fork()
        if pid == 0:
            try:
                work(name)
                os._exit(0)
            except BaseException as error:
                say(repr(error))
            finally:
                os._exit(1)
        children.append(pid)
    print(0, flush=True)
    sys.stdin.readline()
    os.write(begin, b"." * len(children))
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)
"""


def fleet(server, options, count):
    return Script(FLEET.replace("COUNT", str(count)), server.broker_url, options)


def test_processes_that_start_together_fail_no_publish(server, limited):
    """32 workers of a deploy publish three messages each, with five seconds for each of them."""
    with fleet(server, limited | {"publish_timeout": 5.0}, 32) as script:
        script.line()
        script.go()
        results = script.wait()
    failed = [result for result in results if result[3]]
    print(f"{len(failed)} of {len(results)} failed")
    assert failed == []
    assert sorted(bodies(server)) == [[name, n] for name in range(32) for n in range(3)]


def test_processes_that_start_do_not_push_aside_those_that_publish(server, limited):
    """A process that was there before publishes on, with at least every second permit."""
    options = limited | {"publish_timeout": 15.0, "request_rate": 2.0}
    with (
        Connection(server.broker_url, transport_options=options) as connection,
        fleet(server, options, 24) as script,
    ):
        producer = connection.Producer()
        producer.publish("first", routing_key="jobs", serializer="json")
        script.line()
        server.requests.clear()
        script.go()
        while len(server.requests) < 7:  # what was saved up is spent, and all stand in line
            time.sleep(0.01)
        begun, slowest = len(server.requests), 0.0
        for number in range(4):
            started = time.monotonic()
            producer.publish(number, routing_key="jobs", serializer="json")
            slowest = max(slowest, time.monotonic() - started)
        asked = list(server.requests)[begun:]
        script.kill()
    posts = sum(map(is_post, asked))
    print(f"slowest: {slowest:.2f} s; {posts} of {len(asked)} requests were messages")
    # The next permit but one is never more than a second off; the rest is the machine's.
    assert slowest < 3.0
    assert 3 * posts >= len(asked)


@pytest.fixture
def questions(server, limited):
    """Sixteen threads that ask again and again how many messages a queue has."""
    options = limited | {"request_rate": 10.0, "request_burst": 2}
    with Connection(server.broker_url, transport_options=options) as connection:
        connection.Producer().publish("first", routing_key="jobs", serializer="json")
        over = threading.Event()

        def ask(_):
            queue = connection.clone().SimpleQueue("jobs")
            while not over.is_set():
                queue.qsize()

        with ThreadPoolExecutor(16) as pool:
            asking = [pool.submit(ask, number) for number in range(16)]
            server.requests.clear()
            while len(server.requests) < 8:  # all of them stand in line by now
                time.sleep(0.01)
            yield connection
            over.set()
        for one in asking:
            one.result()


def test_questions_about_queues_get_at_most_every_second_permit(server, questions):
    """A dashboard that asks, and a loop that publishes, share the allowance evenly."""
    producer = questions.Producer()
    begun = len(server.requests)
    for number in range(10):
        producer.publish(number, routing_key="jobs", serializer="json")
    asked = list(server.requests)[begun:]
    posts = sum(map(is_post, asked))
    print(f"{posts} of {len(asked)} requests were messages")
    assert 3 * posts >= len(asked)


def test_a_look_up_that_a_message_needs_is_none_of_the_questions(server, questions):
    """A message to a queue that is new to the process takes two permits, or three: not seventeen.

    (It is listed, made, and published to.)
    """
    producer = questions.Producer()
    started = time.monotonic()
    for number in range(3):
        producer.publish(number, routing_key=f"new-{number}", serializer="json")
    seconds = time.monotonic() - started
    # Nine permits, and as many for the questions, at ten a second.
    assert seconds < 3.0


def test_a_confirmed_publish_and_its_look_up_outlast_a_crowd_of_questions(server, questions):
    """Two seconds are enough for the next permit but one."""
    producer = questions.Producer()
    try:
        producer.publish(1, routing_key="another", serializer="json", timeout=2.0)
    except errors.PublishTimeout as error:
        pytest.fail(str(error))
