"""Progress of a long command: a bar on a terminal, otherwise a plain line every few seconds."""

from __future__ import annotations

from collections import deque
from typing import Final

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ..runtime.clock import Clock
from . import _console as console

SPEED_WINDOW_SECONDS: Final = 15.0
"""Period over which the rate is measured; the recent rate predicts the remaining time best."""

SAMPLE_SECONDS: Final = 0.5
"""Interval between two measurements of the rate, each of which redraws the bar."""

PLAIN_LINE_SECONDS: Final = 5.0
"""Interval between two progress lines if stderr is not a terminal."""


class Meter:
    """Shows on stderr how much is done, the current rate and the remaining time.

    Args:
        what: Plural of the things that are counted: ``messages``.
        total: The whole work, in any unit; None if unknown.
        quiet: Show nothing.
        clock: Source of the time; tests set their own.
    """

    def __init__(
        self,
        what: str,
        total: float | None,
        *,
        quiet: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or Clock()
        self._what = what
        self._total = total
        self._count = 0
        self._work = 0.0
        self._samples: deque[tuple[float, int, float]] = deque()
        self._console = console.terminal(err=True)
        self._last_line_at = self._clock.monotonic()
        self._quiet = quiet
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if not quiet and self._console.is_terminal:
            self._progress = Progress(
                BarColumn(bar_width=None),
                TextColumn("{task.fields[summary]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("", total=total, summary="")

    def __enter__(self) -> Meter:  # noqa: PYI034  typing has Self from 3.11 on
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def skip(self, work: float) -> None:
        """Add work that this run did not have to do, and that must not count towards the rate."""
        self._work += work
        self._samples = deque((when, count, done + work) for when, count, done in self._samples)

    def advance(self, count: int, work: float) -> None:
        """Add *count* things that are done, which are *work* of the total."""
        self._count += count
        self._work += work
        now = self._clock.monotonic()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, self._count, self._work))
            while now - self._samples[0][0] > SPEED_WINDOW_SECONDS and len(self._samples) > 2:
                self._samples.popleft()
            self._show(now)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._quiet:
            return
        if self._progress is not None:
            self._progress.console.print(console.clean(text), soft_wrap=True)
        else:
            click.echo(text, err=True)

    def summary(self) -> str:
        """Return the progress as text: percentage, count, rate and remaining time."""
        parts = [f"{self._count:,} {self._what}"]
        if self._total:
            # Rounded down, so that 100 % means that everything is done.
            parts.insert(0, f"{int(100 * min(1.0, self._work / self._total))} %")
        rate, speed = self._rates()
        if rate is not None:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:,.1f}/s")
        if speed and self._total:
            parts.append(f"{console.duration(max(0.0, self._total - self._work) / speed)} left")
        return ", ".join(parts)

    def _rates(self) -> tuple[float | None, float | None]:
        """Things per second, and work per second; None if not yet known."""
        if len(self._samples) < 2:
            return None, None
        (since, first, begun), (until, last, done) = self._samples[0], self._samples[-1]
        seconds = until - since
        if seconds <= 0:
            return None, None
        return (last - first) / seconds, (done - begun) / seconds

    def _show(self, now: float) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=self._work, summary=self.summary())
        elif not self._quiet and now - self._last_line_at >= PLAIN_LINE_SECONDS:
            self._last_line_at = now
            click.echo(self.summary(), err=True)
