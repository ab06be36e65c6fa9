"""A real fleet against the emulator with Cloudflare's limit: what a block costs, and what follows.

Each machine is a process with a spool of its own and eight threads that publish one message after
the other.  The emulator does not say how many requests are left: Cloudflare does not either.

    python -m benchmarks.fleet_run --machines 10 --minutes 6
    python -m benchmarks.fleet_run --redis      they share one allowance (option budget_url), and
                                                Redis is gone for 30 s in the middle
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from kombu_cfqueues import limits
from kombu_cfqueues.emulator import Emulator
from kombu_cfqueues.emulator import allowance as emulated

from . import redis

MACHINE: Final = """
import json, logging, sys, threading, time
from kombu import Connection
import kombu_cfqueues
from kombu_cfqueues.errors import CFQueuesError
url, folder, name, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
budget_url = sys.argv[5]
warnings = []
class Keeps(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING and ("429" in record.getMessage() or budget_url):
            warnings.append(record.getMessage())
logging.getLogger("kombu_cfqueues").addHandler(Keeps())
end = time.monotonic() + seconds
outcomes, late = {}, []
def publish(thread):
    options = {"spool_dir": folder, "request_rate": 3.7, "request_burst": 60,
               "body_format": "plain", "budget_url": budget_url or None}
    connection = Connection(url, transport_options=options)
    number = 0
    while time.monotonic() < end:
        number += 1
        body, began = f"{name}-{thread}-{number}", time.monotonic()
        try:
            connection.Producer().publish(body, routing_key="jobs")
            outcomes[body] = "accepted"
            late.append(time.monotonic() - began)
        except Exception as error:  # whatever it is, it is judged by what arrived
            outcomes[body] = getattr(error, "delivered", "unknown")
            time.sleep(5)
threads = [threading.Thread(target=publish, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps({"outcomes": outcomes, "late": late, "warnings": warnings,
                  "stats": kombu_cfqueues.stats()}))
"""


OUTAGE_SECONDS: Final = 30.0
"""How long Redis is gone, in the middle of the run."""


@contextlib.contextmanager
def _redis_with_an_outage(seconds: float) -> Iterator[str]:
    """The URL of a Redis server that is gone for a while in the middle, and empty afterwards."""
    port, over = redis.free_port(), threading.Event()

    def serve() -> None:
        with redis.running(port):
            over.wait((seconds - OUTAGE_SECONDS) / 2)
        over.wait(OUTAGE_SECONDS)
        with redis.running(port):
            over.wait()

    server = threading.Thread(target=serve)
    server.start()
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        over.set()
        server.join()


def run(machines: int, minutes: float, *, shares: bool = False) -> list[dict[str, Any]]:
    """Let a fleet publish; print what happened, and return what each machine says.

    Args:
        machines: How many.
        minutes: How long they publish.
        shares: Whether they share one allowance, in Redis.
    """
    emulated._headers = lambda *_: {}
    with (
        Emulator(rate_limit=limits.REQUESTS_PER_WINDOW, latency=0.03) as server,
        tempfile.TemporaryDirectory() as folder,
        _redis_with_an_outage(60 * minutes) if shares else contextlib.nullcontext("") as budget_url,
    ):
        server.create_queue("jobs")
        began = time.time()
        processes = [
            subprocess.Popen(
                [
                    sys.executable, "-c", MACHINE, server.broker_url, f"{folder}/{n}", f"m{n}",
                    str(60 * minutes), budget_url,
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for n in range(machines)
        ]  # fmt: skip
        told = [json.loads(process.communicate()[0]) for process in processes]
        seconds = time.time() - began
        arrived = Counter(message.body for message in server.messages("jobs"))
        refused = [request for request in server.requests if request.status == 429]
    _report(told, arrived, len(refused), seconds)
    return told


def _report(
    told: list[dict[str, Any]], arrived: Counter[str], refused: int, seconds: float
) -> None:
    outcomes = {body: outcome for one in told for body, outcome in one["outcomes"].items()}
    accepted = {body for body, outcome in outcomes.items() if outcome == "accepted"}
    denied = {body for body, outcome in outcomes.items() if outcome == "no"}
    late = sorted(wait for one in told for wait in one["late"])
    kinds = Counter(outcomes.values())
    print(f"{len(told)} machines, {seconds:.0f} s: {dict(kinds)}")
    print(f"requests with 429: {refused}; messages that arrived: {sum(arrived.values())}")
    print(f"accepted, and lost: {len(accepted - arrived.keys())}")
    print(f"said not to have arrived, and did: {len(denied & arrived.keys())}")
    print(f"arrived twice: {sum(number > 1 for number in arrived.values())}")
    print(f"p99 of what was accepted: {late[int(0.99 * (len(late) - 1))] if late else 0:.1f} s")
    for number, one in enumerate(told):
        stats = one["stats"]
        print(
            f"  m{number}: accepted {sum(o == 'accepted' for o in one['outcomes'].values())}, "
            f"blocks {stats['blocks']}, warnings {len(one['warnings'])}, "
            f"share {stats['share']:.3f}"
        )
    if told and told[0]["warnings"]:
        print(told[0]["warnings"][0])


def main() -> None:
    """Run a fleet for some minutes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--machines", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--redis", action="store_true", help="share one allowance, in Redis")
    given = parser.parse_args()
    if given.redis and (reason := redis.why_not()):
        parser.error(reason)
    run(given.machines, given.minutes, shares=given.redis)


if __name__ == "__main__":
    main()
