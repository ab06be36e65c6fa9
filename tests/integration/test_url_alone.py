"""Where the package is installed, Celery needs the broker URL and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.installed import as_installed

from .workers import until

APPLICATION = """
import os
from celery import Celery

app = Celery("shop")  # CELERY_BROKER_URL is all that it is told
app.conf.task_ignore_result = True
app.conf.beat_schedule = {"tick": {"task": "shop.note", "schedule": 0.5, "args": ["beat"]}}
app.conf.beat_schedule_filename = os.environ["FOLDER"] + "/schedule"

@app.task(name="shop.note")
def note(value):
    print(f"noted {value}")
"""


@pytest.fixture
def environ(emulator, tmp_path):
    (tmp_path / "shop.py").write_text(APPLICATION)
    return {
        **os.environ,
        "PYTHONPATH": as_installed(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "CELERY_BROKER_URL": emulator.broker_url,
        "FOLDER": str(tmp_path),
    }


def run(environ, *command):
    """What a Python program prints."""
    done = subprocess.run(
        [sys.executable, *command],
        env=environ,
        cwd=environ["FOLDER"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def start(environ, log, *command):
    with log.open("w") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", *command],
            env=environ,
            cwd=environ["FOLDER"],
            stdout=out,
            stderr=out,
        )


def test_a_task_is_published_by_beat_and_delay_and_run_by_a_worker(environ, emulator, tmp_path):
    run(environ, "-c", "import shop; shop.note.delay('delayed')")
    log = tmp_path / "worker.log"
    processes = [
        start(environ, tmp_path / "beat.log", "-A", "shop", "beat"),
        start(environ, log, "-A", "shop", "worker", "-P", "solo", "--without-mingle"),
    ]
    try:
        for value in ("delayed", "beat"):
            until(lambda: f"noted {value}" in log.read_text(), 60, value)  # noqa: B023
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.long
def test_celery_migrate_moves_tasks_to_another_broker_and_back(environ, emulator, tmp_path):
    run(environ, "-c", "import shop; shop.note.delay('moved')")
    for folder in ("data_in", "data_out"):
        (tmp_path / folder).mkdir()
    [published] = emulator.messages("celery")
    migrate = ["-W", "ignore", "-m", "celery", "-A", "shop", "migrate", "-a"]
    run(environ, *migrate, "-t", "2", emulator.broker_url, "filesystem://")
    assert not emulator.messages("celery"), "-a acknowledges what is moved"
    for moved in (tmp_path / "data_out").iterdir():
        moved.rename(tmp_path / "data_in" / moved.name)
    run(environ, *migrate, "-n", "1", "filesystem://", emulator.broker_url)
    [back] = emulator.messages("celery")
    assert json.loads(json.loads(published.value)["body"]) == json.loads(
        json.loads(back.value)["body"]
    )


def test_what_kombu_loads_is_tiny_and_no_serializer(environ):
    """It runs in every program that uses Kombu where this package is installed."""
    program = """
import sys
import kombu.serialization
ours = sorted(name for name in sys.modules if name.startswith("kombu_cfqueues"))
assert ours == ["kombu_cfqueues"], ours
assert not {"requests", "urllib3", "sqlite3", "celery"} & sys.modules.keys()
from kombu.serialization import registry, dumps
assert "cfqueues" not in registry._encoders
assert not [name for name in registry._decoders if "cfqueues" in name]
try:
    dumps([1], serializer="cfqueues")
except kombu.exceptions.SerializerNotInstalled:
    print("fine")
"""
    assert run(environ, "-W", "error", "-c", program) == "fine\n"


def test_a_kombu_without_what_we_need_can_still_be_imported(environ):
    program = """
import kombu.transport
del kombu.transport.TRANSPORT_ALIASES
import kombu.serialization
print(kombu.serialization.loads(b"[1]", "application/json", "utf-8"))
"""
    assert run(environ, "-W", "error", "-c", program) == "[1]\n"


@pytest.mark.parametrize("first", ["kombu_cfqueues", "kombu_cfqueues.transport.transport", "kombu"])
def test_the_package_and_kombu_may_be_imported_in_any_order(environ, first):
    program = f"""
import {first}
from kombu import Connection, Producer
with Connection({environ["CELERY_BROKER_URL"]!r}) as connection:
    Producer(connection).publish(1, routing_key="jobs")
"""
    run(environ, "-W", "error", "-c", program)


def test_a_url_of_another_broker_is_none_of_our_business(environ):
    program = """
import shop
print(shop.app.connection_for_write().transport.driver_type)
"""
    environ["CELERY_BROKER_URL"] = "memory://"
    assert run(environ, "-W", "error", "-c", program) == "memory\n"
