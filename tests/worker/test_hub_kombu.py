"""Kombu's own integration tests over the hub, on both servers.

They are not in Kombu's wheel, so pip fetches its source package, once for all runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import kombu
import pytest
from support.locks import one_at_a_time

SUITE = Path(__file__).parents[1] / "support/kombu_suite.py"
CLASSES = ("BasicFunctionality", "ExchangeTypes", "Message", "EventLoop", "Failover")


@pytest.fixture(scope="session")
def kombu_source(pytestconfig, tmp_path_factory):
    """The source package of the Kombu that is installed, unpacked."""
    cache = getattr(pytestconfig, "cache", None)  # a run may be told to have none
    folder = cache.mkdir("kombu-source") if cache else tmp_path_factory.mktemp("kombu-source")
    unpacked = folder / f"kombu-{kombu.__version__}"
    with one_at_a_time(folder):
        if not unpacked.exists():
            fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            fetch += ["--no-binary", "kombu", "--retries", "1", "--dest", str(folder)]
            fetch += [f"kombu=={kombu.__version__}"]
            done = subprocess.run(fetch, capture_output=True, text=True, timeout=240, check=False)
            if done.returncode:
                pytest.skip(
                    f"Kombu's source package cannot be fetched: {done.stderr.strip()[-500:]}"
                )
            with tarfile.open(f"{unpacked}.tar.gz") as package:
                package.extractall(folder / "part", filter="data")
            (folder / "part" / unpacked.name).rename(unpacked)
    return unpacked


@pytest.mark.long
@pytest.mark.parametrize("hub", ["workerd", "emulator"], indirect=True)
def test_kombus_own_integration_tests_pass(hub, kombu_source):
    """Of connections, each type of exchange, messages, the event loop and fail-over."""
    environ = {"KOMBU_SOURCE": str(kombu_source), "HUB_URL": hub.url()}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(SUITE)]
    done = subprocess.run(
        command, env=os.environ | environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"::Test(\w+)::\w+ PASSED", done.stdout)
    assert set(passed) == set(CLASSES)
    assert f"= {len(passed)} passed in " in done.stdout  # none is skipped
