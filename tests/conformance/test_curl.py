"""The documentation's curl examples, as they are written there."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture
def run(emulator):
    def shell(command, token=emulator.token):
        queue_id = emulator.queue_id("jobs")
        queue = f"{emulator.base_url}/accounts/{emulator.account_id}/queues/{queue_id}"
        filled = command.replace("QUEUE", queue).replace("TOKEN", token)
        done = subprocess.run(
            ["sh", "-c", filled], capture_output=True, text=True, timeout=20, check=True
        )
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)

    emulator.create_queue("jobs", consumer={"type": "http_pull"})
    return shell


CURL = r"curl -sS -w '\n%{http_code}' --noproxy '*'"


PUBLISH = (
    CURL + ' -XPOST -H "Authorization: Bearer TOKEN" "QUEUE/messages"'
    ' --data \'{ "body": { "greeting": "hello" } }\''
)


def test_publish(emulator, run):
    status, envelope = run(PUBLISH)

    assert (status, envelope["success"]) == (200, True)
    assert emulator.messages("jobs")[0].value == {"greeting": "hello"}
    [request] = emulator.requests
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"


def test_publish_with_an_invalid_token(emulator, run):
    status, envelope = run(PUBLISH, token="invalid")

    assert (status, envelope["success"]) == (403, False)
    assert emulator.messages("jobs") == []


def test_publish_a_batch_pull_and_acknowledge(emulator, run):
    status, _ = run(
        CURL + ' -XPOST -H "Authorization: Bearer TOKEN" "QUEUE/messages/batch" --data'
        ' \'{ "messages": [{ "body": "a", "content_type": "text", "delay_seconds": 0 }] }\''
    )
    assert status == 200
    status, envelope = run(
        CURL + ' --header "Authorization: Bearer TOKEN" --header "Content-Type: application/json"'
        ' "QUEUE/messages/pull" --data \'{ "visibility_timeout_ms": 10000, "batch_size": 2 }\''
    )
    assert status == 200
    [message] = envelope["result"]["messages"]
    assert message["body"] == "a"

    acks = json.dumps({"acks": [{"lease_id": message["lease_id"]}], "retries": []})
    status, envelope = run(
        CURL + f' -H "Authorization: Bearer TOKEN" "QUEUE/messages/ack" --data \'{acks}\''
    )

    assert (status, envelope["result"]["ackCount"]) == (200, 1)
    assert emulator.messages("jobs") == []


def test_a_large_body_that_curl_announces_first(emulator, run, tmp_path):
    """From 1 MB on curl waits for ``100 Continue``."""
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"body": "x" * 2_000_000, "content_type": "text"}))

    status, envelope = run(
        CURL + f' -XPOST -H "Authorization: Bearer TOKEN" "QUEUE/messages" --data @{body}'
    )

    assert (status, envelope["errors"][0]["code"]) == (413, 10204)
