"""The command, run in this process, and as a process of its own where signals are sent to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from kombu_cfqueues.cli._commands import commands

ROOT = Path(__file__).parents[2]


@dataclass
class Done:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def lines(self):
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """No account but what a test gives, and no colours."""
    for name in (
        "CELERY_BROKER_URL",
        "CFQUEUES_BROKER_URL",
        "CLOUDFLARE_ACCOUNT_ID",
        "CLOUDFLARE_API_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run():
    """Run a command towards a broker URL; whatever it does, it prints no traceback."""

    def run(url, *arguments, stdin=None, code=None):
        before = os.environ.get("CFQUEUES_BROKER_URL")
        os.environ["CFQUEUES_BROKER_URL"] = url
        try:
            done = CliRunner().invoke(commands, [str(one) for one in arguments], input=stdin)
        finally:
            os.environ.pop("CFQUEUES_BROKER_URL")
            if before is not None:
                os.environ["CFQUEUES_BROKER_URL"] = before
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        result = Done(done.exit_code, done.stdout, done.stderr)
        assert code is None or result.code == code, result
        return result

    return run


@pytest.fixture
def cfqueues(emulator, run):
    """Run a command towards the emulator; it has to succeed unless *code* says otherwise."""

    def cfqueues(*arguments, code=0, **more):
        return run(emulator.broker_url, *arguments, code=code, **more)

    return cfqueues


@pytest.fixture
def start():
    """Start the command as a process."""
    started = []

    def start(url, *arguments, **more):
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "from kombu_cfqueues.cli import main; main()",
                *map(str, arguments),
            ],
            env=os.environ | {"PYTHONPATH": str(ROOT), "CFQUEUES_BROKER_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
