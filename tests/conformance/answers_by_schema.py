"""What ``test_schema_fuzzing.py`` runs: requests made of the emulator's description of itself.

A run of its own, since Schemathesis makes its tests while pytest collects, which takes seconds in
each process of a test run.
"""

from __future__ import annotations

import os

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings

from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator.openapi import describe

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))

# Without its security: each request here brings the token, and test_access.py has the others.
SCHEMA = schemathesis.openapi.from_dict({**describe(), "security": []})


@pytest.fixture(scope="module")
def server():
    with Emulator(extend=True) as running:
        yield running


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_described(case, server):
    aim(case, server)
    case.call_and_validate(
        base_url=server.page_url,
        headers={"Authorization": f"Bearer {server.token}"},
        timeout=10,
    )


def aim(case, server):
    """Have the requests that are valid meet a queue that can be pulled from."""
    if not any(consumer.type == "http_pull" for consumer in consumers(server)):
        requests.post(f"{server.page_url}_emulator/reset", json={}, timeout=5)
        server.create_queue("jobs", consumer={"type": "http_pull"})
    if not case.meta.generation.mode.is_positive:
        return
    aims = {
        "account_id": server.account_id,
        "queue_id": server.queue_id("jobs"),
        "consumer_id": consumers(server)[0].id,
    }
    for name in case.path_parameters or {}:
        case.path_parameters[name] = aims.get(name, case.path_parameters[name])


def consumers(server):
    return server.consumers("jobs") if "jobs" in server.queue_names() else []
