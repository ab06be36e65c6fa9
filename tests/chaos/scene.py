"""Who takes part, and what happens to them: publishers, workers, the network and the server.

Everything that a run decides comes from its seed; what the machine decides (who is quicker) does
not, so a seed repeats the orders and not the moment of each.  What happens is tied to how many
messages have been tried and run, and never to the time: a slow machine sees the same as a fast one.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from support.scripted import CA_BUNDLE

from . import faults
from .ledger import FOLDER, KILL_CHILD, NAME, SETTINGS, Ledger
from .server import Server, broker_url

ROOT = Path(__file__).parents[2]
QUEUE = "jobs"
LEASE_SECONDS = 60

#: By pool: how many tasks at once.
CONCURRENCY = {"prefork": 2, "threads": 4}

#: Where requests are limited, processes share them through the spool.
SHARED = {"request_rate": 40.0, "request_burst": 10}


@dataclass(frozen=True)
class Publishers:
    """A group of publishers that are alike.

    Attributes:
        share: Of all messages, how many in a hundred; publishers are given time for them.
        options: Of the transport.
        arguments: Of the program.
        stable: Never killed, to see its memory.
    """

    share: int
    options: dict[str, Any]
    arguments: dict[str, Any]
    stable: bool = False


LANES = {"publish_timeout": 5}
LINE = {"publish_timeout": 10, **SHARED}
SPOOL = {"publish_mode": "spool", **SHARED}

GROUPS = {
    "lanes": Publishers(10, LANES, {"threads": 8}, stable=True),
    "lanes-b": Publishers(10, LANES, {"threads": 8}),
    "batch": Publishers(20, LANES, {"threads": 1, "batch": 50}),
    "line": Publishers(10, LINE, {"threads": 6}, stable=True),
    "line-b": Publishers(10, LINE, {"threads": 6}),
    "spool": Publishers(20, SPOOL, {"threads": 2}, stable=True),
    "spool-b": Publishers(20, SPOOL, {"threads": 2}),
}
FEW = {
    "lanes": Publishers(30, LANES, {"threads": 8}),
    "batch": Publishers(20, LANES, {"threads": 1, "batch": 25}),
    "line": Publishers(20, LINE, {"threads": 6}),
    "spool": Publishers(30, SPOOL, {"threads": 2}),
}


@dataclass(frozen=True)
class Plan:
    """What is to happen.

    Attributes:
        messages: To be published, by all groups together.
        rate: Of these, how many in a second at most: about what the workers keep up with, so that
            whatever happens finds all of them at work.
        groups: Who publishes.
        events: How often each thing happens.
        pools: One worker each; that of threads is never killed, so that there always is one.
        prefetch: Messages that each worker may hold: what it runs again if it is killed.
        faulty: Share of the server's answers that are spoiled.
        spoilt: Share of what passes the network that is spoiled.
        tick_seconds: How often is looked at what happens.
        sample_seconds: How often memory, open files and threads are written down.
        stall_seconds: Without any progress for so long, somebody hangs.
    """

    messages: int
    rate: float
    groups: dict[str, Publishers]
    events: dict[str, int]
    pools: tuple[str, ...] = ("prefork", "threads")
    prefetch: int = 16
    faulty: float = 0.1
    spoilt: float = 0.002
    tick_seconds: float = 0.1
    sample_seconds: float = 1.0
    stall_seconds: float = 120.0


@dataclass
class Process:
    """One life of one that takes part."""

    name: str
    process: subprocess.Popen[Any]
    log: Path
    killed: bool = False

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def said(self, most: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-most:]


@dataclass
class Role:
    """One that takes part: killed, it is started again."""

    name: str
    start: Callable[[str], Process]
    stable: bool = False
    lives: int = 0
    now: Process | None = None

    def begin(self) -> None:
        self.lives += 1
        self.now = self.start(f"{self.name}.{self.lives}")

    @property
    def runs(self) -> bool:
        return self.now is not None and not self.now.ended


class Scene:
    """One run: `run` it, then let `verdict` judge the folder.

    Args:
        folder: Of its own, empty.
        seed: Of all decisions.
        plan: What is to happen.
        say: Told how far it is.
    """

    def __init__(
        self, folder: Path, seed: int, plan: Plan, say: Callable[[str], None] = print
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._say = say
        self._chance = random.Random(seed)
        self._fault_chance = random.Random(seed + 1)
        self._seed = seed
        self.ledgers = folder / "ledger"
        self.ledgers.mkdir()
        self._spool = folder / "spool"
        self._ledger = Ledger(self.ledgers, "director")
        self._counts: Counter[str] = Counter()  # lines of all ledgers, by kind
        self._read: dict[Path, int] = {}
        self._server = Server(folder)
        self._stack = contextlib.ExitStack()
        self._wire: subprocess.Popen[str] | None = None
        self._wire_port = 0
        self._publishers = [
            Role(name, self._publisher, group.stable) for name, group in plan.groups.items()
        ]
        self._workers = [Role(name, self._worker, stable=name == "threads") for name in plan.pools]
        self._asked_for = 0.0  # faults that are due, by the share of requests
        self._requests = 0
        self._sampled_at = 0.0
        self._progress = (0, 0.0)

    # -- the run

    def run(self) -> None:
        with self._stack:
            self._open()
            events = self._schedule()
            while self._busy() or events:
                self._tick(faulty=True)
                done = self._counts["try"] + self._counts["ran"]
                while events and done >= events[0][0]:
                    self._let_happen(events.pop(0)[1])
            self._note("published")
            self._drain()
            self._close()

    def _open(self) -> None:
        self._stack.callback(self._kill_all)
        self._server.start()
        with (self._folder / "wire.log").open("ab") as log:
            self._wire = subprocess.Popen(
                [sys.executable, "-m", "chaos.wire", str(self._server.port), str(self._seed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environ("wire"),
            )
        assert self._wire.stdout
        self._wire_port = int(self._wire.stdout.readline())
        for role in self._workers + self._publishers:
            role.begin()
        self._order_wire(rate=self._plan.spoilt)

    def _busy(self) -> bool:
        """Whether there are messages that nobody has tried to publish; who was killed goes on."""
        busy = False
        for role in self._publishers:
            if role.runs:
                busy = True
            elif role.now is not None and role.now.killed and self._left(role.name) > 0:
                role.begin()
                busy = True
        return busy

    def _drain(self) -> None:
        """Nothing goes wrong any more: what was accepted has to arrive."""
        self._order_wire(rate=0.0)
        self._server.delete("faults")
        relay = Role("relay", self._relay)
        self._workers.append(relay)  # watched as they are
        self._command("spool", "retry", "--all")
        relay.begin()
        while True:
            self._tick(faulty=False)
            self._advance_clock()
            end = time.monotonic() + 2.0
            while time.monotonic() < end:
                self._tick(faulty=False)
            if self._waiting() == 0 and self._spooled() == 0:
                return

    def _close(self) -> None:
        """All end well when they are asked to."""
        for role in self._workers:
            assert role.now
            role.now.process.terminate()
        for role in self._workers:
            assert role.now
            status = self._wait_for(role.now)
            assert status == 0, f"{role.now.name} ended with {status}: {role.now.said()}"
        assert self._server.stop() == 0
        assert self._wire
        assert self._wire.stdin
        self._wire.stdin.close()
        assert self._wire.wait(30) == 0, (self._folder / "wire.log").read_text()
        self._note("requests", self._requests)

    # -- what happens

    def _schedule(self) -> list[tuple[int, str]]:
        """At which progress, in messages tried and run, what happens."""
        names = [name for name, times in self._plan.events.items() for _ in range(times)]
        self._chance.shuffle(names)
        step = 1.7 * self._plan.messages / (len(names) + 1)
        return [(int(step * (n + self._chance.random())), name) for n, name in enumerate(names, 1)]

    def _let_happen(self, event: str) -> None:
        self._say(f"{self._counts['try']} tried, {self._counts['ran']} ran: {event}")
        getattr(self, f"_{event}")()

    def _kill_server(self) -> None:
        self._note("killed", "emulator")
        self._server.kill()
        time.sleep(self._chance.uniform(0.1, 1.0))
        began = time.monotonic()
        self._server.start()
        # Its clock began where the machine's is, and has jumped: leases of meanwhile have ended.
        self._note("jumped", began)
        self._requests = self._server.requests

    def _kill_publisher(self) -> None:
        self._kill_one(self._publishers)

    def _kill_worker(self) -> None:
        self._kill_one(self._workers)

    def _kill_child(self) -> None:
        """A child of the prefork pool alone, as the kernel does that is out of memory."""
        (self._folder / KILL_CHILD).touch()

    def _advance_clock(self) -> None:
        began = time.monotonic()
        self._server.advance(LEASE_SECONDS + 1)
        self._note("advanced", began)

    def _cut_network(self) -> None:
        self._note("outage")
        self._order_wire(down=self._chance.uniform(0.2, 2.0))

    def _kill_one(self, roles: list[Role]) -> None:
        running = [role for role in roles if role.runs and not role.stable]
        if not running:
            return
        role = self._chance.choice(running)
        assert role.now
        self._kill(role.now)
        if roles is self._workers:
            role.begin()

    def _kill(self, one: Process) -> None:
        one.killed = True
        self._note("killed", one.name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.wait(30)

    # -- watching

    def _tick(self, *, faulty: bool) -> None:
        time.sleep(self._plan.tick_seconds)
        self._count()
        for role in self._publishers + self._workers:
            one = role.now
            if one is None or not one.ended or one.killed:
                continue
            finished = role in self._publishers and one.process.returncode == 0
            assert finished, f"{one.name} ended with {one.process.returncode}: {one.said()}"
        if faulty:
            self._order_faults()
        self._sample()
        self._watch_progress()

    def _watch_progress(self) -> None:
        now = time.monotonic()
        done = sum(self._counts[what] for what in ("told", "ran", "settle"))
        if done != self._progress[0] or not self._progress[1]:
            self._progress = done, now
        elif now - self._progress[1] > self._plan.stall_seconds:
            roles = self._publishers + self._workers
            self._fail_of_hanging([r.now for r in roles if r.now and not r.now.ended])

    def _wait_for(self, one: Process) -> int:
        try:
            return one.process.wait(self._plan.stall_seconds)
        except subprocess.TimeoutExpired:
            self._fail_of_hanging([one])

    def _fail_of_hanging(self, those: list[Process]) -> NoReturn:
        """Ask them where they are, and say it."""
        for one in those:
            if not one.name.startswith("relay"):
                one.process.send_signal(signal.SIGUSR1)
        time.sleep(2)
        said = "\n\n".join(f"--- {one.name}\n{one.said(30_000)}" for one in those)
        raise AssertionError(
            f"nothing has happened for {self._plan.stall_seconds} s; "
            f"{self._waiting()} wait in the queue:\n{said}\n{self._command('spool')}"
        )

    def _order_faults(self) -> None:
        """Keep the share of requests that fail."""
        before, self._requests = self._requests, self._server.count_requests()
        self._asked_for += self._plan.faulty * (self._requests - before)
        active = len(self._server.get("faults")["faults"])
        while self._asked_for >= 1:
            self._asked_for -= 1
            if active:  # not struck yet: it is still to come
                active -= 1
                continue
            order = faults.some_fault(self._fault_chance)
            self._server.post("faults", order)
            self._note("fault", order["kind"])

    def _sample(self) -> None:
        now = time.monotonic()
        if now - self._sampled_at < self._plan.sample_seconds:
            return
        self._sampled_at = now
        everybody = [(r.now.name, r.now.process) for r in self._publishers + self._workers if r.now]
        everybody += [("emulator", self._server.process), ("wire", self._wire)]
        for name, process in everybody:
            figures = _figures(process.pid) if process else None
            if figures:
                self._note("sample", name, *figures)

    def _count(self) -> None:
        """Count the new lines of all ledgers, by what they say."""
        for path in self.ledgers.iterdir():
            at = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(at)
                new = file.read()
            self._read[path] = at + len(new)
            self._counts.update(
                found.decode() for found in re.findall(rb'^\["([a-z ]+)"', new, re.MULTILINE)
            )

    def _left(self, name: str) -> int:
        """How many messages a group has not tried yet."""
        tried = sum(
            path.read_bytes().count(b'\n["try"') + path.read_bytes().startswith(b'["try"')
            for path in self.ledgers.glob(f"{name}.*~*")
        )
        return self._plan.messages * self._plan.groups[name].share // 100 - tried

    def _waiting(self) -> int:
        (queue,) = self._server.get("state")["queues"]
        return sum(queue[state] for state in ("ready", "delayed", "leased", "dead"))

    def _spooled(self) -> int:
        shown = json.loads(self._command("spool", "--json"))
        return sum(
            queue[state]
            for queue in shown["queues"]
            for state in ("waiting", "confirmed", "sending", "refused")
        )

    def _note(self, what: str, *rest: Any) -> None:
        self._ledger.write(what, *rest)

    # -- processes

    def _publisher(self, name: str) -> Process:
        group = self._plan.groups[name.partition(".")[0]]
        arguments = {
            **group.arguments,
            "count": self._left(name.partition(".")[0]),
            "rate": self._plan.rate * group.share / 100,
        }
        command = [sys.executable, "-m", "chaos.publisher", json.dumps(arguments)]
        return self._process(name, command, group.options)

    def _worker(self, name: str) -> Process:
        pool = name.partition(".")[0]
        concurrency = CONCURRENCY[pool]
        command = [
            *(sys.executable, "-m", "celery", "-A", "chaos.app", "worker", "--queues", QUEUE),
            *("--pool", pool, "--concurrency", str(concurrency), "--loglevel", "WARNING"),
            *("--without-heartbeat", "--without-mingle", "--without-gossip"),
        ]
        options = {"visibility_timeout": LEASE_SECONDS, "max_polling_interval": 1.0}
        return self._process(
            name, command, options, worker_prefetch_multiplier=self._plan.prefetch // concurrency
        )

    def _relay(self, name: str) -> Process:
        return self._process(name, self._cfqueues("relay", *_RELAY_ALLOWANCE), {})

    def _process(
        self, name: str, command: list[str], options: dict[str, Any], **settings: Any
    ) -> Process:
        log = self._folder / f"{name}.log"
        environ = self._environ(name)
        environ[SETTINGS] = json.dumps(
            {
                "broker_url": broker_url(self._wire_port),
                "broker_transport_options": {
                    "base_url": f"https://127.0.0.1:{self._wire_port}",
                    "spool_dir": str(self._spool),
                    "read_timeout": 4.0,
                    **options,
                },
                "task_default_queue": QUEUE,
                **settings,
            }
        )
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                env=environ,
                start_new_session=True,
            )
        return Process(name, process, log)

    def _command(self, *arguments: str) -> str:
        return subprocess.run(
            self._cfqueues(*arguments),
            env=self._environ("command"),
            check=True,
            timeout=120,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout

    def _cfqueues(self, command: str, *arguments: str) -> list[str]:
        return [
            *(sys.executable, "-c", _CFQUEUES, command),
            *("--spool-dir", str(self._spool)),
            *("--base-url", f"https://127.0.0.1:{self._wire_port}"),
            *arguments,
        ]

    def _environ(self, name: str) -> dict[str, str]:
        return {
            **os.environ,
            FOLDER: str(self.ledgers),
            NAME: name,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "REQUESTS_CA_BUNDLE": str(CA_BUNDLE),
            "CFQUEUES_BROKER_URL": broker_url(self._wire_port),
        }

    def _order_wire(self, **order: Any) -> None:
        assert self._wire
        assert self._wire.stdin
        self._wire.stdin.write(json.dumps(order) + "\n")
        self._wire.stdin.flush()

    def _kill_all(self) -> None:
        for role in self._publishers + self._workers:
            if role.now is not None and not role.now.ended:
                self._kill(role.now)
        for process in (self._server.process, self._wire):
            if process is not None:
                process.kill()
                process.wait()
        if self._wire is not None:
            for pipe in (self._wire.stdin, self._wire.stdout):
                assert pipe
                with contextlib.suppress(OSError):
                    pipe.close()
        self._server.close()


#: The command as it is installed, and watched.
_CFQUEUES = """
from chaos import witness
from kombu_cfqueues.cli import main
witness.install()
main()
"""

_RELAY_ALLOWANCE = [
    "--request-rate", str(SHARED["request_rate"]), "--request-burst", str(SHARED["request_burst"]),
]  # fmt: skip


def _figures(pid: int) -> tuple[float, int, int] | None:
    """Memory in MiB, open files and threads of a process; None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    memory = re.search(r"VmRSS:\s*(\d+) kB", status)
    threads = re.search(r"Threads:\s*(\d+)", status)
    return (int(memory[1]) / 1024, files, int(threads[1])) if memory and threads else None
