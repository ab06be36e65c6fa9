"""What the page on operating workers says, with a real worker."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from support.http import free_port, get

from .workers import ROOT, Worker, until

PAGE = (ROOT / "docs/operating-workers.md").read_text()


def block(language, beginning):
    """The code block of the page that begins so."""
    pattern = rf"^```{language}\n({re.escape(beginning)}.*?)^```"
    (code,) = re.findall(pattern, PAGE, re.DOTALL | re.MULTILINE)
    return code


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def worker(emulator, tmp_path, port):
    """A worker whose application is the one of the page, with its file."""
    code = block("python", "from celery import Celery")
    code += block("python", "app.conf.broker_transport_options")
    code = code.replace('"cfqueues://"', repr(emulator.broker_url))
    code = code.replace("/tmp/celery-healthy", str(tmp_path / "healthy"))
    (tmp_path / "shop.py").write_text(code)
    environ = {
        "CFQUEUES_HEALTH_ADDRESS": f"127.0.0.1:{port}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
    }
    with Worker(emulator, tmp_path, pool="solo", app="shop", environ=environ) as worker:
        until(lambda: get(port, "/readyz")[0] == 200)
        yield worker


def exit_status(command):
    return subprocess.run(command, check=False, capture_output=True).returncode


def test_a_worker_touches_its_file_until_it_stops(worker, tmp_path):
    """A probe looks at its age, without a request."""
    healthy = tmp_path / "healthy"
    probe = block("sh", "test -n").replace("/tmp/celery-healthy", str(healthy))
    until(healthy.exists)
    assert exit_status(["sh", "-c", probe]) == 0
    os.utime(healthy, (0, 0))
    until(lambda: healthy.stat().st_mtime > 0, what="the worker has touched its file again")
    assert worker.stop() == 0
    assert not healthy.exists()
    assert exit_status(["sh", "-c", probe]) == 1


def test_the_probes_of_kubernetes_get_an_answer(worker, port):
    """Paths and port of the manifest are those of the worker; liveness outlasts a block."""
    manifest = yaml.safe_load(block("yaml", "env:"))
    (variable,) = manifest["env"]
    assert variable == {"name": "CFQUEUES_HEALTH_ADDRESS", "value": "0.0.0.0:9810"}
    for name in ("livenessProbe", "readinessProbe"):
        probe = manifest[name]
        assert probe["httpGet"]["port"] == 9810
        assert get(port, probe["httpGet"]["path"])[0] == 200
    liveness = manifest["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > 300


def test_the_probe_of_docker_succeeds_only_with_a_worker(worker, port):
    command = json.loads(re.search(r"CMD (\[.*urllib.*\])", PAGE)[1])
    assert command[0] == "python"
    command = [sys.executable, *(part.replace("9810", str(port)) for part in command[1:])]
    assert exit_status(command) == 0
    worker.kill()
    assert exit_status(command) == 1


def test_the_condition_of_systemd_holds_only_without_a_worker(worker, port):
    """`systemctl restart` runs if the condition succeeds: if the worker stays unhealthy."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    unit = block("ini", "# /etc/systemd/system/shop-worker-health.service")
    command = shlex.split(re.search(r"^ExecCondition=(.*)$", unit, re.MULTILINE)[1])
    command[-1] = command[-1].replace("9810", str(port)).replace("--retry 10", "--retry 0")
    assert exit_status(command) == 1
    worker.kill()
    assert exit_status(command) == 0


def test_what_the_page_says_of_an_unhealthy_worker_is_json():
    (text,) = re.findall(r"`(\{\"healthy\".*?\})`", PAGE)
    assert set(json.loads(text)) == {"healthy", "ready", "faults", "queues"}


def test_celery_inspect_ping_fails_though_the_worker_is_healthy(worker):
    """So it is no health check, and says why."""
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "shop", "inspect", "ping"]
    done = subprocess.run(
        command, env=worker.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 69
    assert "reach nobody" in done.stderr
