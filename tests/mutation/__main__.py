"""Break the library in small ways, and see a test fail for each: ``make mutation``.

mutmut says what can be broken: an operator, a number, a text, an argument.  Each break is written
into a copy of the repository, where the tests of that part run in a process of their own; so those
with threads, forks and processes are no different from what they are unbroken.

All of it takes a day on two cores.  ``--most 60`` tries so many breaks of each part, drawn with a
seed that is printed and can be given; ``group_commit spool`` only these parts.  `README.md` beside
this file says what survived, and why.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import difflib
import functools
import importlib.util
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import libcst as cst
from mutmut.mutation.file_mutation import create_mutations, deep_replace

ROOT = Path(__file__).parents[2]
LIBRARY = "kombu_cfqueues"

TEST_SECONDS = 300
"""A test that takes longer is considered hung; unbroken, the slowest takes 90 on a busy machine."""

RUN_SECONDS = 900
"""The same for all tests of a part, of which the slowest take two minutes."""


class Part(NamedTuple):
    """A part of the library, and the tests that show what it does, the quickest first."""

    modules: list[str]
    tests: list[str]


def unit(name: str) -> list[str]:
    """The unit tests of a wing (a folder), or those whose files are named for a part."""
    tests = ROOT / "tests"
    folder = tests / "unit" / name
    found = folder.glob("test_*.py") if folder.is_dir() else tests.glob(f"unit/**/test_{name}*.py")
    return sorted(str(path.relative_to(tests)) for path in found)


def modules(wing: str) -> list[str]:
    """The modules of a wing."""
    return sorted(f"{wing}/{path.stem}" for path in (ROOT / LIBRARY / wing).glob("[a-z]*.py"))


# The parts whose mistakes would lose messages.
PARTS = {
    "envelope": Part(
        modules("envelope"),
        [
            *unit("envelope"),
            "unit/test_receiver_elsewhere.py",
            "unit/transport/test_message.py",
            "integration/test_hostile_messages.py",
        ],
    ),
    "rate_limit": Part(["rate_limit"], [*unit("rate_limit"), "unit/test_metrics.py"]),
    "group_commit": Part(
        [
            "publish/callers",
            "publish/collector",
            "publish/group_commit",
            "publish/in_flight",
            "publish/leadership",
            "publish/memory_room",
            "publish/request_time",
            "publish/sender",
            "publish/try_times",
            "publish/withdrawal",
        ],
        [
            *unit("publish"),
            "integration/test_confirmed.py",
            "integration/test_batch.py",
            "integration/test_batch_block.py",
            "integration/test_blocks.py",
        ],
    ),
    "directory": Part(
        ["api/directory", "api/pull_consumers", "api/queue_names", "api/single_flight"],
        [
            *unit("directory"),
            *unit("queue_names"),
            "unit/test_account.py",
            "integration/test_consume_changes.py",
        ],
    ),
    "consume": Part(
        [*modules("consume"), "runtime/condition", "runtime/thread_pool"],
        [
            *unit("consume"),
            *unit("runtime"),
            "integration/test_consume.py",
            "integration/test_consume_changes.py",
        ],
    ),
    "spool": Part(
        modules("spool"),
        [
            *unit("spool"),
            "integration/test_spool_confirmed.py",
            "integration/test_spool_mode.py",
        ],
    ),
}


class Mutant(NamedTuple):
    """A break of one module: its code before, and *make*, which returns what becomes of it."""

    part: str
    module: str
    number: int
    code: str
    make: Callable[[], str]

    @property
    def path(self) -> Path:
        """The module's file, from the root of the repository."""
        return Path(LIBRARY, f"{self.module}.py")

    def __str__(self) -> str:
        before, after = self.code.splitlines(), self.make().splitlines()
        lines = list(difflib.unified_diff(before, after, n=1, lineterm=""))
        return "\n".join([f"{self.module} {self.number}", *lines[2:]])


class Outcome(NamedTuple):
    """What the tests say of a mutant: ``killed``, ``too slow`` or ``survived``."""

    fate: str
    seconds: float
    said: str


