"""Queues of Kombu whose names Cloudflare cannot have stay queues of their own.

Cloudflare's names are ASCII letters, digits and dashes.  Within a process two names that meet are
refused; between processes nothing would tell, so the translation itself has to keep them apart.
"""

from __future__ import annotations

import unicodedata

import pytest
from celery import Celery
from kombu import Connection
from support.processes import Script

from kombu_cfqueues.errors import ConfigurationError, QueueNameConflict

#: Names of applications in different languages; each meets its neighbours today.
MEETING = {
    "letters lost at the begin": ["разработка-celery", "開発_celery", "celery"],
    "a letter against an underscore": ["tâche", "t_che", "tùche"],
    "a composed letter": [unicodedata.normalize("NFC", "café"), "caf"],
    "a decomposed letter": [unicodedata.normalize("NFD", "café"), "cafe"],
    "other digits": ["jobs\u0661", "jobs"],
    "a full-width letter": ["\uff4aobs", "obs"],
    "an emoji": ["jobs-🚀", "jobs"],
}

PUBLISH = """
with connect() as connection:
    connection.Producer().publish(sys.stdin.readline(), routing_key=OPTIONS_QUEUE)
"""


def publish_in_a_process_of_its_own(emulator, queue, options=None):
    code = PUBLISH.replace("OPTIONS_QUEUE", ascii(queue))
    with Script(code, emulator.broker_url, options or {}) as script:
        script.go()
        script.wait()


def publish_as_another_application(emulator, queue, **options):
    """What another process does: nothing that this one has learned takes part."""
    from kombu_cfqueues import account

    account._registry.accounts.clear()
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.Producer().publish({}, routing_key=queue)


@pytest.mark.parametrize("names", MEETING.values(), ids=MEETING)
def test_names_of_different_applications_are_different_queues(emulator, names):
    for name in names:
        publish_as_another_application(emulator, name)

    created = emulator.queue_names()
    assert len(created) == len(names), created
    assert all(len(emulator.messages(queue)) == 1 for queue in created)


def test_three_applications_in_three_processes_do_not_share_a_queue(emulator):
    for name in ["разработка-celery", "開発_celery", "celery"]:
        publish_in_a_process_of_its_own(emulator, name)

    assert len(emulator.queue_names()) == 3
    assert "celery" in emulator.queue_names()


@pytest.mark.parametrize("prefix", ["заказы-", "商店-"])
def test_a_prefix_of_other_letters_keeps_its_queues_apart(emulator, prefix):
    """A prefix is there to keep applications apart, so it must not be lost."""
    publish_as_another_application(emulator, "celery", queue_name_prefix=prefix)
    publish_as_another_application(emulator, "celery", queue_name_prefix="магазин-")

    assert len(emulator.queue_names()) == 2
    assert "celery" not in emulator.queue_names()


@pytest.mark.parametrize("prefix", ["__", "--", "...", "_"])
def test_a_prefix_of_which_nothing_is_left_is_refused(emulator, prefix):
    """``__celery`` would be the queue ``celery`` of who has no prefix."""
    options = {"queue_name_prefix": prefix}
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        pytest.raises(ConfigurationError, match="queue_name_prefix"),
    ):
        connection.Producer().publish({}, routing_key="celery")
    assert emulator.queue_names() == []


def test_the_dead_letter_queue_is_named_as_queues_are(emulator):
    """Its name goes another way, and has to meet the queue that consumers of it look up."""
    from kombu_cfqueues import account

    options = {"dead_letter_queue": "ошибки-celery"}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.default_channel.basic_get("jobs")
    (consumer,) = emulator.consumers("jobs")
    account._registry.accounts.clear()
    publish_as_another_application(emulator, "ошибки-celery")

    assert consumer.dead_letter_queue != "celery"
    assert consumer.dead_letter_queue in emulator.queue_names()


