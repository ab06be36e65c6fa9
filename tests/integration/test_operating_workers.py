"""What the page on operating workers says, with a real worker."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from .workers import ROOT, Worker, until

PAGE = (ROOT / "docs/operating-workers.md").read_text()


@pytest.fixture
def worker(emulator, tmp_path, monkeypatch):
    """A worker whose application is the one of the page."""
    (code,) = re.findall(r"```python\n(from pathlib.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    code = code.replace('"cfqueues://"', repr(emulator.broker_url))
    code = code.replace("/tmp/celery-alive", str(tmp_path / "alive"))
    (tmp_path / "shop.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    worker = Worker(emulator, tmp_path, pool="solo", app="shop")
    worker.environ["PYTHONPATH"] = os.environ["PYTHONPATH"]
    with worker:
        yield worker


def test_a_worker_touches_its_file_until_it_stops(worker, tmp_path):
    """A probe looks at its age, without a request."""
    alive = tmp_path / "alive"
    (probe,) = set(re.findall(r'^test -n .*?\)"', PAGE, re.MULTILINE))
    probe = probe.replace("/tmp/celery-alive", str(alive))
    assert subprocess.run(probe, shell=True, check=False).returncode == 0
    os.utime(alive, (0, 0))
    assert subprocess.run(probe, shell=True, check=False).returncode == 1
    until(lambda: alive.stat().st_mtime > 0, what="the worker has touched its file again")
    assert worker.stop() == 0
    assert not alive.exists()


def test_celery_inspect_ping_fails_though_the_worker_is_healthy(worker):
    """So it is no health check, and says why."""
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "shop", "inspect", "ping"]
    done = subprocess.run(
        command, env=worker.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69
    assert "reach nobody" in done.stderr
