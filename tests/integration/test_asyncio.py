"""Publishing from ``async def``: concurrent awaits share requests, and the event loop goes on."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import Celery
from support.processes import eventually

#: How many views publish at one time.
AWAITS = 200

#: Threads of the executor: the most that Python's own has.
THREADS = 32

#: What a busy machine may take away from the loop; alone, it is a twentieth.
PATIENCE_SECONDS = 0.5


class Heartbeat:
    """Measures for how long the event loop does nothing else."""

    async def __aenter__(self):
        self.longest = 0.0
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _beat(self):
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.monotonic() - before)


@pytest.fixture
def make_task(emulator, tmp_path):
    apps = []

    def make_task(**options):
        emulator.create_queue("celery")
        app = Celery("shop", broker=emulator.broker_url, set_as_current=False)
        app.conf.broker_pool_limit = THREADS
        app.conf.broker_transport_options = {"spool_dir": str(tmp_path), **options}
        apps.append(app)

        @app.task(name="shop.ship", shared=False)
        def ship(number): ...

        return ship

    yield make_task
    for app in apps:
        app.close()


def in_a_loop(coroutine):
    """Run a coroutine in a loop whose ``to_thread`` has `THREADS` threads."""

    async def main():
        with ThreadPoolExecutor(THREADS) as executor:
            asyncio.get_running_loop().set_default_executor(executor)
            return await coroutine

    return asyncio.run(main())


def arrived(emulator):
    envelopes = [json.loads(message.value) for message in emulator.messages("celery")]
    return Counter(json.loads(envelope["body"])[0][0] for envelope in envelopes)


async def publish_all(task):
    async with Heartbeat() as heartbeat:
        await asyncio.gather(*(asyncio.to_thread(task.delay, n) for n in range(AWAITS)))
    return heartbeat.longest


def test_two_hundred_awaits_share_requests_and_the_loop_goes_on(make_task, emulator):
    """The server is slow: if a publish waited for it on the loop, the loop would stand still."""
    task = make_task()
    task.delay(-1)  # the first publish of a process imports what it needs
    emulator.requests.clear()
    emulator.faults.latency("push", "batch", seconds=2 * PATIENCE_SECONDS, times=3)

    longest = in_a_loop(publish_all(task))

    assert arrived(emulator) == Counter([-1, *range(AWAITS)])
    assert len(emulator.requests.of("push", "batch")) <= AWAITS / 4
    assert longest < PATIENCE_SECONDS


def test_in_spool_mode_nobody_waits_for_an_outage(make_task, emulator):
    task = make_task(publish_mode="spool")
    task.delay(-1)
    assert eventually(lambda: arrived(emulator)[-1])
    with emulator.outage():
        longest = in_a_loop(publish_all(task))
        assert arrived(emulator) == Counter([-1])

    assert longest < PATIENCE_SECONDS
    assert eventually(lambda: arrived(emulator) == Counter([-1, *range(AWAITS)]), 20)


def test_a_spooled_publish_on_the_loop_waits_for_the_disk_alone(make_task, emulator):
    """Each blocks the loop for a moment; the loop does other work between two of them."""
    task = make_task(publish_mode="spool")
    task.delay(-1)
    emulator.faults.latency("push", "batch", seconds=2 * PATIENCE_SECONDS, times=1)

    async def main():
        async with Heartbeat() as heartbeat:
            for number in range(20):
                task.delay(number)
                await asyncio.sleep(0)
        return heartbeat.longest

    assert in_a_loop(main()) < PATIENCE_SECONDS
    assert eventually(lambda: arrived(emulator) == Counter([-1, *range(20)]), 20)
