"""What remote control tells of secrets: nothing."""

from __future__ import annotations

import json
import logging

import pytest
from kombu import Connection
from kombu.utils.json import dumps
from support.redis_server import PASSWORD, QUOTED

from kombu_cfqueues.emulator import ACCOUNT_ID, TOKEN
from kombu_cfqueues.errors import ConfigurationError, ControlUnavailable
from kombu_cfqueues.options import sources
from kombu_cfqueues.side import forget_control_brokers

from .workers import Worker, until

PROGRAM = """
import os, sys
from celery.__main__ import main
import tasks

options = tasks.app.conf.broker_transport_options
options.update(
    api_token=lambda: os.environ["HIDDEN_TOKEN"], control_url=lambda: os.environ["HIDDEN_URL"]
)
sys.argv[0] = "celery"
main()
"""


@pytest.mark.parametrize("kind", ["strings", "functions"])
def test_a_workers_statistics_tell_no_secret(kind, emulator, redis_server, control_app, tmp_path):
    """Whoever reaches the control broker may ask for them."""
    options = {"base_url": emulator.base_url, "account_id": ACCOUNT_ID}
    if kind == "strings":
        options |= {"api_token": TOKEN, "control_url": redis_server.url}
    app = control_app(redis_server.url)
    with Worker(
        emulator,
        tmp_path,
        pool="solo",
        url="cfqueues://" if kind == "functions" else None,
        options=options,
        program="" if kind == "strings" else PROGRAM,
        environ={"HIDDEN_TOKEN": TOKEN, "HIDDEN_URL": redis_server.url},
    ) as worker:
        # The worker may be ready before it can be controlled, on a busy machine.
        (answer,) = until(
            lambda: app.control.broadcast("stats", reply=True, timeout=5, limit=1), what=worker.log
        )
        told = json.dumps(answer) + worker.log
        (stats,) = answer.values()
    assert stats["broker"]["transport_options"]["api_token"] == "**"
    assert stats["broker"]["transport_options"]["control_url"] == "**"
    assert not {TOKEN, PASSWORD, QUOTED} & {
        secret for secret in (TOKEN, PASSWORD, QUOTED) if secret in told
    }


def test_the_info_of_a_connection_tells_no_secret_and_its_copies_work(emulator):
    """Also without a control broker: Celery's statistics consist of it."""
    others = "amqp://me:hidden-word@localhost//"
    with Connection(
        f"{emulator.broker_url};{others}", transport_options={"api_token": lambda: TOKEN}
    ) as connection:
        connection.connect()
        told = dumps(connection.info())
        assert TOKEN not in told
        assert "hidden-word" not in told
        with connection.clone() as copy:
            copy.Producer().publish("x", routing_key="jobs")
    assert len(emulator.messages("jobs")) == 1


def test_a_password_that_celery_shows_is_told_of(emulator, caplog):
    """`celery report` and `inspect conf` know secrets by the names of their settings."""
    sources._warn_of_shown_passwords.__wrapped__(("control_url",))
    (told,) = caplog.messages
    assert "CFQUEUES_CONTROL_URL" in told
    assert sources._with_password({"control_url": "redis://:secret@h"}) == ("control_url",)
    assert sources._with_password({"control_url": "redis://h", "budget_url": lambda: ""}) == ()


@pytest.mark.parametrize(
    "url",
    ["nothing", "cfqueues://a:hidden@/", "sqs://a:hidden@", "gopher://a:hidden@x", "redis://", 7],
)
def test_a_control_url_that_cannot_work_is_refused_at_connect(url, emulator):
    with (
        Connection(emulator.broker_url, transport_options={"control_url": url}) as connection,
        pytest.raises(ConfigurationError, match="control_url") as refused,
    ):
        connection.connect()
    assert "hidden" not in str(refused.value)


def test_no_error_and_no_log_line_shows_the_password(connect, redis_server, caplog):
    caplog.set_level(logging.DEBUG)
    redis_server.kill()
    connection = connect(control_url=redis_server.url.replace(QUOTED, "hidden-word"))
    with pytest.raises(ControlUnavailable) as refused:
        connection.Producer().publish("x", exchange="unknown", timeout=0.3)
    forget_control_brokers()
    told = caplog.text + repr(refused.value) + repr(connection.transport.session.options)
    assert "hidden-word" not in told
    redis_server.start()
