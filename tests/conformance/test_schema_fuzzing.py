"""Fuzzing by the emulator's own description of itself: valid and broken requests by the hundred.

Whatever is sent, the answer is one that the description names, in the form that it gives, and no
500.  ``FUZZ_EXAMPLES=500`` looks longer than the suite has time for.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import requests

from kombu_cfqueues.emulator.openapi import describe
from kombu_cfqueues.emulator.routes import NAMES

ANSWERS = Path(__file__).with_name("answers_by_schema.py")


def test_every_route_is_described():
    described = {
        route["operationId"]
        for path in describe()["paths"].values()
        for method, route in path.items()
        if method != "parameters"
    }
    assert described == set(NAMES)


def test_the_emulator_serves_its_description(emulator):
    answer = requests.get(f"{emulator.page_url}_emulator/openapi.json", timeout=5)
    assert answer.json() == describe()


@pytest.mark.long
def test_answers_are_as_described():
    pytest.importorskip("schemathesis", reason="needs schemathesis from PyPI")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "schemathesis", "-q", ANSWERS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(NAMES)} passed" in done.stdout
