"""Half an hour of publishing and consuming under faults: is anything growing?

``make soak``, or ``python -m chaos.soak --minutes 30`` with tests/ on the path.  Nobody is killed,
so that what each process holds can be seen over time; everything else that goes wrong in the chaos
goes wrong here.  ``--write`` puts table and plot into the documentation.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import report

from . import ledger
from .scene import LANES, LEASE_SECONDS, LINE, ROOT, SPOOL, Plan, Publishers, Scene
from .verdict import judge

PAGE, PLOT = ROOT / "docs/reliability.md", ROOT / "docs/soak.svg"
BEGIN, END = "<!-- begin of what `make soak` writes -->", "<!-- end of it -->"

#: Of each line of the latencies' plot.
POINTS = 30

#: What counts as flat, from the second fifth of the time to the last.
MOST_GROWTH = {"memory, MiB": 8.0, "open files": 8, "threads": 4}

WHO = {
    "lanes": "publisher, confirmed",
    "line": "publisher, confirmed, with a request limit",
    "spool": 'publisher, `publish_mode="spool"`',
    "threads": "Celery worker",
    "emulator": "the emulator",
}


class Series(NamedTuple):
    """Something over time."""

    minutes: list[float]
    values: list[float]

    def part(self, fifth: int) -> float:
        """The median of one of its five parts."""
        size = max(1, len(self.values) // 5)
        return statistics.median(self.values[fifth * size : (fifth + 1) * size])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=int, default=100, help="messages a second")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    plan = Plan(
        messages=int(given.rate * given.minutes * 60),
        rate=given.rate,
        groups={
            "lanes": Publishers(40, LANES, {"threads": 4}, stable=True),
            "line": Publishers(20, LINE, {"threads": 4}, stable=True),
            "spool": Publishers(40, SPOOL, {"threads": 1}, stable=True),
        },
        # The clock brings back what a lost answer to a pull has leased to nobody.
        events={"cut_network": int(given.minutes / 2), "advance_clock": int(given.minutes * 2)},
        pools=("threads",),
        prefetch=100,
        tick_seconds=0.5,
        sample_seconds=5.0,
    )
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {text}", flush=True)

    say(f"seed {given.seed}, all of it in {folder}")
    Scene(folder, given.seed, plan, say).run()
    verdict = judge(ledger.read(folder / "ledger"), lease_seconds=LEASE_SECONDS)
    print(verdict)
    latency, samples = measure(folder / "ledger", given.minutes)
    lines = table(latency, samples)
    print(*(" | ".join(line) for line in lines), sep="\n")
    grown = [
        f"{what} of {who} grew by {series.part(4) - series.part(1):.0f}"
        for what, of_all in samples.items()
        for who, series in of_all.items()
        if series.part(4) - series.part(1) > MOST_GROWTH[what]
    ]
    grown += [
        f"{name} has doubled"
        for name, series in latency.items()
        if "half" in name and series.part(4) > 2 * series.part(1) + 0.5
    ]
    bad = [*verdict.lost, *verdict.ghosts, *verdict.unexplained, *grown]
    print(*bad, sep="\n")
    if given.write:
        draw(latency, samples, PLOT)
        write(given.rate, given.minutes, verdict.faults["requests"], lines)
    say("failed" if bad else "flat, and all is accounted for")
    return bool(bad)


def measure(folder: Path, minutes: float) -> tuple[dict[str, Series], dict[str, dict[str, Series]]]:
    """Latency in seconds by name, and what was sampled by kind and process."""
    begun = ended = 0.0
    step = minutes * 60 / POINTS
    publish: dict[int, list[float]] = defaultdict(list)
    arrive: dict[int, list[float]] = defaultdict(list)
    samples: dict[str, dict[str, Series]] = {what: {} for what in MOST_GROWTH}
    for process, what, at, rest in sorted(ledger.read(folder), key=lambda line: line.at):
        begun = begun or at
        if what == "told" and process.partition(".")[0] == "lanes":
            publish[int((at - begun) / step)].append(rest[2])
        elif what == "ran":
            arrive[int((at - begun) / step)].append(at - rest[1])
        elif what == "published":
            ended = at
        elif what == "sample" and not ended and (who := rest[0].partition(".")[0]) in WHO:
            for series_of, value in zip(samples.values(), rest[1:], strict=True):
                series = series_of.setdefault(who, Series([], []))
                series.minutes.append((at - begun) / 60)
                series.values.append(value)
    latency = {
        f"{what}, {share}": Series(
            [(point + 0.5) * step / 60 for point in range(POINTS) if point in by_point],
            [_quantile(by_point[point], percent) for point in range(POINTS) if point in by_point],
        )
        for what, by_point in (("a confirmed publish", publish), ("publish to task", arrive))
        for share, percent in (("half within", 50), ("95 % within", 95))
    }
    return latency, samples


def _quantile(times: list[float], percent: int) -> float:
    return sorted(times)[min(len(times) - 1, len(times) * percent // 100)]


def table(
    latency: dict[str, Series], samples: dict[str, dict[str, Series]]
) -> list[tuple[str, ...]]:
    head = ("", "2nd fifth of the time", "last fifth")
    rows = [head]
    for name, series in latency.items():
        rows.append((name, f"{series.part(1) * 1e3:,.0f} ms", f"{series.part(4) * 1e3:,.0f} ms"))
    for what, of_all in samples.items():
        for who, series in sorted(of_all.items()):
            rows.append((f"{what}: {WHO[who]}", f"{series.part(1):,.0f}", f"{series.part(4):,.0f}"))
    return rows


def write(rate: int, minutes: float, requests: int, lines: Sequence[tuple[str, ...]]) -> None:
    """Put the run into the page, between its markers."""
    today = datetime.now(timezone.utc).date().isoformat()
    rule = ("---", "---:", "---:")
    parts = [
        (
            f"Measured on {today}: {report.machine()}; {rate} messages a second for {minutes:g} "
            f"minutes, {requests:,} requests. Medians:"
        ),
        "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])),
        f"![Latency, memory, open files and threads over {minutes:g} minutes]({PLOT.name})",
    ]
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + "\n\n".join([BEGIN, *parts, END]) + after)


def draw(latency: dict[str, Series], samples: dict[str, dict[str, Series]], target: Path) -> None:
    """Plot all of it over time."""
    colours = ("#e8710a", "#3f86d6", "#2f9a6b", "#c4473a", "#8a63d2")
    below: dict[str, Any] = {
        "loc": "upper center", "bbox_to_anchor": (0.5, -0.05), "frameon": False, "fontsize": 8,
    }  # fmt: skip
    with report.plotting() as pyplot:
        figure, panels = pyplot.subplots(2, 2, figsize=(9, 7), layout="constrained", sharex=True)
        first, *others = panels.flat
        for (name, series), colour in zip(latency.items(), colours, strict=False):
            first.plot(series.minutes, series.values, color=colour, label=name)
        first.set(title="latency, seconds", yscale="log")
        first.yaxis.set_major_formatter("{x:g}")
        for panel, (what, of_all) in zip(others, samples.items(), strict=True):
            for (who, series), colour in zip(sorted(of_all.items()), colours, strict=False):
                panel.plot(
                    series.minutes, series.values, color=colour, label=WHO[who].replace("`", "")
                )
            panel.set(title=what)
            panel.set_ylim(bottom=0)
        for panel in panels.flat:
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        for panel in panels[1]:
            panel.set_xlabel("minutes")
        first.legend(**below)
        others[0].legend(**below)
        figure.savefig(target, transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
