"""Many processes that start at once, as a deploy has them, and what else takes permits.

Connecting, looking queues up and asking how full they are need permits of the same allowance as
messages do.  They do not push messages aside.
"""

from __future__ import annotations

import json
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kombu import Connection
from support.forms import first_of
from support.processes import Script

from kombu_cfqueues import errors

SERVER = {"latency": 0.02}


@pytest.fixture
def limited(tmp_path):
    """Cloudflare's own allowance, of which nothing is saved up."""
    return {"request_rate": 3.7, "request_burst": 60, "spool_dir": str(tmp_path / "spool")}


def bodies(server, queue="jobs"):
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages(queue)]


def is_post(request):
    return request.route in ("push", "batch")


FLEET = """
    # Processes that have nothing of one another but the machine; forked, as that is faster.
    kombu_cfqueues.Transport  # the modules that it needs, too
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


def test_processes_that_start_take_no_permit_from_those_that_publish(server, limited):
    """What they would ask is known on their machine, so all permits carry messages."""
    options = limited | {"publish_timeout": 15.0}
    with (
        Connection(server.broker_url, transport_options=options) as connection,
        fleet(server, options, 24) as script,
    ):
        producer = connection.Producer()
        producer.publish("first", routing_key="jobs", serializer="json")
        script.line()
        server.requests.clear()
        script.go()
        for number in range(4):
            producer.publish(number, routing_key="jobs", serializer="json")
        assert [result[3] for result in script.wait()] == [""] * 72
    assert all(map(is_post, server.requests))


ONE_EACH = """
    # Processes that have nothing of one another but the machine; forked, as that is faster.
    def work(name):
        with connect() as connection:
            connection.Producer().publish([name, 0], routing_key=QUEUE, serializer="json")

    def start(name, begins=None):
        pid = os.fork()
        if pid == 0:
            try:
                if begins is not None:
                    os.read(begins, 1)
                work(name)
                os._exit(0)
            finally:
                os._exit(1)
        return pid

    kombu_cfqueues.Transport
    for wave in range(WAVES):
        sys.stdin.readline()
        if TOGETHER:
            begins, begin = os.pipe()
            children = [start(name, begins) for name in range(COUNT)]
            os.write(begin, b"." * COUNT)
            assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * COUNT
        else:
            for name in range(COUNT):
                assert os.waitpid(start(name), 0)[1] == 0
        print(json.dumps("over"), flush=True)
"""


def fresh_processes(server, options, count, *, queue="jobs", waves=1, together=True):
    given = {"COUNT": count, "QUEUE": queue, "WAVES": waves, "TOGETHER": together}
    code = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    return Script(code + textwrap.dedent(ONE_EACH), server.broker_url, options)


def wave(script):
    """Let one wave of processes start, and wait for its end."""
    script.go()
    assert script.line() == "over"


@pytest.mark.parametrize("exists", first_of([True, False]))
def test_sixteen_processes_start_with_one_look_up(server, limited, exists):
    """A new file has five permits saved up; before, each of the sixteen asked what one can ask."""
    queue = "jobs" if exists else "new"
    options = limited | {"request_rate": 0.5}  # slow, so that no pause of the machine counts
    with fresh_processes(server, options, 16, queue=queue) as script:
        wave(script)
        script.wait()
    asked = list(server.requests)
    print([request.route for request in asked])
    assert sorted(bodies(server, queue)) == [[name, 0] for name in range(16)]
    assert [request.route for request in asked if not is_post(request)] == (
        ["list"] if exists else ["list", "list", "create"]
    )
    assert len(asked) <= 8


def test_the_processes_that_start_later_ask_nothing(server, limited):
    with fresh_processes(server, limited | {"request_rate": 20.0}, 8, waves=2) as script:
        wave(script)
        server.requests.clear()
        wave(script)
        script.wait()
    assert len(bodies(server)) == 16
    assert all(map(is_post, server.requests))


def test_scripts_that_publish_once_take_one_request_each(server, limited):
    """A cron job, or a task of Airflow: the look-up before its publish took as long again."""
    options = limited | {"request_rate": 20.0}
    with fresh_processes(server, options, 20, together=False) as script:
        wave(script)
        script.wait()
    assert len(bodies(server)) == 20
    assert len(server.requests) <= 1.1 * 20


def test_a_message_to_each_of_many_queues_takes_few_requests_more(server, limited):
    """Before, each queue was looked up by its name."""
    names = [f"queue-{number}" for number in range(120)]
    for name in names:
        server.create_queue(name)
    options = limited | {"request_rate": 200.0}
    with Connection(server.broker_url, transport_options=options) as connection:
        producer = connection.Producer()
        for name in names:
            producer.publish(name, routing_key=name, serializer="json")
    assert [len(server.messages(name)) for name in names] == [1] * 120
    assert len(server.requests) <= 130


def test_a_script_finds_the_queue_that_was_created_anew(server, limited, tmp_path):
    """What the machine believes is wrong then, and the 404 tells."""
    options = limited | {"request_rate": 20.0}
    with fresh_processes(server, options, 1, waves=3) as script:
        wave(script)
        elsewhere = {"spool_dir": str(tmp_path / "another machine")}
        with Connection(server.broker_url, transport_options=options | elsewhere) as connection:
            connection.default_channel.queue_delete("jobs")
        server.create_queue("jobs")
        wave(script)
        server.requests.clear()
        wave(script)
        script.wait()
    assert len(bodies(server)) == 2
    assert len(server.requests) == 1


def test_a_script_whose_token_was_revoked_says_so(server, limited):
    """Although the machine believes that the token works; the next one hears it when connecting."""
    options = limited | {"request_rate": 20.0, "publish_timeout": 20.0}
    code = """
    for _ in range(3):
        sys.stdin.readline()
        reader, writer = os.pipe()
        if os.fork() == 0:
            said = ""
            try:
                connection = connect()
                connection.connect()
                said = "connected, "
                connection.Producer().publish(1, routing_key="jobs", serializer="json")
                said += "published"
            except Exception as error:
                said += type(error).__name__
            os.write(writer, json.dumps(said).encode())
            os._exit(0)
        print(os.read(reader, 999).decode(), flush=True)
    """
    with Script(code, server.broker_url, options) as script:
        script.go()
        assert script.line() == "connected, published"
        server.faults.error(status=401, code=9109, message="Invalid access token", times=None)
        script.go()
        assert script.line() == "connected, AuthenticationFailed"
        script.go()
        assert script.line() == "AuthenticationFailed"


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
