"""A signal handler that raises in the middle of a request, wherever CPython may run it.

The request that is struck fails.  The others share its pool of connections, and must neither wait
for its lock nor get the connection of another one.
"""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.interrupts import HTTP, PACKAGE, at, interrupt, places
from support.scripted import ScriptedServer, Step, Success

from kombu_cfqueues.api.client import Client
from kombu_cfqueues.options import Secret
from kombu_cfqueues.rate_limit import Budget

ID = "0123456789abcdef" * 2
FILES = (*HTTP, str(Path(PACKAGE, "api")))


class Together(Step):
    """Answer once a second request has come; without one, do not answer."""

    def __init__(self):
        self.both = threading.Barrier(2)

    def play(self, connection, server) -> bool:
        with contextlib.suppress(threading.BrokenBarrierError):
            self.both.wait(5)
            return Success().play(connection, server)
        return False


# A connection that is struck while it is opened is closed by the garbage collector, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_two_threads_use_two_connections_wherever_a_request_was_interrupted():
    """Neither fails, as it would if they shared one."""
    together = Together()
    with (
        ScriptedServer(otherwise=lambda r: together if r.body == b"{}" else Success()) as server,
        ThreadPoolExecutor(2) as threads,
    ):
        seconds = {"connect_timeout": 5.0, "read_timeout": 5.0}
        token = Secret(server.token)
        client = Client(server.base_url, server.account, token, permits=Budget(None), **seconds)

        def push(body):
            client.push(ID, body, deadline=time.monotonic() + 10)

        push(b"first")
        for place in places(lambda: push(b"struck"), FILES):
            at(place, interrupt, lambda: push(b"struck"), FILES)
            pushed = [threads.submit(push, b"{}") for _ in range(2)]
            assert [each.exception(20) for each in pushed] == [None, None], str(place)
        client.close()
