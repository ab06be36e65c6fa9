"""Sets of line numbers in the form that people write: ``1-9,41201-``."""

from __future__ import annotations

import re
from typing import Final

_RANGE: Final = re.compile(r"(\d+)(-(\d+)?)?")


class Lines:
    """A set of line numbers, counted from 1.  The last range may have no end.

    The set holds one range per gap, so that it stays small however long the source is.

    Args:
        text: ``5`` or ``1-9,41201-``; ``""`` for no line.

    Raises:
        ValueError: The text is not a list of ranges in ascending order.
    """

    def __init__(self, text: str = "1-") -> None:
        self._ranges: list[list[int | None]] = []  # [first, last]; None: no end
        previous_last: int | None = 0
        for part in text.split(",") if text else []:
            match = _RANGE.fullmatch(part.strip())
            if match is None:
                raise ValueError(f"{part!r} is neither a line number nor a range of lines")
            first = int(match[1])
            last = first if match[2] is None else int(match[3]) if match[3] else None
            if (
                previous_last is None
                or first <= previous_last
                or (last is not None and last < first)
            ):
                raise ValueError(
                    f"{part!r} is out of order: list line ranges in ascending order, from 1"
                )
            self._ranges.append([first, last])
            previous_last = last

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
        """Remove a line; fast if it is the first one."""
        for index, (first, last) in enumerate(self._ranges):
            assert first is not None  # noqa: S101  only the end of a range may be
            if number < first:
                return
            if last is not None and number > last:
                continue
            parts: list[list[int | None]] = []
            if number > first:
                parts.append([first, number - 1])
            if last is None or number < last:
                parts.append([number + 1, last])
            self._ranges[index : index + 1] = parts
            return

    def count(self) -> int | None:
        """Return the number of lines; None if the last range has no end."""
        return (
            None
            if self._ranges and self._ranges[-1][1] is None
            else sum(last - first + 1 for first, last in self._ranges if first and last)
        )

    def ends_before(self, number: int) -> bool:
        """Return whether the set has no line from *number* on."""
        if not self._ranges:
            return True
        last = self._ranges[-1][1]
        return last is not None and last < number
