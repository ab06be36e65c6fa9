"""The Workers depend on nothing; only the tools that test them are installed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / "worker"

SOURCES = sorted(
    path for folder in ("gateway", "celery-consumer") for path in WORKER.glob(f"{folder}/src/*.js")
)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_worker_imports_only_its_own_files_and_the_runtime(source):
    imported = re.findall(r"(?:from|import\()\s*\"([^\"]+)\"", source.read_text())
    assert all(name.startswith(("./", "node:")) for name in imported)


def test_nothing_is_a_runtime_dependency():
    package = json.loads((WORKER / "package.json").read_text())
    assert "dependencies" not in package


def test_the_lock_file_pins_by_hash_and_names_no_registry():
    packages = json.loads((WORKER / "package-lock.json").read_text())["packages"]
    del packages[""]
    assert all("resolved" not in package for package in packages.values())
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())


@pytest.mark.parametrize("worker", ["gateway", "celery-consumer"])
def test_a_configuration_is_json_once_its_comments_are_gone(worker):
    text = (WORKER / worker / "wrangler.jsonc").read_text()
    bare = re.sub(r",(\s*[}\]])", r"\1", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    configuration = json.loads(bare)
    assert (WORKER / worker / configuration["main"]).exists()
