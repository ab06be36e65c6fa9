"""Messages that the server refuses for what they are, among others that it would take.

A request is refused as a whole, so it is split until the bad message is alone.  The good ones
arrive, wherever they stand, and whichever way they travel: in a batch, in a batch that shares the
machine's allowance, in the spool, or in a request that threads share.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from kombu import Connection, Producer
from support.forms import first_of, long
from support.processes import ROOT, Script, eventually

from kombu_cfqueues import errors
from kombu_cfqueues.errors import BatchPublishError

NO_BATCHES = pytest.mark.skipif(
    not hasattr(Producer, "batch"), reason="Producer.batch() came with Kombu 5.7"
)

REQUESTS_FOR_A_BAD_ONE = 14
"""To find one message in a hundred takes seven halvings, two requests each."""

ENOUGH = 75
"""Requests after which it is clear that a queue takes nothing.  Which messages are asked alone is
random: 61 were counted once."""


@pytest.fixture
def limited(tmp_path):
    """Requests are limited, though hardly, so they go through the machine's allowance."""
    return {"request_rate": 400.0, "request_burst": 100, "spool_dir": str(tmp_path / "spool")}


@pytest.fixture(params=["unlimited", "limited", "limited for the process"])
def options(request, limited):
    """Options of a connection that confirms."""
    if request.param == "unlimited":
        return {}
    return limited | {"budget_scope": "host" if request.param == "limited" else "process"}


@pytest.fixture
def spooling(limited):
    return limited | {"publish_mode": "spool"}


def bodies(server):
    return [json.loads(json.loads(m.body)["body"]) for m in server.messages("jobs")]


def posts(server):
    return server.requests.of("push", "batch")


def is_bad(body):
    return json.loads(body)["body"].startswith('"bad')


def named(count, bad):
    return [f"{'bad' if number in bad else 'good'} {number}" for number in range(count)]


def good_of(names):
    return Counter(name for name in names if name.startswith("good"))


def values(outcomes):
    return [json.loads(outcome.message["body"]) for outcome in outcomes]


def publish_batch(connection, names):
    """Publish them in one batch; return what it raised."""
    producer = connection.Producer()
    try:
        with producer.batch(max_size=3_000):
            for name in names:
                producer.publish(name, routing_key="jobs", serializer="json")
    except BatchPublishError as error:
        return error
    return None


POSITIONS = pytest.mark.parametrize(
    "bad",
    [
        {0, 1, 99},
        {*range(10), 99},
        *map(long, [{0, 1, 2}, {97, 98, 99}, {0, 50, 99}, {49, 50, 99}, {0, 2, 99}]),
    ],
    ids=str,
)


# -- some are bad


@NO_BATCHES
@POSITIONS
def test_a_few_bad_messages_of_a_batch_stop_none_of_the_good_ones(server, options, bad):
    names = named(100, bad)
    server.faults.refuse_messages(is_bad)
    with Connection(server.broker_url, transport_options=options) as connection:
        error = publish_batch(connection, names)
    assert Counter(bodies(server)) == good_of(names)
    assert Counter(values(error.accepted)) == good_of(names)
    assert sorted(values(error.refused)) == sorted(set(names) - set(good_of(names)))
    assert error.uncertain == []
    assert len(posts(server)) <= 1 + REQUESTS_FOR_A_BAD_ONE * len(bad)


@NO_BATCHES
@POSITIONS
def test_a_few_bad_messages_of_a_spooled_batch_stop_none_of_the_good_ones(server, spooling, bad):
    """Only the bad ones are kept as refused; nobody has to look for good ones among them."""
    names = named(100, bad)
    server.faults.refuse_messages(is_bad)
    with Connection(server.broker_url, transport_options=spooling) as connection:
        assert publish_batch(connection, names) is None
        assert eventually(lambda: not waits(spool(server, spooling)), 30)
    assert Counter(bodies(server)) == good_of(names)
    assert len(spool(server, spooling)["refused"]) == len(bad)


def test_bad_messages_that_are_spooled_one_by_one_stop_none_of_the_good_ones(server, spooling):
    """The publisher of each bad one, and nobody else, sees its promise broken."""
    names = named(100, {0, 1, 99})
    server.faults.refuse_messages(is_bad)
    with Connection(server.broker_url, transport_options=spooling) as connection:
        producer = connection.Producer()
        with server.outage():  # so that they leave together
            promises = {
                name: producer.publish(name, routing_key="jobs", serializer="json")
                for name in names
            }
        assert eventually(lambda: all(p.ready or p.failed for p in promises.values()), 30)
    broken = {name for name, promise in promises.items() if promise.failed}
    assert broken == set(names) - set(good_of(names))
    assert Counter(bodies(server)) == good_of(names)


@NO_BATCHES
@pytest.mark.parametrize("way", first_of(["limited", "unlimited", "spooled"]))
def test_wherever_bad_messages_stand_the_good_ones_arrive(server, limited, way):
    """Twelve batches of random sizes, each with one to eight bad messages at random places."""
    seed = int(os.environ.get("CFQUEUES_SEED", "20"))
    print("CFQUEUES_SEED =", seed)
    chance = random.Random(seed)
    options = {"unlimited": {}, "limited": limited}.get(way, limited | {"publish_mode": "spool"})
    server.faults.refuse_messages(is_bad)
    expected = Counter()
    with Connection(server.broker_url, transport_options=options) as connection:
        for number in range(12):
            count = chance.randint(3, 130)
            bad = set(chance.sample(range(count), min(count, chance.randint(1, 4))))
            # Bad ones are often neighbours, at the front as anywhere; the last hides a lone one.
            first = chance.choice([0, chance.randrange(count)])
            bad |= {first, min(first + 1, count - 1), count - 1}
            names = [f"{name} of {number}" for name in named(count, bad)]
            expected += good_of(names)
            publish_batch(connection, names)
            if way == "spooled":
                eventually(lambda: len(bodies(server)) >= sum(expected.values()), 5)  # noqa: B023
            missing = expected - Counter(bodies(server))
            assert not missing, f"{len(missing)} of {count}, the bad ones being {sorted(bad)}"
    assert Counter(bodies(server)) == expected


