"""How to install what is missing: told only in a way that works."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.forms import first_of
from support.processes import ROOT

from kombu_cfqueues.runtime import extras

WHERE = {
    None: "pip install 'kombu-cfqueues[emulator]'",
    '{"url": "file:///tmp/x.whl", "archive_info": {}}': (
        "pip install 'kombu-cfqueues[emulator] @ file:///tmp/x.whl'"
    ),
    '{"url": "https://example.com/q", "vcs_info": {"vcs": "git", "commit_id": "abc"}}': (
        "pip install 'kombu-cfqueues[emulator] @ git+https://example.com/q@abc'"
    ),
    "{}": "pip install uvicorn",
}


@pytest.mark.parametrize("origin", WHERE, ids=str)
def test_the_command_names_where_the_package_came_from(monkeypatch, tmp_path, origin):
    information = tmp_path / "kombu_cfqueues-9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kombu-cfqueues\n")
    if origin is not None:
        (information / "direct_url.json").write_text(origin)
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert extras.install_command("emulator", "uvicorn") == WHERE[origin]


def test_where_it_is_not_installed_the_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert extras.install_command("emulator", "uvicorn") == "pip install uvicorn"


def test_in_a_checkout_the_checkout_is_named():
    assert extras.install_command("cli", "click") == f"pip install '{ROOT}[cli]'"


@pytest.mark.parametrize(
    "code",
    [
        "from kombu_cfqueues.emulator import Emulator",
        "import kombu_cfqueues.testing",
        "from kombu_cfqueues.cli import main; sys.argv[1:] = ['emulator']; main()",
    ],
)
@pytest.mark.parametrize("package", first_of(["uvicorn", "starlette"]))
def test_a_missing_extra_is_named_with_its_command(code, package):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules[{package!r}] = None; {code}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"needs {package}: pip install '{ROOT}[emulator]'" in done.stderr.splitlines()[-1]