Copies: TypeAlias = "queue.SimpleQueue[Path]"
"""Copies of the repository that nobody uses now."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--most", type=int, help="mutants of each part (default: all)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--jobs", type=int, default=4, help="at once; tests mostly wait")
    given = parser.parse_args()
    parts = given.parts or list(PARTS)
    chosen: list[Mutant] = []
    for part in parts:
        made = list(mutants(part))
        drawn = random.Random(given.seed).sample(made, min(len(made), given.most or len(made)))
        print(f"{part}: {len(drawn)} of {len(made)} mutants, seed {given.seed}", flush=True)
        chosen += drawn
    with copies(given.jobs) as free, ThreadPoolExecutor(given.jobs) as pool:
        whole = pool.map(lambda part: run(free, part), parts)
        for part, outcome in zip(parts, whole, strict=True):
            if outcome.fate != "survived":
                raise SystemExit(f"unbroken, the tests of {part} fail: {outcome.said}")
            print(f"{part}: unbroken, its tests take {outcome.seconds:.0f} s", flush=True)
        fates: dict[str, collections.Counter[str]] = {part: collections.Counter() for part in parts}
        tried = pool.map(lambda mutant: run(free, mutant.part, mutant), chosen)
        for mutant, (fate, seconds, said) in zip(chosen, tried, strict=True):
            fates[mutant.part][fate] += 1
            print(f"{fate} in {seconds:.0f} s: {mutant}\n{said}\n", flush=True)
    for part, count in fates.items():
        print(f"{part:10} {1 - count['survived'] / count.total():6.1%} killed  {dict(count)}")


def mutants(part: str) -> Iterator[Mutant]:
    """All mutants of a part, in the order of its modules and their lines."""
    for module in PARTS[part].modules:
        path = ROOT / LIBRARY / f"{module}.py"
        tree, mutations, *_ = create_mutations(str(path), path.read_text())
        for number, one in enumerate(mutations):
            old, new = one.original_node, one.mutated_node
            if one.contained_by_top_level_function is None:
                continue  # a constant, which tests import
            if tree.code_for_node(old).lower() == tree.code_for_node(new).lower():
                continue  # SQL does not mind, nor a reader; each text is broken otherwise, too
            make = functools.partial(_code, tree, old, new)
            yield Mutant(part, module, number, tree.code, make)


def _code(tree: cst.Module, old: cst.CSTNode, new: cst.CSTNode) -> str:
    return deep_replace(tree, old, new).code


@contextlib.contextmanager
def copies(count: int) -> Iterator[Copies]:
    """So many copies of the repository."""
    list_files = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.check_output(list_files, cwd=ROOT, text=True).splitlines()
    free: Copies = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="cfqueues-mutants-") as folder:
        for number in range(count):
            copy = Path(folder, str(number))
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copy / name)
            free.put(copy)
        yield free


def run(free: Copies, part: str, mutant: Mutant | None = None) -> Outcome:
    """Run the tests of *part* in a copy of the repository, broken by *mutant*."""
    copy = free.get()
    try:
        if mutant is None:
            return run_tests(copy, PARTS[part].tests)
        write(copy / mutant.path, mutant.make())
        try:
            # First those that are named for the module.
            named = f"_{mutant.path.stem}"
            return run_tests(copy, sorted(PARTS[part].tests, key=lambda test: named not in test))
        finally:
            write(copy / mutant.path, mutant.code)
    finally:
        free.put(copy)


def write(path: Path, code: str) -> None:
    """Write a module, and remove what Python has compiled of it, perhaps in the same second."""
    path.write_text(code)
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)


def run_tests(copy: Path, tests: list[str]) -> Outcome:
    """Run these tests until one fails."""
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}"]
    options += ["--timeout-method=thread"]  # for those that swallow what is raised in them, too
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *(f"tests/{name}" for name in tests)],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy), "CFQUEUES_LONG": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what the tests have started ends with them
        )
        slow = False
        try:
            status = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            slow, status = True, 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        said = output.read()
    failed = [line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
    fate = "survived" if status == 0 else "too slow" if slow or "Timeout" in said else "killed"
    return Outcome(fate, time.monotonic() - started, "\n".join(failed)[:200])


if __name__ == "__main__":
    main()
