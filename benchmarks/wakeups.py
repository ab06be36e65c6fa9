"""How late this machine wakes a process that sleeps.

The host of a virtual machine may wake it late: by 0.2 to 0.5 ms in one hour and by 3 to 8 ms in
another.  What waits for an answer a hundred times a second then looks slower than it is, and so
ratios of times count only where this figure is small.
"""

from __future__ import annotations

import time
from typing import Final

SLEEP_SECONDS: Final = 0.01
SLEEPS: Final = 200

LATE_SECONDS: Final = 0.001
"""From here on a run is not worth much."""


def late_seconds() -> float:
    """Sleep for two seconds; return by how much the 99th percentile of the sleeps was too long."""
    late = []
    for _ in range(SLEEPS):
        began = time.perf_counter()
        time.sleep(SLEEP_SECONDS)
        late.append(time.perf_counter() - began - SLEEP_SECONDS)
    return sorted(late)[int(0.99 * SLEEPS)]


def in_words() -> str:
    """Measure it, and say it in a sentence."""
    late = late_seconds()
    said = f"This machine wakes a process up to {late * 1e3:.1f} ms late (99th percentile)"
    if late < LATE_SECONDS:
        return f"{said}."
    return f"{said}, so the ratios of times count for little: measure again on a quiet machine."
