"""Flower, as its documentation starts it, against a worker on Cloudflare Queues."""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from support.processes import needs
from support.redis_server import free_port

from .workers import HERE, Worker, until


class Flower:
    """A Flower of the worker's application, until the block ends.

    Args:
        worker: Its environment is Flower's.
        folder: Where its log goes.
    """

    def __init__(self, worker, folder):
        self._port = free_port()
        self.log = folder / "flower.log"
        command = [
            *(sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks", "flower"),
            *("--address=127.0.0.1", f"--port={self._port}"),
        ]
        environ = worker.environ | {"FLOWER_UNAUTHENTICATED_API": "true"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environ, cwd=HERE, stdout=log, stderr=log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def ask(self, path, method="GET"):
        """What its API answers; None while it does not."""
        assert self.process.poll() is None, self.log.read_text()
        request = Request(f"http://127.0.0.1:{self._port}/api/{path}", method=method)
        try:
            with urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except URLError:
            return None


def shows_and_revokes(emulator, app, url, folder):
    """Flower names the worker, shows a task that succeeds, and revokes one that has not come.

    Args:
        emulator: Has the tasks.
        app: Controls the worker.
        url: The control broker.
        folder: Where logs go.
    """
    needs("flower")
    given = {"pool": "threads", "environ": {"CFQUEUES_CONTROL_URL": url}, "talks": True}
    with (
        Worker(emulator, folder, arguments=("-E", "-n", "one@here"), **given) as worker,
        Flower(worker, folder) as flower,
    ):
        until(lambda: "one@here" in (flower.ask("workers") or {}), what="Flower knows the worker")

        done = app.send_task("tasks.note", ["seen"])
        until(
            lambda: (flower.ask(f"task/info/{done.id}") or {}).get("state") == "SUCCESS",
            what="Flower shows the task",
        )

        emulator.create_queue("later")  # which the worker does not consume yet
        later = app.send_task("tasks.note", ["never"], queue="later")
        answer = until(lambda: flower.ask(f"task/revoke/{later.id}", "POST"), what="a revoke")
        assert later.id in answer["message"]
        until(lambda: f"revoked: {later.id}" in worker.log, what=worker.log)
        app.control.add_consumer("later")
        until(lambda: worker.values("task_revoked") == [[later.id, False]], what=worker.log)
        until(
            lambda: (flower.ask(f"task/info/{later.id}") or {}).get("state") == "REVOKED",
            what="Flower shows that it was revoked",
        )
        assert worker.values("note") == ["seen"]
        assert "Traceback" not in flower.log.read_text()


@pytest.mark.long
def test_flower_shows_a_worker_and_its_tasks_and_revokes_one(
    emulator, redis_server, control_app, tmp_path
):
    shows_and_revokes(emulator, control_app(redis_server.url), redis_server.url, tmp_path)
