"""Processes that are frozen between requests, as on AWS Lambda and Cloud Run."""

import signal

import pytest
from kombu import Connection
from support.publishers import Publisher


@pytest.mark.parametrize("variable", ["AWS_LAMBDA_FUNCTION_NAME", "K_SERVICE"])
def test_a_process_that_spools_in_a_frozen_sandbox_is_warned_once(
    server, caplog, monkeypatch, tmp_path, variable
):
    """Its messages wait while it is frozen, so the log says what to use instead."""
    monkeypatch.setenv(variable, "shop")
    options = {"publish_mode": "spool", "spool_dir": str(tmp_path)}
    for _ in range(2):
        with Connection(server.broker_url, transport_options=options) as connection:
            for _ in range(2):
                connection.Producer().publish("x", routing_key="jobs")

    [text] = [r.getMessage() for r in caplog.records if variable in r.getMessage()]
    assert "publish_mode='confirm'" in text


def test_a_process_that_confirms_in_a_frozen_sandbox_is_not_warned(server, caplog, monkeypatch):
    monkeypatch.setenv("K_SERVICE", "shop")
    with Connection(server.broker_url) as connection:
        connection.Producer().publish("x", routing_key="jobs")

    assert not [r for r in caplog.records if "K_SERVICE" in r.getMessage()]


def test_a_confirmed_publish_after_each_thaw_arrives_once(server):
    """The connections that were kept while the process was frozen are closed by then."""
    with Publisher(server.broker_url, {}) as publisher:
        for number in range(3):
            publisher.publish(f"after thaw {number}")
            [outcome] = publisher.outcomes(1).values()
            assert outcome.told == "returned", outcome
            publisher.process.send_signal(signal.SIGSTOP)
            with server.outage():
                pass
            publisher.process.send_signal(signal.SIGCONT)

    assert len(server.messages("jobs")) == 3
