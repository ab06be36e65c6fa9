"""The Workers depend on nothing; only the tools that test them are installed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

WORKER = Path(__file__).parents[2] / "worker"

SOURCES = sorted(
    path
    for folder in ("gateway", "celery-consumer", "hub")
    for path in WORKER.glob(f"{folder}/src/*.js")
)

#: The last advisories published for what miniflare brings, and the first version without each.
#: `npm audit` knows of newer ones, where the registry answers it; not every one does.
FIXED = [
    ("undici", (7, 29, 0), "CVE-2026-13697, CVE-2026-14643, CVE-2026-15157, CVE-2026-16728"),
    ("ws", (8, 20, 1), "GHSA-58qx-3vcg-4xpx"),
    ("sharp", (0, 35, 4), "GHSA-rgj7-g3m4-5g8c"),
    ("cookie", (0, 7, 0), "GHSA-pxg6-pf52-xh8x"),
]


def locked():
    packages = json.loads((WORKER / "package-lock.json").read_text())["packages"]
    del packages[""]
    return packages


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_a_worker_imports_only_its_own_files_and_the_runtime(source):
    imported = re.findall(r"(?:from|import\()\s*\"([^\"]+)\"", source.read_text())
    assert all(name.startswith(("./", "node:", "cloudflare:")) for name in imported)


def test_nothing_is_a_runtime_dependency():
    package = json.loads((WORKER / "package.json").read_text())
    assert "dependencies" not in package


def test_the_lock_file_pins_by_hash_and_names_no_registry():
    packages = locked().values()
    assert "://" not in (WORKER / "package-lock.json").read_text()
    assert all("resolved" not in package for package in packages)
    assert all(package["integrity"].startswith("sha512-") for package in packages)


@pytest.mark.parametrize(("name", "fixed", "advisories"), FIXED)
def test_no_tool_is_older_than_what_its_advisories_ask_for(name, fixed, advisories):
    found = [package for path, package in locked().items() if path.endswith(f"/{name}")]
    assert found
    for package in found:
        assert tuple(map(int, package["version"].split("."))) >= fixed, advisories


@pytest.mark.parametrize("worker", ["gateway", "celery-consumer", "hub"])
def test_a_configuration_is_json_once_its_comments_are_gone(worker):
    text = (WORKER / worker / "wrangler.jsonc").read_text()
    bare = re.sub(r",(\s*[}\]])", r"\1", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    configuration = json.loads(bare)
    assert (WORKER / worker / configuration["main"]).exists()
