"""A batch: what ends it, and what its error tells."""

import pytest

from kombu_cfqueues.envelope import Packed
from kombu_cfqueues.errors import BatchPublishError, InvalidMessage
from kombu_cfqueues.publish.collector import Collector


class Outlet:
    """Where a batch sends its requests to; *error* is the outcome of each message."""

    publish_timeout = 30.0

    def __init__(self, error=None):
        self.error, self.posted = error, []

    def post(self, queue, messages, *, deadline):
        self.posted.append(len(messages))
        return [self.error] * len(messages)

    def spool(self, messages):
        raise AssertionError


@pytest.fixture
def collector():
    collector = Collector(max_size=100)
    yield collector
    collector.end("the test is over")


def message():
    return Packed(b'{"body":"x"', 11)


def test_a_batch_that_has_ended_takes_nothing_and_says_why(collector):
    collector.check()
    collector.end("it is closed")
    collector.end("its connection is closed, too")
    assert collector.ended
    with pytest.raises(RuntimeError, match="because it is closed: open another one"):
        collector.check()
    with pytest.raises(RuntimeError, match="it is closed"):
        collector.flush()


def test_the_error_of_a_batch_has_the_first_error_as_its_cause(collector):
    refused = InvalidMessage("too many headers", status=400)
    outlet = Outlet(refused)
    for _ in range(3):
        collector.collect(outlet, "jobs", message())
    with pytest.raises(BatchPublishError) as failed:
        collector.flush()
    assert failed.value.__cause__ is refused
    assert "too many headers" in str(failed.value)
    assert [outcome.error for outcome in failed.value.refused] == [refused] * 3
    assert outlet.posted == [3]
    assert collector.ended


def test_what_a_batch_had_not_sent_is_in_its_error_and_says_why():
    """`publish` returned for it."""
    collector, outlet = Collector(max_size=1), Outlet(InvalidMessage("too many headers"))
    collector.collect(outlet, "jobs", message())
    collector.send_full()
    collector.collect(outlet, "other", message())
    with pytest.raises(BatchPublishError) as failed:
        collector.flush()
    sent, unsent = failed.value.refused
    assert (sent.queue, unsent.queue) == ("jobs", "other")
    assert str(unsent.error) == "the message was not sent: earlier messages of its batch failed"
    assert outlet.posted == [1]
