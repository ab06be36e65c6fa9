"""The emulator as a process of its own, with a database file; killed, and started on it again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

from kombu_cfqueues.emulator import ACCOUNT_ID, TOKEN

STARTING_SECONDS = 60


class Server:
    """``cfqueues emulator --db FILE``.

    Args:
        folder: Where its file and its output go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ahead = 0.0  # seconds by which its clock was advanced
        self._session = requests.Session()
        self._session.trust_env = False
        self.port = 0
        self.requests = 0  # in all, also before it was killed
        self._requests_before = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        log = self._folder / "emulator.log"
        with log.open("ab") as output:
            said = output.tell()
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from kombu_cfqueues.cli import main; main()"),
                    *(
                        "emulator",
                        "--port",
                        str(self.port),
                        "--db",
                        str(self._folder / "queues.db"),
                    ),
                ],
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        deadline = time.monotonic() + STARTING_SECONDS
        while "Broker URL" not in (text := log.read_bytes()[said:].decode()):
            assert self.process.poll() is None, f"the emulator did not start: {text}"
            assert time.monotonic() < deadline, f"the emulator is not up: {text}"
            time.sleep(0.02)
        self.port = int(text.partition("127.0.0.1:")[2].partition("/")[0])
        if self._ahead:  # time does not go back because a server was started again
            self.post("clock", {"advance": self._ahead})

    def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(requests.RequestException):
            self.count_requests()
        self._requests_before = self.requests
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def close(self) -> None:
        self._session.close()

    def advance(self, seconds: float) -> None:
        """Let its clock pass: leases end, delays are over."""
        self.post("clock", {"advance": seconds})
        self._ahead += seconds

    def count_requests(self) -> int:
        total = self.get("requests?limit=1")["total"]
        self.requests = self._requests_before + total
        return self.requests

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask("POST", path, json=body)

    def delete(self, path: str) -> Any:
        return self._ask("DELETE", path)

    def _ask(self, method: str, path: str, **given: Any) -> Any:
        url = f"http://127.0.0.1:{self.port}/_emulator/{path}"
        answer = self._session.request(method, url, timeout=60, **given)
        answer.raise_for_status()
        return answer.json()


def broker_url(port: int) -> str:
    return f"cfqueues://{ACCOUNT_ID}:{TOKEN}@127.0.0.1:{port}/"
