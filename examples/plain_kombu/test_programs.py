"""Both programs, as processes, with an emulator between them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from kombu_cfqueues.emulator import Emulator

pytest_plugins = ["kombu_cfqueues.testing"]


def start(url: str, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"CFQUEUES_BROKER_URL": url},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_orders_come_through(cfqueues_url: str, cfqueues_emulator: Emulator) -> None:
    with start(cfqueues_url, "consume.py") as consumer:
        try:
            with start(cfqueues_url, "publish.py", "tea", "milk") as publisher:
                assert publisher.wait(60) == 0
            orders = {consumer.stdout.readline(), consumer.stdout.readline()}
            assert orders == {"order: tea\n", "order: milk\n"}
            deadline = time.monotonic() + 30
            while cfqueues_emulator.messages("orders") and time.monotonic() < deadline:
                time.sleep(0.01)
            assert cfqueues_emulator.messages("orders") == []  # acknowledged
        finally:
            consumer.send_signal(signal.SIGINT)
        assert consumer.stdout.read() == "stopped\n"