def test_the_name_is_the_same_in_each_process(emulator):
    """A hash that Python salts anew in each process would make a queue for each."""
    for _ in range(2):
        publish_in_a_process_of_its_own(emulator, "tâche")

    (queue,) = emulator.queue_names()
    assert len(emulator.messages(queue)) == 2
    assert queue.startswith("t-che-"), "it is to be recognised in the dashboard"


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("emails.high_priority", "emails-high-priority"),
        ("celery", "celery"),
        ("Jobs", "Jobs"),
        ("a-b", "a-b"),
        ("_private", "private"),
    ],
)
def test_names_of_ascii_letters_stay_as_they_are(emulator, name, title):
    """They are so today, and queues of that name are full of messages."""
    publish_as_another_application(emulator, name)
    assert emulator.queue_names() == [title]


def test_within_a_process_two_names_of_one_queue_are_refused(emulator):
    """It is so today, and stays for names that only `_` and `.` tell apart."""
    with Connection(emulator.broker_url) as connection:
        producer = connection.Producer()
        producer.publish({}, routing_key="emails.new")
        with pytest.raises(QueueNameConflict):
            producer.publish({}, routing_key="emails_new")


# -- a queue's id where its name belongs


def test_a_queue_id_used_as_a_name_is_refused(emulator):
    """Taken from the dashboard: it would create a queue of that name, which nobody consumes."""
    emulator.create_queue("jobs")
    with (
        Connection(emulator.broker_url) as connection,
        pytest.raises(ConfigurationError, match="queues"),
    ):
        connection.Producer().publish({}, routing_key=emulator.queue_id("jobs"))
    assert emulator.queue_names() == ["jobs"]


def test_a_queue_id_used_as_a_name_is_not_spooled(emulator, tmp_path):
    """It would wait for ever, or the relay would create the queue."""
    emulator.create_queue("jobs")
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path / "spool")}
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        pytest.raises(ConfigurationError, match="queues"),
    ):
        connection.Producer().publish({}, routing_key=emulator.queue_id("jobs"))


def test_a_queue_id_used_as_the_dead_letter_queue_is_refused(emulator):
    """Cloudflare takes a name there, and creates the queue."""
    options = {"dead_letter_queue": "0123456789abcdef" * 2}
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        pytest.raises(ConfigurationError, match="dead_letter_queue"),
    ):
        connection.connect()


def test_a_name_of_which_only_the_prefix_is_left_is_refused(emulator):
    """It would be the queue ``shop`` of another application."""
    options = {"queue_name_prefix": "shop-"}
    with (
        Connection(emulator.broker_url, transport_options=options) as connection,
        pytest.raises(ConfigurationError, match="no letter or digit"),
    ):
        connection.Producer().publish({}, routing_key="__")


def test_an_unknown_queue_id_used_as_a_name_is_refused(emulator):
    """Whether it is one, 32 hex digits tell: of an account with thousands, no list is read."""
    with (
        Connection(emulator.broker_url) as connection,
        pytest.raises(ConfigurationError, match="queues"),
    ):
        connection.Producer().publish({}, routing_key="0123456789ABCDEF" * 2)
    assert emulator.queue_names() == []


def test_a_queue_id_used_as_a_name_by_celery_is_refused(emulator):
    emulator.create_queue("jobs")
    app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
    app.conf.broker_transport = "kombu_cfqueues:Transport"
    with app, pytest.raises(ConfigurationError, match="queues"):
        app.send_task("add", queue=emulator.queue_id("jobs"))
    assert emulator.queue_names() == ["jobs"]


def test_a_queue_id_used_as_a_name_by_a_consumer_is_refused(emulator):
    emulator.create_queue("jobs")
    with (
        Connection(emulator.broker_url) as connection,
        pytest.raises(ConfigurationError, match="queues"),
    ):
        connection.SimpleQueue(emulator.queue_id("jobs")).get(timeout=1)
    assert emulator.queue_names() == ["jobs"]


def test_a_queue_that_really_has_such_a_name_goes_on(emulator):
    """It is so today: a name of 32 hex digits is legal, and one that exists is meant."""
    emulator.create_queue("0123456789abcdef" * 2)
    with Connection(emulator.broker_url) as connection:
        connection.Producer().publish({}, routing_key="0123456789abcdef" * 2)
    assert len(emulator.messages("0123456789abcdef" * 2)) == 1
