"""What a person sees who runs a command while the API does not answer."""

from __future__ import annotations

import time

import pytest
from support.scripted import Html, ScriptedServer

COMMANDS = [
    ("doctor",),
    ("queues", "list"),
    ("queues", "create", "jobs"),
    ("queues", "delete", "jobs", "--yes"),
    ("queues", "purge", "jobs", "--yes"),
    ("publish", "jobs", "{}"),
    ("peek", "jobs"),
    ("tail", "jobs"),
    ("redrive", "jobs"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_where_nothing_listens_on_this_machine_no_command_waits(run, command):
    with ScriptedServer() as server:
        server.stop_listening()
        began = time.monotonic()
        done = run(server.broker_url, *command)
        seconds = time.monotonic() - began
    said = done.out + done.err
    assert done.code == 1, said
    assert f"nothing listens on 127.0.0.1:{server.port}; is 'cfqueues emulator' running?" in said
    assert seconds < 15  # it retried for 30


def test_what_is_retried_is_said_once_after_a_second(run):
    with ScriptedServer(otherwise=lambda _: Html(503)) as server:
        done = run(server.broker_url, "queues", "list", "-o", "publish_timeout=4", code=1)
    assert done.err.count("trying again for up to ") == 1
    assert "HTTP 503" in done.err.splitlines()[0]


def test_a_failure_that_passes_at_once_is_not_told(run, emulator):
    emulator.faults.error("list", status=503)
    assert run(emulator.broker_url, "queues", "list", code=0).err == ""
