"""One thread asks and the others wait, also after the thread that asks was interrupted."""

import linecache
import sys
import time

from kombu_cfqueues.api import single_flight
from kombu_cfqueues.api.single_flight import SingleFlight

# Python lets no signal come between leaving a `with` and the release of its lock, and nothing could
# repair an interruption of the line that repairs the others.
SAFE = ("with self._lock", "self._end(")


class Interrupted(BaseException):
    """As a signal's handler raises it."""


def ask_interrupted(flights, count):
    """Ask, and be interrupted at the line with this number; returns whether there was one."""
    lines = 0

    def interrupt(frame, event, _):
        nonlocal lines
        file = frame.f_code.co_filename
        if file != single_flight.__file__ or frame.f_code.co_name == "_end":
            return None
        code = linecache.getline(file, frame.f_lineno)
        if event == "line" and not any(safe in code for safe in SAFE):
            lines += 1
            if lines == count:
                raise Interrupted
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        run(flights, "interrupted")
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


def run(flights, result):
    return flights.run(
        "key",
        known=lambda: None,
        ask=lambda: result,
        action="asking",
        deadline=time.monotonic() + 2,
    )


def test_wherever_a_thread_is_interrupted_the_next_one_asks_at_once():
    """Otherwise each publish to that queue would wait for its deadline, for as long as we live."""
    flights, count = SingleFlight(), 1
    while ask_interrupted(flights, count):
        assert run(flights, "next") == "next", f"after an interruption at line {count}"
        count += 1

    assert count > 8


def test_a_result_that_is_none_is_a_result():
    assert run(SingleFlight(), None) is None
