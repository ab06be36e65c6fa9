"""Cloudflare's own ``wrangler queues …`` against the emulator, pointed at it by environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import requests

HERE = Path(__file__).parent
INSTALLED = HERE / "node_modules" / ".installed"


@pytest.fixture(scope="session")
def node():
    """Install wrangler, and a Node that it runs on, as ``package.json`` beside this file says."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, which installs wrangler")
    wanted = (HERE / "package.json").read_text()
    if not INSTALLED.exists() or INSTALLED.read_text() != wanted:
        # No lock file: it would name the registry of whoever made it.  No scripts: they look for
        # what is not needed here.
        command = [npm, "install", "--no-package-lock", "--ignore-scripts", "--no-audit"]
        done = subprocess.run(
            command, cwd=HERE, capture_output=True, text=True, timeout=300, check=False
        )
        if done.returncode:
            pytest.skip(f"npm install failed: {done.stderr.strip()[-500:]}")
        INSTALLED.write_text(wanted)
    own = next(HERE.glob("node_modules/node-linux-*/bin/node"), None)
    return str(own) if own else "node"


@pytest.fixture
def wrangler(node, emulator, tmp_path):
    """Run ``wrangler queues`` with some arguments; return what it prints."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "CLOUDFLARE_API_BASE_URL": emulator.base_url,
        "CLOUDFLARE_API_TOKEN": emulator.token,
        "CLOUDFLARE_ACCOUNT_ID": emulator.account_id,
        "WRANGLER_SEND_METRICS": "false",
        "CI": "1",
        "NO_COLOR": "1",
    }
    script = HERE / "node_modules" / "wrangler" / "bin" / "wrangler.js"

    def run(*arguments, fails=False):
        done = subprocess.run(
            [node, "--no-warnings", str(script), "queues", *arguments],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        output = done.stdout + done.stderr
        assert (done.returncode != 0) is fails, output
        return output

    return run


@pytest.mark.long
def test_a_queue_from_its_making_to_its_end(wrangler, emulator):
    assert "Created queue 'jobs'" in wrangler("create", "jobs", "--delivery-delay-secs", "5")
    assert emulator.queue_id("jobs") in wrangler("list")

    add = ["--batch-size", "10", "--message-retries", "5", "--dead-letter-queue", "dead"]
    add += ["--visibility-timeout-secs", "60", "--retry-delay-secs", "3"]
    wrangler("consumer", "http", "add", "jobs", *add)
    [consumer] = emulator.consumers("jobs")
    assert (consumer.type, consumer.dead_letter_queue) == ("http_pull", "dead")
    assert consumer.settings == {
        "batch_size": 10,
        "max_retries": 5,
        "visibility_timeout_ms": 60_000,
        "retry_delay": 3,
    }
    info = wrangler("info", "jobs")
    assert emulator.queue_id("jobs") in info
    assert "Number of Consumers: 1" in info

    wrangler("update", "jobs", "--message-retention-period-secs", "600")
    wrangler("pause-delivery", "jobs")
    settings = queue_settings(emulator)
    assert settings == {
        "delivery_delay": 5,
        "delivery_paused": True,
        "message_retention_period": 600,
    }
    wrangler("resume-delivery", "jobs")
    assert queue_settings(emulator)["delivery_paused"] is False

    publish(emulator)
    assert "Purged Queue 'jobs'" in wrangler("purge", "jobs", "--force")
    assert emulator.messages("jobs") == []

    wrangler("consumer", "http", "remove", "jobs")
    assert emulator.consumers("jobs") == []
    assert "Deleted queue jobs" in wrangler("delete", "jobs")
    assert emulator.queue_names() == []


@pytest.mark.long
def test_a_name_that_is_taken_is_explained(wrangler, emulator):
    emulator.create_queue("jobs")

    assert "already taken" in wrangler("create", "jobs", fails=True)


def call(emulator, method, path="", body=None):
    url = f"{emulator.base_url}/accounts/{emulator.account_id}/queues/{emulator.queue_id('jobs')}"
    headers = {"Authorization": f"Bearer {emulator.token}"}
    answer = requests.request(method, url + path, json=body, headers=headers, timeout=5)
    assert answer.status_code == 200
    return answer.json()["result"]


def publish(emulator):
    call(emulator, "POST", "/messages", {"body": {}})


def queue_settings(emulator):
    return call(emulator, "GET")["settings"]
