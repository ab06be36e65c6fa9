"""Confirmed publishing of many processes, in requests that they share."""

import contextlib
import json
import logging
import random
import threading
import time

import pytest
from kombu import Connection, Producer
from support.processes import Script, eventually

from kombu_cfqueues import errors


@pytest.fixture
def limited(tmp_path):
    """Options of a connection whose requests are limited, so that all share."""
    return {"request_rate": 3.7, "request_burst": 2, "spool_dir": str(tmp_path / "spool")}


SERVER = {"latency": 0.03}


def bodies(server, queue="jobs"):
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages(queue)]


PUBLISH_FOR_A_WHILE = """
    connection = connect()
    producer = connection.Producer()
    connection.transport.session.use_queue("jobs", time.monotonic() + 60, lambda queue: None)
    print(0, flush=True)
    sys.stdin.readline()
    count, end = 0, time.monotonic() + 3
    while time.monotonic() < end:
        producer.publish([os.getpid(), count], routing_key="jobs")
        count += 1
    print(json.dumps([os.getpid(), count]))
"""


def test_processes_share_requests_and_the_allowance(server, limited):
    """Eight processes with one message each are one request, not eight."""
    with contextlib.ExitStack() as stack:
        scripts = [
            stack.enter_context(Script(PUBLISH_FOR_A_WHILE, server.broker_url, limited))
            for _ in range(8)
        ]
        for script in scripts:
            script.line()
        server.requests.clear()
        began = time.time()
        for script in scripts:
            script.go()
        results = [script.line() for script in scripts]
        for script in scripts:
            script.wait()
    published = [[pid, number] for pid, count in results for number in range(count)]
    assert sorted(bodies(server)) == sorted(published)
    # Since they could ask for permits, as a busy machine may delay the first request.
    lasted = server.requests[-1].time - began
    assert len(server.requests) <= 3.7 * lasted + 1 + 2
    assert len(published) >= 2 * len(server.requests)
    assert all(request.status == 200 for request in server.requests)


def test_what_a_killed_process_has_claimed_goes_on_at_once(server, limited):
    """Others' messages do not wait out the timeouts of a process that is no more."""
    thief = Script(
        """
        from kombu_cfqueues.account import Account
        account = Account.open(connect().transport.session.options)
        from kombu_cfqueues.waiting_room import ClaimTerms
        room = account.publisher.relay._spool.room
        while not getattr(room.claim(ClaimTerms(1)), "items", None):
            time.sleep(0.001)
        print(1, flush=True)
        time.sleep(60)
        """,
        server.broker_url,
        limited,
    )
    with Connection(server.broker_url, transport_options=limited) as connection, thief:
        producer = connection.Producer()
        finished = [0.0]
        stop = threading.Event()

        def publish():
            while not stop.is_set():
                producer.publish(1, routing_key="jobs")
                finished.append(time.monotonic())

        thread = threading.Thread(target=publish)
        thread.start()
        thief.line()  # it was faster, and has taken what this process waits for
        count = len(finished)
        time.sleep(1)
        assert len(finished) == count, "what is claimed by the living is theirs"
        thief.kill()
        killed = time.monotonic()
        assert eventually(lambda: len(finished) > count)
        stop.set()
        thread.join()
    # Found dead within a quarter of a second; then it is a permit and a request.  Not by a claim's
    # end, which is 20 seconds off.
    assert finished[count] - killed < 10


def test_a_publisher_that_was_told_no_was_told_the_truth(server, limited):
    """``delivered == "no"`` means that the message never arrives, however short the time was."""
    refused, lock = set(), threading.Lock()
    options = limited | {"request_rate": 20.0}

    def work(seed):
        chance = random.Random(seed)
        with Connection(server.broker_url, transport_options=options) as connection:
            producer = connection.Producer()
            connection.transport.session.use_queue(
                "jobs", time.monotonic() + 60, lambda queue: None
            )
            for number in range(40):
                try:
                    timeout = chance.uniform(0.001, 0.1) if number % 10 else 30
                    producer.publish([seed, number], routing_key="jobs", timeout=timeout)
                except errors.PublishTimeout as error:
                    if error.delivered == "no":
                        with lock:
                            refused.add((seed, number))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    time.sleep(1)
    arrived = {tuple(body) for body in bodies(server)}
    assert refused
    assert arrived
    assert not refused & arrived


