"""The API token of a whole application: in nothing that it says, stores or hands on."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
from dataclasses import asdict

import pytest
from kombu import Connection
from support.forms import first_of
from support.processes import ROOT
from support.scripted import Api, Failure, ScriptedServer, Success

from kombu_cfqueues import errors
from kombu_cfqueues.emulator import ACCOUNT_ID, TOKEN

APPLICATION = """
import http.client, json, logging, os, sys
http.client.HTTPConnection.debuglevel = 1  # prints what is sent
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(message)s %(args)r")
for name in ("kombu", "celery", "urllib3", "requests", "kombu_cfqueues"):
    logging.getLogger(name).setLevel(logging.DEBUG)
os.environ["KOMBU_LOG_CONNECTION"] = os.environ["KOMBU_LOG_CHANNEL"] = "1"

from celery import Celery
import kombu_cfqueues

app = Celery("shop", broker=os.environ.get("BROKER_URL", "cfqueues://"))
app.conf.broker_transport = "kombu_cfqueues:Transport"
app.conf.broker_transport_options = json.loads(os.environ["OPTIONS"])
app.conf.task_default_queue = "jobs"

@app.task(name="note")
def note(text):
    print("ran", text)

if __name__ == "__main__":
    note.delay("first")
    with app.connection() as connection:
        queue = connection.SimpleQueue("jobs")
        queue.get(timeout=20).reject()
        queue.close()
    print(app.connection(), app.connection().info().keys(), app)
    note.apply_async(("second",), queue="...", retry=False)  # no name for a queue
"""


def run(*command, folder, environ, fails=False):
    """All that a process prints."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


@pytest.fixture(params=first_of(["url", "option", "variable"]))
def given(request, emulator):
    """The environment of an application, with the token in each place where it may be given."""
    base = {"base_url": emulator.base_url, "account_id": ACCOUNT_ID}
    return {
        "url": {"BROKER_URL": emulator.broker_url, "OPTIONS": "{}"},
        "option": {"OPTIONS": json.dumps({**base, "api_token": TOKEN})},
        "variable": {"OPTIONS": json.dumps(base), "CLOUDFLARE_API_TOKEN": TOKEN},
    }[request.param]


@pytest.fixture
def shop(tmp_path):
    (tmp_path / "shop.py").write_text(APPLICATION)
    return tmp_path


def test_an_application_at_debug_level_prints_no_token(shop, given):
    """Not even where http.client prints what it sends."""
    said = run("shop.py", folder=shop, environ=given, fails=True)

    assert "/messages" in said  # urllib3 logs each request
    assert "ConfigurationError" in said
    assert TOKEN not in said


def test_celerys_report_has_no_token(shop, given):
    said = run("-m", "celery", "-A", "shop", "report", folder=shop, environ=given)

    assert "kombu_cfqueues:Transport" in said
    assert TOKEN not in said


COMMAND = "from kombu_cfqueues.cli import main; main()"


def test_neither_the_spool_nor_what_lists_it_has_the_token(emulator, tmp_path):
    """The spool knows a token by its hash: whoever reads the file can use no account."""
    options = {"publish_mode": "spool", "request_rate": 100.0, "spool_dir": str(tmp_path)}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        for number in range(3):
            connection.Producer().publish(number, routing_key="jobs")
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        stored = b"".join(path.read_bytes() for path in files)
        environ = {"CFQUEUES_BROKER_URL": emulator.broker_url}
        commands = [
            ["spool", "--spool-dir", str(tmp_path)],
            ["spool", "--json", "--spool-dir", str(tmp_path)],
            ["spool", "--help"],
            ["relay", "--help"],
        ]
        said = [
            run("-c", COMMAND, *command, folder=tmp_path, environ=environ) for command in commands
        ]

    assert files
    assert TOKEN.encode() not in stored
    assert TOKEN not in "".join(said)


def ours_alive() -> list:
    """The objects of this library, without those of the emulator."""
    return [
        one
        for one in gc.get_objects()
        if str(type(one).__module__).startswith("kombu_cfqueues.")
        and not type(one).__module__.startswith("kombu_cfqueues.emulator")
    ]


