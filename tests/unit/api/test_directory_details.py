"""What the directory remembers of queues and of their pull consumers, against the emulator."""

from __future__ import annotations

import logging
import time

import pytest

from kombu_cfqueues import errors, limits
from kombu_cfqueues.api.client import Client
from kombu_cfqueues.api.directory import Directory
from kombu_cfqueues.api.models import PullConsumer, Queue
from kombu_cfqueues.emulator import ACCOUNT_ID, TOKEN
from kombu_cfqueues.envelope import Address
from kombu_cfqueues.options import Options, Secret
from kombu_cfqueues.rate_limit import Budget


def soon():
    return time.monotonic() + 20


def options(**given):
    return Options(account_id=ACCOUNT_ID, api_token=Secret(TOKEN), **given)


@pytest.fixture
def directory(emulator):
    client = Client(
        emulator.base_url,
        ACCOUNT_ID,
        Secret(TOKEN),
        connect_timeout=5,
        read_timeout=10,
        permits=Budget(None),
    )
    yield Directory(client, None)
    client.close()


def paths(emulator):
    return [(request.method, request.path.rpartition("queues")[2]) for request in emulator.requests]


def queue_of(name="jobs", consumers=()):
    return Queue("f" * 32, name, None, tuple(consumers))


def pull(retries=None, dead=None, **more):
    settings = {} if retries is None else {"settings": {"max_retries": retries}}
    return {"type": "http_pull", **settings, "dead_letter_queue": dead, **more}


# Pull consumers


def test_a_pull_consumer_is_made_once_with_what_the_options_say(emulator, directory, caplog):
    caplog.set_level(logging.INFO)
    given = options(dead_letter_queue="dead.letters", consumer_max_retries=7, visibility_timeout=60)
    queue = directory.queue("jobs", given, deadline=soon())

    first = directory.enable_pull(queue, given, deadline=soon())
    asked = len(emulator.requests)
    second = directory.enable_pull(queue, given, deadline=soon())

    assert first == second == PullConsumer(7, "dead-letters")
    assert len(emulator.requests) == asked
    (consumer,) = emulator.consumers("jobs")
    assert consumer.max_retries == 7
    assert consumer.dead_letter_queue == "dead-letters"
    assert consumer.visibility_timeout_ms == 60_000
    assert "enabled HTTP pull for queue 'jobs' at Cloudflare" in caplog.messages
    assert "created queue 'jobs' at Cloudflare" in caplog.messages


def test_a_consumer_without_a_dead_letter_queue_has_none(directory):
    queue = directory.queue("jobs", options(), deadline=soon())

    found = directory.enable_pull(queue, options(), deadline=soon())

    assert found == PullConsumer(limits.MAX_RETRIES, "")


@pytest.mark.parametrize(
    ("consumer", "known"),
    [
        (pull(5, "dead"), PullConsumer(5, "dead")),
        (pull(50), PullConsumer(50, "")),
        (pull(50, 7), PullConsumer(50, "")),
        (pull("many"), PullConsumer(limits.MAX_RETRIES_DEFAULT, "")),
        ({**pull(), "settings": "none"}, PullConsumer(limits.MAX_RETRIES_DEFAULT, "")),
    ],
)
def test_what_came_with_the_queue_costs_no_request(emulator, directory, consumer, known):
    assert (
        directory.enable_pull(queue_of(consumers=[consumer]), options(), deadline=soon()) == known
    )
    assert not emulator.requests


@pytest.mark.parametrize(
    ("allowed", "wanted", "told"),
    [(9, 100, True), (10, 100, False), (3, 3, False), (2, 3, True), (9, 9, False)],
)
def test_few_retries_are_told_of_unless_they_were_asked_for(
    directory, caplog, allowed, wanted, told
):
    queue = queue_of(consumers=[pull(allowed)])

    directory.enable_pull(queue, options(consumer_max_retries=wanted), deadline=soon())

    text = (
        f"the pull consumer of queue 'jobs' allows {allowed} deliveries of a message "
        "(max_retries), and every worker that ends while it has the message uses one: set it to 100"
    )
    assert caplog.messages == ([text] if told else [])


