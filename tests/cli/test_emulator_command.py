"""``cfqueues emulator`` where other machines reach it, and with options that are wrong."""

from __future__ import annotations

import json
import re
import signal
import socket

import pytest
from kombu import Connection

from kombu_cfqueues.emulator import Emulator

TOKEN = "a-token-of-its-own"


@pytest.fixture
def public(start, monkeypatch):
    """An emulator for other machines; returns what it prints."""
    monkeypatch.setenv("CFQUEUES_EMULATOR_TOKEN", TOKEN)
    process = start("cfqueues://", "emulator", "--host", "0.0.0.0", "--port", "0")
    shown = ""
    while "curl -XPOST" not in shown:
        shown += process.stdout.readline()
    return shown


def test_each_url_that_it_prints_works_where_it_is_for(public, run):
    here, elsewhere = re.findall(r"export CFQUEUES_BROKER_URL=(\S+)", public)
    assert run(here, "queues", "list", code=0).out.startswith("No queues yet")
    assert "allow_insecure_http=True" in public
    there = elsewhere.replace("HOST", socket.gethostname())
    if "." not in socket.gethostname():
        run(there, "queues", "list", "-o", "allow_insecure_http=true", code=0)
    run(elsewhere.replace("HOST", "0.0.0.0"), "queues", "list", code=0)
    [page] = re.findall(r"http://\S+/$", public, re.MULTILINE)
    assert page.startswith("http://127.0.0.1:")


def test_its_token_need_not_be_on_the_command_line(public):
    assert f":{TOKEN}@" in public


def test_json_of_a_public_emulator_is_for_this_machine(start, run, monkeypatch):
    monkeypatch.setenv("CFQUEUES_EMULATOR_TOKEN", TOKEN)
    process = start("cfqueues://", "emulator", "--host", "0.0.0.0", "--port", "0", "--json")
    place = json.loads(process.stdout.readline())
    run(place["broker_url"], "queues", "list", code=0)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)


def test_python_has_the_same_urls(run):
    with (
        Emulator("0.0.0.0", token=TOKEN) as emulator,
        Connection(emulator.broker_url) as connection,
    ):
        connection.Producer().publish({}, routing_key="jobs")
        assert len(emulator.messages("jobs")) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "65536"], "0<=x<=65535"),
        (["--port", "-1"], "0<=x<=65535"),
        (["--port", "x"], "not a valid integer"),
        (["--knob", "order"], "--knob must be NAME=VALUE"),
        (["--knob", "x=1"], "no knob is named 'x'; knobs: ack_result"),
        (["--knob", "order=lifo"], "order must be"),
        (["--knob", "metrics_lag=nan"], "metrics_lag must be"),
        (["--knob", "duplicate_rate=2"], "from 0 to 1"),
        (["--fault", "nonsense"], "--fault: kind must be"),
        (["--fault", "error push status=abc"], "--fault: status cannot be"),
        (["--fault", "latency pull seconds=2-1"], "--fault: "),
        (["--latency", "soon"], "--latency must be seconds"),
        (["--latency", "nan"], "latency must be seconds"),
        (["--latency", "inf"], "latency must be seconds"),
        (["--latency", "-1"], "latency"),
        (["--latency", "2-1"], "latency must be seconds"),
        (["--account", "a b"], "an account id consists of"),
        (["--host", "0.0.0.0"], "choose a token of your own (CFQUEUES_EMULATOR_TOKEN"),
        (["--db", "C:\\queues.db"], "a path of Windows"),
        (["--db", "."], "is a directory"),
    ],
)
def test_a_wrong_option_is_a_usage_error(run, arguments, said):
    done = run("cfqueues://", "emulator", "--port", "0", *arguments, code=2)
    assert said in done.err


@pytest.mark.parametrize("command", ["emulator", "demo"])
def test_a_port_in_use_says_so(run, emulator, command):
    done = run("cfqueues://", command, "--port", emulator.port, code=1)
    assert f"port {emulator.port} of 127.0.0.1 is in use" in done.err
    assert "--port 0" in done.err


def test_a_relative_file_is_made_absolute_and_said(start, tmp_path):
    process = start("cfqueues://", "emulator", "--port", "0", "--db", "queues.db", cwd=tmp_path)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert said == f"--db is {tmp_path / 'queues.db'}\n"
    assert (tmp_path / "queues.db").exists()


def test_a_server_of_plain_http_is_named_where_https_was_spoken(run, monkeypatch):
    """As with the name of another container, and no option."""
    monkeypatch.setenv("HTTPS_PROXY", "")
    with Emulator("0.0.0.0", token=TOKEN) as emulator:
        url = emulator.broker_url.replace("127.0.0.1", socket.gethostname())
        done = run(url, "doctor", code=1)
    assert "this server speaks plain http: use base_url and allow_insecure_http" in done.out