def test_nothing_of_ours_that_lives_in_a_process_shows_the_token(emulator):
    """Reporters of errors print objects as they are, and what they hold."""
    options = {"publish_mode": "spool", "request_rate": 100.0}
    of_earlier_tests = ours_alive()  # the traceback of a failure, say
    before = {id(one) for one in of_earlier_tests}
    with Connection(emulator.broker_url, transport_options=options) as connection:
        connection.Producer().publish("x", routing_key="jobs")
        with connection.SimpleQueue("jobs") as queue:
            queue.get(timeout=20).ack()
            ours = [one for one in ours_alive() if id(one) not in before]
            shown = [
                (type(one).__qualname__, text)
                for one in ours
                for text in (repr(one), repr(getattr(one, "__dict__", None)), repr(slots(one)))
                if TOKEN in text
            ]

    assert {"Account", "Client", "Options", "Transport"} <= {type(one).__name__ for one in ours}
    assert shown == []


def slots(value):
    names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return {name: getattr(value, name, None) for name in names}


def test_a_token_is_not_pickled(emulator):
    """Kombu pickles a connection with its URL, for a process that is to have it; no more."""
    with Connection(emulator.broker_url) as connection:
        connection.Producer().publish("x", routing_key="jobs")
        transport = connection.transport
        for held in (
            transport.session.options,
            transport.session.account.client,
            transport.session.account,
        ):
            with pytest.raises(TypeError):
                pickle.dumps(held)
        assert pickle.loads(pickle.dumps(connection)).as_uri() == connection.as_uri()
        assert copy.deepcopy(transport.session.options) == transport.session.options
        assert TOKEN not in repr(asdict(transport.session.options))


def test_no_error_of_an_application_carries_the_token_to_another_process():
    """Celery pickles errors."""
    with (
        ScriptedServer(otherwise=lambda _: Failure(403, 10000, "no")) as server,
        pytest.raises(errors.AuthenticationFailed) as refused,
    ):
        Connection(server.broker_url).connect()

    assert server.token.encode() not in pickle.dumps(refused.value)


UNVERIFIED = {
    "REQUESTS_CA_BUNDLE": "",
    "CURL_CA_BUNDLE": "",
    "PYTHONHTTPSVERIFY": "0",
    "SSL_CERT_FILE": os.devnull,
    "NODE_TLS_REJECT_UNAUTHORIZED": "0",
    "GIT_SSL_NO_VERIFY": "1",
}

CONNECT = """
import ssl, sys
ssl._create_default_https_context = ssl._create_unverified_context  # what people paste
from kombu import Connection
import kombu_cfqueues
options = {"base_url": sys.argv[1], "account_id": "a", "api_token": "t", "connect_timeout": 5}
options |= {"verify": False, "ssl": False, "insecure": True, "ssl_verify": False}
Connection("cfqueues://", transport_options=options, ssl=False).connect()
"""


def test_nothing_turns_the_verification_of_certificates_off(tmp_path):
    with ScriptedServer(Success(), tls=True) as server:
        url = f"https://localhost:{server.port}"
        said = run("-c", CONNECT, url, folder=tmp_path, environ=UNVERIFIED, fails=True)

    assert "could not be verified" in said
    assert not server.requests


def test_a_real_redirect_to_another_server_takes_no_token_there():
    """One that repeats the request elsewhere, as requests and curl -L would."""
    with ScriptedServer(otherwise=Api(["jobs"])) as other:
        target = f"{other.base_url}/accounts/{other.account}/queues"
        for status in (301, 302, 303, 307, 308):
            step = Failure(status, None, "moved", Location=target)
            with ScriptedServer(otherwise=lambda _, step=step: step) as server:
                with pytest.raises(errors.ConfigurationError, match="Redirects"):
                    Connection(server.broker_url).connect()
                assert len(server.requests) == 1

    assert not other.requests


def test_a_login_of_the_proxy_or_of_netrc_takes_no_tokens_place(tmp_path, monkeypatch):
    """An application behind a proxy, on the machine of somebody who uses curl."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer(otherwise=Api(["jobs"])) as proxy:
        monkeypatch.setenv("http_proxy", f"http://proxy-user:proxy-pass@{proxy.netloc}")
        options = {
            "base_url": "http://queues.invalid",
            "account_id": proxy.account,
            "api_token": proxy.token,
            "allow_insecure_http": True,
        }
        with Connection("cfqueues://", transport_options=options) as connection:
            connection.Producer().publish("x", routing_key="jobs")

    sent = {request.headers["authorization"] for request in proxy.requests}
    assert sent == {f"Bearer {proxy.token}"}
    assert all("proxy-pass" not in request.target for request in proxy.requests)
