"""An emulator for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from emulator.client import Api

from kombu_cfqueues.emulator import Emulator


@pytest.fixture
def make() -> Iterator[Callable[..., Api]]:
    """Start emulators with the settings of one's choice, and a queue ``jobs`` to pull from."""
    running = []

    def start(*, queue: dict[str, Any] | None = None, **settings: Any) -> Api:
        emulator = Emulator(**settings)
        api = Api(emulator.start())
        running.append(api)
        if "jobs" not in emulator.queue_names():
            options = {"consumer": {"type": "http_pull"}, **(queue or {})}
            emulator.create_queue("jobs", **options)
        return api

    yield start
    for api in running:
        api.session.close()
        api.emulator.stop()


@pytest.fixture
def api(make: Callable[..., Api]) -> Api:
    return make()