def test_a_block_reaches_every_process_and_those_who_cannot_wait_hear_at_once(server, limited):
    other = Script(
        """
        from kombu_cfqueues import errors
        producer = connect().Producer()
        producer.publish(2, routing_key="jobs")
        print(0, flush=True)
        sys.stdin.readline()
        started = time.monotonic()
        try:
            producer.publish(3, routing_key="jobs")
        except errors.CFQueuesError as error:
            print(json.dumps([time.monotonic() - started, error.delivered, str(error)]))
        """,
        server.broker_url,
        limited,
    )
    with Connection(server.broker_url, transport_options=limited) as connection, other:
        producer = connection.Producer()
        producer.publish(0, routing_key="jobs")
        other.line()
        server.faults.error("push", "batch", status=429, code=971, retry_after=100)
        with pytest.raises(errors.PublishTimeout):
            producer.publish(1, routing_key="jobs")
        server.requests.clear()
        other.go()
        [[seconds, delivered, text]] = other.wait()
    assert delivered == "no"
    assert seconds < 15  # it would have waited for 30
    assert "stopped every call" in text
    assert len(server.requests) == 0


def test_without_a_file_each_process_takes_a_sixteenth(server, limited, tmp_path, caplog):
    """Slow, but never the block that sixteen whole allowances would cause."""
    (tmp_path / "no").write_text("in the way")
    options = limited | {"spool_dir": str(tmp_path / "no"), "request_rate": 16.0}
    with (
        caplog.at_level(logging.WARNING, "kombu_cfqueues"),
        Connection(server.broker_url, transport_options=options) as connection,
    ):
        producer = connection.Producer()
        started = time.monotonic()
        for number in range(3):
            producer.publish(number, routing_key="jobs")
        assert time.monotonic() - started > 2.5
    assert sorted(bodies(server)) == [0, 1, 2]
    (record,) = [r for r in caplog.records if "sixteenth" in r.getMessage()]
    assert str(tmp_path / "no") in record.getMessage()


def test_a_poster_with_a_token_of_its_own_trouble_holds_nobody_else_up(server, limited):
    """Its failure is not the messages': others send them, and it touches them no more."""
    wrong = server.broker_url.replace(server.token, "revoked")
    with Connection(server.broker_url, transport_options=limited) as connection:
        producer = connection.Producer()
        producer.publish(0, routing_key="jobs")
        queue_id = server.queue_id("jobs")
        bad = Script(
            f"""
            from kombu_cfqueues import errors
            OPTIONS["queues"] = {{"jobs": "{queue_id}"}}
            OPTIONS["publish_mode"] = "spool"
            for number in range(3):
                connect().Producer().publish(100 + number, routing_key="jobs")
            print(1, flush=True)
            time.sleep(30)
            """,
            wrong,
            limited,
        )
        with bad:
            bad.line()
            for number in range(1, 6):
                producer.publish(number, routing_key="jobs", timeout=30)
    assert set(bodies(server)) >= {0, 1, 2, 3, 4, 5}


@pytest.mark.skipif(not hasattr(Producer, "batch"), reason="Producer.batch() came with Kombu 5.7")
def test_a_batch_of_thousands_leaves_room_for_single_messages(server, limited):
    options = limited | {"request_rate": 20.0}
    with (
        Connection(server.broker_url, transport_options=options) as bulk,
        Connection(server.broker_url, transport_options=options) as single,
    ):
        single.Producer().publish("first", routing_key="other")
        published = 0

        def singles():
            nonlocal published
            producer = single.Producer()
            while thread.is_alive():
                producer.publish("single", routing_key="other")
                published += 1

        def batch():
            producer = bulk.Producer()
            with producer.batch():
                for number in range(4000):
                    producer.publish(number, routing_key="jobs")

        thread = threading.Thread(target=batch)
        thread.start()
        singles()
        thread.join()
    assert len(server.messages("jobs")) == 4000
    # The batch needs forty requests; each of the others waited for a few of them.
    assert published >= 5


def test_a_fork_in_the_middle_of_publishing_harms_neither_side(server, limited):
    """The child publishes as a process of its own; the parent's callers get their answers."""
    script = Script(
        """
        import threading
        connection = connect(request_rate=20.0)
        producer = connection.Producer()
        producer.publish(["first", 0], routing_key="jobs")
        stop, published = threading.Event(), []
        def work(name):
            mine, number = connection.clone().Producer(), 0
            while not stop.is_set():
                mine.publish([name, number], routing_key="jobs")
                number += 1
            published.append([name, number])
        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads: thread.start()
        children = []
        for child in range(6):
            time.sleep(0.2)
            pid = os.fork()
            if pid == 0:
                try:
                    producer = connect(request_rate=20.0).Producer()
                    producer.publish(["child", child], routing_key="jobs")
                    os._exit(0)
                except BaseException:
                    import traceback; traceback.print_exc()
                    os._exit(1)
            children.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        stop.set()
        for thread in threads: thread.join()
        print(json.dumps([statuses, published]))
        """,
        server.broker_url,
        limited,
    )
    with script:
        [[statuses, published]] = script.wait()
    assert statuses == [0] * 6, script.errors
    arrived = [json.loads(message.body)["body"] for message in server.messages("jobs")]
    expected = {json.dumps([name, n]) for name, count in published for n in range(count)}
    expected |= {json.dumps(["child", child]) for child in range(6)}
    assert expected <= set(arrived)
    assert len(arrived) == len(expected) + 1
