"""Both Workers on workerd, Cloudflare's own runtime: ``edge`` starts them once for all tests here.

The tools are those of ``worker/package-lock.json``, a Node among them, and are installed on the
first run.  Without npm these tests are skipped, in CI they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
import requests
from kombu import Connection
from support.hub_servers import EmulatedHub, HubServer, WorkerdHub
from support.locks import one_at_a_time
from support.processes import needs

WORKER = Path(__file__).parents[2] / "worker"
API = "client/v4/accounts"


@pytest.fixture(scope="session")
def node() -> str:
    """A Node that can run miniflare, which is installed beside it."""
    npm = shutil.which("npm")
    if npm is None:
        _cannot_run("npm is not installed")
    with one_at_a_time(WORKER):
        lock, installed = WORKER / "package-lock.json", WORKER / "node_modules/.package-lock.json"
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            # No install script is needed, so none gets to run.
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=WORKER, capture_output=True, text=True, check=False)
            if done.returncode:
                _cannot_run(f"npm ci failed: {done.stderr.strip()[-500:]}")
    bundled = WORKER / "node_modules/.bin/node"
    found = str(bundled) if bundled.exists() else shutil.which("node")
    if found is None or _major_version(found) < 22:
        _cannot_run("miniflare needs Node 22 or newer")
    return found


def _major_version(executable: str) -> int:
    shown = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True)
    return int(shown.stdout.strip().removeprefix("v").split(".")[0])


def _cannot_run(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Edge:
    """Where the Workers listen, and what the test's consumer got."""

    def __init__(self, urls: dict[str, Any]) -> None:
        self.account: str = urls["account"]
        self.tokens: list[str] = urls["tokens"]
        self.urls = urls
        self.http = requests.Session()
        self.http.headers["Authorization"] = f"Bearer {self.tokens[0]}"

    def url(self, path: str = "", worker: str = "gateway") -> str:
        """The address of ``…/queues<path>`` at the gateway."""
        return f"{self.urls[worker]}{API}/{self.account}/queues{path}"

    def queue_id(self, name: str, worker: str = "gateway") -> str:
        answer = self.http.get(self.url(f"?name={name}", worker))
        [queue] = answer.json()["result"]
        return queue["queue_id"]

    def publish(self, queue: str, body: Any, **fields: Any) -> requests.Response:
        return self.http.post(
            self.url(f"/{self.queue_id(queue)}/messages"),
            json={"body": body, "content_type": "text", **fields},
        )

    def publish_batch(self, queue: str, messages: list[Any], **fields: Any) -> requests.Response:
        return self.http.post(
            self.url(f"/{self.queue_id(queue)}/messages/batch"),
            json={"messages": messages, **fields},
        )

    def encode(self, name: str, *args: Any, **fields: Any) -> dict[str, Any]:
        """A Celery task as ``celery.js`` encodes it."""
        task = {"name": name, "args": args, "kwargs": {}, **fields}
        return self.http.post(self.urls["consumer"], json=task).json()

    def records(self, queue: str) -> list[dict[str, Any]]:
        return self.http.get(f"{self.urls['inspection']}/records?queue={queue}").json()

    def wait_for(
        self, queue: str, count: int = 1, *, timeout: float = 20.0
    ) -> list[dict[str, Any]]:
        """What the consumer got from *queue*, once it is *count* messages."""
        deadline = time.monotonic() + timeout
        while len(records := self.records(queue)) < count:
            if time.monotonic() > deadline:
                raise AssertionError(f"{len(records)} of {count} messages came: {records[:3]}")
            time.sleep(0.02)
        return records

    @property
    def broker_url(self) -> str:
        gateway = urlsplit(self.urls["gateway"]).netloc
        return f"cfqueues://{self.account}:{self.tokens[0]}@{gateway}/"

    def forget(self) -> None:
        self.http.delete(f"{self.urls['inspection']}/records")

    def log(self) -> str:
        return self.http.get(f"{self.urls['inspection']}/log").text


@contextmanager
def serve(node: str, *arguments: str) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """Runs ``worker/test/serve.js`` and yields what it printed; it ends when its input does."""
    process = subprocess.Popen(
        [node, "test/serve.js", *arguments],
        cwd=WORKER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            line = process.stdout.readline()
            if not line:
                pytest.fail("worker/test/serve.js ended without a word")
            yield json.loads(line), process
        finally:
            process.stdin.close()


@pytest.fixture(scope="session")
def running_edge(node: str) -> Iterator[Edge]:
    with serve(node) as (urls, _):
        edge = Edge(urls)
        with edge.http:
            yield edge


@pytest.fixture
def edge(running_edge: Edge) -> Edge:
    """The running Workers, with nothing recorded yet."""
    running_edge.forget()
    return running_edge


class RestartableEdge(Edge):
    """The gateway in a process of its own, so that the queues outlive its runtime."""

    def __init__(self, urls: dict[str, Any], gateway: subprocess.Popen[str]) -> None:
        super().__init__(urls)
        self._gateway = gateway

    def restart_gateway(self) -> None:
        """Kill the gateway's runtime in the middle of its work, and start it again."""
        self._gateway.stdin.write("restart\n")
        self._gateway.stdin.flush()
        assert self._gateway.stdout.readline() == "restarted\n"


@pytest.fixture
def restartable_edge(node: str, tmp_path: Path) -> Iterator[RestartableEdge]:
    registry = ("--registry", str(tmp_path))
    with (
        serve(node, "--only", "consumer", *registry) as (consumer, _),
        serve(node, "--only", "gateway", *registry) as (gateway, process),
    ):
        edge = RestartableEdge(gateway | consumer, process)
        with edge.http:
            yield edge


@pytest.fixture(scope="session")
def workerd(node: str) -> str:
    """The runtime's bare binary."""
    (found,) = WORKER.glob("node_modules/@cloudflare/workerd-*/bin/workerd")
    return str(found)


@pytest.fixture(params=["emulator", "workerd"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HubServer]:
    """A server of the hub, new for each test."""
    needs("websockets")
    if request.param == "emulator":
        server: Any = EmulatedHub()
    else:
        server = WorkerdHub(request.getfixturevalue("workerd"), tmp_path)
    server.start()
    yield server
    server.go_on()
    server.close()


@pytest.fixture
def connect_to(hub: HubServer) -> Iterator[Callable[..., Connection]]:
    """Connects to the hub."""
    connections = []

    def connect(**given: Any) -> Connection:
        connections.append(Connection(hub.url(**given)))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.release()
