"""An emulator for clients that others wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_cfqueues.emulator import Emulator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(tokens={"viewer": "read"}, order="fifo") as running:
        yield running
