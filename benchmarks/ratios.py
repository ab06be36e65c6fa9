"""What the figures of one run must show.

Each bound is on a ratio of figures of the same run, or on a count, because the figures themselves
change with the machine and with what else it does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from .measure import Figures
from .rows import (
    BATCH,
    BLOCK,
    FOUR_IN_FLIGHT,
    ONE_IN_FLIGHT,
    REQUESTS,
    ROWS,
    SDK,
    SDK_BULK,
    Row,
)
from .spool import RATE

Round = Mapping[Row, Figures]
"""All rows, measured one after the other."""


class Check(NamedTuple):
    """One claim and what was measured.

    Attributes:
        claim: What must hold.
        value: What was measured: the median of the rounds.
        bound: What it may be at most, or at least.
        at_most: Which of the two.
    """

    claim: str
    value: float
    bound: float
    at_most: bool

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        verdict = "pass" if self.holds else "FAIL"
        word = "at most" if self.at_most else "at least"
        return f"{verdict}  {self.claim}: {self.value:,.4g} ({word} {self.bound:,.4g})"


def checks(rounds: Sequence[Round]) -> list[Check]:
    """Judge the rounds of a run.

    Args:
        rounds: What was measured; each ratio is taken within a round.
    """

    def most(claim: str, bound: float, value: Callable[[Round], float]) -> Check:
        return Check(claim, statistics.median(map(value, rounds)), bound, at_most=True)

    def least(claim: str, bound: float, value: Callable[[Round], float]) -> Check:
        return Check(claim, statistics.median(map(value, rounds)), bound, at_most=False)

    one, eight, many = (_row(ONE_IN_FLIGHT, threads) for threads in (1, 8, 64))
    four = _row(FOUR_IN_FLIGHT, 200)
    bare_one, bare_eight, bare_most = (_row(REQUESTS, threads) for threads in (1, 8, 200))
    sdk, sdk_most, batch = _row(SDK, 64), _row(SDK, 200), _row(BATCH, 1)
    bulk = _row(SDK_BULK, 1)
    memory = next(row for row in ROWS if row.contender == "memory")

    return [
        most(
            "messages of all our runs that were lost or came twice",
            0,
            lambda r: sum(_wrong(f) for row, f in r.items() if row.label.startswith(ONE_IN_FLIGHT)),
        ),
        least(
            "64 threads: messages a request",
            15,
            lambda r: r[many].messages / (r[many].requests or 1),
        ),
        least(
            "64 threads: throughput by that of the SDK", 2.0, lambda r: r[many].rate / r[sdk].rate
        ),
        least(
            "8 threads: throughput by that of single POSTs",
            0.9,
            lambda r: r[eight].rate / r[bare_eight].rate,
        ),
        most(
            "8 threads: requests a message by those of single POSTs",
            0.2,
            lambda r: (
                (r[eight].requests or 0)
                / r[eight].messages
                / ((r[bare_eight].requests or 0) / r[bare_eight].messages)
            ),
        ),
        most(
            "1 thread: latency (p50) by that of a bare POST",
            1.2,
            lambda r: r[one].p50 / r[bare_one].p50,
        ),
        least(
            "200 threads, 4 in flight: throughput by that of the SDK",
            4.0,
            lambda r: r[four].rate / r[sdk_most].rate,
        ),
        most(
            "200 threads, 4 in flight: p99 by that of single POSTs",
            0.5,
            lambda r: r[four].p99 / r[bare_most].p99,
        ),
        most(
            f"Producer.batch(): requests for {BLOCK:,} messages",
            55,
            lambda r: (r[batch].requests or 0) / r[batch].calls,
        ),
        least(
            "Producer.batch(): throughput by that of the SDK's bulk_push",
            1.4,
            lambda r: r[batch].rate / r[bulk].rate,
        ),
        most(
            "Producer.batch(): CPU a message by that of memory:// and a hundredth of a bare POST",
            1.9,
            lambda r: r[batch].cpu_us / (r[memory].cpu_us + r[bare_one].cpu_us / 100),
        ),
    ]


def together(confirmed: dict[str, Any], spooled: dict[str, Any]) -> list[Check]:
    """Judge the runs of 16 processes that share one allowance."""
    both = (confirmed, spooled)
    confirmed_p99, spooled_p99 = (run["publish_ms"]["p99"] for run in both)
    requests = confirmed["requests_per_second"]
    return [
        Check("16 processes: messages that were lost", sum(r["lost"] for r in both), 0, True),
        Check("16 processes: 429s", sum(r["answers_429"] for r in both), 0, True),
        Check(
            "16 processes: requests/s by those that are allowed",
            max(r["requests_per_second"] for r in both) / RATE,
            1.16,
            True,
        ),
        Check(
            "16 processes, confirmed: messages a request",
            confirmed["published_per_second"] / requests,
            12,
            False,
        ),
        Check(
            "16 processes, confirmed: p99 by the time between two requests",
            confirmed_p99 / 1e3 * requests,
            1.5,
            True,
        ),
        Check(
            "16 new processes, confirmed: slowest first publish by the time between two requests",
            confirmed["first_publish_ms"]["max"] / 1e3 * RATE,
            1.5 * RATE,
            True,
        ),
        Check(
            "16 processes: p99 of spooled by that of confirmed",
            spooled_p99 / confirmed_p99,
            0.1,
            True,
        ),
        Check(
            "16 processes, spooled: all is delivered after the end, in times between two requests",
            spooled["delivered_seconds_after_the_end"] * spooled["requests_per_second"],
            20,
            True,
        ),
    ]


def memory_growth(small: Figures, large: Figures) -> Check:
    """Judge whether the memory of a batch grows with the number of its messages.

    Args:
        small: A block of few messages, yet enough of them that its memory has settled.
        large: A block of many.
    """
    return Check(
        f"Producer.batch(): memory for {large.messages:,} messages by that for {small.messages:,}",
        large.peak_mib / small.peak_mib,
        1.07,
        at_most=True,
    )


def _row(label: str, threads: int) -> Row:
    return next(row for row in ROWS if row.label == label and row.threads == threads)


def _wrong(figures: Figures) -> int:
    if figures.requests is None:
        return 0
    return figures.messages - (figures.arrived or 0) + (figures.twice or 0)
