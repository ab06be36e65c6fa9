"""The long forms of two tests of the spool, some minutes each; pytest does not collect them.

    PYTHONPATH=.:tests python tests/endurance/spool.py kills
    PYTHONPATH=.:tests python tests/endurance/spool.py timeouts

``kills``: 20 times, 8 processes spool, and all are killed by SIGKILL at a random moment.  Then one
fresh process delivers.  ``timeouts``: 10,000 confirmed publishes with random timeouts, from 8
processes with 4 threads each, to a server that is sometimes slow.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter

from support.processes import Script, eventually

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
    connection.default_channel._queue("jobs", time.monotonic() + 300)
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


def arrived(server: Emulator) -> Counter:
    return Counter(
        tuple(json.loads(json.loads(message.body)["body"])) for message in server.messages("jobs")
    )


def kills(rounds: int = 20) -> None:
    """Kill everybody, again and again."""
    chance, told = random.Random(), set()
    with tempfile.TemporaryDirectory() as folder, Emulator(latency=0.03) as server:
        server.create_queue("jobs")
        options = {
            "publish_mode": "spool", "request_rate": 3.7, "request_burst": 5, "spool_dir": folder,
        }  # fmt: skip
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


if __name__ == "__main__":
    {"kills": kills, "timeouts": timeouts}[sys.argv[1]]()
