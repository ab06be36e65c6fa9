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

#: For how long a busy machine may keep the loop from running; an idle one does for 0.05 seconds.
PATIENCE_SECONDS = 5


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
        more = {"spool_dir": str(tmp_path), "publish_timeout": 20}
        app.conf.broker_transport_options = more | options
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
    await asyncio.gather(*(asyncio.to_thread(task.delay, n) for n in range(AWAITS)))


def test_two_hundred_awaits_share_requests_and_the_loop_goes_on(make_task, emulator):
    """The loop ends the outage that they wait for: if one of them blocked it, they would fail."""
    task = make_task()
    task.delay(-1)  # the first publish of a process imports what it needs

    async def main():
        async with Heartbeat() as heartbeat:
            fault = emulator.faults.error("push", "batch", status=503, retry_after=0, times=None)
            publishing = asyncio.create_task(publish_all(task))
            while len(emulator.requests.of("push", "batch")) < 3:
                await asyncio.sleep(0.001)
            emulator.faults.remove(fault)
            await publishing
        return heartbeat.longest

    longest = in_a_loop(main())

    assert arrived(emulator) == Counter([-1, *range(AWAITS)])
    accepted = [one for one in emulator.requests.of("push", "batch") if one.status == 200]
    assert len(accepted) <= AWAITS / 4
    assert longest < PATIENCE_SECONDS


def test_in_spool_mode_nobody_waits_for_an_outage(make_task, emulator):
    task = make_task(publish_mode="spool")
    task.delay(-1)
    assert eventually(lambda: arrived(emulator)[-1])

    async def main():
        async with Heartbeat() as heartbeat:
            await publish_all(task)
        return heartbeat.longest

    with emulator.outage():
        longest = in_a_loop(main())
        assert arrived(emulator) == Counter([-1])

    assert longest < PATIENCE_SECONDS
    assert eventually(lambda: arrived(emulator) == Counter([-1, *range(AWAITS)]), 20)


def test_a_spooled_publish_on_the_loop_waits_for_the_disk_alone(make_task, emulator):
    """Each blocks the loop for a moment, also during an outage."""
    task = make_task(publish_mode="spool")
    task.delay(-1)
    assert eventually(lambda: arrived(emulator)[-1])

    async def main():
        async with Heartbeat() as heartbeat:
            for number in range(20):
                task.delay(number)
                await asyncio.sleep(0)
        return heartbeat.longest

    with emulator.outage():
        assert in_a_loop(main()) < PATIENCE_SECONDS
    assert eventually(lambda: arrived(emulator) == Counter([-1, *range(20)]), 20)
