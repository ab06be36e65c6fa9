"""How far a long command is: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Final

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ..runtime.clock import Clock
from . import _console as console

WINDOW_SECONDS: Final = 15.0
"""The rate is that of the last so many seconds: what was long ago says little of what is left."""

SAMPLE_SECONDS: Final = 0.5

PLAIN_SECONDS: Final = 5.0
"""Between two lines where no bar can be drawn."""


class Meter:
    """Shows on stderr what is done, how fast, and how long the rest will take.

    Args:
        what: Plural of the things that are counted: ``messages``.
        total: Of the work, in any unit; None: nobody knows.
        quiet: Show nothing.
        clock: The time.
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
        self._said_at = self._clock.monotonic()
        self._quiet = quiet
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if not quiet and self._console.is_terminal:
            self._progress = Progress(
                BarColumn(bar_width=None),
                TextColumn("{task.fields[words]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task("", total=total, words="")

    def __enter__(self) -> Meter:  # noqa: PYI034  typing has Self from 3.11 on
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def skip(self, work: float) -> None:
        """So much of the work was done before; it says nothing of how fast it goes."""
        self._work += work
        self._samples = deque((when, count, done + work) for when, count, done in self._samples)

    def advance(self, count: int, work: float) -> None:
        """*count* things are done, which were *work* of the total."""
        self._count += count
        self._work += work
        now = self._clock.monotonic()
        if not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS:
            self._samples.append((now, self._count, self._work))
            while now - self._samples[0][0] > WINDOW_SECONDS and len(self._samples) > 2:
                self._samples.popleft()
            self._show(now)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self._quiet:
            return
        if self._progress is not None:
            self._progress.console.print(console.clean(text), soft_wrap=True)
        else:
            click.echo(text, err=True)

    def words(self) -> str:
        """What the bar says in words."""
        parts = [f"{self._count:,} {self._what}"]
        if self._total:
            # Rounded down: it is not all done before it is.
            parts.insert(0, f"{int(100 * min(1.0, self._work / self._total))} %")
        rate, speed = self._rates()
        if rate is not None:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:,.1f}/s")
        if speed and self._total:
            parts.append(f"{console.span(max(0.0, self._total - self._work) / speed)} left")
        return ", ".join(parts)

    def _rates(self) -> tuple[float | None, float | None]:
        """Things and work a second."""
        if len(self._samples) < 2:
            return None, None
        (since, first, begun), (until, last, done) = self._samples[0], self._samples[-1]
        seconds = until - since
        if seconds <= 0:
            return None, None
        return (last - first) / seconds, (done - begun) / seconds

    def _show(self, now: float) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=self._work, words=self.words())
        elif not self._quiet and now - self._said_at >= PLAIN_SECONDS:
            self._said_at = now
            click.echo(self.words(), err=True)
