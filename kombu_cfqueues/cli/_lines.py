"""Which lines of a source are still to be done, as people write it: ``1-9,41201-``."""

from __future__ import annotations

import re
from typing import Final

_RANGE: Final = re.compile(r"(\d+)(-(\d+)?)?")


class Lines:
    """Line numbers, from 1; the last range may have no end.

    As many ranges as there are gaps are kept, so that it stays small whatever the source is.

    Args:
        text: ``5``, ``1-9,41201-``; ``""``: none.

    Raises:
        ValueError: The text is none of these.
    """

    def __init__(self, text: str = "1-") -> None:
        self._ranges: list[list[int | None]] = []  # [first, last], in order; last None: no end
        before: int | None = 0
        for part in text.split(",") if text else []:
            match = _RANGE.fullmatch(part.strip())
            if match is None:
                raise ValueError(f"{part!r} is no line and no range of lines")
            first = int(match[1])
            last = first if match[2] is None else int(match[3]) if match[3] else None
            if before is None or first <= before or (last is not None and last < first):
                raise ValueError(f"{part!r} is out of order; lines are counted from 1")
            self._ranges.append([first, last])
            before = last

    def __str__(self) -> str:
        return ",".join(
            f"{first}-" if last is None else str(first) if first == last else f"{first}-{last}"
            for first, last in self._ranges
        )

    def __contains__(self, number: int) -> bool:
        for first, last in self._ranges:
            if first is not None and number < first:
                return False
            if last is None or number <= last:
                return True
        return False

    def remove(self, number: int) -> None:
        """Take out a line; quick if it is the first one."""
        for place, (first, last) in enumerate(self._ranges):
            assert first is not None  # noqa: S101  only a last one may be
            if number < first:
                return
            if last is not None and number > last:
                continue
            parts: list[list[int | None]] = []
            if number > first:
                parts.append([first, number - 1])
            if last is None or number < last:
                parts.append([number + 1, last])
            self._ranges[place : place + 1] = parts
            return

    def count(self) -> int | None:
        """How many there are; None: no end."""
        return (
            None
            if self._ranges and self._ranges[-1][1] is None
            else sum(last - first + 1 for first, last in self._ranges if first and last)
        )

    def is_over(self, number: int) -> bool:
        """Whether no line from *number* on is among them."""
        if not self._ranges:
            return True
        last = self._ranges[-1][1]
        return last is not None and last < number
