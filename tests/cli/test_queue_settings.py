"""``queues show`` and ``update``, and settings that ``queues create`` does not apply."""

from __future__ import annotations

import pytest


def settings(cfqueues, name="mails"):
    return cfqueues("queues", "show", name, "--json").json[0]


def test_show_tells_id_settings_and_consumers(cfqueues, emulator):
    cfqueues("queues", "create", "mails", "--delay", 5, "--pull", "--dead-letter-queue", "dead")
    shown = cfqueues("queues", "show", "mails").out.splitlines()
    lines = dict(line.strip().split(":", 1) for line in shown[1:])
    lines = {name: value.strip() for name, value in lines.items()}
    assert shown[0] == "mails"
    assert lines["id"] == emulator.queue_id("mails")
    assert (lines["delay"], lines["kept for"], lines["paused"]) == ("5 s", "4 d", "no")
    assert lines["consumer"].startswith("pull, ")
    assert "max retries 100" in lines["consumer"]
    assert "dead letters to dead" in lines["consumer"]


def test_update_changes_what_is_given_and_nothing_else(cfqueues, emulator):
    cfqueues("queues", "create", "mails", "--delay", 5, "--pull", "--dead-letter-queue", "dead")
    done = cfqueues("queues", "update", "mails", "--keep", 86400, "--pause", "--max-retries", 7)
    assert done.out == "Changed queue 'mails': kept for 1 d, paused yes, max retries 7.\n"
    queue = settings(cfqueues)
    assert queue["settings"] == {
        "delivery_delay": 5,
        "delivery_paused": True,
        "message_retention_period": 86400,
    }
    [consumer] = emulator.consumers("mails")
    assert (consumer.max_retries, consumer.dead_letter_queue) == (7, "dead")
    assert consumer.visibility_timeout_ms == 1_800_000


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--lease", 60], {"visibility_timeout_ms": 60_000}),
        (["--retry-delay", 9], {"retry_delay": 9}),
        (["--dead-letter-queue", "other"], {"dead_letter_queue": "other"}),
        (["--dead-letter-queue", ""], {"dead_letter_queue": ""}),
    ],
)
def test_settings_of_the_consumer(cfqueues, emulator, options, found):
    cfqueues("queues", "create", "mails", "--pull", "--dead-letter-queue", "dead")
    cfqueues("queues", "update", "mails", *options)
    [consumer] = emulator.consumers("mails")
    assert {name: getattr(consumer, name) for name in found} == found


def test_a_workers_consumer_keeps_its_worker(cfqueues, emulator):
    worker = {"type": "worker", "script_name": "mailer", "settings": {"batch_size": 3}}
    emulator.create_queue("mails", consumer=worker)
    cfqueues("queues", "update", "mails", "--max-retries", 5)
    [consumer] = emulator.consumers("mails")
    assert (consumer.script_name, consumer.max_retries) == ("mailer", 5)
    assert consumer.settings["batch_size"] == 3
    refused = cfqueues("queues", "update", "mails", "--lease", 5, code=1)
    assert "consumed by a Worker" in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["mails"], 2, "name a setting to change"),
        (["mails", "--keep", "5"], 2, "60<=x<=1209600"),
        (["mails", "--max-retries", "5"], 1, "has no consumer"),
        (["mails", "mials", "--delay", "5"], 1, "queue 'mials' does not exist"),
    ],
)
def test_a_mistake_changes_nothing(cfqueues, emulator, arguments, code, said):
    emulator.create_queue("mails")
    before = settings(cfqueues)
    assert said in cfqueues("queues", "update", *arguments, code=code).err
    assert settings(cfqueues) == before


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (["--delay", 5], ["--delay", 5], None),
        ([], ["--delay", 5], "(delay 5 s)"),
        (["--keep", 3600], ["--keep", 7200, "--delay", 0], "(kept for 2 h)"),
        (
            ["--pull", "--dead-letter-queue", "dead"],
            ["--pull", "--dead-letter-queue", "other"],
            "(dead letters to other)",
        ),
        (
            ["--pull", "--dead-letter-queue", "dead"],
            ["--pull", "--dead-letter-queue", "dead"],
            None,
        ),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_create_fails_where_a_queue_has_other_settings(cfqueues, first, second, said, form):
    cfqueues("queues", "create", "mails", *first)
    done = cfqueues("queues", "create", "mails", *second, *form, code=0 if said is None else 1)
    if said is not None:
        assert f"queue 'mails' exists, but not with the given settings {said}" in done.err
        assert "cfqueues queues update" in done.err
