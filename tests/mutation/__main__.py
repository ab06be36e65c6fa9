"""Break the library in small ways, and see a test fail for each: ``make mutation``.

The whole takes hours on two cores.  ``--share 0.2`` breaks it in a fifth of the ways, drawn with a
seed that is printed and can be given; ``--only lane`` only that module.  `README.md` beside this
file says what survived, and why.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import subprocess
import sys
from pathlib import Path

#: mutmut's exit codes of a mutant's tests; any other one is a death.
SURVIVED, NO_TESTS, NOT_RUN = 0, 33, None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--share", type=float, default=1.0, help="of all mutants (default: 1)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", nargs="*", help="modules, as lane or spool.claims")
    parser.add_argument("--children", type=int, default=2, help="mutants at once (default: 2)")
    given = parser.parse_args()
    mutmut = [sys.executable, "-m", "mutmut", "run", "--max-children", str(given.children)]
    # A short module: with it, all mutants are made and all tests timed.
    subprocess.run([*mutmut, "kombu_cfqueues.retry.*"], check=True)
    wanted = [f"kombu_cfqueues.{name}." for name in given.only or [""]]
    names = sorted(
        name for name in results() if any(name.startswith(one.rstrip(".")) for one in wanted)
    )
    drawn = random.Random(given.seed).sample(names, max(1, round(len(names) * given.share)))
    print(f"{len(drawn)} of {len(names)} mutants, seed {given.seed}", flush=True)
    subprocess.run([*mutmut, *drawn], check=True)
    told = {name: code for name, code in results().items() if name in set(drawn)}
    print(report(told))


def results() -> dict[str, int | None]:
    """What became of each mutant: the exit code of its tests."""
    return {
        name: code
        for file in Path("mutants").rglob("*.meta")
        for name, code in json.loads(file.read_text())["exit_code_by_key"].items()
    }


def report(told: dict[str, int | None]) -> str:
    """A line for each module, and the names of those that survived."""
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    lines = []
    for name, code in sorted(told.items()):
        module = name.removeprefix("kombu_cfqueues.").rpartition(".")[0]
        lives = {SURVIVED: "survived", NO_TESTS: "not tested", NOT_RUN: "not run"}
        counts[module][lives.get(code, "killed")] += 1
        if code in lives:
            lines.append(f"{lives[code]}: mutmut show '{name}'")
    for module, count in counts.items():
        lines.append(f"{module:20} {count['killed'] / count.total():6.1%} killed  {dict(count)}")
    killed = sum(count["killed"] for count in counts.values())
    return "\n".join([*lines, f"{killed} of {len(told)} killed: {killed / len(told):.1%}"])


if __name__ == "__main__":
    main()
