"""The numbers of this process as Prometheus reads them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from ..metrics import PROCESS_COUNTS, QUEUE_COUNTS, stats
from .judge import Report

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of Prometheus's text format."""

Sample = tuple[Mapping[str, str], float]
"""Labels and a value."""


def exposition(report: Report) -> str:
    """Return what ``/metrics`` answers: `stats`, and what the process holds now.

    Args:
        report: The state of this process.
    """
    return "".join([*_counts(), *_state(report), *_holdings(report)])


def _counts() -> Iterator[str]:
    numbers = stats()
    queues = numbers["queues"]
    for name, text in QUEUE_COUNTS.items():
        samples = [({"queue": queue}, counts[name]) for queue, counts in queues.items()]
        yield _family(f"cfqueues_{name}_total", "counter", text, samples)
    for name, text in PROCESS_COUNTS.items():
        yield _family(f"cfqueues_{name}_total", "counter", text, [({}, numbers[name])])
    text = "This machine's share of the request rate."
    yield _family("cfqueues_share_ratio", "gauge", text, [({}, numbers["share"])])


def _state(report: Report) -> Iterator[str]:
    text = "Whether this process pulls and settles (1) or not (0)."
    yield _family("cfqueues_healthy", "gauge", text, [({}, report.is_healthy)])
    text = "Whether this process is healthy and pulls at least one queue."
    yield _family("cfqueues_ready", "gauge", text, [({}, report.is_ready)])
    now = time.monotonic()
    ages = {
        queue.name: now - queue.pulls.answered_at
        for one in report.vitals
        for queue in one.queues
        if queue.pulls.answered_at is not None
    }
    text = "Time since a pull of the queue was last answered."
    samples: list[Sample] = [({"queue": name}, age) for name, age in ages.items()]
    yield _family("cfqueues_last_pull_age_seconds", "gauge", text, samples)
    settled = [at for one in report.vitals if (at := one.settling.settled_at) is not None]
    text = "Time since an acknowledgement was last answered."
    samples = [({}, now - max(settled))] if settled else []
    yield _family("cfqueues_last_settle_age_seconds", "gauge", text, samples)


def _holdings(report: Report) -> Iterator[str]:
    text = "Messages that this process has leased: pulled and waiting, or delivered and unsettled."
    states: list[Sample] = [
        ({"state": "waiting"}, sum(one.waiting for one in report.vitals)),
        ({"state": "unsettled"}, sum(one.unsettled for one in report.vitals)),
    ]
    yield _family("cfqueues_leases", "gauge", text, states)
    leased = [at for one in report.vitals if (at := one.leased_at) is not None]
    age = time.monotonic() - min(leased) if leased else 0.0
    text = "Age of the oldest of these leases; 0 without one."
    yield _family("cfqueues_oldest_lease_age_seconds", "gauge", text, [({}, age)])
    text = "How many messages the consumers may have unsettled; 0 without a limit."
    prefetch = sum(one.prefetch for one in report.vitals)
    yield _family("cfqueues_prefetch_count", "gauge", text, [({}, prefetch)])


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(one)}"' for label, one in labels.items())
        lines.append(f"{name}{{{shown}}} {float(value)!r}" if shown else f"{name} {float(value)!r}")
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
