"""Orders through FastAPI's test client; what was published is read back from the emulator."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from app import api, celery_app
from fastapi.testclient import TestClient

from kombu_cfqueues.emulator import Emulator

pytest_plugins = ["kombu_cfqueues.testing"]


@pytest.fixture
def client(
    cfqueues_celery: Callable[..., None], cfqueues_emulator: Emulator, tmp_path: Path
) -> TestClient:
    cfqueues_emulator.create_queue("celery")
    cfqueues_celery(celery_app, spool_dir=tmp_path)
    return TestClient(api)


def published(emulator: Emulator, count: int) -> list[tuple[str | None, list[str]]]:
    """Wait for so many messages: the names of their tasks, and the arguments."""
    deadline = time.monotonic() + 30
    while len(messages := emulator.messages("celery")) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    return [(message.task, message.content[0]) for message in messages]


def test_an_order_is_shipped(client: TestClient, cfqueues_emulator: Emulator) -> None:
    answer = client.post("/orders", json={"item": "tea"})

    assert answer.status_code == 202
    assert published(cfqueues_emulator, 1) == [("app.ship", [answer.json()["id"], "tea"])]


def test_an_outage_of_cloudflare_is_none_of_ours(
    client: TestClient, cfqueues_emulator: Emulator
) -> None:
    with cfqueues_emulator.outage():
        answers = [client.post("/orders", json={"item": item}) for item in ("tea", "milk")]
        assert [answer.status_code for answer in answers] == [202, 202]

    assert {args[1] for _, args in published(cfqueues_emulator, 2)} == {"tea", "milk"}
