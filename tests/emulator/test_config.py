"""``cfqueues emulator --config``: what an emulator has from its start."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import requests
from emulator.client import Api

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator.config import load

TOML = """
account_id = "acc"
rate_limit = 7
latency = "0-0.01"
faults = ["error push status=503 times=2", { kind = "latency", routes = ["pull"], seconds = 0.1 }]

[knobs]
first_attempt = 0

[queues.emails]
delivery_delay = 5
consumer = { type = "http_pull", max_retries = 7, dead_letter_queue = "emails-dead" }

[queues.sms]
consumer = "http_pull"
"""

WRANGLER = """{
  // "comments" of // both kinds
  "name": "shop", /* and commas
  at the end */
  "queues": {
    "producers": [{ "queue": "orders", "binding": "https://not-a-comment", "delivery_delay": 60 }],
    "consumers": [
      { "queue": "orders", "max_batch_size": 10, "max_batch_timeout": 5, "max_retries": 4,
        "dead_letter_queue": "orders-dead" },
      { "queue": "pulled", "type": "http_pull", "visibility_timeout_ms": 5000, },
    ],
  },
  "env": { "staging": { "queues": { "producers": [{ "queue": "orders-staging" }] } } }
}"""


@pytest.fixture
def write(tmp_path):
    def to_file(text, name="emulator.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return to_file


@pytest.fixture
def command(tmp_path):
    """Run ``cfqueues``; an emulator of it is killed when the test ends."""
    running = []

    def run(*arguments, wait=True, data=None, **environment):
        code = "from kombu_cfqueues.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, "emulator", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        running.append(process)
        if wait:
            out, err = process.communicate(data, timeout=60)
            return process.returncode, out, err.decode()
        return json.loads(process.stdout.readline())

    yield run
    for process in running:
        process.kill()
        process.communicate()


def test_the_command_serves_what_the_file_says(command, write):
    write(WRANGLER, "wrangler.jsonc")
    file = write(f'wrangler = "wrangler.jsonc"\n{TOML}')

    place = command("--config", file, "--port", 0, "--json", "--rate-limit", 9, wait=False)

    assert place["account_id"] == "acc"
    api = requests.Session()
    url = f"{place['page_url']}_emulator"
    state = api.get(f"{url}/state", timeout=5).json()
    queues = {queue["name"]: queue for queue in state["queues"]}
    assert list(queues) == ["orders", "pulled", "emails", "sms", "orders-dead", "emails-dead"]
    assert queues["emails"]["delivery_delay"] == 5
    assert queues["emails"]["consumer"] == {
        "type": "http_pull",
        "script": None,
        "max_retries": 7,
        "dead_letter_queue": "emails-dead",
    }
    assert queues["orders"]["consumer"]["script"] == "shop"
    assert queues["orders"]["delivery_delay"] == 60
    assert [fault["kind"] for fault in state["faults"]] == ["error", "latency"]
    knobs = api.get(f"{url}/knobs", timeout=5).json()
    assert (knobs["first_attempt"], knobs["rate_limit"]) == (0, 9), "the command line counts more"


def test_queues_of_wrangler_need_no_other_file(write):
    config = load(write(WRANGLER, "wrangler.jsonc"))

    assert config.queues["orders"].consumer["settings"] == {
        "batch_size": 10,
        "max_wait_time_ms": 5000,
        "max_retries": 4,
    }
    assert config.queues["pulled"].consumer == {
        "type": "http_pull",
        "settings": {"visibility_timeout_ms": 5000},
    }
    staging = load(write('wrangler = { file = "wrangler.jsonc", env = "staging" }'))
    assert list(staging.queues) == ["orders-staging"]
    write('[[queues.producers]]\nqueue = "of-toml"', "wrangler.toml")
    assert list(load(write('wrangler = "wrangler.toml"')).queues) == ["of-toml"]


def test_a_queue_that_exists_keeps_its_messages_and_is_configured(write, tmp_path):
    config = load(write(TOML))
    with Emulator() as emulator:
        queue_id = emulator.create_queue("emails", consumer={"type": "worker", "script_name": "x"})
        url = f"{emulator.page_url}_emulator/queues/{queue_id}/messages"
        requests.post(url, json={"kind": "text", "body": "kept"}, timeout=5)

        config.apply(emulator)
        config.apply(emulator)

        assert emulator.queue_id("emails") == queue_id
        assert [message.body for message in emulator.messages("emails")] == ["kept"]
        [consumer] = emulator.consumers("emails")
        assert (consumer.type, consumer.max_retries) == ("http_pull", 7)


def test_an_invalid_consumer_leaves_the_queue_as_it_was():
    """A configuration is applied as a whole, so the error needs no repair."""
    with Emulator() as emulator:
        emulator.create_queue("jobs", delivery_delay=1, consumer={"type": "http_pull"})
        with pytest.raises(ValueError, match="type is"):
            emulator.configure_queue("jobs", delivery_delay=60, consumer={"type": "http"})
        Api(emulator).push("x")
        [message] = emulator.messages("jobs")
        [consumer] = emulator.consumers("jobs")
    assert message.delay_seconds == 1
    assert consumer.type == "http_pull"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "not valid TOML"),
        ("colour = 1", "there is no setting colour"),
        ('port = "x"', "port cannot be 'x'"),
        ("port = true", "port cannot be True"),
        ("[knobs]\ncolour = 1", "knobs: unknown knobs: colour"),
        ("[knobs]\nfirst_attempt = 5", "knobs: first_attempt must be 0 or 1"),
        ("knobs = 1", "knobs must be a table"),
        ('faults = ["nonsense"]', "fault 1: kind must be one of"),
        ("faults = [1]", "fault 1: it must be"),
        ("faults = 1", "faults must be a list"),
        ("[queues.a]\ncolour = 1", "queues.a: there is no setting colour"),
        ("[queues]\na = 1", "queues.a: it must be a table"),
        ('[queues."a b"]', "queues.a b: A queue name has"),
        ("[queues.a]\ndelivery_delay = -1", "queues.a: delivery_delay"),
        ('[queues.a]\nconsumer = "x"', "queues.a: consumer must be"),
        ('[queues.a]\nconsumer = {type = "http_pull", colour = 1}', "no setting colour"),
        ('[queues.a]\nconsumer = {type = "http_pull", max_retries = 101}', "max_retries"),
        ('[queues.a]\nconsumer = {type = "http_pull", settings = 1}', "settings must be a table"),
        ("wrangler = 1", "wrangler must be a file"),
        ('wrangler = "absent.jsonc"', "wrangler absent.jsonc: No such file"),
        ('wrangler = "w.jsonc"', "w.jsonc: each of queues.producers must name its queue"),
        ('wrangler = {file = "w.jsonc", env = "x"}', "there is no environment 'x'"),
    ],
)
def test_a_wrong_file_is_refused_by_the_setting(write, text, said):
    write('{"queues": {"producers": [{}]}}', "w.jsonc")
    file = write(text)

    with pytest.raises(ValueError, match=r"emulator\.toml: ") as refused:
        load(file)

    assert said in str(refused.value)


def test_the_command_refuses_a_wrong_file_in_one_line(command, write):
    status, _, err = command("--config", write("colour = 1"))

    assert status == 2
    assert "there is no setting colour" in err
    assert "Traceback" not in err
    assert command("--config", "absent.toml")[0] == 2


@pytest.mark.long
def test_messages_are_exported_and_imported_by_command(command, tmp_path):
    with Emulator(token="own") as emulator:
        emulator.create_queue("jobs")
        emulator.create_queue("copy")
        place = ("--url", emulator.page_url)
        own = {"CFQUEUES_EMULATOR_TOKEN": "own"}
        lines = b'{"body": {"n": 12345678901234567890}}\n\n{"body": "b", "content_type": "text"}\n'

        status, _, err = command("import", "jobs", *place, data=lines, **own)
        assert (status, err) == (0, "Imported 2 messages into jobs.\n")
        file = tmp_path / "jobs.jsonl"
        status, _, err = command("export", "jobs", "--to", file, *place, **own)
        assert (status, err) == (0, "Exported 2 messages of jobs.\n")
        assert command("import", "copy", file, *place, **own)[0] == 0

        assert [m.body for m in emulator.messages("copy")] == ['{"n": 12345678901234567890}', "b"]
        status, _, err = command("export", "absent", *place, **own)
        assert (status, err) == (
            1,
            "Error: the emulator has no queue 'absent'; its queues: jobs, copy\n",
        )
        status, _, err = command("import", "jobs", *place, data=b'{"body": 1}\nx', **own)
        assert status == 1
        assert "line 2: it is not valid JSON" in err
    status, _, err = command("export", "jobs", *place)
    assert status == 1
    assert "no emulator answers at http://127.0.0.1" in err


def test_health_needs_neither_token_nor_host_nor_patience():
    """A probe comes from anywhere, and no fault or limit concerns it."""
    with Emulator("0.0.0.0", token="own", rate_limit=0) as emulator:
        emulator.faults.hang()
        url = f"http://127.0.0.1:{emulator.port}/_emulator/health"
        for _ in range(3):
            answer = requests.get(url, headers={"Host": "emulator:8787"}, timeout=5)
            assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert len(emulator.requests) == 0
