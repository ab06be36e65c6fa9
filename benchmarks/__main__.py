"""Runs the comparison: ``python -m benchmarks``, or ``make bench``."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path

from . import measure, ratios, redis, report, rows, server, spool, wakeups

DOCS = Path(__file__).parent.parent / "docs"
PLOT = "performance.svg"


def main() -> int:
    """Measure all, print it, and write it into the documentation if asked to."""
    given = _arguments()
    missing = redis.why_not()
    if missing:
        print(f"Redis is left out: {missing}.", file=sys.stderr)
    chosen = [row for row in rows.ROWS if not (missing and row.needs_redis)]
    rounds: list[dict[rows.Row, measure.Figures]] = []
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(server.running(given.latency))
        redis_port = 0 if missing else stack.enter_context(redis.running())
        started = time.perf_counter()
        for number in range(given.rounds):
            results: dict[rows.Row, measure.Figures] = {}
            points = rows.POINTS if number == 0 and not given.quick else ()
            for done, row in enumerate([*chosen, *points]):
                _tell(f"round {number + 1} of {given.rounds}, {done + 1}: {row.label}")
                results[row] = measure.measure(
                    row.contender,
                    port=redis_port if row.needs_redis else target.port,
                    threads=row.threads,
                    in_flight=row.in_flight,
                    seconds=given.seconds,
                    count=row.block,
                )
            rounds.append(results)
        judged = ratios.checks(rounds)
        _tell("the memory of large batches")
        judged.append(
            ratios.memory_growth(
                *(
                    measure.measure("batch", port=target.port, count=count, seconds=0.001)
                    for count in (20_000, 40_000 if given.quick else 100_000)
                )
            )
        )
        busy = target.counts()["cpu_seconds"] / (time.perf_counter() - started)
    runs = {}
    for name, run in spool.TOGETHER.items():
        _tell(f"16 processes, {name}")
        runs[name] = run(10.0 if given.quick else spool.SECONDS)
    judged += ratios.together(*runs.values())
    _tell("")
    table = [report.HEAD, *(report.line(row, report.median(rounds, row)) for row in chosen)]
    print(report.machine())
    print(f"server: {given.latency * 1e3:g} ms latency, {busy:.0%} of a core over the whole run")
    late = wakeups.in_words()
    print(late)
    print()
    print(report.plain(table))
    print()
    print(report.plain(report.together(runs)))
    print()
    print(*judged, sep="\n")
    if given.write:
        problem = report.draw(rounds, runs, DOCS / PLOT)
        if problem:
            print(f"No plot: {problem}.", file=sys.stderr)
        plot = PLOT if (DOCS / PLOT).exists() else ""
        page = DOCS / "performance.md"
        report.write(page, table, runs, judged, latency=given.latency, late=late, plot=plot)
    return 0 if all(check.holds for check in judged) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--latency", type=float, default=0.03, help="of the server, in seconds")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="each figure is the rounds' median")
    parser.add_argument("--quick", action="store_true", help="one short round, no plot points")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds = min(given.seconds, 1.0), 1
    return given


def _tell(text: str) -> None:
    """Show how far it is, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
