"""How long a request takes."""

from kombu_cfqueues.publish.request_time import FIRST_REQUEST_SECONDS, RequestTime


def test_it_is_the_shorter_one_of_the_last_two():
    time = RequestTime()
    assert time.seconds == 0.0
    for took, seconds in [(0.3, 0.3), (2.0, 0.3), (2.5, 2.0), (0.1, 0.1), (0.2, 0.1)]:
        time.note(took)
        assert time.seconds == seconds


def test_the_first_request_counts_as_a_short_one():
    """It loads the HTTP client, and connects."""
    time = RequestTime()
    time.note(2.6)
    assert time.seconds == FIRST_REQUEST_SECONDS
    time.note(2.5)
    assert time.seconds == 2.5


def test_a_forked_child_has_made_no_request():
    time = RequestTime()
    time.note(0.3)
    time.renew_after_fork()
    assert time.seconds == 0.0
