"""A real Redis server, which a test can stop and start again."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from support.processes import needs
from support.scripted import CA_BUNDLE, CERTIFICATE

PASSWORD = "only-for-redis/@:%"
QUOTED = "only-for-redis%2F%40%3A%25"


class RedisServer:
    """Listens on one port of loopback, whenever it runs; keeps nothing on disk.

    Args:
        port: Where it listens.
        folder: Its working folder.
        tls: Whether to speak TLS, with a certificate that no system trusts.
    """

    def __init__(self, port: int, folder: Path, *, tls: bool = False) -> None:
        self.port = port
        self.url = f"redis://:{QUOTED}@127.0.0.1:{port}/0"
        self._listen = ["--port", str(port)]
        if tls:
            trust = f"ssl_cert_reqs=required&ssl_ca_certs={quote(str(CA_BUNDLE))}"
            self.url = f"rediss://:{QUOTED}@127.0.0.1:{port}/0?{trust}"
            self._listen = [
                *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no"),
                *("--tls-cert-file", CERTIFICATE, "--tls-key-file", CERTIFICATE),
                *("--tls-ca-cert-file", CA_BUNDLE),
            ]
        self.shown = f"redis://127.0.0.1:{port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty; return when it answers."""
        import redis

        command = [
            "redis-server", "--bind", "127.0.0.1", *self._listen, "--save", "",
            "--requirepass", PASSWORD, "--dir", str(self._folder),
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while True:
            try:
                with self.client() as client:
                    client.ping()
            except redis.RedisError:
                assert self._process.poll() is None, "redis-server ended"
                assert time.monotonic() < end, "redis-server does not answer"
                time.sleep(0.02)
            else:
                return

    def client(self):
        """A client of the test's own."""
        import redis

        return redis.Redis.from_url(self.url)

    def asking_clients(self) -> int:
        """How many clients have asked for a permit last."""
        with self.client() as client:
            return sum(each["cmd"] in ("eval", "evalsha") for each in client.client_list())

    def connections_so_far(self) -> int:
        """How many connections were made since it started."""
        with self.client() as client:
            return client.info("stats")["total_connections_received"]

    def spent(self) -> float:
        """When the permits of all allowances will be earned back, in seconds since the epoch."""
        with self.client() as client:
            keys = client.keys("cfqueues:budget:*")
            return sum(float(client.hget(key, "busy_until")) for key in keys)

    @property
    def is_started(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """The id of its process."""
        return self._process.pid

    def kill(self) -> None:
        """End it as no handler can hear."""
        self._process.kill()
        self._process.wait()

    def hang(self) -> None:
        """Let it accept connections and answer nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self._process.send_signal(signal.SIGCONT)


def free_port() -> int:
    """A port below those of the emulators and those that the system gives out by itself.

    Nothing else takes it while the server is down.
    """
    while True:
        port = random.randrange(5000, 10_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def needs_redis() -> None:
    """Skip the test where no server or no client is installed."""
    needs("redis")
    if shutil.which("redis-server") is None:
        pytest.skip("needs redis-server on PATH: apt-get install redis-server")