def test_a_consumer_that_is_forgotten_is_looked_for_again(emulator, directory):
    emulator.create_queue("jobs")
    given = options()
    queue = directory.queue("jobs", given, deadline=soon())
    directory.enable_pull(queue, given, deadline=soon())
    asked = len(emulator.requests)

    directory.forget_pull(queue.id)
    directory.forget_pull(queue.id)  # of a queue that is not known: nothing
    directory.enable_pull(queue, given, deadline=soon())

    # Asked for, although the look-up of the queue may have brought it.
    assert len(emulator.requests) == asked + 1


def test_a_consumer_that_somebody_else_makes_in_the_meantime_is_taken(emulator, directory):
    given = options()
    queue = directory.queue("jobs", given, deadline=soon())
    other = Directory(directory._client, None)
    other.enable_pull(queue, options(consumer_max_retries=33), deadline=soon())
    real, answers = directory._client.list_consumers, [[]]

    def list_consumers(*args, **kwargs):
        """The first time, as it was a moment ago."""
        return answers.pop() if answers else real(*args, **kwargs)

    directory._client.list_consumers = list_consumers

    assert directory.enable_pull(queue, given, deadline=soon()).max_retries == 33


# Names at Cloudflare, for copies and for the spool


def test_a_queue_by_its_name_at_cloudflare_is_made_if_it_is_missing(emulator, directory):
    made = directory.resolve(Address("dead", creates=True), deadline=soon())
    again = directory.resolve(Address("dead", creates=True), deadline=soon())

    assert made == again
    assert emulator.queue_names() == ["dead"]
    assert emulator.queue_id("dead") == made
    assert sum(method == "POST" for method, _ in paths(emulator)) == 1


def test_a_name_without_time_to_look_it_up_fails(directory):
    with pytest.raises(errors.ConnectionFailed, match="looking up queue 'dead'"):
        directory.resolve(Address("dead", creates=True), deadline=time.monotonic() - 1)


def test_an_address_is_the_id_that_is_known_or_the_name(emulator, directory):
    emulator.create_queue("jobs")
    before = directory.address("jobs", options())
    directory.queue("jobs", options(), deadline=soon())
    after = directory.address("jobs", options(create_missing_queues=False))

    assert before == Address("jobs", True, None)
    assert after == Address("jobs", False, emulator.queue_id("jobs"))


def test_an_address_is_resolved_by_what_is_known_then_by_what_it_says_then_by_asking(
    emulator, directory
):
    emulator.create_queue("jobs")
    says = Address("jobs", True, "e" * 32)
    assert directory.resolve(says, deadline=soon()) == "e" * 32
    assert not emulator.requests

    asked = directory.resolve(Address("jobs", False, None), deadline=soon())

    assert asked == emulator.queue_id("jobs") == directory.resolve(says, deadline=soon())


def test_an_address_that_creates_nothing_is_refused_where_nothing_is(emulator, directory):
    with pytest.raises(errors.QueueNotFound, match="'jobs'"):
        directory.resolve(Address("jobs", False, None), deadline=soon())
    assert emulator.queue_names() == []

    made = directory.resolve(Address("jobs", True, None), deadline=soon())
    assert made == emulator.queue_id("jobs")


def test_an_address_is_forgotten_only_with_the_id_that_failed(emulator, directory):
    emulator.create_queue("jobs")
    address = Address("jobs", False, None)
    found = directory.resolve(address, deadline=soon())
    asked = len(emulator.requests)

    directory.forget_address(address, "0" * 32)  # another thread has looked it up since
    assert directory.resolve(address, deadline=soon()) == found
    assert len(emulator.requests) == asked
    directory.forget_address(address, found)
    directory.forget_address(address, found)
    assert directory.resolve(address, deadline=soon()) == found
    assert len(emulator.requests) == asked + 1


def test_the_retention_is_what_the_look_up_has_brought(emulator, directory):
    emulator.create_queue("jobs")
    address = directory.address("jobs", options())

    assert directory.retention_seconds(address) is None
    found = directory.queue("jobs", options(), deadline=soon())
    assert directory.retention_seconds(address) == found.retention_seconds
    assert found.retention_seconds


def test_a_given_id_is_called_by_its_name_in_errors(emulator, directory):
    directory.probe(options(queues={"jobs": "d" * 32}), deadline=soon())

    with pytest.raises(errors.QueueNotFound, match="queue 'jobs'"):
        directory._client.purge("d" * 32, deadline=soon())
