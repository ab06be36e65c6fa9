"""The projects under ``examples/``: their tests pass, and their servers and workers run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
from support.forms import long
from support.installed import as_installed
from support.processes import eventually

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOCTOR = "from kombu_cfqueues.cli import main; main()"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Ours, without a broker that whoever runs the tests may use."""
    mine = {name: value for name, value in os.environ.items() if "BROKER_URL" not in name}
    return mine | {"PYTHONPATH": as_installed(folder), "PYTHONUNBUFFERED": "1"} | more


@pytest.mark.parametrize(
    ("project", "command", "passed"),
    [
        ("django_celery", "-W error manage.py test", "Ran 2 tests"),
        long("fastapi_publishing", "-m pytest", "2 passed"),
        long("flask_celery", "-m pytest", "2 passed"),
        long("plain_kombu", "-m pytest", "1 passed"),
        ("pytest_fixtures", "-m pytest", "5 passed"),
    ],
)
def test_the_projects_own_tests_pass(project, command, passed, tmp_path):
    """As its README says, in its folder: whoever copies a project begins with green tests."""
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=EXAMPLES / project,
        env=environment(tmp_path, PYTEST_ADDOPTS="-p no:cacheprovider"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert passed in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("project", "name"),
    [
        ("django_celery", "shop"),
        long("fastapi_publishing", "app"),
        long("flask_celery", "contact.celery_app"),
    ],
)
def test_the_doctor_has_nothing_to_say_about_the_settings(project, name, emulator, tmp_path):
    """Who copies a project copies settings that are right here."""
    env = environment(tmp_path, CELERY_BROKER_URL=emulator.broker_url, XDG_STATE_HOME=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR, "doctor", "-A", name],
        cwd=EXAMPLES / project,
        env=env | ({"DJANGO_SETTINGS_MODULE": "shop.settings"} if "django" in project else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith("No problems found.\n"), done.stdout + done.stderr


@contextmanager
def running(project: str, log: Path, command: str, env: dict[str, str]) -> Iterator[None]:
    """A process that goes on until the block ends, and writes to *log*."""
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=EXAMPLES / project,
            env=env,
            stdout=out,
            stderr=out,
        )
        try:
            yield
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()  # Celery takes 4 seconds to stop when it is asked
            process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def answers(url: str) -> bool:
    try:
        requests.get(url, timeout=10)
    except requests.ConnectionError:
        return False
    return True


@pytest.mark.parametrize(
    ("project", "server", "worker", "path", "form", "done"),
    [
        (
            "django_celery",
            "django runserver --noreload {port}",
            "celery -A shop worker -P solo -l INFO",
            "/orders",
            {"data": {"item": "tea"}},
            "Task orders.tasks.ship[",
        ),
        long(
            "fastapi_publishing",
            "uvicorn app:api --port {port}",
            "celery -A app worker -P solo -l INFO",
            "/orders",
            {"json": {"item": "tea"}},
            "Task app.ship[",
        ),
        long(
            "flask_celery",
            "flask --app contact run --port {port}",
            "celery -A contact.celery_app worker -P solo -l INFO",
            "/contact",
            {"data": {"sender": "ada@example.com", "text": "Hello"}},
            "ada@example.com to hello@example.com: Hello",
        ),
    ],
)
def test_a_request_to_the_server_is_handled_by_the_worker(
    project, server, worker, path, form, done, emulator, tmp_path
):
    """A real server publishes, a real Celery worker runs the task."""
    env = environment(
        tmp_path,
        CELERY_BROKER_URL=emulator.broker_url,
        XDG_STATE_HOME=str(tmp_path),  # where the spool is
        DATABASE=str(tmp_path / "db"),
        DJANGO_SETTINGS_MODULE="shop.settings" if "django" in project else "",
    )
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = tmp_path / "worker.log"
    if "django" in project:
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "-v0"],
            cwd=EXAMPLES / project,
            env=env,
            timeout=60,
            check=True,
        )
    with ExitStack() as processes:
        for name, command in (("server", server.format(port=port)), ("worker", worker)):
            processes.enter_context(running(project, tmp_path / f"{name}.log", command, env))
        assert eventually(lambda: answers(url), 60), (tmp_path / "server.log").read_text()

        answer = requests.post(url + path, timeout=30, **form)
        assert answer.status_code == 202, answer.text
        assert eventually(lambda: done in log.read_text(), 60), log.read_text()
        if "django" in project:
            order = f"{url}/orders/{answer.json()['id']}"
            assert eventually(lambda: requests.get(order, timeout=30).json()["state"] == "shipped")
