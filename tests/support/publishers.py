"""Processes that publish what a test tells them, while it runs, and say what became of it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import queue
import sys
import threading
import time
from collections import Counter
from typing import Any, NamedTuple
from unittest import mock

import pytest
from support.processes import Script

from kombu_cfqueues.cli import main

COMMANDS = """
    import threading
    import traceback
    import kombu_cfqueues
    from kombu_cfqueues import errors

    saying = threading.Lock()
    promises = {}

    def say(*words):
        with saying:
            print(json.dumps(words), flush=True)

    def keep(body, promise):
        if body in OPTIONS.get("keep_promises", ()):
            promises[body] = promise

    def attempt(key, work):
        began = time.monotonic()
        try:
            work()
        except errors.CFQueuesError as error:
            told = [error.delivered, f"{type(error).__name__}: {error}"]
        except BaseException:
            told = ["bug", traceback.format_exc()]
        else:
            told = ["returned", ""]
        say(key, *told, time.monotonic() - began)

    def publish_one(producer, body, queue, given):
        attempt(body, lambda: keep(body, producer.publish(
            body, routing_key=queue, serializer="json", **given)))

    def publish_batch(producer, bodies, queue, given):
        def work():
            with kombu_cfqueues.batch(producer.connection):
                for body in bodies:
                    producer.publish(body, routing_key=queue, serializer="json")
        attempt(bodies[0], work)

    # One connection a mode, so that the threads below have nothing to look up.
    connections = {}
    def connection_for(mode):
        if mode not in connections:
            connections[mode] = connect(publish_mode=mode)
            connections[mode].connect()
        return connections[mode]

    if "modes" in OPTIONS:
        for mode in OPTIONS["modes"]:
            connection_for(mode)
    say("ready", "", "", 0)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "promises":
            say("promises", {body: [p.ready, p.failed, str(p.reason)]
                             for body, p in promises.items()}, "", 0)
            continue
        connection = connection_for(order["mode"])
        if order["do"] == "fork":
            child = os.fork()
            if not child:
                for body in order["bodies"]:
                    connection.Producer().publish(
                        body, routing_key=order["queue"], serializer="json")
                os.kill(os.getpid(), 9)
            os.waitpid(child, 0)
            say("forked", "", "", 0)
            continue
        if order["do"] == "batch":
            work = [(publish_batch, order["bodies"])]
        else:
            work = [(publish_one, body) for body in order["bodies"]]
        if order["one_thread"]:
            for what, body in work:
                what(connection.Producer(), body, order["queue"], order["given"])
            continue
        for what, body in work:
            arguments = connection.clone().Producer(), body, order["queue"], order["given"]
            threading.Thread(target=what, args=arguments, daemon=True).start()
"""


class Outcome(NamedTuple):
    """What a publisher was told.

    Attributes:
        told: ``"returned"``, the error's ``delivered``, or ``"bug"`` for an error not of ours.
        text: The error; of a bug with its traceback.
        seconds: How long the call took.
    """

    told: str
    text: str
    seconds: float


class Publisher:
    """A process that publishes on demand; each message from a thread of its own.

    Args:
        url: The broker.
        options: Transport options; ``modes`` says which publish modes connect at once, and
            ``keep_promises`` of which bodies the promises are kept.
        boot: The boot id that it reads, as in a container with one of its own; ``""``: the real.
        behind: By how many seconds its monotonic clock is behind the machine's.
    """

    def __init__(
        self, url: str, options: dict[str, Any], *, boot: str = "", behind: float = 0.0
    ) -> None:
        modes = {"modes": [options.get("publish_mode", "confirm")]}
        self._script = Script(COMMANDS, url, modes | options, boot=boot, behind=behind)
        self._mode = options.get("publish_mode", "confirm")
        self._lines: queue.Queue[list[Any] | None] = queue.Queue()
        self.process = self._script.process
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        said = self._lines.get(timeout=60)
        if said is None:
            raise AssertionError(f"the process ended: {self.process.stderr.read()}")
        assert said[0] == "ready", said

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def _order(self, **order: Any) -> None:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def publish(
        self,
        *bodies: str,
        queue: str = "jobs",
        mode: str = "",
        one_thread: bool = False,
        **given: Any,
    ) -> None:
        """Begin to publish these; `outcomes` tells how it ends.

        Args:
            *bodies: The messages, each of which names itself.
            queue: Where to.
            mode: The publish mode; ``""``: that of the options.
            one_thread: One after the other, instead of all at once.
            **given: Arguments of ``publish``.
        """
        self._order(
            do="publish",
            bodies=bodies,
            queue=queue,
            mode=mode or self._mode,
            one_thread=one_thread,
            given=given,
        )

    def publish_batch(self, *bodies: str, queue: str = "jobs", mode: str = "") -> None:
        """Begin to publish these in a ``Producer.batch()``; the outcome is by the first."""
        self._order(
            do="batch", bodies=bodies, queue=queue, mode=mode or self._mode, one_thread=False,
            given={},
        )  # fmt: skip

    def fork_and_spool(self, *bodies: str, queue: str = "jobs") -> None:
        """Let a child publish these and kill itself; return once it is dead."""
        self._order(do="fork", bodies=bodies, queue=queue, mode=self._mode)
        said = self._lines.get(timeout=60)
        assert said is not None
        assert said[0] == "forked", said

    def outcomes(self, count: int, seconds: float = 60.0) -> dict[str, Outcome]:
        """Wait for so many outcomes, by body; fewer, if they do not come within *seconds*."""
        found: dict[str, Outcome] = {}
        end = time.monotonic() + seconds
        while len(found) < count:
            try:
                said = self._lines.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if said is None:
                break
            body, *told = said
            found[body] = Outcome(*told)
        return found

    def promises(self) -> dict[str, tuple[bool, bool, str]]:
        """Of each promise that is kept: whether it is ready, whether it has failed, and why."""
        self._order(do="promises")
        said = self._lines.get(timeout=60)
        assert said is not None
        assert said[0] == "promises", said
        return {body: tuple(state) for body, state in said[1].items()}

    def kill(self) -> None:
        """End it as no handler can hear."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Publisher:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._reader.join()
        self._script.__exit__()


def spool_command(url: str, spool_dir: str, *arguments: str) -> str:
    """What ``cfqueues spool`` prints about this folder.

    In this process: where a test waits for what the spool holds, a new process each time it looks
    would come too late.
    """
    words = ["cfqueues", "spool", "--spool-dir", spool_dir, *arguments]
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.dict(os.environ, {"CFQUEUES_BROKER_URL": url}),
        contextlib.redirect_stdout(said),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert not ended.value.code, said.getvalue()
    return said.getvalue()


def held(url: str, spool_dir: str) -> dict[str, int]:
    """How many messages are in the spool, by what they wait for."""
    counts = {"confirmed": 0, "waiting": 0, "sending": 0, "refused": 0}
    for found in json.loads(spool_command(url, spool_dir, "--json"))["queues"]:
        for name in counts:
            counts[name] += found[name]
    return counts


def arrivals(server: Any, queue: str = "jobs") -> Counter[str]:
    """The messages in a queue of the emulator, and how often each one is there."""
    return Counter(json.loads(json.loads(m.body)["body"]) for m in server.messages(queue))
