"""The table and the plot of a run."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .measure import Figures
from .ratios import Check, Round
from .rows import FOUR_IN_FLIGHT, ONE_IN_FLIGHT, REQUESTS, SDK, Row
from .spool import RATE

BEGIN, END = "<!-- begin of what `make bench` writes -->", "<!-- end of it -->"

HEAD = (
    "who publishes", "threads", "messages/s", "requests/s", "messages a request",
    "p50 ms", "p99 ms", "CPU µs a message", "peak MiB",
)  # fmt: skip


TOGETHER_HEAD = (
    "16 processes publish", "offered/s", "messages/s", "requests/s", "first ms", "p50 ms",
    "p99 ms", "all delivered, s after", "fsync p50 ms", "fsync p99 ms",
)  # fmt: skip

# A middle tone on nothing: it can be read on a light page and on a dark one.
GREY = "#808890"


def machine() -> str:
    """This machine, Python and the versions of the contenders, in words."""
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("kombu", "requests", "cloudflare", "urllib3")
    )
    return (
        f"{os.cpu_count()} cores ({_processor()}), {platform.system()}, "
        f"Python {platform.python_version()}, {packages}"
    )


def median(rounds: Sequence[Round], row: Row) -> Figures:
    """The figures of the round that was the median by throughput."""
    runs = sorted((r[row] for r in rounds if row in r), key=lambda figures: figures.rate)
    return runs[len(runs) // 2]


def line(row: Row, figures: Figures) -> tuple[str, ...]:
    """One line of the table."""
    posts = figures.requests is not None
    return (
        row.label,
        str(row.threads),
        f"{figures.rate:,.0f}",
        f"{figures.request_rate:,.1f}" if posts else "",
        f"{figures.messages / (figures.requests or 1):.1f}" if posts else "",
        f"{figures.p50 * 1e3:,.1f}",
        f"{figures.p99 * 1e3:,.1f}",
        f"{figures.cpu_us:,.0f}",
        f"{figures.peak_mib:,.0f}",
    )


def together(runs: Mapping[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The table of the runs with 16 processes, by what they are called."""
    return [
        TOGETHER_HEAD,
        *(
            (
                name,
                f"{run['offered_per_second']:g}",
                f"{run['published_per_second']:,.0f}",
                f"{run['requests_per_second']:.1f}",
                f"{run['first_publish_ms']['max']:,.1f}",
                f"{run['publish_ms']['p50']:,.1f}",
                f"{run['publish_ms']['p99']:,.1f}",
                f"{run['delivered_seconds_after_the_end']:.1f}",
                f"{run['fsync_ms']['p50']:.1f}",
                f"{run['fsync_ms']['p99']:.1f}",
            )
            for name, run in runs.items()
        ),
    ]


