"""Where health checks are answered, and what ``/metrics`` says."""

from __future__ import annotations

import pytest
from kombu import Connection
from prometheus_client.parser import text_string_to_metric_families

from kombu_cfqueues.consume.pulse import Pulse
from kombu_cfqueues.errors import AuthenticationFailed, QueueDisabled, ServerError
from kombu_cfqueues.health.exposition import exposition
from kombu_cfqueues.health.judge import Report
from kombu_cfqueues.health.listener import ProbeListener
from kombu_cfqueues.metrics import PROCESS_COUNTS, QUEUE_COUNTS
from kombu_cfqueues.options import HostPort, Options

LOGIN = {"user": "0" * 32, "password": "s3cret"}


def read(value, **environ):
    given = {} if value is None else {"health_address": value}
    return Options.read(**LOGIN, transport_options=given, environ=environ).health_address


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("127.0.0.1:9810", ("127.0.0.1", 9810)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        (":9810", ("127.0.0.1", 9810)),
        ("9810", ("127.0.0.1", 9810)),
        (9810, ("127.0.0.1", 9810)),
        ("[::1]:9810", ("::1", 9810)),
        ("worker.example:1", ("worker.example", 1)),
    ],
)
def test_an_address_is_of_this_machine_unless_it_names_a_host(value, address):
    assert read(value) == address


@pytest.mark.parametrize("value", ["", ":", "host", "::1:80", "h:65536", "http://h:1", "h:x", -1])
def test_a_wrong_address_is_refused_with_its_name(value):
    with pytest.raises(Exception, match="health_address must look like"):
        read(value)


def test_the_environment_has_the_address_where_the_options_have_none():
    assert read(None) is None
    assert read(None, CFQUEUES_HEALTH_ADDRESS=":1") == ("127.0.0.1", 1)
    assert read(":2", CFQUEUES_HEALTH_ADDRESS=":1") == ("127.0.0.1", 2)
    assert read(None, CFQUEUES_HEALTH_ADDRESS="") is None


def test_the_address_is_shown_as_it_is_written():
    assert str(HostPort("::1", 80)) == "[::1]:80"
    assert str(HostPort("127.0.0.1", 0)) == "127.0.0.1:0"


def test_an_address_of_ipv6_is_listened_at():
    listener = ProbeListener(HostPort("::1", 0))
    assert listener.address.host == "::1"
    listener.close()


def test_the_metrics_are_what_prometheus_reads(emulator):
    """Parsed by Prometheus's own library: every count of stats(), with its queue."""
    with Connection(emulator.broker_url) as connection:
        connection.Producer().publish(1, routing_key="emails")
    families = {
        family.name: family
        for family in text_string_to_metric_families(exposition(Report([], True, [])))
    }
    assert {f"cfqueues_{name}" for name in [*QUEUE_COUNTS, *PROCESS_COUNTS]} <= families.keys()
    published = families["cfqueues_published"]
    assert published.type == "counter"
    assert {tuple(one.labels.items()): one.value for one in published.samples}[
        ("queue", "emails"),
    ] >= 1
    assert families["cfqueues_healthy"].samples[0].value == 1
    assert all(family.documentation.endswith(".") for family in families.values())


def test_a_queue_name_with_quotes_is_escaped(monkeypatch):
    name = 'a"b\\c\nd'
    counts = dict.fromkeys(QUEUE_COUNTS, 1)
    numbers = dict.fromkeys(PROCESS_COUNTS, 0) | {"share": 1.0, "queues": {name: counts}}
    monkeypatch.setattr("kombu_cfqueues.health.exposition.stats", lambda: numbers)
    text = exposition(Report([], True, []))
    pulled = next(one for one in text_string_to_metric_families(text) if one.name.endswith("acked"))
    assert pulled.samples[0].labels == {"queue": name}


def test_a_pulse_counts_from_the_first_request_that_was_not_answered():
    pulse = Pulse()
    pulse.asked()
    since = pulse.unanswered_since
    pulse.concluded(ServerError("down"))
    pulse.asked()
    assert pulse.unanswered_since == since
    assert pulse.silence(since + 3) == 3
    assert not pulse.is_refused
    pulse.concluded(AuthenticationFailed("no"))
    assert pulse.is_refused
    pulse.concluded(None)
    assert pulse.silence(since + 3) == 0
    assert not pulse.is_refused


@pytest.mark.parametrize("error", [QueueDisabled("paused"), ServerError("not yet", status=405)])
def test_an_answer_that_is_no_message_is_an_answer(error):
    """A queue that somebody paused, and a pull consumer that is not yet in force."""
    pulse = Pulse()
    pulse.asked()
    pulse.concluded(error)
    assert pulse.unanswered_since is None
