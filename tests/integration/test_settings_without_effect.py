"""What people bring along from other brokers and has no effect here is said once, with our name."""

from __future__ import annotations

import subprocess

import pytest
from kombu import Connection
from support.forms import first_of
from support.processes import Script

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.errors import ConfigurationError

from .workers import Worker

LOG = """
import logging
class ToStdout(logging.Handler):
    def emit(self, record):
        print(json.dumps(record.getMessage()), flush=True)
logging.getLogger("kombu_cfqueues").addHandler(ToStdout())
"""

CELERY = """
from celery import Celery
app = Celery(broker=URL)
app.conf.broker_transport = "kombu_cfqueues:Transport"
app.conf.broker_transport_options = OPTIONS
"""


@pytest.fixture(scope="module")
def server():
    with Emulator() as emulator:
        yield emulator


def logged(server, code, **options):
    """The lines that a program logs: what is logged once in a process needs a process."""
    with Script(LOG + code, server.broker_url, options) as script:
        return script.wait(60)


OPTIONS = {
    "predefined_queues": ({"jobs": {"url": "https://"}}, "use queues"),
    "wait_time_seconds": (20, "use polling_interval and max_polling_interval"),
    "region": ("eu-west-1", "jurisdiction"),
    "socket_timeout": (5, "use read_timeout"),
    "fanout_prefix": (True, "cannot broadcast"),
    "priority_steps": ([0, 3], "no priorities"),
    "confirm_publish": (True, "every publish is confirmed"),
}


def test_options_of_other_transports_are_logged_once_each(server):
    """However many connections use them."""
    lines = logged(
        server,
        "for _ in range(3):\n    connect().connect()\n",
        **{name: value for name, (value, _) in OPTIONS.items()},
    )
    assert len(lines) == len(OPTIONS)
    for name, (_, hint) in OPTIONS.items():
        assert [line for line in lines if repr(name) in line and hint in line], (name, lines)


def test_arguments_of_queues_are_logged_once_each(server):
    """By RabbitMQ's names, and by those of `kombu.Queue`."""
    code = """
from kombu import Queue
with connect() as connection:
    for name in "one", "two":
        arguments = {"x-dead-letter-exchange": "dead", "x-queue-type": "quorum"}
        queue = Queue(name, queue_arguments=arguments, max_priority=10, message_ttl=60)
        queue(connection.default_channel).declare()
"""
    lines = logged(server, code)
    hints = {
        "x-dead-letter-exchange": "use the transport option dead_letter_queue",
        "x-max-priority": "no priorities",
        "x-message-ttl": "retention",
    }
    assert len(lines) == len(hints)
    for name, hint in hints.items():
        assert [line for line in lines if repr(name) in line and hint in line], (name, lines)


def test_arguments_of_queues_at_a_control_broker_are_not_logged(server):
    """They have an effect there; those of queues that stay at Cloudflare still have none."""
    code = """
from kombu import Exchange, Queue
with connect() as connection:
    channel = connection.default_channel
    Queue("news", Exchange("news", "fanout"), expires=60, max_length=5)(channel).declare()
    Queue("mail", Exchange("mail", "direct"), max_length=5)(channel).declare()
    jobs = Queue("jobs", expires=60)(channel)
    jobs.declare()
    jobs.consume(callback=print)
"""
    lines = logged(server, code, control_url="memory://")
    assert [line.split(" has ")[0] for line in lines] == [
        "argument 'x-max-length' of queue 'mail'",
        "argument 'x-expires' of queue 'jobs'",
    ]


def test_what_celery_declares_by_itself_is_not_logged(server):
    """Reply queues of ``rpc://`` have a time after which they expire."""
    code = CELERY + "app.conf.result_backend = 'rpc://'\napp.send_task('add')\n"
    assert logged(server, code) == []


def test_a_key_prefix_of_redis_is_refused(server):
    """Staging and production would share their queues."""
    options = {"global_keyprefix": "staging-"}
    with pytest.raises(ConfigurationError, match="use queue_name_prefix"):
        Connection(server.broker_url, transport_options=options).connect()


CONTROLS = {
    "inspect": "app.control.inspect(timeout=0.1).active()",
    "ping": "app.control.ping(timeout=0.1)",
    "revoke": "app.control.revoke('1')",
    "shutdown": "app.control.shutdown()",
    "task events": "app.events.default_dispatcher; d = app.events.Dispatcher(app.connection());"
    " d.enable(); d.send('task-received', uuid='1')",
    "a monitor": "app.events.Receiver(app.connection(), handlers={}).capture(limit=0, timeout=0.1)",
}


@pytest.mark.parametrize("control", first_of(CONTROLS))
def test_the_first_use_of_remote_control_says_that_nobody_is_reached(server, control):
    """Once in a process, and without an answer to wait for."""
    code = "import contextlib, socket\nfor _ in range(2):\n    with contextlib.suppress(OSError):\n"
    (line,) = logged(server, CELERY + code + f"        {CONTROLS[control]}\n")
    assert "reach nobody" in line


def test_what_a_worker_sends_by_itself_is_not_remote_control(server):
    """A worker that starts and publishes says nothing of it."""
    code = (
        CELERY
        + """
d = app.events.Dispatcher(app.connection())
d.enable()
d.send("worker-online")
d.send("worker-heartbeat")
app.send_task("add")
"""
    )
    assert logged(server, code) == []


def test_a_worker_with_the_lease_of_redis_ends_and_says_what_the_longest_is(server, tmp_path):
    """A supervisor sees that it has failed."""
    worker = Worker(server, tmp_path, pool="solo", options={"visibility_timeout": 86_400})
    with worker.log_file.open("ab") as log:
        ended = subprocess.run(
            worker.command, env=worker.environ, stderr=log, stdout=log, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert "Cloudflare's longest lease is 12 hours" in worker.log