def plain(lines: Sequence[tuple[str, ...]]) -> str:
    """The table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = []
    for cells in lines:
        first, *rest = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        rows.append("  ".join([first.strip().ljust(widths[0]), *rest]))
    return "\n".join(rows)


def markdown(lines: Sequence[tuple[str, ...]]) -> str:
    """The table for the documentation."""
    rule = ("---", *["---:"] * (len(lines[0]) - 1))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))


def write(
    page: Path,
    lines: Sequence[tuple[str, ...]],
    runs: Mapping[str, dict[str, Any]],
    judged: Sequence[Check],
    *,
    latency: float,
    late: str,
    plot: str,
) -> None:
    """Put the run into *page*, between the two markers.

    Args:
        page: The documentation's page.
        lines: The table.
        runs: Those with 16 processes.
        judged: What the figures had to show.
        latency: The server's, in seconds.
        late: How late the machine wakes a process, in words.
        plot: File name of the plot, beside the page; empty: none was made.
    """
    today = datetime.now(timezone.utc).date().isoformat()
    parts = [
        (
            f"Measured on {today}: {machine()}; 1 KB messages, a server that answers after "
            f"{latency * 1e3:g} ms. {late}"
        ),
        markdown(lines),
        (
            "Sixteen processes with one thread each share one allowance of 3.7 requests a second, "
            'with a burst of 5. *spooled* is `publish_mode="spool"`; *fsync* is a bare one of the '
            "same disk, in the same minute. *First* is the slowest of the 16 first messages, which "
            "all processes publish at once on a machine whose file is new."
        ),
        markdown(together(runs)),
        *([f"![Messages and requests a second, as in the tables]({plot})"] if plot else []),
        verdicts(judged),
    ]
    replace(page, BEGIN, END, parts)


def replace(page: Path, begin: str, end: str, parts: Sequence[str]) -> None:
    """Put *parts* into *page*, between two markers."""
    before, rest = page.read_text().split(begin)
    _, after = rest.split(end)
    page.write_text(before + "\n\n".join([begin, *parts, end]) + after)


def verdicts(judged: Sequence[Check]) -> str:
    """What had to hold, for the documentation."""
    rows = [
        (
            check.claim,
            f"{check.value:,.4g}",
            f"{'≤' if check.at_most else '≥'} {check.bound:,.4g}",
            "yes" if check.holds else "no",
        )
        for check in judged
    ]
    return markdown([("must hold", "measured", "bound", ""), *rows])


def draw(rounds: Sequence[Round], runs: Mapping[str, dict[str, Any]], target: Path) -> str:
    """Plot messages/s and requests/s against threads, and messages/s of 16 processes.

    Returns:
        Why nothing was drawn; empty if it was.
    """
    colours = {
        ONE_IN_FLIGHT: "#e8710a", FOUR_IN_FLIGHT: "#c4473a", SDK: "#3f86d6", REQUESTS: "#2f9a6b",
    }  # fmt: skip
    markers = {ONE_IN_FLIGHT: "o", FOUR_IN_FLIGHT: "D", SDK: "s", REQUESTS: "^"}
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed ('make bench' installs it)"
    with plotting() as pyplot:
        from matplotlib import ticker

        figure, panels = pyplot.subplots(1, 3, figsize=(12, 4), layout="constrained")
        for panel, what in zip(panels[:2], ("messages/s", "requests/s"), strict=True):
            for label, colour in colours.items():
                rows = sorted(
                    {row for r in rounds for row in r if row.label == label},
                    key=lambda row: row.threads,
                )
                figures = [median(rounds, row) for row in rows]
                panel.plot(
                    [row.threads for row in rows],
                    [f.rate if what == "messages/s" else f.request_rate for f in figures],
                    color=colour,
                    marker=markers[label],
                    label=label.replace("`", ""),
                )
            panel.set(xscale="log", yscale="log", xlabel="threads", title=what)
            panel.xaxis.set_major_locator(ticker.FixedLocator([1, 2, 4, 8, 16, 32, 64, 128, 200]))
            panel.xaxis.set_minor_locator(ticker.NullLocator())
            panel.xaxis.set_major_formatter("{x:.0f}")
            panel.yaxis.set_major_formatter("{x:,.0f}")
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
        rates = {"a request\neach": RATE}
        rates |= {name: run["published_per_second"] for name, run in runs.items()}
        bars = panels[2].bar(
            list(rates), list(rates.values()), color=[GREY, colours[ONE_IN_FLIGHT], colours[SDK]]
        )
        panels[2].bar_label(bars, fmt="{:,.3g}", color=GREY)
        panels[2].set(yscale="log", ylim=(1, 1000), title="messages/s, 16 processes")
        panels[2].yaxis.set_major_formatter("{x:,.0f}")
        panels[2].spines[["top", "right"]].set_visible(False)
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=2,
            frameon=False,
        )
        figure.savefig(target, transparent=True, metadata={"Date": None})
    return ""


@contextlib.contextmanager
def plotting() -> Iterator[Any]:
    """Give matplotlib's ``pyplot``, set up to draw as all plots of the documentation look.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    style: Any = {
        "text.color": GREY, "axes.edgecolor": GREY, "axes.labelcolor": GREY, "xtick.color": GREY,
        "ytick.color": GREY, "grid.color": GREY, "svg.hashsalt": "kombu_cfqueues", "font.size": 10,
    }  # fmt: skip
    with mpl.rc_context(style):
        yield pyplot


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()
