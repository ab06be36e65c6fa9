"""The rules for contributors that a machine keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.forms import long

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_that_runs():
    pass

def test_that_misses_a_tool():
    pytest.skip("no such tool here")

@pytest.mark.long
def test_that_is_left_to_the_long_form():
    raise AssertionError
"""


@pytest.mark.parametrize(("ci", "status"), [long("", 0), ("true", 1)])
def test_a_skipped_test_is_a_failure_in_ci_and_only_there(ci, status, tmp_path, monkeypatch):
    """A test that skips itself in CI has shown nothing, and nobody would notice."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "test_two.py").write_text(TESTS)
    # This run may be of a long form, which leaves nothing out.
    monkeypatch.delenv("CFQUEUES_LONG", raising=False)
    monkeypatch.delenv("CFQUEUES_WORKER_MATRIX", raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", tmp_path],
        env=os.environ | {"CI": ci, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == status, done.stdout
    named = "test_two.py::test_that_misses_a_tool: Skipped: no such tool here" in done.stdout
    assert named == bool(ci)
    assert "1 deselected" in done.stdout
