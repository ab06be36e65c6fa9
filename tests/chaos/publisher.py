"""A program that publishes, and writes down before each publish what it tries, and after it what it
was told: ``python -m chaos.publisher``.

Arguments, as JSON: ``count`` messages, over ``threads``; ``batch`` at once (0: one by one);
at most ``rate`` messages a second.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from typing import Any

from kombu.exceptions import OperationalError

from kombu_cfqueues.errors import BatchPublishError, CFQueuesError, PermanentError, TransientError

from .app import app, note
from .ledger import NAME, write

stop = threading.Event()


def told(error: BaseException | None) -> str:
    """What an error says of the message: surely not delivered, or unknown."""
    while error is not None:
        if isinstance(error, CFQueuesError):
            return error.delivered
        error = error.__cause__
    raise AssertionError("an error that does not say what became of the message")


def publish_one(name: str, producer: Any) -> None:
    started = time.monotonic()
    write("try", name)
    try:
        note.apply_async((time.monotonic(),), task_id=name, producer=producer)
    except (OperationalError, PermanentError, TransientError) as error:
        write("told", name, told(error), time.monotonic() - started, type(error).__name__)
    else:
        write("told", name, "yes", time.monotonic() - started, "")


def publish_batch(names: list[str], producer: Any) -> None:
    for name in names:
        write("try", name)
    outcomes = dict.fromkeys(names, ("yes", ""))
    try:
        with producer.batch():
            for name in names:
                note.apply_async((time.monotonic(),), task_id=name, producer=producer)
    except BatchPublishError as error:
        for group, outcome in ((error.refused, "no"), (error.uncertain, "unknown")):
            for one in group:
                outcomes[one.message["headers"]["id"]] = outcome, type(one.error).__name__
    except (OperationalError, PermanentError, TransientError) as error:
        outcomes = dict.fromkeys(names, (told(error), type(error).__name__))
    for name, (outcome, kind) in outcomes.items():
        write("told", name, outcome, 0.0, kind)


def work(thread: int, count: int, batch: int, rate: float) -> None:
    names = [f"m-{os.environ[NAME]}.{thread}-{number}-m" for number in range(count)]
    begun = time.monotonic() + random.random() * (batch or 1) / rate
    with app.producer_pool.acquire(block=True) as producer:
        for at in range(0, count, batch or 1):
            stop.wait(max(0.0, begun + at / rate - time.monotonic()))
            if stop.is_set():
                return
            if batch:
                publish_batch(names[at : at + batch], producer)
            else:
                publish_one(names[at], producer)


def main() -> None:
    given = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threads = given["threads"]
    app.conf.broker_pool_limit = threads + 1
    running = [
        threading.Thread(
            target=work,
            args=(
                thread, len(range(thread, given["count"], threads)),
                given.get("batch", 0), given["rate"] / threads,
            ),
        )
        for thread in range(threads)
    ]  # fmt: skip
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    write("done")


if __name__ == "__main__":
    main()
