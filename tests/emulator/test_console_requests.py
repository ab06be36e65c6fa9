"""Requests over ``/_emulator/requests``: in full, without secrets, and as code that runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import requests

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator import log as log_module
from kombu_cfqueues.emulator.log import LoggedRequest, RequestLog


@pytest.fixture
def request_of(api):
    """Return the latest request in full."""

    def get():
        url = f"{api.emulator.page_url}_emulator/requests"
        latest = requests.get(url, timeout=10).json()["requests"][-1]["number"]
        return requests.get(f"{url}/{latest}", timeout=10).json()

    return get


def test_a_request_is_shown_with_its_answer_and_without_its_token(api, request_of):
    api.push({"n": 12345678901234567890}, delay_seconds=5)

    shown = request_of()

    assert shown["headers"]["authorization"] == "Bearer ••••••••"
    assert "emulator-token" not in json.dumps({**shown, "code": None})
    assert "12345678901234567890" in shown["body"]["text"]
    assert shown["body"]["form"] == shown["answer"]["body"]["form"] == "json"
    assert '"success": true' in shown["answer"]["body"]["text"]
    assert shown["answer"]["headers"]["server"] == "cloudflare"
    assert (shown["client"], shown["token"]) == ("127.0.0.1", "the default token")


def test_a_request_without_an_answer_says_so(api, request_of):
    api.emulator.faults.lost_response("push")
    with pytest.raises(requests.ConnectionError):
        api.push("x")
    assert request_of()["answer"] is None

    api.emulator.faults.html_page("push", status=502)
    api.push("x")
    assert request_of()["answer"]["body"]["form"] == "text"


def test_what_is_no_text_is_shown_in_hexadecimal(api, request_of):
    api.post("/{jobs}/messages", data=b"\xff\x00binary")

    assert request_of()["body"] == {"form": "binary", "text": "ff 00 62 69 6e 61 72 79"}


def test_a_request_that_the_log_does_not_hold_is_not_found(api):
    url = f"{api.emulator.page_url}_emulator/requests"
    api.push("x")
    assert requests.get(f"{url}/999", timeout=10).status_code == 404
    assert requests.get(f"{url}/0", timeout=10).status_code == 404
    api.emulator.requests.clear()
    assert requests.get(f"{url}/1", timeout=10).status_code == 404
    api.push("x")
    assert requests.get(f"{url}/2", timeout=10).json()["route"] == "push"


@pytest.mark.parametrize("form", ["curl", "sdk"])
def test_copied_code_makes_the_request_again(api, request_of, form):
    api.push({"it's": "ü $HOME"})
    code = request_of()["code"][form]

    command = ["sh", "-euc", code] if form == "curl" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    first, again = api.emulator.messages("jobs")
    assert again.body == first.body


def test_binary_is_copied_as_curl_too(api, request_of):
    api.post("/{jobs}/messages", data=b"\xff\x00binary")

    subprocess.run(["sh", "-euc", request_of()["code"]["curl"]], timeout=30, check=True)

    assert [request.body for request in api.emulator.requests] == [b"\xff\x00binary"] * 2


def test_the_log_keeps_only_the_beginnings_of_the_latest_answers(monkeypatch):
    """Answers of pulls may have 12 MB each."""
    monkeypatch.setattr(log_module, "_MAX_ANSWER_BYTES", 10)
    monkeypatch.setattr(log_module, "_MAX_ANSWERS_BYTES", 25)
    log = RequestLog()
    for _ in range(4):
        request = LoggedRequest("GET", "/", "", {}, b"", 0.0, "list")
        log.append(request)
        log.keep_answer(request, {}, b"x" * 100)

    assert [len(r.answer.body or b"") for r in log] == [0, 0, 10, 10]
    assert {r.answer.size for r in log} == {100}
    assert [number for number, _ in log.latest(2)] == [3, 4]


def test_a_block_says_until_when_how_many_and_who(api):
    """Two machines and a third program share a token; one of them is the one to look at."""
    with Emulator(tokens={"viewer": "read"}, rate_limit=5) as emulator:
        url = f"{emulator.base_url}/accounts/{emulator.account_id}/queues"

        def ask(number, agent, token=emulator.token):
            for _ in range(number):
                headers = {"Authorization": f"Bearer {token}", "User-Agent": agent}
                requests.get(url, headers=headers, timeout=5)

        def allowances():
            state = requests.get(f"{emulator.page_url}_emulator/state", timeout=5).json()
            return {one["token"]: one for one in state["allowances"]}

        ask(2, "terraform")
        ask(6, "kombu-cfqueues")
        ask(1, "curl", token="viewer")

        assert list(allowances()) == ["token 1 of 2 (read)", "the default token"]
        block = allowances()["the default token"]
        assert 299 < block["blocked_for"] <= 300
        assert block["blocked_until"] - block["blocked_since"] == 300
        assert (block["used"], block["refused"], block["recent"]) == (6, 3, 8)
        assert block["callers"] == [
            {"address": "127.0.0.1", "agent": "kombu-cfqueues", "requests": 6},
            {"address": "127.0.0.1", "agent": "terraform", "requests": 2},
        ]
        assert allowances()["token 1 of 2 (read)"]["blocked_until"] is None
        emulator.clock.advance(301)
        assert allowances() == {}


def test_many_clients_are_counted_together(api):
    for n in range(60):
        api.session.headers["User-Agent"] = f"client {n}"
        api.push("x")
    state = requests.get(f"{api.emulator.page_url}_emulator/state", timeout=5).json()

    [allowance] = state["allowances"]
    assert allowance["recent"] == 60
    assert len(allowance["callers"]) == 10
