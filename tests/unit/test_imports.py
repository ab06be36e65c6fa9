"""What a process loads, and when: every command and every web worker pays for it at its start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT = {"requests", "urllib3", "http.client", "charset_normalizer", "idna", "certifi"}
HEAVY = {*CLIENT, "sqlite3", "asyncio", "click", "rich", "starlette", "uvicorn", "celery"}


def loaded(code, *, ours=False):
    """The heavy modules that *code* loads; with *ours*, the modules of this package."""
    given = f"import sys, json\n{code}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", given],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    return {name for name in modules if name.startswith("kombu_cfqueues.")} if ours else (
        modules & HEAVY
    )  # fmt: skip


def test_importing_the_package_loads_nothing_but_kombu():
    """Every process that imports Kombu does, wherever this package is installed."""
    assert loaded("import kombu_cfqueues") == set()
    assert loaded("import kombu_cfqueues", ours=True) == set()


def test_the_transport_and_a_connection_load_no_http_client_and_no_database():
    code = """
import kombu_cfqueues, kombu
url = "cfqueues://0123456789abcdef0123456789abcdef:token@/"
connection = kombu.Connection(url)
assert connection.transport.session.account.client
"""
    assert loaded(code) == set()


def test_a_process_without_a_limit_uses_no_database(emulator):
    code = f"""
import kombu_cfqueues, kombu
with kombu.Connection({emulator.broker_url!r}) as connection:
    connection.Producer().publish(1, routing_key="jobs")
"""
    assert loaded(code) == CLIENT


def test_a_process_that_forks_imports_them_for_its_children():
    """A thousand children of a pool would each take a tenth of a second at their first request."""
    code = """
import os, kombu_cfqueues
kombu_cfqueues.Transport
assert "requests" not in sys.modules
pid = os.fork()
if pid == 0:
    os._exit(0 if "kombu_cfqueues.api.exchange" in sys.modules else 1)
assert os.waitpid(pid, 0)[1] == 0
"""
    assert loaded(code) == CLIENT | {"sqlite3"}


def test_the_help_of_the_command_loads_none_of_the_commands():
    code = """
from kombu_cfqueues.cli import main
sys.argv = ["cfqueues", "--help"]
try:
    main()
except SystemExit as ended:
    assert not ended.code
"""
    assert loaded(code) == {"click"}
    assert loaded(code, ours=True) == {
        "kombu_cfqueues.cli",
        "kombu_cfqueues.cli._commands",
        "kombu_cfqueues.cli._help",
        "kombu_cfqueues.cli._options",
        "kombu_cfqueues.errors",
        "kombu_cfqueues.runtime",
        "kombu_cfqueues.runtime.extras",
    }
