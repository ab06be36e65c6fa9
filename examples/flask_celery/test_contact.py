"""The form through Flask's test client; what was published is read back from the emulator."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from contact import app, celery_app
from flask.testing import FlaskClient

from kombu_cfqueues.emulator import Emulator

pytest_plugins = ["kombu_cfqueues.testing"]
FORM = {"sender": "ada@example.com", "text": "Hello"}


@pytest.fixture
def client(cfqueues_celery: Callable[..., None]) -> FlaskClient:
    cfqueues_celery(celery_app, publish_timeout=1)
    return app.test_client()


def test_a_mail_is_queued(client: FlaskClient, cfqueues_emulator: Emulator) -> None:
    assert client.post("/contact", data=FORM).status_code == 202

    [message] = cfqueues_emulator.messages("celery")
    assert (message.task, message.content[0]) == (
        "contact.send_mail",
        ["ada@example.com", "Hello"],
    )


def test_who_writes_during_an_outage_is_told(
    client: FlaskClient, cfqueues_emulator: Emulator
) -> None:
    with cfqueues_emulator.outage():
        assert client.post("/contact", data=FORM).status_code == 503

    assert client.post("/contact", data=FORM).status_code == 202
