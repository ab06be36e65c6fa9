"""The long forms of some tests of the spool, and those that need a quiet machine.

    make endurance                      all of them; some minutes each
    make endurance ARGS="kills claims"  these

``kills``: 20 times, 8 processes spool, and all are killed by SIGKILL at a random moment.  Then one
fresh process delivers.  ``timeouts``: 10,000 confirmed publishes with random timeouts, from 8
processes with 4 threads each, to a server that is sometimes slow.  ``claims``: 20 times, a process
is killed that has claimed what another waits for.  ``batch``: one process publishes 20,000 messages
in a batch, four others single ones.  ``heartbeat``: one gevent worker among 64 processes.
``disk``: a disk of 40 MB is spooled full; needs root, to mount it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from kombu import Connection
from support.processes import Script, eventually

from kombu_cfqueues import errors
from kombu_cfqueues.emulator import Emulator

SPOOL = """
    producer = connect().Producer()
    number = 0
    while True:
        producer.publish([os.getpid(), number], routing_key="jobs")
        print(json.dumps([os.getpid(), number]), flush=True)
        number += 1
        time.sleep(0.02)
"""

DELIVER = """
    producer = connect().Producer()
    promise = producer.publish(["last", 0], routing_key="jobs")
    while not promise.ready:
        time.sleep(0.05)
"""

TIMEOUTS = """
    import random, threading
    from kombu_cfqueues import errors
    connection = connect()
    connection.transport.session.use_queue("jobs", time.monotonic() + 300, lambda queue: None)
    refused, returned = [], []
    def work(name):
        chance, producer = random.Random(name), connection.clone().Producer()
        for number in range(OPTIONS["tries"]):
            body = [os.getpid(), name, number]
            try:
                producer.publish(body, routing_key="jobs", timeout=chance.uniform(0.001, 0.6))
                returned.append(body)
            except errors.PublishTimeout as error:
                if error.delivered == "no":
                    refused.append(body)
    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(json.dumps([refused, returned]))
"""


CLAIM = """
    from kombu_cfqueues.account import Account
    account = Account.open(connect().transport.session.options)
    from kombu_cfqueues.waiting_room import ClaimTerms
    room = account.publisher.relay._spool.room
    while not getattr(room.claim(ClaimTerms(1)), "items", None):
        time.sleep(0.001)
    print(1, flush=True)
    time.sleep(60)
"""

SINGLES = """
    producer = connect().Producer()
    producer.publish("first", routing_key="singles")
    print(1, flush=True)
    sys.stdin.readline()
    times = []
    while not os.path.exists(OPTIONS["stop"]):
        started = time.monotonic()
        producer.publish("single", routing_key="singles")
        times.append(time.monotonic() - started)
    print(json.dumps(times))
"""

BATCH = """
    producer = connect().Producer()
    with producer.batch():
        for number in range(20_000):
            producer.publish(number, routing_key="batch")
"""

GREEN = """
    import gevent
    late, stop = [], []
    def waited_for_a_cpu():
        with open("/proc/thread-self/schedstat") as file:
            return int(file.read().split()[1]) / 1e9
    def beat():
        while not stop:
            due, waited = time.monotonic() + 0.01, waited_for_a_cpu()
            gevent.sleep(0.01)
            late.append([time.monotonic() - due, waited_for_a_cpu() - waited])
    connection = connect()
    connection.Producer().publish(0, routing_key="jobs")
    print(1, flush=True)
    heart = gevent.spawn(beat)
    end = time.monotonic() + 30
    def work(name):
        producer = connection.clone().Producer()
        while time.monotonic() < end:
            producer.publish(name, routing_key="jobs")
    gevent.joinall([gevent.spawn(work, n) for n in range(30)])
    stop.append(1)
    heart.join()
    print(json.dumps(late))
