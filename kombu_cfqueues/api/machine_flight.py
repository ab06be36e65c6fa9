"""One process of the machine asks the API, and the other processes wait for its answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from ..shared_facts import SharedFacts

T = TypeVar("T")

MAX_FLIGHT_SECONDS: Final = 3.0
"""Longest wait for another process.

A look-up of a few requests takes much less.  If it takes longer, it waits for permits, and this
process may wait for them just as well; or the server hangs, and this process must notice that in
time to use another URL."""

FIRST_LOOK_SECONDS: Final = 0.01
"""Pause before the first look whether another process has the answer.

A request takes tens of milliseconds."""

MAX_LOOK_SECONDS: Final = 0.05
"""Longest pause between two looks.

The pauses double up to this time.  With shorter ones, dozens of processes that start together would
take the CPU time that the asking process needs."""


def ask_for_machine(
    facts: SharedFacts | None,
    question: str,
    *,
    learned: Callable[[], T | None],
    ask: Callable[[], T],
    deadline: float,
) -> T:
    """Return what the machine has *learned*, or else the result of *ask*.

    If the process that asks dies or fails, the next one asks.

    Args:
        facts: What the processes of the machine share; None if they share nothing.
        question: What is asked for.
        learned: Returns the answer if the machine's facts have it.
        ask: Makes the request, and adds its answer to the facts.
        deadline: Deadline of *ask*, in monotonic seconds.  At most half of the time until then
            passes before *ask* is called.
    """
    if facts is None:
        return ask()
    now = time.monotonic()
    until = now + min(MAX_FLIGHT_SECONDS, (deadline - now) / 2)
    pause = FIRST_LOOK_SECONDS
    while (found := learned()) is None and not facts.begin(question):
        if time.monotonic() >= until:
            return ask()
        time.sleep(pause)
        pause = min(2 * pause, MAX_LOOK_SECONDS)
    if found is not None:
        return found
    try:
        # The process before this one may have answered between the two looks.
        found = learned()
        return ask() if found is None else found
    finally:
        facts.end(question)
