"""One HTTP request: what is sent, what may go wrong on the way, and as which error it comes out."""

import contextlib
import gzip
import http.client
import inspect
import json
import logging
import re
import select
import socket
import ssl
import threading
import time
import tracemalloc

import pytest
import requests
import urllib3
from support.proxies import Proxy
from support.scripted import (
    CA_BUNDLE,
    Drip,
    Drop,
    Failure,
    Hang,
    Html,
    Json,
    Raw,
    Reset,
    ResetAfter,
    Say,
    ScriptedServer,
    Step,
    Success,
)

from kombu_cfqueues import errors
from kombu_cfqueues.api import connections
from kombu_cfqueues.api.client import Client
from kombu_cfqueues.options import Secret
from kombu_cfqueues.rate_limit import Budget

ID = "0123456789abcdef" * 2
MESSAGE = b'{"body":"x","content_type":"text"}'


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """No proxies, CA bundles and .netrc but those that a test sets."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def connect(server, **given):
    given = {"connect_timeout": 20.0, "read_timeout": 20.0} | given
    token = given.pop("token", Secret(server.token))
    return Client(
        given.pop("base_url", server.base_url), server.account, token, permits=Budget(None), **given
    )


def soon(seconds=30.0):
    return time.monotonic() + seconds


def failure(client, kind=errors.CFQueuesError, *, deadline=None):
    """What publishing raises, with the seconds it took."""
    began = time.monotonic()
    with pytest.raises(kind) as raised:
        client.push(ID, MESSAGE, deadline=deadline or soon())
    raised.value.took = time.monotonic() - began
    client.close()
    return raised.value


def failure_after(*script, **given):
    with ScriptedServer(*script) as server:
        return failure(connect(server, **given))


# What is sent


def test_every_request_carries_the_token_and_json():
    with ScriptedServer() as server:
        client = connect(server)
        client.create_queue("jobs", deadline=soon())
        client.list_queues(deadline=soon())
        client.close()

    create, listing = server.requests
    assert create.headers["authorization"] == f"Bearer {server.token}"
    assert create.headers["content-type"] == "application/json"
    assert create.json == {"queue_name": "jobs"}
    assert create.path == f"/client/v4/accounts/{server.account}/queues"
    assert listing.headers["authorization"] == f"Bearer {server.token}"
    assert listing.query == {"page": ["1"]}


def test_messages_are_sent_as_they_were_packed():
    with ScriptedServer(Success(), Success()) as server:
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.push_batch(ID, [MESSAGE, MESSAGE], deadline=soon())
        client.close()

    one, many = server.requests
    assert one.path.endswith(f"/queues/{ID}/messages")
    assert one.body == MESSAGE
    assert many.path.endswith(f"/queues/{ID}/messages/batch")
    assert many.json == {"messages": [json.loads(MESSAGE)] * 2}


def test_a_callable_token_is_asked_before_each_request():
    """Tokens can be rotated without a restart."""
    tokens = iter(["first", "second"])
    with ScriptedServer(Success(), Success()) as server:
        client = connect(server, token=lambda: next(tokens))
        client.push(ID, MESSAGE, deadline=soon())
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("text", ["../../accounts", "a/b", "a?b", "a#b", "ü"])
def test_no_id_leads_to_another_route(text):
    with ScriptedServer(Success()) as server:
        client = connect(server)
        client.push(text, MESSAGE, deadline=soon())
        client.close()

    path = server.requests[0].path
    assert re.fullmatch(rf"/client/v4/accounts/{server.account}/queues/[^/?#]+/messages", path)


def test_an_empty_id_leads_to_no_request():
    """The route without it is another one."""
    with ScriptedServer() as server:
        client = connect(server)
        with pytest.raises(errors.QueueNotFound):
            client.push("", MESSAGE, deadline=soon())
        with pytest.raises(errors.QueueNotFound):
            client.delete_queue("", deadline=soon())

    assert not server.requests


def test_one_call_is_one_request():
    """Whatever repeats requests on its own spends an allowance that nobody has counted."""
    with ScriptedServer(Drop(), Failure(503), Failure(429), Html(502)) as server:
        client = connect(server)
        for count in range(1, 5):
            with pytest.raises(errors.TransientError):
                client.push(ID, MESSAGE, deadline=soon())
            assert len(server.requests) == count
        client.close()


def test_connections_are_kept_and_closed_with_the_client():
    with ScriptedServer(Success(), Success()) as server:
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.push(ID, MESSAGE, deadline=soon())
        assert server.opened == 1

        client.close()

        assert server.wait_for(lambda: server.open_connections == 0)


def test_threads_that_start_together_leave_no_connection_behind():
    together = threading.Barrier(32)
    with ScriptedServer(otherwise=lambda _: Success()) as server:
        client = connect(server)

        def publish():
            together.wait(5)
            client.push(ID, MESSAGE, deadline=soon())

        run_all([publish] * 32)
        client.close()

        assert server.wait_for(lambda: server.open_connections == 0, 1)


def run_all(targets):
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)


def test_a_client_that_was_closed_opens_anew():
    with ScriptedServer(Success(), Success()) as server:
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.close()
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

        assert server.opened == 2


# The token


@pytest.mark.parametrize(
    "token", ["", "two words", "Bearer x", "tail\n", "a\r\nX-Evil: 1", "ümlaut", "\x00", None, b"x"]
)
@pytest.mark.parametrize("called", [False, True])
def test_a_malformed_token_is_refused_before_any_request(token, called):
    with ScriptedServer() as server:
        error = failure(connect(server, token=(lambda: token) if called else token))

    if called and not token:  # as a callable that raises
        assert type(error) is errors.ConnectionFailed
        assert "returned no token" in str(error)
    else:
        assert type(error) is errors.AuthenticationFailed
        assert "malformed: it is empty, or contains a space, a line break or" in str(error)
    assert not token or str(token).strip() not in str(error)
    assert not server.requests


def test_a_token_callable_that_fails_is_an_error_of_ours_and_may_work_again():
    """A secret store that is down for a moment must not end a worker."""

    def broken():
        raise LookupError("the store is sealed")

    with ScriptedServer() as server:
        error = failure(connect(server, token=broken))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert "api_token" in str(error)
    assert isinstance(error.__cause__, LookupError)
    assert not server.requests


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Failure(403, 10000, "Authentication error"), errors.AuthenticationFailed),
        (Failure(401, None, "Unauthorized"), errors.AuthenticationFailed),
        (Failure(403, 9109, "Invalid access token"), errors.AuthenticationFailed),
        (Failure(403, 10106, "Unauthorized"), errors.PermissionDenied),
        (Failure(403, None, "Forbidden"), errors.PermissionDenied),
    ],
)
def test_a_wrong_or_weak_token_names_the_permission_that_is_missing(step, kind):
    error = failure_after(step)

    assert type(error) is kind
    assert "Queues Edit" in str(error)


def test_a_wrong_account_is_told_as_such():
    error = failure_after(Failure(404, 7003, "Could not route to /accounts/x/queues"))

    assert type(error) is errors.ConfigurationError
    assert "account_id" in str(error)


def test_netrc_does_not_replace_the_token(monkeypatch, tmp_path):
    """requests would take a login for the host from ~/.netrc in place of our header."""
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with ScriptedServer(Success()) as server:
        assert requests.utils.get_netrc_auth(server.base_url) == ("somebody", "else")
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    assert server.requests[0].headers["authorization"] == f"Bearer {server.token}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_token_goes_nowhere(status):
    with ScriptedServer() as thief:
        step = Say(status, headers={"Location": f"{thief.base_url}/stolen"})
        with ScriptedServer(step) as server:
            error = failure(connect(server))

        assert type(error) is errors.ConfigurationError
        assert "Redirects are not followed" in str(error)
        assert thief.opened == 0
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "location", ["", "http://[", "\xff\xfe", "http://x:port/", "//", "a" * 9000]
)
def test_a_redirect_to_nonsense_is_still_a_redirect(location):
    error = failure_after(Say(302, headers={"Location": location}))

    assert type(error) is errors.ConfigurationError
    assert error.status == 302


def test_cookies_are_not_kept():
    with ScriptedServer(Json(200, {"success": True}, Set_Cookie="a=b"), Success()) as server:
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    assert "cookie" not in server.requests[1].headers


# On the way


def test_a_refused_connection_surely_delivered_nothing():
    with ScriptedServer() as server:
        client = connect(server)
        server.stop_listening()
        error = failure(client)

    assert type(error) is errors.NothingListens
    assert error.delivered == "no"
    assert server.netloc in str(error)
    assert "refused" in str(error)


def test_a_host_without_an_address_surely_got_nothing():
    with ScriptedServer() as server:
        error = failure(connect(server, base_url="http://queues.invalid/client/v4"))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert "queues.invalid cannot be reached" in str(error)


@contextlib.contextmanager
def silent(host="127.0.0.1", port=0):
    """An address that answers nothing, as behind a firewall that drops packets; yields its port."""
    with socket.create_server((host, port), backlog=0) as full:
        # With its backlog full, the kernel drops what comes.
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield full.getsockname()[1]
        for one in waiting:
            one.close()


def addresses(monkeypatch, *found):
    """Let "localhost" have these addresses."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        names = found if host == "localhost" else [host]
        return [entry for name in names for entry in resolve(name, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_connection_that_nobody_accepts_ends_after_the_connect_timeout():
    """A firewall that drops packets answers with silence."""
    with silent() as port, ScriptedServer() as server:
        base_url = f"http://127.0.0.1:{port}/client/v4"

        error = failure(connect(server, base_url=base_url, connect_timeout=0.2))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert error.took > 0.1


def test_all_addresses_of_a_host_share_the_connect_timeout(monkeypatch):
    """Cloudflare's API has four: each would take all of the time that a caller has."""
    addresses(monkeypatch, "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
    with contextlib.ExitStack() as hosts, ScriptedServer() as server:
        port = hosts.enter_context(silent("127.0.0.2"))
        for number in (3, 4, 5):
            hosts.enter_context(silent(f"127.0.0.{number}", port))
        base_url = f"http://localhost:{port}/client/v4"

        error = failure(connect(server, base_url=base_url, connect_timeout=2))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert 1.8 < error.took < 6


@pytest.mark.parametrize("tls", [False, True])
def test_an_address_that_is_silent_leaves_time_for_the_next(monkeypatch, tls):
    """A host whose IPv6 leads nowhere is reached by IPv4."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CA_BUNDLE))
    addresses(monkeypatch, "127.0.0.2", "127.0.0.1")
    with ScriptedServer(Success(), Success(), tls=tls) as server:
        base_url = server.base_url.replace("127.0.0.1", "localhost")
        client = connect(server, base_url=base_url, connect_timeout=2)
        with silent("127.0.0.2", server.port):
            began = time.monotonic()
            client.push(ID, MESSAGE, deadline=soon())
            assert time.monotonic() - began > 0.8, "the silent one comes first"
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    assert len(server.requests) == 2
    assert server.opened == 1


@pytest.mark.parametrize(
    "step",
    [
        Drop(),
        Reset(),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"),
        Raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"),
        Raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"),
        Raw(b"HTTP/1.1 20"),
        Raw(b"SSH-2.0-OpenSSH_9.6\r\n"),
        Raw(b"\x00" * 100),
        Raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
        Raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"),
        Raw(b"HTTP/1.1 abc OK\r\n\r\n"),
        Raw(b"HTTP/9.9 200 OK\r\n\r\n"),
    ],
    ids=lambda step: repr(getattr(step, "data", type(step).__name__))[:60],
)
def test_a_connection_that_breaks_may_have_delivered(step):
    error = failure_after(step)

    assert isinstance(error, (errors.ConnectionFailed, errors.ServerError))
    assert error.delivered == "unknown"


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (Html(500), "text/html"),
        (Html(502), "text/html"),
        (Html(200), "text/html"),
        (Say(200), "empty body"),
        (Say(502), "empty body"),
        (Say(200, b'{"success": tru'), "not the API's JSON"),
        (Say(200, b"[]"), "not the API's JSON"),
        (Json(200, {"success": False, "errors": []}), "HTTP 200"),
        (Json(200, {"success": False, "errors": [{"code": 15000, "message": "odd"}]}), "odd"),
    ],
)
def test_an_answer_that_is_not_the_apis_is_the_servers_failure(step, text):
    error = failure_after(step)

    assert type(error) is errors.ServerError
    assert error.delivered == "unknown"
    assert text in str(error)


def test_silence_ends_after_the_read_timeout():
    error = failure_after(Hang(), read_timeout=0.2)

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "unknown"
    assert "did not answer in time" in str(error)
    assert error.took < 10


def test_a_deadline_cuts_the_read_timeout():
    with ScriptedServer(Hang()) as server:
        error = failure(connect(server, read_timeout=20), deadline=soon(0.2))

    assert error.took < 10


def test_a_deadline_that_has_passed_makes_no_request():
    with ScriptedServer() as server:
        error = failure(connect(server), deadline=soon(-1))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert server.opened == 0


LONG = b'{"success": true, "result": "' + b"x" * 10_000 + b'"}'


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000,
        Say(200, LONG).text(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 10_000,
        b"HTTP/1.1 200 OK\r\n\r\n" + LONG,
        Say(302, LONG, headers={"Location": "/"}).text(),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    ],
    ids=["headers", "body", "chunks", "to the end", "redirect", "continues"],
)
def test_an_answer_that_comes_drop_by_drop_does_not_outlive_its_time(data):
    """Each drop comes within the timeout of a socket, which alone would wait for ever."""
    error = failure_after(Drip(data), read_timeout=0.4)

    assert type(error) is errors.ConnectionFailed
    assert "did not answer in time" in str(error)
    assert error.took < 10


def test_a_slow_answer_that_ends_in_time_is_taken():
    step = Drip(Success().text(), every=0.0005)
    with ScriptedServer(step) as server:
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.close()


def test_an_answer_without_end_is_not_kept_in_memory(monkeypatch):
    monkeypatch.setattr(connections, "MAX_RESPONSE_BYTES", 1000)  # 100 MB would take long

    error = failure_after(Say(200, LONG))

    assert isinstance(error, errors.TransientError)
    assert "10,0" not in str(error)


@pytest.mark.parametrize(
    "base_url", ["https://host:99999", "https://a..b", f"https://{'a' * 70}.example"]
)
def test_a_base_url_that_only_requests_finds_wrong_is_the_configurations_fault(base_url):
    with ScriptedServer() as server:
        error = failure(connect(server, base_url=base_url))

    assert type(error) is errors.ConfigurationError


# TLS, proxies


def test_a_certificate_that_nobody_vouches_for_is_refused():
    with ScriptedServer(tls=True) as server:
        error = failure(connect(server))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert "certificate" in str(error)
    assert "REQUESTS_CA_BUNDLE" in str(error)
    assert not server.requests


@pytest.mark.parametrize("packed", ["gzip, gzip", "deflate", "br", "zstd", "gzip,deflate"])
def test_an_answer_that_is_packed_as_nobody_asked_for_is_not_unpacked(packed):
    """A thousand times a thousand times as long: what is packed twice fills the memory."""
    bomb = gzip.compress(gzip.compress(bytes(50 << 20)))
    with ScriptedServer(Say(200, bomb, headers={"Content-Encoding": packed})) as server:
        tracemalloc.start()
        error = failure(connect(server))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert isinstance(error, errors.ConnectionFailed)
    assert error.delivered == "unknown"
    assert peak < 10 << 20


def test_an_answer_that_swells_is_not_read_to_its_end():
    bomb = gzip.compress(bytes(2 * connections.MAX_RESPONSE_BYTES), 1)
    with ScriptedServer(Say(200, bomb, headers={"Content-Encoding": "gzip"})) as server:
        tracemalloc.start()
        error = failure(connect(server))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert isinstance(error, errors.ConnectionFailed)
    assert peak < 2 * connections.MAX_RESPONSE_BYTES


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_ca_bundle_of_the_environment_is_honoured(monkeypatch, variable):
    monkeypatch.setenv(variable, str(CA_BUNDLE))
    with ScriptedServer(Success(), tls=True) as server:
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    assert len(server.requests) == 1


def test_a_certificate_of_another_host_is_refused(monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CA_BUNDLE))
    with ScriptedServer(tls=True) as server:
        base_url = f"https://127.0.0.2:{server.port}"
        with socket.create_server(("127.0.0.2", server.port)) as other:
            thread = threading.Thread(target=relay, args=(other, server.port))
            thread.start()
            error = failure(connect(server, base_url=base_url))
            thread.join(5)

    assert "certificate" in str(error)
    assert not server.requests


def relay(listener, port):
    """Carry one TLS connection on to *port*, until the client has said no."""
    connection, _ = listener.accept()
    with connection, socket.create_connection(("127.0.0.1", port)) as onwards:
        connection.settimeout(2)
        onwards.sendall(connection.recv(1 << 16))
        connection.sendall(onwards.recv(1 << 16))
        connection.recv(1 << 16)


def test_an_answer_whose_encryption_is_spoilt_may_belong_to_a_message_that_arrived(monkeypatch):
    """OpenSSL calls it the wrong version, as when the server speaks no TLS at all."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CA_BUNDLE))
    with (
        ScriptedServer(Success(), tls=True) as server,
        socket.create_server(("127.0.0.1", 0)) as spoilt,
    ):
        thread = threading.Thread(target=spoil_answer, args=(spoilt, server))
        thread.start()
        error = failure(connect(server, base_url=f"https://127.0.0.1:{spoilt.getsockname()[1]}"))
        thread.join(15)

    assert len(server.requests) == 1
    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "unknown"


def spoil_answer(listener, server):
    """Carry one TLS connection on, with a flipped bit in the first record of the answer."""
    connection, _ = listener.accept()
    with (
        contextlib.suppress(ConnectionError),  # the client may reset what it does not understand
        connection,
        socket.create_connection(("127.0.0.1", server.port)) as onwards,
    ):
        while ready := select.select([connection, onwards], [], [], 10)[0]:
            for source in ready:
                data = bytearray(source.recv(1 << 16))
                if not data:
                    return
                if source is onwards and server.requests:
                    data[1] ^= 4
                (connection if source is onwards else onwards).sendall(data)


def test_a_ca_bundle_that_is_no_file_is_the_configurations_fault(monkeypatch, tmp_path):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.pem"))
    with ScriptedServer(tls=True) as server:
        error = failure(connect(server))

    assert type(error) is errors.ConfigurationError
    assert "REQUESTS_CA_BUNDLE" in str(error)


def test_a_ca_bundle_without_certificates_is_the_configurations_fault(monkeypatch, tmp_path):
    bundle = tmp_path / "empty.pem"
    bundle.write_text("nothing to trust\n")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with ScriptedServer(tls=True) as server:
        error = failure(connect(server))

    assert type(error) is errors.ConfigurationError
    assert "REQUESTS_CA_BUNDLE" in str(error)


def test_https_to_a_server_that_speaks_http_surely_delivers_nothing():
    with ScriptedServer(Raw(b"HTTP/1.1 400 Bad Request\r\n\r\n", reads=False)) as server:
        error = failure(connect(server, base_url=server.base_url.replace("http:", "https:")))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"


@pytest.mark.parametrize("step", [Reset(), Hang()])
def test_a_tls_handshake_that_ends_nowhere_surely_delivers_nothing(step):
    """Some firewalls let TCP through and reset TLS."""
    with ScriptedServer(step) as server:
        base_url = server.base_url.replace("http:", "https:")
        error = failure(connect(server, base_url=base_url, connect_timeout=0.2))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert error.took < 10


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_a_proxy_of_the_environment_is_used(monkeypatch, variable):
    with ScriptedServer(Success()) as proxy:
        monkeypatch.setenv(variable, f"http://{proxy.netloc}")
        client = connect(proxy, base_url="http://queues.invalid/client/v4")
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    target = f"http://queues.invalid/client/v4/accounts/{proxy.account}/queues/{ID}/messages"
    assert proxy.requests[0].target == target


@pytest.mark.parametrize("excepted", ["queues.invalid", "*", ".invalid", "other,invalid"])
def test_no_proxy_of_the_environment_is_honoured(monkeypatch, excepted):
    with ScriptedServer() as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy.netloc}")
        monkeypatch.setenv("no_proxy", excepted)
        error = failure(connect(proxy, base_url="http://queues.invalid/client/v4"))

    assert "queues.invalid cannot be reached" in str(error)
    assert proxy.opened == 0


def test_this_machine_is_not_reached_through_a_proxy(monkeypatch):
    """The proxy's own loopback is another machine's."""
    with ScriptedServer() as proxy, ScriptedServer(Success()) as server:
        monkeypatch.setenv("http_proxy", f"http://{proxy.netloc}")
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    assert proxy.opened == 0
    assert len(server.requests) == 1


def test_a_proxy_that_is_down_is_named_as_the_culprit(monkeypatch):
    with ScriptedServer() as proxy:
        proxy.stop_listening()
        monkeypatch.setenv("http_proxy", f"http://{proxy.netloc}")
        error = failure(connect(proxy, base_url="http://queues.invalid/client/v4"))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert "proxy" in str(error)


def test_a_proxy_that_refuses_to_connect_never_sees_the_token(monkeypatch):
    with ScriptedServer(Say(407, b"<html>")) as proxy:
        monkeypatch.setenv("https_proxy", f"http://user:pass@{proxy.netloc}")
        error = failure(connect(proxy, base_url="https://queues.invalid/client/v4"))

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"
    assert "proxy" in str(error)
    assert "407" in str(error)
    assert "pass" not in str(error)
    assert proxy.requests[0].method == "CONNECT"
    assert "authorization" not in proxy.requests[0].headers


@pytest.mark.parametrize("step", [ResetAfter(), Drop(), Hang()])
def test_a_proxy_that_makes_no_tunnel_surely_delivers_nothing(monkeypatch, step):
    with ScriptedServer(step) as proxy:
        monkeypatch.setenv("https_proxy", f"http://{proxy.netloc}")
        base_url = "https://queues.invalid/client/v4"
        error = failure(connect(proxy, base_url=base_url, connect_timeout=0.2))

    assert [request.method for request in proxy.requests] == ["CONNECT"]
    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "no"


def test_a_socks_proxy_of_the_environment_is_used(monkeypatch):
    pytest.importorskip("socks", reason="needs PySocks")
    with ScriptedServer(Success()) as server, Proxy(server.port) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{proxy.netloc}")
        client = connect(server, base_url="http://queues.invalid/client/v4")
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    assert b"queues.invalid" in proxy.asked[0]
    assert server.requests[0].body == MESSAGE


def test_interim_responses_are_skipped_through_a_socks_proxy(monkeypatch):
    """Such a proxy has its own connections."""
    pytest.importorskip("socks", reason="needs PySocks")
    answers = [Success(), Failure(400, 10207)]

    class Late(Step):
        def play(self, connection, server) -> bool:
            connection.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            server.released.wait(0.02)
            return answers.pop(0).play(connection, server)

    with ScriptedServer(otherwise=lambda _: Late()) as server, Proxy(server.port) as proxy:
        monkeypatch.setenv("ALL_PROXY", f"socks5h://{proxy.netloc}")
        client = connect(server, base_url="http://queues.invalid/client/v4")
        client.push(ID, MESSAGE, deadline=soon())
        with pytest.raises(errors.InvalidMessage):
            client.push(ID, MESSAGE, deadline=soon())
        assert server.opened == 1  # and it is used again
        client.close()


def test_a_socks_proxy_without_its_package_is_the_configurations_fault(monkeypatch):
    monkeypatch.setattr("requests.adapters.SOCKSProxyManager", _no_socks)
    monkeypatch.setenv("ALL_PROXY", "socks5h://127.0.0.1:1")
    with ScriptedServer() as server:
        error = failure(connect(server, base_url="http://queues.invalid/client/v4"))

    assert type(error) is errors.ConfigurationError
    assert "PySocks" in str(error)


def _no_socks(*_, **__):
    raise requests.exceptions.InvalidSchema("Missing dependencies for SOCKS support.")


@pytest.mark.parametrize(
    "proxy", ["http://", "ftp://127.0.0.1", "socks9://127.0.0.1", "http://[::1"]
)
def test_a_proxy_that_is_no_url_is_the_configurations_fault(monkeypatch, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    with ScriptedServer() as server:
        error = failure(connect(server, base_url="http://queues.invalid/client/v4"))

    assert isinstance(error, (errors.ConfigurationError, errors.ConnectionFailed))
    assert error.delivered == "no"


# Whatever requests and urllib3 may raise


def classes_of(module):
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Exception)
        and not issubclass(value, Warning)
        and not value.__name__.startswith("_")
    ]


FOREIGN = [
    *classes_of(requests.exceptions),
    *classes_of(urllib3.exceptions),
    *classes_of(http.client),
    *classes_of(socket),
    *classes_of(ssl),
    UnicodeError,
    ValueError,
    OSError,
    ConnectionResetError,
    BrokenPipeError,
    TimeoutError,
]


def made(kind):
    """An instance, whatever its constructor wants."""
    error = kind.__new__(kind)
    error.args = ("what happened",)
    # What the texts of some need.
    partial = b"" if kind is http.client.IncompleteRead else 0
    error.__dict__.update(partial=partial, expected=1, length=b"zz", response=None)
    return error


@pytest.mark.parametrize("kind", FOREIGN, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_error_of_the_libraries_below_becomes_one_of_ours(monkeypatch, kind):
    """An upgrade adds classes, and one that is not mapped ends a Celery worker."""

    def fail(*_, **__):
        raise made(kind)

    monkeypatch.setattr(
        requests.adapters.HTTPAdapter, "send", fail
    )  # most cannot be made to happen
    with ScriptedServer() as server:
        error = failure(connect(server))

    assert type(error) in (errors.ConnectionFailed, errors.ConfigurationError)
    assert isinstance(error.__cause__, kind)
    assert "publishing" in str(error)
    assert error.delivered == "no"


@pytest.mark.parametrize(
    "kind",
    [
        requests.ConnectTimeout,
        requests.ReadTimeout,
        requests.exceptions.InvalidHeader,
        urllib3.exceptions.LocationValueError,
        urllib3.exceptions.NewConnectionError,
        urllib3.exceptions.ProtocolError,
        http.client.BadStatusLine,
        ssl.SSLCertVerificationError,
        ConnectionResetError,
        UnicodeError,
    ],
)
def test_whatever_is_raised_once_a_request_was_sent_it_may_have_arrived(monkeypatch, kind):
    """Who must not duplicate relies on it."""

    def fail(*_, **__):
        raise made(kind)

    monkeypatch.setattr(urllib3.connection.HTTPConnection, "getresponse", fail)
    with ScriptedServer(Success()) as server:
        error = failure(connect(server))
        assert server.wait_for(lambda: server.requests)

    assert type(error) is errors.ConnectionFailed
    assert error.delivered == "unknown"


def test_what_the_application_is_handling_is_not_taken_for_the_cause():
    """A task that fails to connect to its database may publish from the handler."""
    with ScriptedServer(Drop()) as server:
        try:
            raise requests.ConnectTimeout("of the application")
        except requests.ConnectTimeout as theirs:
            error = failure(connect(server))
            kept = theirs.__traceback__

    assert error.delivered == "unknown"
    assert kept is not None


# What the answers of the other routes become


def test_a_list_survives_entries_that_make_no_sense():
    entries = [
        None,
        5,
        {},
        {"queue_id": 5, "queue_name": "a"},
        {"queue_id": "i", "queue_name": "a"},
    ]
    with ScriptedServer(Success(entries), Success(None), Success({})) as server:
        client = connect(server)
        pages = [client.list_queues(deadline=soon()) for _ in range(3)]
        client.close()

    assert [[queue.id for queue in page.queues] for page in pages] == [["i"], [], []]


def test_a_created_queue_without_an_id_is_the_servers_failure():
    with ScriptedServer(Success(None)) as server:
        client = connect(server)
        with pytest.raises(errors.ServerError):
            client.create_queue("jobs", deadline=soon())
        client.close()


def test_a_failed_look_up_or_admin_call_surely_delivered_no_message():
    """It carries none, so the lost answer to it leaves no doubt about any message."""
    with ScriptedServer(Drop(), Html(502), Drop(), Success(None)) as server:
        client = connect(server)
        for call in (
            client.list_queues,
            client.list_queues,
            lambda **given: client.create_queue("jobs", **given),
            lambda **given: client.create_queue("jobs", **given),
        ):
            with pytest.raises(errors.TransientError) as raised:
                call(deadline=soon())
            assert raised.value.delivered == "no"
        client.close()


@pytest.mark.parametrize("result", [None, [], "x", {"messages": None}, {"messages": [None, 5]}])
def test_a_pull_survives_results_that_make_no_sense(result):
    with ScriptedServer(Success(result)) as server:
        client = connect(server)
        assert client.pull(ID, batch_size=1, visibility_timeout_ms=1, deadline=soon()) == []
        client.close()


@pytest.mark.parametrize("result", [None, [], {"warnings": ["x"]}, {"warnings": None}])
def test_an_ack_survives_results_that_make_no_sense(result):
    with ScriptedServer(Success(result)) as server:
        client = connect(server)
        assert client.ack(ID, acks=["L"], deadline=soon()) == {}
        client.close()


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Failure(405, 0), errors.PullNotEnabled),
        (Failure(409), errors.QueueDisabled),
        (Failure(404, 10104), errors.QueueNotFound),
    ],
)
def test_a_pull_that_cannot_be_says_why(step, kind):
    with ScriptedServer(step) as server:
        client = connect(server)
        with pytest.raises(kind):
            client.pull(ID, batch_size=1, visibility_timeout_ms=1, deadline=soon())
        client.close()


def test_errors_call_a_queue_by_the_name_that_people_know():
    with ScriptedServer(Failure(404, 10104), Failure(404, 10104)) as server:
        client = connect(server)
        with pytest.raises(errors.QueueNotFound, match=f"id '{ID}'"):
            client.push(ID, MESSAGE, deadline=soon())
        client.remember_name(ID, "jobs")
        with pytest.raises(errors.QueueNotFound, match="queue 'jobs'"):
            client.push(ID, MESSAGE, deadline=soon())
        client.close()


def test_nothing_is_logged_by_a_request_that_works(caplog):
    caplog.set_level(logging.INFO)
    with ScriptedServer(Success()) as server:
        client = connect(server)
        client.push(ID, MESSAGE, deadline=soon())
        client.close()

    assert not caplog.records
