"""Celery workers as processes of their own, as people run them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kombu_cfqueues.emulator import Emulator

#: Everything in every combination: some minutes.
MATRIX = bool(os.environ.get("CFQUEUES_WORKER_MATRIX"))

SOME_POOLS = ["prefork", "gevent", *(["threads", "solo", "eventlet"] if MATRIX else [])]
"""The pools that a test of a whole worker tries: processes and greenlets, in the matrix all."""

HERE = Path(__file__).parent / "worker"
ROOT = Path(__file__).parents[2]


def within(strict: float, generous: float) -> float:
    """A bound on time: what is promised, where the machine is left alone; else what is absurd."""
    return strict if MATRIX else generous


def until(condition: Callable[[], Any], seconds: float = 60, what: str = "") -> Any:
    """Wait until *condition* holds; fail after *seconds*."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)
    return result


def states(emulator, queue="celery") -> Counter[str]:
    """How many messages of a queue are ready, leased or delayed."""
    return Counter(message.state for message in emulator.messages(queue))


def send_many(task: Any, values: Iterable[Any], *more: Any) -> None:
    """Send a task for each value, in full requests."""
    with (
        task.app.producer_pool.acquire(block=True) as producer,
        # Kombu before 5.7 has no batches.
        producer.batch() if hasattr(producer, "batch") else contextlib.nullcontext(),
    ):
        for value in values:
            task.apply_async((value, *more), producer=producer)


class Worker:
    """``celery worker``, from `start` to `stop` or `kill`.

    Args:
        emulator: The broker.
        folder: Where its log and what its tasks tell go.
        pool: ``prefork``, ``threads``, ``solo``, ``gevent`` or ``eventlet``.
        concurrency: Tasks at once.
        app: The module with the application, in this folder's ``worker``.
        options: Of the transport.
        talks: Whether it sends heartbeats and asks other workers at its start, as it does unless
            it is told otherwise.
        settings: Of Celery.
        arguments: More of the command line.
    """

    count = 0

    def __init__(
        self,
        emulator: Emulator,
        folder: Path,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: str = "celery",
        url: str | None = None,
        program: str = "",
        arguments: tuple[str, ...] = (),
        app: str = "tasks",
        options: dict[str, Any] | None = None,
        environ: dict[str, str] | None = None,
        talks: bool = False,
        **settings: Any,
    ) -> None:
        Worker.count += 1
        self.runs_file = folder / "runs"
        self.log_file = folder / f"worker{Worker.count}.log"
        settings = {"broker_transport_options": options or {}, **settings}
        self.environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
            "BROKER_URL": url or emulator.broker_url,
            "RUNS": str(self.runs_file),
            "RESULTS": f"file://{folder / 'results'}",
            "SETTINGS": json.dumps(settings),
            "PYTHONUNBUFFERED": "1",
            **(environ or {}),
        }
        (folder / "results").mkdir(exist_ok=True)
        self.command = [
            *(sys.executable, "-W", "ignore"),
            *(["-c", program] if program else ["-m", "celery"]),
            *("-A", app, "worker", "--pool", pool, "--concurrency", str(concurrency)),
            *("--queues", queues, "--loglevel", "INFO"),
            *(() if talks else ("--without-heartbeat", "--without-mingle", "--without-gossip")),
            *arguments,
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Worker:  # noqa: PYI034 - Self is not in Python 3.10
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> Worker:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environ,
                cwd=HERE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(lambda: " ready." in self.log or self.ended, 120, "the worker is ready")
        assert not self.ended, self.log
        return self

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    @property
    def cpu_seconds(self) -> float:
        """What its main process has used."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def runs(self, task: str | None = None) -> list[dict[str, Any]]:
        """What the tasks told, the oldest first."""
        if not self.runs_file.exists():
            return []
        lines = self.runs_file.read_text().split("\n")[:-1]  # the last one may still be written
        told = [json.loads(line) for line in lines]
        return [one for one in told if task in (None, one["task"])]

    def values(self, task: str) -> list[Any]:
        return [one["value"] for one in self.runs(task)]

    def terminate(self) -> None:
        """Ask it to end, as a supervisor does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 60) -> int:
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)  # Celery then logs where its threads are
            time.sleep(1)
            raise AssertionError(f"the worker has not ended:\n{self.log[-20_000:]}") from None

    def stop(self, seconds: float = 60) -> int:
        self.terminate()
        return self.wait(seconds)

    def kill(self) -> None:
        """Kill it and its children, whatever they do."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
