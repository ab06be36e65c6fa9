"""Whether a message can have arrived, told by a publish that goes through a proxy.

What decides is whether a byte of the request may have left: connecting to the proxy, asking it for
a tunnel, and the TLS handshake deliver nothing.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import NamedTuple

import pytest
from kombu import Connection
from support.proxies import Proxy
from support.scripted import (
    CA_BUNDLE,
    Api,
    Die,
    Drop,
    Failure,
    Hang,
    Raw,
    Reset,
    ResetAfter,
    ScriptedServer,
)

from kombu_cfqueues.errors import CFQueuesError


class Way(NamedTuple):
    """The variable that names the proxy, its URL, and the host that is behind it."""

    variable: str
    proxy: str
    host: str


FORWARDS = Way("http_proxy", "http://{server}", "queues")
TUNNELS = Way("https_proxy", "http://{proxy}", "queues.invalid")
SOCKS = Way("http_proxy", "socks5h://{proxy}", "queues")
SOCKS_TLS = Way("https_proxy", "socks5h://{proxy}", "queues.invalid")

OPTIONS = {
    "allow_insecure_http": True,
    "publish_timeout": 2,
    "connect_timeout": 0.5,
    "read_timeout": 0.5,
}


@pytest.fixture
def behind(monkeypatch):
    """Puts a server behind a proxy of the environment, and makes its broker URL."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CA_BUNDLE))

    @contextlib.contextmanager
    def behind(way, *, otherwise):
        if way.proxy.startswith("socks"):
            pytest.importorskip("socks", reason="needs PySocks")
        with (
            ScriptedServer(otherwise=otherwise, tls=way.variable == "https_proxy") as server,
            Proxy(server.port) as proxy,
        ):
            url = way.proxy.format(server=server.netloc, proxy=proxy.netloc)
            monkeypatch.setenv(way.variable, url)
            yield server, proxy, f"cfqueues://{server.account}:{server.token}@{way.host}/"

    return behind


def losing(api, loss):
    """Answers as *api*, but the answers to messages get lost on the way."""

    def answer(request):
        said = api(request)
        return loss if "/messages" in request.path else said

    return answer


def failure_of(url, retry_uncertain=False, **given):
    options = OPTIONS | {"retry_uncertain": retry_uncertain}
    with (
        Connection(url, transport_options=options) as connection,
        pytest.raises(CFQueuesError) as raised,
    ):
        connection.Producer().publish("x", routing_key="jobs", **given)
    return raised.value


@pytest.mark.parametrize(
    "loss",
    [Drop(), ResetAfter(), Hang(), Raw(b"HTTP/1.1 200 OK\r\nContent-Le")],
    ids=["closed", "reset", "late", "cut"],
)
@pytest.mark.parametrize(
    "way",
    [FORWARDS, TUNNELS, SOCKS, SOCKS_TLS],
    ids=["forwards", "tunnels", "SOCKS", "SOCKS and TLS"],
)
def test_a_message_whose_answer_is_lost_behind_a_proxy_may_have_arrived(behind, way, loss):
    """With ``retry_uncertain=False`` it is published once."""
    api = Api(["jobs"])
    with behind(way, otherwise=losing(api, loss)) as (_, _, url):
        error = failure_of(url)

    assert len(api.messages["jobs"]) == 1
    assert error.delivered == "unknown"
    assert "the proxy for" not in str(error)


@pytest.mark.parametrize("way", [FORWARDS, TUNNELS], ids=["forwards", "tunnels"])
def test_a_broker_behind_a_proxy_may_have_what_the_next_broker_refuses(behind, way):
    """The application has to know it, although the second broker surely has not taken it."""
    api = Api(["jobs"])
    refusing = losing(Api(["jobs"]), Failure(503, 15000))
    with (
        behind(way, otherwise=losing(api, Die())) as (_, _, url),
        ScriptedServer(otherwise=refusing) as second,
    ):
        policy = {"max_retries": 2, "interval_start": 0}
        error = failure_of(
            [url, second.broker_url], retry_uncertain=True, retry=True, retry_policy=policy
        )

    assert api.messages["jobs"]
    assert second.requests
    assert error.delivered == "unknown"


@pytest.mark.parametrize(
    "step",
    [Reset(), Hang(), Drop(), Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", reads=False)],
    ids=["reset", "late", "closed", "not TLS"],
)
@pytest.mark.parametrize("way", [TUNNELS, SOCKS_TLS], ids=["tunnels", "SOCKS and TLS"])
def test_a_tls_handshake_that_fails_behind_a_proxy_delivers_nothing(behind, way, step):
    """The message may be published elsewhere."""
    api = Api(["jobs"])

    def answer(request):
        said = api(request)
        proxy.port = broken.port
        return replace(said, headers={"Connection": "close"})

    with (
        ScriptedServer(*[step] * 100) as broken,
        behind(way, otherwise=answer) as (server, proxy, url),
    ):
        error = failure_of(url)

    assert len(server.requests) == 1  # which looked for the queue
    assert broken.opened
    assert error.delivered == "no"
