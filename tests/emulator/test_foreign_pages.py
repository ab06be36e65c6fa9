"""Web pages of other sites, which a browser on this machine may have open.

The emulator's default token is known to everybody, so such a page could publish a task that a local
worker runs.
"""

from __future__ import annotations

import pytest
import requests

from kombu_cfqueues.emulator import Emulator

FOREIGN = [
    {"Host": "evil.example"},  # a name that resolves to 127.0.0.1 ("DNS rebinding")
    {"Host": "evil.example:8787"},
    {"Host": "localhost.evil.example"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_a_foreign_page_reaches_nothing_of_the_api(api, headers):
    """It is refused before its request is logged, and before it uses up a fault."""
    emulator = api.emulator
    emulator.faults.error("push", status=503)

    publish = api.post("/{jobs}/messages", {"body": {"task": "a"}}, headers=headers)
    create = api.post("", {"queue_name": "theirs"}, headers=headers)
    pull = api.post("/{jobs}/messages/pull", {"batch_size": 1}, headers=headers)

    assert [answer.status_code for answer in (publish, create, pull)] == [403] * 3
    assert "token" in publish.json()["errors"][0]["message"]  # what to do
    assert len(emulator.requests) == 0
    assert emulator.queue_names() == ["jobs"]
    assert emulator.messages("jobs") == []
    assert api.post("/{jobs}/messages", {"body": {}}).status_code == 503  # the fault is still there


@pytest.mark.parametrize("host", ["localhost", "app.localhost:80", "127.0.0.1", "[::1]:8787"])
def test_names_of_this_machine_are_served(api, host):
    assert api.post("/{jobs}/messages", {"body": {}}, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("headers", FOREIGN)
def test_with_a_token_of_its_own_any_name_will_do(make, headers):
    """A page cannot know the token; containers call the emulator by any name."""
    api = make(token="a-secret-of-ours")
    assert api.post("/{jobs}/messages", {"body": {}}, headers=headers).status_code == 200


def test_the_default_token_beside_others_is_guarded_too(make):
    api = make(tokens={"viewer": "read"})
    headers = {"Host": "evil.example", "Authorization": "Bearer viewer"}
    assert api.get("", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/_page/nothing", "/_emulator/state", "/_emulator/openapi.json",
             "/_emulator/nothing", "/client/v4/nothing", "/client/v4/accounts/a/queues"],
)  # fmt: skip
def test_no_browser_guesses_what_kind_of_file_an_answer_is(path):
    with Emulator() as emulator:
        answer = requests.get(emulator.page_url.rstrip("/") + path, timeout=10)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
