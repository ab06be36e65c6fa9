"""``cfqueues peek``, ``tail`` and ``redrive``: what is seen, what moves, nothing is lost."""

import json
import signal
from collections import Counter

import pytest
from kombu import Connection
from support.processes import eventually

from kombu_cfqueues.emulator import Knobs

PULL = {"type": "http_pull", "settings": {"max_retries": 100}}


@pytest.fixture
def publish(emulator):
    """Publish with Kombu to 'jobs', in any form."""
    emulator.create_queue("jobs", consumer=PULL)

    def publish(body, queue="jobs", **how):
        with Connection(emulator.broker_url) as connection:
            connection.Producer().publish(body, routing_key=queue, **how)

    return publish


TASK = {"task": "shop.add", "id": "t1", "lang": "py", "argsrepr": "(1, 2)", "kwargsrepr": "{}"}

MESSAGES = {
    "json": ({"body": {"a": "ü"}}, '{"a": "ü"}'),
    "text": ({"body": "hello"}, "hello"),
    "bytes": ({"body": b"\xff\x00"}, "2 bytes (application/data)"),
    "compressed": ({"body": {"a": 1}, "compression": "zlib"}, '{"a": 1}'),
    "task": (
        {"body": [[1, "x"], {"y": None}, {}], "headers": {**TASK, "retries": 2}},
        "shop.add(1, 'x', y=None)  id=t1 retries=2",
    ),
    "pickled task": (
        {"body": [[1, 2], {}, {}], "headers": TASK, "serializer": "pickle"},
        "shop.add(*(1, 2), **{})  id=t1",
    ),
    "task of old": (
        {"body": {"task": "shop.add", "id": "t1", "args": [1], "kwargs": {"y": 2}}},
        "shop.add(1, y=2)  id=t1",
    ),
    "terminal codes": ({"body": "\x1b[2Jx\ny\u202e"}, "\\x1b[2Jx\\ny\\u202e"),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_peek_says_what_a_message_is(cfqueues, publish, kind):
    how, words = MESSAGES[kind]
    publish(**how)

    [_, line] = cfqueues("peek", "jobs").out.splitlines()

    assert line.split(maxsplit=3)[2:] == ["0", words] or line.endswith(f"0  {words}")


def test_peek_json_has_the_task_in_parts(cfqueues, publish):
    publish([[1], {"y": 2}, {}], headers=TASK)

    [shown] = cfqueues("peek", "jobs", "--json").lines

    assert (shown["task"], shown["task_id"]) == ("shop.add", "t1")
    assert (shown["args"], shown["kwargs"]) == ([1], {"y": 2})


def test_peek_leaves_messages_as_they_are(cfqueues, emulator, publish):
    publish("x")

    cfqueues("peek", "jobs")

    [message] = emulator.messages("jobs")
    assert (message.attempts, message.state) == (0, "ready")
    assert not emulator.requests.of("pull")


def test_peek_by_pulling_gives_back_at_once(cfqueues, emulator, publish):
    publish("x")

    assert cfqueues("peek", "jobs", "--pull", "--json").lines[0]["attempts"] == 1

    [message] = emulator.messages("jobs")
    assert (message.attempts, message.state) == (1, "ready")


@pytest.mark.parametrize("first_attempt", [0, 1])
@pytest.mark.parametrize("deliveries", ["max_retries", "one_more"])
def test_looking_too_often_deletes_no_message(cfqueues, emulator, first_attempt, deliveries):
    """Cloudflare counts each look that pulls; before the last one, a copy takes its place."""
    emulator.knobs = Knobs(first_attempt=first_attempt, deliveries=deliveries)
    emulator.create_queue("few", consumer={"type": "http_pull", "settings": {"max_retries": 2}})
    cfqueues("publish", "few", '"precious"')

    for _ in range(5):
        assert cfqueues("peek", "few", "--pull", "--json").lines[0]["content"] == "precious"

    assert len(emulator.messages("few")) == 1


def test_peek_makes_no_consumer(cfqueues, emulator):
    emulator.create_queue("jobs")

    assert "no pull consumer" in cfqueues("peek", "jobs", "--pull", code=1).err
    assert emulator.consumers("jobs") == []


def test_an_api_that_cannot_peek_is_told_and_what_else_there_is(cfqueues, emulator, publish):
    emulator.faults.error("peek", status=404, code=7003, times=None)

    assert "--pull" in cfqueues("peek", "jobs", code=1).err


def test_an_empty_queue_says_so(cfqueues, publish):
    assert "No message" in cfqueues("peek", "jobs").out
    assert cfqueues("peek", "jobs", "--json").out == ""


def test_tail_shows_each_message_once_as_it_comes(start, emulator, publish):
    publish({"n": 1})
    process = start(emulator.broker_url, "tail", "jobs", "--json", "--interval", "0.1")
    assert json.loads(process.stdout.readline())["content"] == {"n": 1}
    publish({"n": 2})
    assert json.loads(process.stdout.readline())["content"] == {"n": 2}
    looks = len(emulator.requests.of("peek"))
    assert eventually(lambda: len(emulator.requests.of("peek")) > looks + 2, 30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert (out, err, process.returncode) == ("", "", 0)
    assert [message.attempts for message in emulator.messages("jobs")] == [0, 0]


# redrive


@pytest.fixture
def dead(emulator, publish):
    """``jobs``, and its dead letters."""
    emulator.create_queue("jobs-dead", consumer=PULL)
    emulator.create_queue("orders", consumer={**PULL, "dead_letter_queue": "jobs-dead"})
    return "jobs-dead"


def numbers(emulator, queue):
    return Counter(message.content["n"] for message in emulator.messages(queue))


def fill(cfqueues, queue, count):
    cfqueues("publish", queue, stdin="".join(f'{{"n": {n}}}\n' for n in range(1, count + 1)))


def test_dead_letters_go_back_to_where_they_died(cfqueues, emulator, dead):
    fill(cfqueues, dead, 250)

    done = cfqueues("redrive", dead)

    assert done.out == "Moved 250 messages from 'jobs-dead' to 'orders'.\n"
    assert numbers(emulator, "orders") == Counter(range(1, 251))
    assert emulator.messages(dead) == []


def test_a_message_is_moved_as_it_was(cfqueues, emulator, dead, publish):
    """Headers, type and bytes: whoever consumes it sees no difference."""
    publish([[1], {}, {}], queue=dead, headers=TASK, correlation_id="c")
    publish(b"\xff\x00", queue=dead)
    before = sorted(message.body for message in emulator.messages(dead))

    cfqueues("redrive", dead)

    assert sorted(message.body for message in emulator.messages("orders")) == before


def test_a_filter_leaves_the_others_where_they_are(cfqueues, emulator, dead):
    cfqueues("publish", dead, "--task", "shop.mail", "[1]", "[2]", "[13]")
    cfqueues("publish", dead, "--task", "shop.add", "[1]")

    done = cfqueues("redrive", dead, "--task", "shop.m*", "--match", r"\((1|2)\)", "--json")

    assert (done.json["moved"], done.json["kept"]) == (2, 2)
    assert [message.content[0] for message in emulator.messages("orders")] in (
        [[1], [2]],
        [[2], [1]],
    )
    assert {message.state for message in emulator.messages(dead)} == {"ready"}


def test_a_limit_holds(cfqueues, emulator, dead):
    fill(cfqueues, dead, 30)

    cfqueues("redrive", dead, "--limit", "7")

    assert len(emulator.messages("orders")) == 7
    assert [message.state for message in emulator.messages(dead)] == ["ready"] * 23


def test_a_dry_run_changes_nothing(cfqueues, emulator, dead):
    cfqueues("publish", dead, "--task", "shop.mail", "[1]", "[2]")

    done = cfqueues("redrive", dead, "--dry-run", "--match", r"mail\(2")

    assert "shop.mail(2)" in done.out
    assert "1 of 2 visible messages would move from 'jobs-dead' to 'orders'" in done.out
    assert [message.attempts for message in emulator.messages(dead)] == [0, 0]
    assert emulator.messages("orders") == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["jobs"], 1, "--to"),
        (["nowhere"], 1, "does not exist"),
        (["jobs-dead", "--to", "jobs-dead"], 2, "already"),
        (["jobs-dead", "--match", "("], 2, "regular expression"),
    ],
)
def test_a_mistake_moves_nothing(cfqueues, dead, arguments, code, words):
    assert words in cfqueues("redrive", *arguments, code=code).err


