"""Name servers that do not answer: a publish ends in time, and works again once they do."""

from __future__ import annotations

import socket

import pytest
from support.forms import first_of
from support.processes import Script, needs

from kombu_cfqueues.emulator import Emulator

#: Kombu connects four times otherwise.  In the pause, a failed connect is forgotten.
ONCE_MORE = {"max_retries": 1, "interval_start": 1.6}

CODE = """
    import socket, threading
    answering, resolve = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host == "queues.example":
            answering.wait()
            host = "127.0.0.1"
        return resolve(host, *args, **kwargs)

    socket.getaddrinfo = getaddrinfo

    def publish():
        began = time.monotonic()
        try:
            with connect(publish_timeout=2) as connection:
                connection.Producer().publish("hello", routing_key="jobs")
        except Exception as error:
            return [type(error).__name__, str(error), time.monotonic() - began]

    print(json.dumps(publish()), flush=True)
    print(json.dumps(publish()), flush=True)
    names = [thread.name for thread in threading.enumerate()]
    print(json.dumps(names.count("cfqueues-resolve")), flush=True)
    answering.set()
    print(json.dumps(publish()), flush=True)
"""


@pytest.mark.parametrize("green", first_of(["", "gevent", "eventlet"]))
def test_a_publish_does_not_wait_for_name_servers_for_ever(green):
    if green:
        needs(green)
    with Emulator(token="serves-under-any-name") as emulator:
        emulator.create_queue("jobs")
        login = emulator.broker_url.rpartition("@")[0]
        options = {
            "base_url": f"http://queues.example:{emulator.port}/client/v4",
            "allow_insecure_http": True,
            "connect_timeout": 0.5,
            **ONCE_MORE,
        }
        with Script(CODE, f"{login}@/", options, green=green) as script:
            first, second, threads, third = script.wait(60)
        arrived = emulator.messages("jobs")
    for _, text, seconds in (first, second):
        assert "queues.example" in text
        assert "the name servers did not answer within" in text
        assert seconds < 10
    assert threads <= 1
    assert third is None
    assert len(arrived) == 1


PROXIES = {
    "the proxy's name": "socks5h://queues.example:{port}",
    "the host's name": "socks5://127.0.0.1:{port}",
}


@pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)
def test_a_socks_proxy_does_not_make_a_publish_wait_for_name_servers(monkeypatch, proxy):
    """With ``socks5h``, the proxy looks up the host; who looks up the proxy?"""
    needs("socks")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("ALL_PROXY", proxy.format(port=listener.getsockname()[1]))
        options = {
            "base_url": "http://queues.example/client/v4",
            "allow_insecure_http": True,
            "connect_timeout": 0.5,
            **ONCE_MORE,
        }
        with Script(
            CODE.partition("answering.set()")[0], f"cfqueues://{'a' * 32}:token@/", options
        ) as script:
            first, second, threads = script.wait(60)
    for _, text, seconds in (first, second):
        assert "the name servers did not answer within" in text
        assert seconds < 10
    assert threads <= 1
