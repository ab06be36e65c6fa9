"""A real RabbitMQ server, on ports and in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.processes import needs
from support.redis_server import free_port
from support.scripted import CA_BUNDLE, CERTIFICATE

PASSWORD = "only-for-rabbit"

TLS = """
listeners.ssl.default = {port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {certificate}
ssl_options.keyfile = {certificate}
ssl_options.verify = verify_none
"""


class RabbitServer:
    """Listens on one port of loopback, and keeps nothing that a next start would need.

    Args:
        folder: Its working folder.
        tls: Whether to listen on a second port for TLS, with a certificate that no system trusts.
    """

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        self.port = free_port()
        self._folder = folder
        self._name = f"cfqueues{self.port}@localhost"
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._process: subprocess.Popen[bytes] | None = None
        config = folder / "rabbitmq.conf"
        if tls:
            port = free_port()
            self.tls_url = f"amqps://guest:guest@127.0.0.1:{port}//"
            config.write_text(TLS.format(port=port, ca=CA_BUNDLE, certificate=CERTIFICATE))
        self._environ = {
            **os.environ,
            "HOME": str(folder),
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_PORT": str(free_port()),  # a name server of its own, which `kill` ends
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    def start(self) -> None:
        """Start it; return when it takes connections."""
        from kombu import Connection

        program = shutil.which("rabbitmq-server") or "/usr/lib/rabbitmq/bin/rabbitmq-server"
        if Path("/usr/lib/rabbitmq/bin/rabbitmq-server").exists():
            # Debian's command on PATH changes to another user, who may not write here.
            program = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        with (self._folder / "out").open("ab") as out:
            self._process = subprocess.Popen(
                [program], env=self._environ, cwd=self._folder, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 120
        while True:
            try:
                with Connection(self.url, connect_timeout=5) as connection:
                    connection.connect()
            except OSError:
                assert self._process.poll() is None, (self._folder / "out").read_text()
                assert time.monotonic() < end, "RabbitMQ does not answer"
                time.sleep(0.1)
            else:
                return

    @property
    def is_started(self) -> bool:
        """Whether it was started, and not killed since."""
        return self._process is not None and self._process.returncode is None

    def kill(self) -> None:
        """End it as no handler can hear, with all that it has started."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        end = time.monotonic() + 10
        while time.monotonic() < end:  # the name server does not end before it misses the node
            told = subprocess.run(
                ["epmd", "-kill"], env=self._environ, capture_output=True, text=True, check=False
            )
            if "Killed" in told.stdout + told.stderr:
                break
            time.sleep(0.1)

    def hang(self) -> None:
        """Let it accept connections and answer nothing."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)


def needs_rabbitmq() -> None:
    """Skip the test where no server is installed."""
    needs("amqp")
    installed = shutil.which("rabbitmq-server") or Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    if not Path(installed).exists():
        pytest.skip(
            "needs rabbitmq-server: apt-get install --no-install-recommends rabbitmq-server"
        )
