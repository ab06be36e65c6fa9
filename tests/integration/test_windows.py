"""The library and the command without what Windows lacks, which is taken from a real process.

It shows that no line needs what is missing there, and not that Windows does nothing else otherwise.
"""

from __future__ import annotations

import signal
import subprocess

import pytest
from support.processes import needs
from support.windows import run, start

CFQUEUES = "from kombu_cfqueues.cli import main\nmain()\n"


@pytest.fixture
def command(emulator):
    """Run a command towards the emulator; return what it printed."""

    def command(*arguments, stdin=subprocess.DEVNULL):
        return run(
            CFQUEUES,
            *arguments,
            stdin=stdin,
            environment={"CFQUEUES_BROKER_URL": emulator.broker_url},
        )

    return command


def test_each_module_can_be_imported():
    run("""
import importlib, pkgutil
import kombu_cfqueues
for module in pkgutil.walk_packages(kombu_cfqueues.__path__, "kombu_cfqueues."):
    if module.name != "kombu_cfqueues.testing":  # needs pytest
        importlib.import_module(module.name)
assert kombu_cfqueues.Transport
""")


def test_kombu_publishes_and_consumes(emulator):
    out = run(
        """
import kombu_cfqueues
from kombu import Connection, Queue

with Connection(sys.argv[1]) as connection:
    producer = connection.Producer()
    producer.publish({"n": 0}, routing_key="jobs")
    with kombu_cfqueues.batch(connection):
        for number in range(1, 5):
            producer.publish({"n": number}, routing_key="jobs")
    got = []
    def receive(body, message):
        got.append(body["n"])
        message.ack()
    with connection.Consumer([Queue("jobs")], callbacks=[receive]):
        while len(got) < 5:
            connection.drain_events(timeout=60)
print(sorted(got))
""",
        emulator.broker_url,
    )
    assert out == "[0, 1, 2, 3, 4]\n"
    assert emulator.messages("jobs") == []


def test_delay_publishes_a_task(emulator):
    needs("celery")
    run(
        """
from celery import Celery

app = Celery("shop", broker=sys.argv[1], backend=None)

@app.task(name="shop.add")
def add(x, y):
    return x + y

add.delay(2, 3)
""",
        emulator.broker_url,
    )
    [message] = emulator.messages("celery")
    assert message.task == "shop.add"


def test_a_request_rate_holds_for_each_process_which_is_told(emulator):
    out = run(
        """
import logging
from kombu import Connection
logging.basicConfig(stream=sys.stdout, format="%(message)s")
with Connection(sys.argv[1], transport_options={"request_rate": 50}) as connection:
    connection.Producer().publish({}, routing_key="jobs")
""",
        emulator.broker_url,
    )
    assert "divide request_rate by the number of processes" in out


def test_the_spool_is_refused_with_what_to_do(emulator):
    out = run(
        """
from kombu import Connection
from kombu_cfqueues.errors import SpoolUnavailable
options = {"publish_mode": "spool"}
with Connection(sys.argv[1], transport_options=options) as connection:
    try:
        connection.Producer().publish({}, routing_key="jobs")
    except connection.connection_errors + connection.channel_errors as error:
        print(type(error).__name__, error)
""",
        emulator.broker_url,
    )
    assert "SpoolUnavailable" in out
    assert "set publish_mode='confirm'" in out


def test_the_emulator_serves():
    run("""
from kombu import Connection
from kombu_cfqueues.emulator import Emulator

with Emulator() as emulator, Connection(emulator.broker_url) as connection:
    connection.Producer().publish({}, routing_key="jobs")
    with emulator.outage():
        pass
    assert len(emulator.messages("jobs")) == 1
""")


@pytest.mark.long
def test_commands_work(command, emulator):
    assert "No problems found" in command("doctor")
    assert "Created queue 'jobs'" in command("queues", "create", "jobs", "--pull")
    assert "Published 2 messages" in command("publish", "jobs", "1", "2")
    assert command("peek", "jobs").count("\n") == 3
    assert "jobs" in command("top", "-n", "1")
    assert len(emulator.messages("jobs")) == 2


def test_lines_of_a_pipe_are_published(command, emulator):
    emulator.create_queue("jobs")
    with subprocess.Popen(["printf", "1\\n2\\n3"], stdout=subprocess.PIPE) as lines:
        assert "Published 3 messages" in command("publish", "jobs", stdin=lines.stdout)


@pytest.mark.parametrize("arguments", [["spool"], ["relay"]], ids=" ".join)
def test_what_needs_a_spool_says_that_there_is_none(emulator, arguments):
    process = start(CFQUEUES, *arguments, environment={"CFQUEUES_BROKER_URL": emulator.broker_url})
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "has no file locks" in errors or "does not have" in errors
    assert "Traceback" not in errors


def test_the_emulator_command_ends_at_ctrl_c():
    process = start(CFQUEUES, "emulator", "--port", "0", "--json")
    assert process.stdout.readline().startswith("{")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
