"""The emulator in a container: what its files say is done step by step, without an engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from support.installed import as_installed

from kombu_cfqueues.emulator.config import load

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples/compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def commands(name: str) -> list[str]:
    return [value for instruction, value in instructions() if instruction == name]


@pytest.fixture
def serve():
    """Start the image's command in an environment, and return its process and its port."""
    running = []

    def start(scripts: Path, *arguments: str, token: str | None, path: str = ""):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        [entry] = commands("ENTRYPOINT")
        program, *options = json.loads(entry)
        environment = {
            "PATH": f"{scripts}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": path,
        }
        if token is not None:
            environment["CFQUEUES_EMULATOR_TOKEN"] = token
        process = subprocess.Popen(
            [scripts / program, *options, "--port", str(port), *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process, port, environment

    yield start
    for process in running:
        process.kill()
        process.communicate()


def wait_until_healthy(process, port: int, scripts: Path) -> None:
    """Repeat the image's health check until it succeeds."""
    [check] = commands("HEALTHCHECK")
    probe = json.loads(check.partition("CMD ")[2])
    probe[0] = str(scripts / "python")
    probe[-1] = probe[-1].replace(":8787/", f":{port}/")
    deadline = time.monotonic() + 60
    while subprocess.run(probe, capture_output=True, timeout=30, check=False).returncode:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "not healthy within a minute"


@pytest.fixture
def scripts(tmp_path):
    """A folder with the ``cfqueues`` and ``python`` of this checkout."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    command = folder / "cfqueues"
    command.write_text(
        f"#!{sys.executable}\nfrom kombu_cfqueues.cli import main\nmain()\n", encoding="utf-8"
    )
    command.chmod(0o755)
    return folder


def test_compose_and_image_agree():
    """Ports, files and tokens are the same on both sides."""
    services = COMPOSE["services"]
    emulator, worker = services["emulator"], services["worker"]
    assert (FOLDER / emulator["build"]["context"] / emulator["build"]["dockerfile"]).is_file()
    assert commands("EXPOSE") == ["8787"]
    assert emulator["ports"] == ["127.0.0.1:8787:8787"]
    mounted = dict(volume.split(":")[:2] for volume in emulator["volumes"])
    assert mounted == {"./emulator.toml": "/etc/cfqueues/emulator.toml", "queues": "/data"}
    assert set(COMPOSE["volumes"]) == {"queues"}
    assert emulator["command"][:2] == ["--config", mounted["./emulator.toml"]]
    assert Path(emulator["command"][3]).parent == Path(mounted["queues"])
    assert (
        worker["environment"]["CLOUDFLARE_API_TOKEN"]
        == (emulator["environment"]["CFQUEUES_EMULATOR_TOKEN"])
    )
    assert worker["depends_on"] == {"emulator": {"condition": "service_healthy"}}
    assert list(load(FOLDER / "emulator.toml").queues) == ["emails", "emails-dead"]


def test_without_a_token_the_container_says_what_is_missing(serve, scripts, tmp_path):
    process, _, _ = serve(scripts, token=None, path=as_installed(tmp_path))
    out, _ = process.communicate(timeout=60)

    assert process.returncode != 0
    assert "choose a token" in out
    assert "Traceback" not in out


def test_a_task_of_another_container_arrives(serve, scripts, tmp_path):
    """The emulator becomes healthy with its queues, and the application publishes to it."""
    services = COMPOSE["services"]
    token = services["emulator"]["environment"]["CFQUEUES_EMULATOR_TOKEN"]
    process, port, environment = serve(
        scripts,
        *("--config", str(FOLDER / "emulator.toml"), "--db", str(tmp_path / "queues.db")),
        token=token,
        path=as_installed(tmp_path),
    )
    wait_until_healthy(process, port, scripts)
    worker = services["worker"]["environment"]
    api = worker["CFQUEUES_API"].replace("emulator:8787", f"127.0.0.1:{port}")

    subprocess.run(
        [sys.executable, FOLDER / "tasks.py"],
        env={**environment, **worker, "CFQUEUES_API": api},
        timeout=60,
        check=True,
    )

    place = ["--url", f"http://127.0.0.1:{port}"]
    exported = subprocess.run(
        [scripts / "cfqueues", "emulator", "export", "emails", *place],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    [line] = exported.stdout.splitlines()
    assert json.loads(json.loads(line)["body"])["headers"]["task"] == "tasks.send_receipt"


@pytest.mark.long  # it installs from a package index
def test_the_image_installs_and_runs(serve, tmp_path):
    """The steps of the Dockerfile, in an environment that has nothing."""
    source = tmp_path / "src"
    left_out = shutil.ignore_patterns(".git", ".venv*", "node_modules", "_build", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=left_out)
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    [install] = [run for run in commands("RUN") if run.startswith("pip install")]
    words = [word.replace("/src", str(source)) for word in shlex.split(install)]
    subprocess.run([home / "bin/python", "-m", *words, "--quiet"], timeout=240, check=True)

    process, port, _ = serve(home / "bin", token="own")
    wait_until_healthy(process, port, home / "bin")
