"""The long form: ``make chaos``, or ``python -m chaos`` with tests/ on the path.

It prints its seed, how far it is, and the verdict; it exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from . import ledger
from .scene import FEW, GROUPS, LEASE_SECONDS, Plan, Scene
from .verdict import judge

MOST_UNANSWERED = 0.1
"""Of the posts.  The faults take the answers of 7.5 to 8.9 %; a library that does not wait for an
answer would add to these."""
MOST_REPEATED = 0.15
"""Of the messages in them: 10 to 13 %, because most faults strike before a message is written."""
MOST_OTHERWISE = 0.02
"""Of all messages, those that ran twice for another reason: 1.2 %, most by kills and by a clock
that jumps.  How many run twice in all depends on how full the requests are that faults strike: 2.6
to 3.7 %."""
MOST_GROWTH_MIB = {"emulator": 65.0}
"""15 for every other process.  The emulator keeps its last 10,000 requests, which takes 50 MiB, and
begins anew each time it is killed."""

#: For 10,000 messages.
EVENTS = {
    "kill_server": 2, "kill_publisher": 4, "kill_worker": 1, "kill_child": 2, "advance_clock": 1,
    "cut_network": 3,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--messages", type=int, default=110_000)
    parser.add_argument("--rate", type=float, default=200.0, help="most messages a second")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--few", action="store_true", help="publishers as in the short form")
    parser.add_argument("--folder", type=Path, help="kept, with all logs and ledgers")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(exist_ok=True)
    events = {name: max(1, n * given.messages // 10_000) for name, n in EVENTS.items()}
    plan = Plan(given.messages, given.rate, FEW if given.few else GROUPS, events)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    say(f"seed {given.seed}, all of it in {folder}")
    Scene(folder, given.seed, plan, say).run()
    say("judging")
    verdict = judge(ledger.read(folder / "ledger"), lease_seconds=LEASE_SECONDS)
    print(verdict)
    bad = [
        *(f"lost: {name}" for name in verdict.lost[:10]),
        *(f"ran although refused: {name}" for name in verdict.ghosts[:10]),
        *(f"ran too often: {name}" for name in verdict.unexplained[:10]),
        *(["too many posts unanswered"] if verdict.share_unanswered > MOST_UNANSWERED else []),
        *(["too many of these repeated"] if verdict.share_repeated > MOST_REPEATED else []),
        *(["too many ran twice otherwise"] if verdict.share_otherwise > MOST_OTHERWISE else []),
        *(
            f"{name} grew by {grown:.0f} MiB"
            for name, (grown, _) in verdict.growth.items()
            # The wire is this suite's own, and asyncio's TLS is not what is tried here.
            if grown > MOST_GROWTH_MIB.get(name, 15.0) and name != "wire"
        ),
    ]
    print(*bad, sep="\n")
    say("failed" if bad else "all is accounted for")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
