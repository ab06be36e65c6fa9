"""A signal handler that raises in the middle of consuming.

All consumers of a process share what pulls and acknowledges.  The call that is struck ends; this
thread's next call, and those of other threads, have to work as if nothing had been.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.forms import LONG
from support.processes import Script

TESTS = Path(__file__).parents[1]

MESSAGES = 3_000
"""In each of the two queues: more than are taken, and than are lost to interrupted takers."""

OPTIONS = {"consumer_visibility_timeout": 60, "polling_interval": 0.05, "request_rate": None}

CONSUMERS = f"""
    import contextlib, queue, threading
    import kombu_cfqueues
    sys.path.insert(0, {str(TESTS)!r})
    from support.interrupts import at, end_if_stuck, interrupt, places

    PROMPT = 3.0  # seconds; a message that waits in the process is taken in microseconds
    now = [None]  # where the main thread is, for the watchdog
    first, step = OPTIONS.pop("first"), OPTIONS.pop("step")
    connection = connect()
    with connection.channel() as channel, kombu_cfqueues.batch(connection):
        producer = connection.Producer(channel)
        for name in ("jobs", "others"):
            for number in range({MESSAGES}):
                producer.publish(number, routing_key=name, serializer="json")

    def say(what):
        os.write(1, json.dumps(what).encode() + b"\\n")

    def taker(name):
        own = connection.clone()
        source = own.SimpleQueue(name)
        # A message that a struck call took stays unsettled, as with other brokers.
        source.consumer.qos(prefetch_count=0)

        def take():
            message = source.get(timeout=PROMPT)
            message.ack()
            return message.payload
        return take

    work, answers = queue.Queue(), queue.Queue()

    def serve():
        take = taker("others")
        while True:
            work.get()
            try:
                answers.put(isinstance(take(), int) or "no number")
            except BaseException as error:
                answers.put(f"{{type(error).__name__}}: {{error}}")

    threading.Thread(target=serve, daemon=True).start()

    def take_elsewhere():
        work.put(None)
        try:
            return answers.get(timeout=2 * PROMPT)
        except queue.Empty:
            return "it never returned"

    end_if_stuck(now, 3 * PROMPT, lambda place: say({{"stuck": place}}))
    take = taker("jobs")
    assert take_elsewhere() is True
    take(), take()
    todo = places(take)
    todo += [place for place in places(take) if place not in todo]
    todo = todo[first::step]
    broken, passed = {{}}, 0
    for place in todo:
        now[0] = place
        passed += at(place, interrupt, take)
        elsewhere = take_elsewhere()
        if elsewhere is not True:
            broken[str(place)] = elsewhere
            break
        try:
            take()
        except Exception as error:
            broken[str(place)] = f"here: {{type(error).__name__}}: {{error}}"
            break
    now[0] = None
    say({{"places": len(todo), "passed": passed, "broken": broken}})
    os._exit(0)
"""


@pytest.mark.longer
def test_wherever_a_consumer_is_interrupted_the_next_one_works_promptly(server):
    server.create_queue("others")
    step = 1 if LONG else 5
    first = int(os.environ.get("CFQUEUES_SEED", random.randrange(step))) % step
    print("CFQUEUES_SEED =", first)
    options = OPTIONS | {"first": first, "step": step}
    with Script(CONSUMERS, server.broker_url, options) as script:
        said = script.line()
    assert "stuck" not in said, said
    print(said["passed"], "of", said["places"], "places were passed")
    assert said["broken"] == {}
    assert said["passed"] > said["places"] / 2
