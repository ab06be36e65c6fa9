"""The fixtures come from kombu_cfqueues; the application is told where the broker is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from shop import app

pytest_plugins = ["kombu_cfqueues.testing"]


@pytest.fixture(autouse=True)
def broker(cfqueues_celery: Callable[..., None]) -> None:
    """Have the application publish to the emulator, in every test."""
    cfqueues_celery(app, publish_timeout=5)
