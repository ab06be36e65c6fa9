"""The client's own tests in each position of each knob: ``make positions``, for it takes long.

Arguments are names of knobs; without any, it is all of them.  Ends with status 1 if a test failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from test_each_position import POSITIONS

ROOT: Final = Path(__file__).parents[2]

JOBS: Final = "6"  # tests mostly wait

NOTHING_TO_RUN: Final = 5  # pytest's exit status where all tests are spared

TESTS: Final = ("test_publish", "test_celery_publish", "test_consume")

#: Where a test asks for what its position does not give: the knob, the position, and the tests.
SPARED: Final = {
    # All tests that count messages; test_each_position has one that does not.
    ("duplicate_rate", 1): ["test_"],
    # Its second delivery has the number of another's first.
    ("first_attempt", 0): ["test_a_message_says_that_it_comes_again"],
    # What is pulled before the purge's end is delivered.
    ("purge_delay", 1): ["test_purge_counts_and_empties"],
}


def main() -> int:
    chosen = sys.argv[1:]
    positions = [position.values for position in POSITIONS]
    unknown = set(chosen) - {knob for knob, _ in positions}
    if unknown:
        print(f"there is no knob {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    positions = [one for one in positions if not chosen or one[0] in chosen]
    failed = [f"{knob}={value}" for knob, value in positions if not passes(knob, value)]
    print(f"{len(positions) - len(failed)} of {len(positions)} positions pass", flush=True)
    if failed:
        print("not these:", ", ".join(failed))
    return min(len(failed), 1)


def passes(knob: str, value: object) -> bool:
    """Run the tests in that position, and tell how they ended."""
    spared = " and ".join(f"not {name}" for name in SPARED.get((knob, value), ()))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", spared),
            *("-n", JOBS, "--color", "no"),
            *(f"tests/integration/{name}.py" for name in TESTS),
        ],
        cwd=ROOT,
        env=os.environ | {"CFQUEUES_KNOBS": json.dumps({knob: value}), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    print(f"{knob}={value}: {lines[-1] if lines else done.stderr}", flush=True)
    if done.returncode in (0, NOTHING_TO_RUN):
        return True
    print(*(line for line in lines if line.startswith(("FAILED", "ERROR"))), sep="\n", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
