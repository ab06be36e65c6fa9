"""Real processes that publish, for what only processes can show."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: What each script begins with: the connection that its test describes.
PRELUDE = """
import json, os, sys, time
URL, OPTIONS = json.loads(sys.argv[1])
from kombu import Connection
import kombu_cfqueues

def connect(**given):
    return Connection(URL, transport_options=OPTIONS | given)
"""


#: What makes a script's threads greenlets.  gevent handles SIGCHLD only once it watches a child, so
#: it would wait forever for a first one that ends before ``fork`` returns in its parent.
GREEN = {
    "gevent": "from gevent import get_hub, monkey; monkey.patch_all()\n"
    "get_hub().loop.install_sigchld()\n",
    "eventlet": "import eventlet; eventlet.monkey_patch()\n",
}

#: What gives a process another boot id than the machine's, as LXC and systemd-nspawn do.
BOOT = """
import builtins, io, os, pathlib
def _open(file, mode="r", *given, _real=io.open, **more):
    if isinstance(file, (str, os.PathLike)) and os.fspath(file) == {path!r}:
        return io.BytesIO({boot!r}.encode()) if "b" in mode else io.StringIO({boot!r})
    return _real(file, mode, *given, **more)
io.open = builtins.open = _open
if hasattr(pathlib, "_NormalAccessor"):  # Python 3.10
    pathlib._NormalAccessor.open = staticmethod(_open)
assert pathlib.Path({path!r}).read_text() == {boot!r}
"""

#: What gives a process a monotonic clock of its own, as a time namespace does.
CLOCK = """
import time
time.monotonic = lambda real=time.monotonic: real() - {seconds!r}
"""

BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Script:
    """A Python process that runs *code*; its lines of output are read as JSON.

    Args:
        code: What it runs, after `PRELUDE`.
        url: The broker.
        options: Transport options.
        green: ``gevent`` or ``eventlet``.
        boot: The boot id that it reads; ``""``: the machine's.
        behind: By how many seconds its monotonic clock is behind the machine's.
    """

    def __init__(
        self, code: str, url: str, options: dict, *, green: str = "", boot: str = "",
        behind: float = 0.0,
    ) -> None:  # fmt: skip
        patch = GREEN.get(green, "")
        if behind:
            patch += CLOCK.format(seconds=behind)
        if boot:
            patch += BOOT.format(path=BOOT_ID, boot=boot)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                patch + PRELUDE + textwrap.dedent(code),
                json.dumps([url, options]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.errors = ""

    def line(self):
        """The next line that it prints; fails with what it says if it ends instead."""
        text = self.process.stdout.readline()
        if not text:
            raise AssertionError(f"the process ended: {self.process.stderr.read()}")
        return json.loads(text)

    def go(self) -> None:
        """Let it read a line."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """End it as no handler can hear."""
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def wait(self, seconds: float = 120):
        """The rest of its lines, once it has ended well."""
        out, self.errors = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, self.errors
        return [json.loads(text) for text in out.splitlines()]

    def __enter__(self) -> Script:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


def eventually(condition, seconds: float = 60.0) -> bool:
    """Whether *condition* comes true, on a slow and busy machine too."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def needs(package: str) -> None:
    """Skip the test where a package is missing, without importing it.

    gevent and eventlet register hooks for forks when they are imported, which all later tests of
    this process would meet.
    """
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package} from PyPI")
