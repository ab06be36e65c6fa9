"""An emulator, and the application of the workers that consume from it."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from kombu_cfqueues.emulator import Emulator

from .workers import HERE


@pytest.fixture
def emulator():
    with Emulator(latency=0.03) as emulator:
        yield emulator


@pytest.fixture
def tasks(emulator, tmp_path, monkeypatch) -> ModuleType:
    """The application of the workers, to send its tasks from here."""
    monkeypatch.setenv("BROKER_URL", emulator.broker_url)
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("RESULTS", f"file://{tmp_path / 'results'}")
    monkeypatch.syspath_prepend(str(HERE))
    (tmp_path / "results").mkdir()
    sys.modules.pop("tasks", None)
    import tasks

    yield tasks
    tasks.app.close()
    sys.modules.pop("tasks", None)