"""

LIMIT = {"request_rate": 3.7, "request_burst": 5}


def arrived(server: Emulator) -> Counter:
    return Counter(
        tuple(json.loads(json.loads(message.body)["body"])) for message in server.messages("jobs")
    )


def kills(rounds: int = 20) -> None:
    """Kill everybody, again and again."""
    chance, told = random.Random(), set()
    with tempfile.TemporaryDirectory() as folder, Emulator(latency=0.03) as server:
        server.create_queue("jobs")
        options = LIMIT | {"publish_mode": "spool", "spool_dir": folder}
        for _ in range(rounds):
            with contextlib.ExitStack() as stack:
                scripts = [
                    stack.enter_context(Script(SPOOL, server.broker_url, options)) for _ in range(8)
                ]
                told |= {tuple(script.line()) for script in scripts}
                time.sleep(chance.uniform(0, 1.5))
                for script in scripts:
                    script.process.kill()
                for script in scripts:
                    out, _ = script.process.communicate()
                    told |= {tuple(json.loads(x)) for x in out.splitlines() if x.endswith("]")}
        started = time.monotonic()
        with Script(DELIVER, server.broker_url, options) as script:
            script.wait(300)
        assert eventually(lambda: told <= set(arrived(server)), 60), "something was lost"
        found = arrived(server)
        duplicates = sum(found.values()) - len(found)
        print(f"{rounds} times 8 processes killed; {len(told)} publishes had returned, 0 lost, "
              f"{duplicates} duplicates (at most {100 * rounds} allowed); the rest was delivered "
              f"in {time.monotonic() - started:.1f} s")  # fmt: skip
        assert duplicates <= 100 * rounds


def timeouts(tries: int = 10_000) -> None:
    """Ask for more than there is time for."""
    with tempfile.TemporaryDirectory() as folder, Emulator(latency=(0.0, 0.3)) as server:
        server.create_queue("jobs")
        options = {
            "request_rate": 10.0, "request_burst": 5, "spool_dir": folder,
            "tries": tries // 32 + 1,
        }  # fmt: skip
        with contextlib.ExitStack() as stack:
            scripts = [
                stack.enter_context(Script(TIMEOUTS, server.broker_url, options)) for _ in range(8)
            ]
            results = [script.wait(1200)[0] for script in scripts]
        time.sleep(2)
        found = set(arrived(server))
        refused = {tuple(body) for told, _ in results for body in told}
        returned = {tuple(body) for _, told in results for body in told}
        print(f"{tries} tries: {len(returned)} returned, of which {len(returned - found)} are "
              f"missing; {len(refused)} were told 'no', of which {len(refused & found)} "
              "arrived")  # fmt: skip
        assert refused
        assert not refused & found
        assert returned <= found


def claims(rounds: int = 20) -> None:
    """Kill who has claimed what others wait for."""
    waited = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, Emulator(latency=0.03) as server:
            server.create_queue("jobs")
            options = LIMIT | {"spool_dir": folder}
            published = []
            with (
                Connection(server.broker_url, transport_options=options) as connection,
                Script(CLAIM, server.broker_url, options) as thief,
            ):
                producer, stop = connection.Producer(), threading.Event()

                def publish(producer=producer, stop=stop, published=published) -> None:
                    while not stop.is_set():
                        producer.publish(1, routing_key="jobs")
                        published.append(time.monotonic())

                thread = threading.Thread(target=publish)
                thread.start()
                thief.line()
                count = len(published)
                time.sleep(random.uniform(0, 0.5))
                thief.kill()
                killed = time.monotonic()
                assert eventually(lambda: len(published) > count)  # noqa: B023
                stop.set()
                thread.join()
                waited.append(published[count] - killed)
    print(f"{rounds} times a process killed that had claimed others' messages; they were accepted "
          f"after {max(waited):.2f} s at the latest")  # fmt: skip
    assert max(waited) < 1


def batch() -> None:
    """Let a batch of 20,000 meet four who publish one message after the other."""
    with tempfile.TemporaryDirectory() as folder, Emulator(latency=0.03) as server:
        for name in ("singles", "batch"):
            server.create_queue(name)
        options = LIMIT | {"spool_dir": folder, "stop": f"{folder}/stop"}
        with contextlib.ExitStack() as stack:
            singles = [
                stack.enter_context(Script(SINGLES, server.broker_url, options)) for _ in range(4)
            ]
            for script in singles:
                script.line()
                script.go()
            script = stack.enter_context(Script(BATCH, server.broker_url, options))
            script.wait(600)
            Path(options["stop"]).touch()
            times = sorted(seconds for each in singles for seconds in each.wait()[0])
        assert len(server.messages("batch")) == 20_000
        bulk = server.queue_id("batch")
        posts = [r.queue_id == bulk for r in server.requests if r.route in {"push", "batch"}]
        runs = [len(list(run)) for is_bulk, run in itertools.groupby(posts) if is_bulk]
        interval = 1 / LIMIT["request_rate"]
        print(f"a batch of 20,000 had {max(runs)} permit(s) in a row at most, and {sum(runs)} of "
              f"{len(posts)}; each of {len(times)} single publishes meanwhile took "
              f"{times[-1] / interval:.2f} intervals at most")  # fmt: skip
        assert times[-1] < 2 * interval + 0.4


def heartbeat() -> None:
    """Let 63 other processes and 30 greenlets publish as fast as they can."""
    with tempfile.TemporaryDirectory() as folder, Emulator(latency=0.03) as server:
        for name in ("jobs", "singles"):
            server.create_queue(name)
        options = LIMIT | {"spool_dir": folder, "stop": f"{folder}/stop"}
        with contextlib.ExitStack() as stack:
            others = [
                stack.enter_context(Script(SINGLES, server.broker_url, options)) for _ in range(63)
            ]
            for script in others:
                script.line()
            worker = stack.enter_context(Script(GREEN, server.broker_url, options, green="gevent"))
            worker.line()
            for script in others:
                script.go()
            [late] = worker.wait()
            Path(options["stop"]).touch()
            for script in others:
                script.wait()
    own = max(seconds - waited for seconds, waited in late)
    print(f"64 processes: of {len(late)} heartbeats of a gevent worker the latest came "
          f"{1000 * max(late)[0]:.0f} ms late; without what the process waited for a CPU, "
          f"{1000 * own:.0f} ms")  # fmt: skip
    assert own < 0.1


def disk() -> None:
    """Fill a disk of 40 MB, in a process that has it mounted for itself."""
    if os.geteuid() != 0:
        print("not run, it needs root")
        return
    with tempfile.TemporaryDirectory() as folder:
        mount = 'mount -t tmpfs -o size=40M,mode=700 none "$0" && exec "$@"'
        python = [sys.executable, __file__, "fill", folder]
        subprocess.run(["unshare", "--mount", "sh", "-c", mount, folder, *python], check=True)


def fill(folder: str) -> None:
    """Spool until the disk that holds *folder* is full; then deliver."""
    with Emulator() as server:
        server.create_queue("jobs")
        options = {"publish_mode": "spool", "request_rate": 20.0, "spool_dir": folder}
        with Connection(server.broker_url, transport_options=options) as connection:
            producer, count = connection.Producer(), 0
            with server.outage():
                try:
                    while True:
                        producer.publish("x" * 10_000, routing_key="jobs")
                        count += 1
                except errors.SpoolFull as error:
                    told = str(error)
            assert eventually(lambda: len(server.messages("jobs")) == count)

            def is_taken() -> bool:
                try:
                    producer.publish("again", routing_key="jobs")
                except errors.SpoolFull:
                    return False
                return True

            assert eventually(is_taken), "the disk has not got its space back"
            assert eventually(lambda: len(server.messages("jobs")) == count + 1)
    print(f"{count} messages of 10 kB were kept, then {told!r}; all were delivered, and more")


RUNS = {run.__name__: run for run in (kills, timeouts, claims, batch, heartbeat, disk)}

if __name__ == "__main__":
    if sys.argv[1:2] == ["fill"]:
        fill(sys.argv[2])
        sys.exit()
    for name in sys.argv[1:] or RUNS:
        print(f"{name}: ", end="", flush=True)
        RUNS[name]()
