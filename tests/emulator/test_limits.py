"""The emulator's table of Cloudflare's numbers beside the client's, which was written apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from kombu_cfqueues import limits as client
from kombu_cfqueues.emulator import limits as emulator

# The client's name of a number, the emulator's, and how many of the client's units make one of the
# emulator's.
SAME = [
    ("MESSAGE_BYTES", "MESSAGE_BYTES", 1),
    ("MESSAGE_METADATA_BYTES", "METADATA_BYTES", 1),
    ("BATCH_MESSAGES", "BATCH_MESSAGES", 1),
    ("DELAY_SECONDS", "DELAY_SECONDS", 1),
    ("MIN_RETENTION_SECONDS", "RETENTION_MIN_SECONDS", 1),
    ("MAX_RETENTION_SECONDS", "RETENTION_MAX_SECONDS", 1),
    ("PULL_MESSAGES", "PULL_MESSAGES", 1),
    ("VISIBILITY_TIMEOUT_SECONDS", "VISIBILITY_TIMEOUT_MS", 1000),
    ("MAX_RETRIES", "MAX_RETRIES", 1),
    ("MAX_RETRIES_DEFAULT", "MAX_RETRIES_DEFAULT", 1),
    ("QUEUE_NAME_CHARACTERS", "NAME_CHARACTERS", 1),
    ("REQUESTS_PER_WINDOW", "REQUESTS", 1),
    ("WINDOW_SECONDS", "WINDOW_SECONDS", 1),
]

INTENDED = {
    "BATCH_BYTES": "the client stays 6,000 bytes below, should metadata be counted",
    "BODY_BYTES": "the emulator computes it from the knob metadata_bytes",
    "API_BASE_URL": "no number",
    "API_PATH": "no number",
    "API_HOST": "no number",
    "ID": "no number",
}


@pytest.mark.parametrize(("ours", "theirs", "factor"), SAME)
def test_both_tables_say_the_same(ours, theirs, factor):
    assert getattr(client, ours) * factor == getattr(emulator, theirs)


def test_the_differences_are_the_intended_ones():
    assert client.BATCH_BYTES == 250_000
    assert emulator.BATCH_BYTES == 256_000
    assert client.BODY_BYTES == emulator.MESSAGE_BYTES - emulator.METADATA_BYTES


def test_no_number_of_the_clients_is_left_out():
    """One that is added later is compared, or its difference is explained above."""
    numbers = {name for name in vars(client) if name.isupper()}
    assert numbers - {ours for ours, _, _ in SAME} - set(INTENDED) == set()


def test_the_emulator_imports_nothing_of_the_client():
    """Except what says how to install the packages that it needs."""
    folder = Path(emulator.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module != "runtime.extras":
                assert node.level <= 1, f"{file.name}: {ast.unparse(node)}"
                assert not (node.module or "").startswith("kombu"), ast.unparse(node)
            elif isinstance(node, ast.Import):
                assert not any(name.name.startswith("kombu") for name in node.names), file.name