def test_a_target_that_refuses_keeps_the_dead_letters(cfqueues, emulator, dead):
    fill(cfqueues, dead, 3)
    emulator.faults.error("batch", "push", status=403, code=10106, times=None)

    done = cfqueues("redrive", dead, code=1)

    assert "Queues Edit" in done.err
    assert "3 messages stayed" in done.out
    assert [message.state for message in emulator.messages(dead)] == ["ready"] * 3


def test_an_ack_that_fails_doubles_and_says_so(cfqueues, emulator, dead):
    fill(cfqueues, dead, 3)
    emulator.faults.error("ack", status=403, code=10106, times=1)

    done = cfqueues("redrive", dead, code=1)

    assert "3 messages may be in both" in done.out
    assert numbers(emulator, "orders") == Counter([1, 2, 3])


def test_a_dead_letter_queue_with_few_retries_loses_nothing(cfqueues, emulator, dead):
    """What does not match is pulled, and given back, each time; Cloudflare would delete it."""
    few = {"type": "http_pull", "settings": {"max_retries": 1}}
    emulator.create_queue("few", consumer=few)
    cfqueues("publish", "few", '"precious"')

    for _ in range(3):
        cfqueues("redrive", "few", "--to", "orders", "--match", "nothing")

    assert [message.content for message in emulator.messages("few")] == ["precious"]


