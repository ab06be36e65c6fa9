"""The two servers of the hub, which one suite of tests is for."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import requests
from support.processes import eventually
from support.redis_server import free_port

from kombu_cfqueues.emulator import Emulator

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "worker/hub/src"
TOKEN = "hub-token/@:%"
QUOTED = "hub-token%2F%40%3A%25"
OTHER = "another-token"

CONFIGURATION = """
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    (name = "hub", worker = .hub),
    (name = "disk", disk = (path = "{disk}", writable = true)),
  ],
  sockets = [(name = "http", address = "127.0.0.1:{port}", http = (), service = "hub")],
);
const hub :Workerd.Worker = (
  modules = [{modules}],
  compatibilityDate = "2026-10-01",
  bindings = [
    (name = "HUB", durableObjectNamespace = "Hub"),
    (name = "TOKEN_NEW", text = "{token}"),
    (name = "TOKEN_OLD", text = "{other}"),
    (name = "TOKEN_EMPTY", text = ""),
    (name = "TOKENIZER", text = "no-token-at-all"),
  ],
  durableObjectNamespaces = [(className = "Hub", uniqueKey = "hub", enableSql = true)],
  durableObjectStorage = (localDisk = "disk"),
);
"""


class HubServer:
    """A server of hubs on a port of loopback."""

    address: str

    def url(self, namespace: str = "tests", token: str = QUOTED) -> str:
        """The URL for Kombu."""
        return f"cfhub://:{token}@{self.address}/{namespace}"

    def status(self, namespace: str = "tests") -> dict[str, Any]:
        """Who is connected."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"http://{self.address}/hub/{namespace}"
        return requests.get(url, headers=headers, timeout=30).json()

    def clients(self, namespace: str = "tests") -> list[dict[str, Any]]:
        return self.status(namespace)["clients"]

    def await_clients(self, count: int, namespace: str = "tests") -> None:
        assert eventually(lambda: len(self.clients(namespace)) == count), self.status(namespace)

    def stop(self) -> None:
        """Cut all connections, and listen no more."""
        raise NotImplementedError

    def start(self) -> None:
        """Listen again, on the same port and with the same storage."""
        raise NotImplementedError

    def hang(self) -> None:
        """Answer nothing, until `go_on`."""
        raise NotImplementedError

    def go_on(self) -> None:
        """Answer again."""
        raise NotImplementedError


class EmulatedHub(HubServer):
    """The emulator."""

    def __init__(self) -> None:
        self.emulator = Emulator(token=TOKEN, tokens={OTHER: "read"})
        self._go_on = threading.Event()

    def start(self) -> None:
        self.emulator.start()
        self.address = f"127.0.0.1:{self.emulator.port}"

    def stop(self) -> None:
        self.emulator._disconnect()

    def close(self) -> None:
        self.emulator.stop()

    def hang(self) -> None:
        self._go_on.clear()
        loop = self.emulator._thread._server._loop
        loop.call_soon_threadsafe(self._go_on.wait, 60)

    def go_on(self) -> None:
        self._go_on.set()


class WorkerdHub(HubServer):
    """The Worker, on Cloudflare's runtime."""

    def __init__(self, workerd: str, folder: Path) -> None:
        self._port = free_port()
        self.address = f"127.0.0.1:{self._port}"
        self._workerd, self._folder = workerd, folder
        (folder / "disk").mkdir()
        shutil.copytree(SOURCES, folder / "src")
        paths = sorted((folder / "src").glob("*.js"), key=lambda path: path.name != "index.js")
        modules = ", ".join(f'(name="{p.name}", esModule=embed "src/{p.name}")' for p in paths)
        configuration = CONFIGURATION.format(
            disk=folder / "disk", port=self._port, modules=modules, token=TOKEN, other=OTHER
        )
        (folder / "hub.capnp").write_text(configuration)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [self._workerd, "serve", str(self._folder / "hub.capnp")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        assert eventually(self._answers), self.log

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log
        try:
            self.status("started")
        except requests.ConnectionError:
            return False
        return True

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    close = stop

    def hang(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


def drain(connection: Any, condition: Any, seconds: float = 60) -> None:
    """Deliver messages until *condition* holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came"
        try:
            connection.drain_events(timeout=0.2)
        except TimeoutError:
            continue
