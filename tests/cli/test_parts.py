"""Parts of the command line that are arithmetic: which lines are left, how long it still takes."""

import random

import pytest

from kombu_cfqueues.cli._lines import Lines
from kombu_cfqueues.cli._meter import Meter
from kombu_cfqueues.runtime.clock import Clock


@pytest.mark.parametrize("text", ["1-", "5", "1-9,41201-", "3,5-6,8", ""])
def test_lines_are_written_as_they_are_read(text):
    assert str(Lines(text)) == text


@pytest.mark.parametrize("text", ["0", "a", "5-2", "3,2", "1-,5", "1--2", ","])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match="line"):
        Lines(text)


def test_lines_that_are_done_are_out_whatever_their_order():
    lines, left = Lines("3-40,50-60"), {*range(3, 41), *range(50, 61)}
    done = [*range(1, 70)]
    random.Random(7).shuffle(done)
    for number in done:
        assert lines.count() == len(left)
        lines.remove(number)
        left.discard(number)
        assert [n for n in range(1, 70) if n in lines] == sorted(left)
    assert str(lines) == ""
    assert lines.ends_before(1)


def test_an_open_end_is_never_over():
    lines = Lines()
    for number in range(1, 100_000):
        lines.remove(number)

    assert str(lines) == "100000-"
    assert lines.count() is None
    assert not lines.ends_before(10**9)


class Watch(Clock):
    """A clock that is set."""

    now = 0.0

    def monotonic(self):
        return self.now


def test_the_meter_tells_the_rate_of_now_and_the_time_left():
    watch = Watch()
    meter = Meter("messages", 10_000, quiet=True, clock=watch)
    for _ in range(10):  # slow: 10 a second
        watch.now += 1
        meter.advance(10, 10)
    for _ in range(40):  # fast: 100 a second
        watch.now += 1
        meter.advance(100, 100)

    assert meter.summary() == "41 %, 4,100 messages, 100/s, 59 s left"


def test_what_was_done_before_does_not_make_it_seem_fast():
    watch = Watch()
    meter = Meter("messages", 1_000, quiet=True, clock=watch)
    meter.skip(500)
    for _ in range(5):
        watch.now += 1
        meter.advance(2, 2)

    assert meter.summary() == "51 %, 10 messages, 2.0/s, 4 min 5 s left"


def test_a_source_without_a_size_has_a_rate_and_no_end():
    watch = Watch()
    meter = Meter("messages", None, quiet=True, clock=watch)
    for _ in range(3):
        watch.now += 1
        meter.advance(50, 5_000)

    assert meter.summary() == "150 messages, 50/s"