@pytest.mark.long
def test_more_unselected_messages_than_a_run_holds_are_moved_away_first(cfqueues, emulator, dead):
    """The run gives them back, so the next one would meet the same; the error says what helps."""
    emulator.create_queue("parked")
    cfqueues("publish", dead, stdin='"other"\n' * 10_500 + '"wanted"\n')

    done = cfqueues("redrive", dead, "--match", "wanted", code=1)
    assert "10,000 messages stayed" in done.out
    assert "one run holds no more than 10,000 messages that are not moved" in done.err
    assert "another queue first, with --to" in done.err
    assert emulator.messages("orders") == []

    cfqueues("redrive", dead, "--to", "parked", "--match", "other")
    cfqueues("redrive", dead, "--match", "wanted")
    assert [message.content for message in emulator.messages("orders")] == ["wanted"]
    assert emulator.messages(dead) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_at_any_point_nothing_is_lost(start, cfqueues, emulator, dead, number):
    """Ctrl-C leaves each in one queue; a kill may leave some in both."""
    fill(cfqueues, dead, 600)
    # Long between publishing and acknowledging, which is where a stop can do harm.
    slow = emulator.faults.latency("ack", seconds=0.4)
    process = start(emulator.broker_url, "redrive", dead)
    assert eventually(lambda: len(emulator.requests.of("ack")) >= 2, 30)
    process.send_signal(number)
    process.communicate(timeout=60)

    moved, kept = numbers(emulator, "orders"), numbers(emulator, dead)
    assert 0 < len(moved) < 600
    assert set(moved) | set(kept) == set(range(1, 601))
    if number != signal.SIGKILL:
        assert process.returncode == 1
        assert not set(moved) & set(kept)
        assert {message.state for message in emulator.messages(dead)} == {"ready"}
    emulator.faults.remove(slow)
    emulator.clock.advance(3_600)
    cfqueues("redrive", dead)
    found = numbers(emulator, "orders")
    assert set(found) == set(range(1, 601))
    assert sum(found.values()) <= 700
