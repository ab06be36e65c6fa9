"""The pytest fixtures for other people's projects; ``examples/pytest_fixtures`` is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_fixtures_give_each_test_a_clean_emulator(tmp_path):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["kombu_cfqueues.testing"]\n')
    (tmp_path / "test_it.py").write_text(
        """
import celery
import pytest
from kombu import Connection

seen = []

@pytest.mark.parametrize("n", [1, 2])
def test_publish(cfqueues_emulator, cfqueues_url, n):
    assert cfqueues_emulator.queue_names() == []
    assert cfqueues_url not in seen
    seen.append(cfqueues_url)
    with Connection(cfqueues_url) as connection:
        connection.SimpleQueue("jobs").put({"n": n})
    [message] = cfqueues_emulator.messages("jobs")
    assert message.content == {"n": n}
    assert message.task is None
    assert message.headers == {}

def test_celery(cfqueues_emulator, cfqueues_celery):
    app = celery.Celery("shop")
    cfqueues_celery(app)
    app.send_task("shop.pay")
    [message] = cfqueues_emulator.messages("celery")
    assert message.task == "shop.pay"

class TestOptions:
    @pytest.fixture
    def cfqueues_emulator_options(self):
        return {"rate_limit": 5}

    def test_options(self, cfqueues_emulator):
        assert cfqueues_emulator.knobs.rate_limit == 5
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        # A broker that a developer uses otherwise is not the tests'.
        env={**os.environ, "PYTHONPATH": str(ROOT), "CELERY_BROKER_WRITE_URL": "memory://"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
