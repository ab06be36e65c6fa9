"""Consumers that end without closing their connection: what they hold is free at once.

Otherwise it would stay leased for ``visibility_timeout``, half an hour by default.
"""

from __future__ import annotations

import json
import textwrap

import pytest
from kombu import Connection
from support.forms import first_of
from support.processes import Script, needs

from kombu_cfqueues.emulator import Emulator

from .consuming import PULL, arrived, publish
from .workers import until

SETUP = """
import concurrent.futures, gc, multiprocessing, threading
import kombu

def consume(count, url=URL):
    "Receive messages, acknowledge the first one, and keep the others."
    connection = Connection(url, transport_options=OPTIONS)
    kept = []

    def receive(body, message):
        kept.append(message)
        if len(kept) == 1:
            message.ack()

    consumer = connection.Consumer(kombu.Queue("jobs"), callbacks=[receive])
    consumer.qos(prefetch_count=4)
    consumer.consume()
    while len(kept) < count:
        connection.drain_events(timeout=60)
    return connection, kept
"""

PROGRAMS = {
    "sys.exit": "kept = consume(2); sys.exit(0)",
    "the end of the program": "kept = consume(2)",
    "an uncaught error": "kept = consume(2); raise OSError",
    "a consumer that was forgotten": "consume(2); gc.collect()",
    "SimpleQueue": """
kept = connect().SimpleQueue("jobs")
kept.get(timeout=60).ack()
kept.get(timeout=60)
""",
    "basic_get": """
channel = connect().channel()
channel.basic_ack(channel.basic_get("jobs").delivery_tag)
kept = channel.basic_get("jobs")
""",
    "a daemon thread that goes on": """
ready = threading.Event()
def run():
    connection, kept = consume(2)
    ready.set()
    while True:
        connection.drain_events(timeout=60)
threading.Thread(target=run, daemon=True).start()
assert ready.wait(30)
""",
    "a thread of an executor": """
executor = concurrent.futures.ThreadPoolExecutor()
kept = executor.submit(consume, 2).result()
""",
    "a forked child": """
if not (child := os.fork()):
    kept = consume(2)
    sys.exit(0)
assert os.waitpid(child, 0) == (child, 0)
os._exit(0)
""",
    "a child of multiprocessing": """
def run():
    global kept
    kept = consume(2)
child = multiprocessing.get_context("fork").Process(target=run)
child.start()
child.join()
os._exit(0)
""",
    "a child of billiard": """
import billiard
def run():
    global kept
    kept = consume(2)
child = billiard.Process(target=run)
child.start()
child.join()
os._exit(0)
""",
}


@pytest.fixture
def server():
    with Emulator(latency=0.02) as emulator:
        emulator.create_queue("jobs", consumer=PULL)
        with Connection(emulator.broker_url) as connection:
            publish(connection, *range(6))
        arrived(emulator)
        yield emulator


def bodies(server):
    return sorted(json.loads(json.loads(one.body)["body"]) for one in server.messages("jobs"))


@pytest.mark.parametrize("green", first_of(["gevent", "eventlet"]))
def test_greenlets_that_end_without_closing_give_back_what_they_hold(server, green):
    """As threads do."""
    needs(green)
    with Script(SETUP + PROGRAMS["the end of the program"], server.broker_url, {}, green=green) as (
        script
    ):
        script.process.wait(60)
    assert len(bodies(server)) == 5
    assert {message.state for message in server.messages("jobs")} == {"ready"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_an_unclosed_consumer_holds_is_given_back_when_its_process_ends(server, program):
    """What it has acknowledged is gone, and what it has received or pulled ahead is free."""
    with Script(SETUP + PROGRAMS[program], server.broker_url, {}) as script:
        script.process.wait(60)
    assert len(bodies(server)) == 5
    assert {message.state for message in server.messages("jobs")} == {"ready"}


@pytest.mark.parametrize("does", ["pass", "consume(1)"])
def test_a_forked_child_that_ends_gives_back_nothing_of_its_parent(server, does):
    """The parent goes on working on its messages."""
    code = f"""
    connection, kept = consume(3)
    if not (child := os.fork()):
        {does}
        sys.exit(0)
    assert os.waitpid(child, 0) == (child, 0)
    print(json.dumps("the child has ended"), flush=True)
    sys.stdin.readline()
    for message in kept[1:]: message.ack()
    """
    with Script(SETUP + textwrap.dedent(code), server.broker_url, {}) as script:
        script.line()
        # Two are received, and two are pulled ahead.
        until(lambda: [one.state for one in server.messages("jobs")].count("leased") == 4, 20)
        script.go()
        script.wait()
    assert len(bodies(server)) == (3 if does == "pass" else 2)


def test_a_process_ends_soon_although_the_api_is_silent(server):
    """Each account has a share of a few seconds, also where the first one never answers."""
    code = """
    first, second = json.loads(sys.stdin.readline())
    kept = consume(2, first), consume(2, second)
    print(json.dumps("both consume"), flush=True)
    sys.stdin.readline()
    """
    with Emulator() as silent:
        silent.create_queue("jobs", consumer=PULL)
        with Connection(silent.broker_url) as connection:
            publish(connection, *range(6))
        arrived(silent)
        with Script(SETUP + textwrap.dedent(code), "", {}) as script:
            urls = json.dumps([silent.broker_url, server.broker_url])
            script.process.stdin.write(urls + "\n")
            script.process.stdin.flush()
            script.line()
            silent.latency = 300
            script.go()
            script.wait(30)
    assert {message.state for message in server.messages("jobs")} == {"ready"}
