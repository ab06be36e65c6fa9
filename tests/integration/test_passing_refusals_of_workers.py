"""A worker outlives refusals of its token that pass, and a token that is missing for a moment."""

from __future__ import annotations

import contextlib
import threading
import time
from unittest import mock

import pytest
from kombu import Connection
from support.scripted import Failure, ScriptedServer

from kombu_cfqueues import account
from kombu_cfqueues.api.client import Client
from kombu_cfqueues.api.directory import Directory
from kombu_cfqueues.emulator import TOKEN
from kombu_cfqueues.errors import AuthenticationFailed, ConnectionFailed, ServerError
from kombu_cfqueues.options import Options, Secret
from kombu_cfqueues.rate_limit import Budget
from kombu_cfqueues.shared_facts import SharedFacts, Unneeded

from .consuming import FAST, Collector, consume, drain, nothing_comes, publish, settled
from .workers import Worker, until


def refuse(emulator, *routes, code=10000, times=1):
    return emulator.faults.error(
        *routes, status=403, code=code, message="Authentication error", times=times
    )


def test_a_worker_outlives_one_refusal_of_each_kind(emulator, tasks, tmp_path):
    with Worker(emulator, tmp_path, pool="threads", options=FAST) as worker:
        faults = [refuse(emulator, "pull"), refuse(emulator, "ack", code=10001)]
        tasks.note.delay("alive")
        until(lambda: all(fault.hits for fault in faults) or worker.ended)
        settled(emulator, "celery")
        assert worker.values("note") == ["alive"]
        assert not worker.ended


class Busy(Budget):
    """An allowance that others use up: a request waits for its permit."""

    def acquire(self, deadline, *, is_known=None, **_):
        if is_known is not None and is_known():
            raise Unneeded


@pytest.mark.parametrize("works", [True, False])
def test_a_refusal_passes_before_the_first_request_if_another_process_has_used_the_token(works):
    """A process that knows so connects without a request: its first pull may be refused."""
    facts = mock.create_autospec(SharedFacts, instance=True)
    facts.token_works.return_value = works
    with ScriptedServer(otherwise=lambda _: Failure(403, 10000)) as server:
        client = Client(
            server.base_url, server.account, Secret(TOKEN),
            connect_timeout=20, read_timeout=20, permits=Busy(None),
        )  # fmt: skip
        deadline = time.monotonic() + 20
        with contextlib.suppress(AuthenticationFailed):
            Directory(client, facts).probe(Options(account_id="0" * 32, api_token=Secret(TOKEN)),
                                           deadline=deadline)  # fmt: skip
        with pytest.raises(ServerError if works else AuthenticationFailed):
            client.pull("0" * 32, batch_size=1, visibility_timeout_ms=1000, deadline=deadline)
        client.close()
    assert len(server.targets("GET", "queues")) == (0 if works else 1)


@pytest.mark.parametrize("settle", ["ack", "reject", "requeue"])
def test_closing_settles_what_waits_although_it_is_refused_once(emulator, settle):
    """The message would come again when its lease ends, although it was settled."""
    with Connection(emulator.broker_url, transport_options=FAST) as connection:
        publish(connection, "x")
        got = Collector(ack=False)
        with consume(connection, got):
            drain(connection, 1)
            fault = refuse(emulator, "ack")
            getattr(got.messages[0], settle)()
    assert fault.hits == 1
    states = [message.state for message in emulator.messages("jobs")]
    assert states == (["ready"] if settle == "requeue" else [])


@pytest.mark.parametrize("nothing", [None, "", " \n"], ids=["None", "empty", "blank"])
def test_a_token_that_is_missing_for_a_moment_stops_nothing(emulator, nothing):
    """A file is empty while another program writes it."""
    tokens, calls = [TOKEN], []

    def read_token():
        calls.append(tokens[0])
        return tokens[0]

    def is_asked(times=2):
        calls.clear()
        return until(lambda: calls.count(nothing) >= times)

    url = emulator.broker_url.replace(f":{TOKEN}@", "@")
    options = {**FAST, "api_token": read_token}
    with Connection(url, transport_options=options) as connection:
        publish(connection, 1)
        got = Collector(ack=False)
        with consume(connection, got, prefetch_count=5):
            drain(connection, 1)
            tokens[0] = nothing
            got.messages[0].ack()
            nothing_comes(connection, 0.1)
            is_asked()
            timer = threading.Timer(0.5, tokens.__setitem__, (0, TOKEN))
            timer.start()
            publish(connection, 2)  # waits for the token
            drain(connection, 1)
            got.messages[1].ack()
            settled(emulator)
    assert got.bodies == [1, 2]


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_token_that_stays_missing_is_said_so(emulator, nothing):
    url = emulator.broker_url.replace(f":{TOKEN}@", "@")
    options = {"api_token": lambda: nothing, "publish_timeout": 0.5}
    with (
        Connection(url, transport_options=options) as connection,
        pytest.raises(ConnectionFailed, match="callable api_token returned no token"),
    ):
        connection.connect()
    assert not emulator.requests


def test_a_malformed_token_is_an_error_at_once(emulator):
    url = emulator.broker_url.replace(f":{TOKEN}@", "@")
    options = {"api_token": lambda: "Bearer x"}
    with (
        Connection(url, transport_options=options) as connection,
        pytest.raises(AuthenticationFailed, match="malformed"),
    ):
        connection.connect()


def test_the_allowance_is_that_of_the_token_before_while_there_is_none(monkeypatch):
    """Permits that count to no allowance would exceed that of the token."""
    tokens = iter([TOKEN, None, "", TOKEN])
    monkeypatch.setattr(account, "TOKEN_MAX_AGE_SECONDS", -1.0)
    current = account._CurrentToken(lambda: next(tokens))
    assert [current() for _ in range(4)] == [TOKEN] * 4
