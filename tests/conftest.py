"""What every test may ask for, and what is asked of every test."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
import signal
import socket
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from kombu_cfqueues import account
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.transport import bindings

#: Whether this run is of a long form: of all tests, or of workers in every combination.
LONG = any(os.environ.get(name) for name in ("CFQUEUES_LONG", "CFQUEUES_WORKER_MATRIX"))

#: Positions of the emulator's knobs that are not the defaults: ``make positions`` sets them.
KNOBS = json.loads(os.environ.get("CFQUEUES_KNOBS", "{}"))

# A shell that puts a command into the background has it ignore Ctrl-C, and all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _ports() -> Iterator[int]:
    """Yield free ports, each once in a run of the tests.

    A test may leave a thread behind that goes on trying to reach its emulator, to deliver what is
    in a spool for example.  An emulator of a later test must not get the same port.  These are
    below those that the system gives out by itself, and each of the parallel processes has its own.
    """
    first, end = 10_000, 32_000
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    share = (end - first) // processes
    first += share * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    start = random.randrange(share)  # another run may have begun at the same time
    for number in range(start, start + share):
        port = first + number % share
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                yield port


def pytest_configure() -> None:
    ports, init = _ports(), Emulator.__init__

    @functools.wraps(init)
    def init_with_own_port(self: Emulator, *args: Any, **given: Any) -> None:
        init(self, *args, **given)
        self.port = self.port or next(ports)

    Emulator.__init__ = init_with_own_port  # type: ignore[method-assign]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave long tests to the long form, unless a run says which marks it wants."""
    if LONG or config.option.markexpr:
        return
    left = [item for item in items if item.get_closest_marker("long")]
    if left:
        items[:] = [item for item in items if not item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=left)


@pytest.fixture
def emulator():
    """A fresh emulator of the Cloudflare Queues API, with a queue and token of its own."""
    with Emulator(**KNOBS) as emulator:
        yield emulator


@pytest.fixture
def control_app(emulator):
    """Makes applications that send tasks of the workers and control them."""
    from celery import Celery

    from kombu_cfqueues.side import forget_control_brokers

    apps = []

    def make(url, **options):
        app = Celery("tests", broker=emulator.broker_url, set_as_current=False)
        app.conf.broker_transport = "kombu_cfqueues:Transport"
        app.conf.broker_transport_options = {"control_url": url, **options}
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.close()
    forget_control_brokers()


@pytest.fixture(autouse=True)
def nothing_remembered():
    """Each test begins as a process does; nothing of an earlier one goes on behind it.

    Not the emptying of its spool, nor settling messages at a server that is gone: when their leases
    end, that is a line in the log of another test.
    """
    yield
    for one in account._registry.accounts.values():
        relay = one.publisher._relay
        if relay is not None and relay._thread is not None:
            relay.finish(0.0)
        acknowledger = one.receiver._acknowledger
        with acknowledger._lock:
            for outbox in acknowledger._outboxes.values():
                outbox.waiting = deque(maxlen=0)  # whatever a thread puts back is dropped, too
    account._registry.accounts.clear()
    bindings._bindings.clear()


@pytest.fixture(autouse=True)
def no_bug_is_only_logged(request, caplog):
    """Threads of the library log a bug and go on; a test that meets one does not pass by it."""
    yield
    if request.node.get_closest_marker("logs_bugs") is None:
        for record in caplog.get_records("call"):
            told = record.levelno >= logging.ERROR and record.exc_info
            assert not (told and record.name.startswith("kombu_cfqueues")), record


@pytest.fixture(autouse=True, scope="session")
def spool_of_the_tests(tmp_path_factory):
    """Whatever publishes with a limit has a spool: not that of who runs the tests."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


# A test that skips itself in CI has shown nothing, and nobody would notice: there it is a failure.


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped_in_ci(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    skipped = _skipped_in_ci(config)
    if skipped:
        terminalreporter.section("skipped, which is a failure in CI", red=True)
        for report in skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            terminalreporter.line(f"{report.nodeid}: {reason}")


def _skipped_in_ci(config: pytest.Config) -> list[pytest.TestReport]:
    if os.environ.get("CI", "").lower() in ("", "0", "false"):
        return []
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reporter.stats.get("skipped", []) if reporter else []