@pytest.mark.parametrize("scope", ["process", "host"])
def test_bad_messages_of_some_threads_do_not_fail_the_publishes_of_others(server, limited, scope):
    """Threads that publish at the same time share a request, and no fate."""
    options = limited | {"budget_scope": scope, "max_in_flight": 1}
    names = named(40, {0, 1, 2, 37, 38, 39})
    with Connection(server.broker_url, transport_options=options) as connection:
        connection.Producer().publish("good first", routing_key="jobs", serializer="json")
        server.faults.refuse_messages(is_bad)
        server.faults.latency("push", "batch", seconds=0.5, times=1)  # the others gather meanwhile
        ready = threading.Barrier(len(names))

        def publish(name):
            producer = connection.clone().Producer()
            ready.wait()
            try:
                producer.publish(name, routing_key="jobs", serializer="json")
            except errors.CFQueuesError as error:
                return error
            return None

        with ThreadPoolExecutor(len(names)) as pool:
            raised = dict(zip(names, pool.map(publish, names), strict=True))
    assert {name for name, error in raised.items() if error} == set(names) - set(good_of(names))
    assert {type(error) for error in raised.values() if error} == {errors.InvalidMessage}
    assert Counter(bodies(server)) == good_of([*names, "good first"])


# -- all are refused


@NO_BATCHES
def test_a_queue_that_takes_nothing_is_given_up_after_a_few_requests(server, options):
    """Splitting 2,000 messages to the last one would be 4,000 requests: 18 minutes of them.

    What was not asked for was not sent, and it is safe to publish it again.
    """
    server.faults.refuse_messages(lambda body: True)
    with Connection(server.broker_url, transport_options=options) as connection:
        error = publish_batch(connection, range(2_000))
        assert sorted(values(error.refused)) == list(range(2_000))
        assert {outcome.error.delivered for outcome in error.refused} == {"no"}
        assert len(posts(server)) <= ENOUGH

        server.faults.clear()
        again = [json.loads(outcome.message["body"]) for outcome in error.refused]
        assert publish_batch(connection, again) is None
    assert Counter(bodies(server)) == Counter(range(2_000))


@NO_BATCHES
def test_a_batch_tells_what_was_refused_from_what_was_not_asked_for(server, options):
    """An `InvalidMessage` says that this message is bad, which nobody knows of the others."""
    server.faults.refuse_messages(lambda body: True)
    with Connection(server.broker_url, transport_options=options) as connection:
        error = publish_batch(connection, range(500))
    told_so = [o for o in error.refused if isinstance(o.error, errors.InvalidMessage)]
    asked_alone = [request for request in posts(server) if len(messages_of(request)) == 1]
    assert 0 < len(told_so) <= len(asked_alone)


@NO_BATCHES
def test_what_is_spooled_for_a_queue_that_takes_nothing_waits(server, spooling):
    """And it arrives once the queue takes messages again, without anybody's doing."""
    server.faults.refuse_messages(lambda body: True)
    with Connection(server.broker_url, transport_options=spooling) as connection:
        publish_batch(connection, range(500))
        assert eventually(lambda: spool(server, spooling)["refused"], 30)
        assert eventually(lambda: has_stopped(server), 30)
        assert len(posts(server)) <= ENOUGH

        server.faults.clear()
        refused = len(spool(server, spooling)["refused"])
        assert refused < ENOUGH, "most of them were refused without having been asked for"
        assert eventually(lambda: len(set(bodies(server))) == 500 - refused, 30)


RUBBISH = """
    producer = connect(publish_mode="spool").Producer()
    for number in range(60):
        producer.publish(f"bad {number}", routing_key="jobs", serializer="json")
    print(0, flush=True)
    sys.stdin.readline()
"""


def test_confirmed_messages_survive_what_another_process_has_spooled(server, limited):
    """A worker that spools rubbish to a queue takes nothing from who confirms there."""
    server.faults.refuse_messages(is_bad)
    names = [f"good {number}" for number in range(20)]
    with (
        Script(RUBBISH, server.broker_url, limited) as script,
        Connection(server.broker_url, transport_options=limited) as connection,
    ):
        connection.connect()
        with server.outage():
            script.line()

        def publish(name):
            connection.clone().Producer().publish(name, routing_key="jobs", serializer="json")

        with ThreadPoolExecutor(10) as pool:
            list(pool.map(publish, names))
        script.go()
    assert Counter(bodies(server)) == Counter(names)


# -- what the command says


def messages_of(request):
    sent = json.loads(request.body)
    return sent["messages"] if request.path.endswith("/batch") else [sent]


def has_stopped(server, seconds=0.5):
    """Whether no request has come for a while."""
    before = server.requests.total
    return not eventually(lambda: server.requests.total > before, seconds)


def spool(server, spooling):
    """What waits on this machine, as ``cfqueues spool --json`` says it."""
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from kombu_cfqueues.cli import main; main()"),
            *("spool", "--spool-dir", spooling["spool_dir"], "--json"),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CFQUEUES_BROKER_URL": server.broker_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def waits(found):
    """How many messages wait there, or are on their way."""
    return sum(queue["waiting"] + queue["sending"] for queue in found["queues"])
