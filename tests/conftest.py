"""What every test may ask for."""

from __future__ import annotations

import pytest

from kombu_cfqueues.emulator import Emulator


@pytest.fixture
def emulator():
    """A fresh emulator of the Cloudflare Queues API, with a queue and token of its own."""
    with Emulator() as emulator:
        yield emulator
