"""One publish in a thread's stack; what it is for shows tests/integration/test_forks.py."""

from __future__ import annotations

import threading

import pytest

from kombu_cfqueues.errors import PermanentError
from kombu_cfqueues.publish.reentrancy import no_reentry


def publish(then=lambda: None):
    with no_reentry:
        then()


def test_a_publish_within_a_publish_is_refused_and_the_outer_one_goes_on():
    with pytest.raises(PermanentError, match="already publishing") as refused:
        publish(publish)
    assert refused.value.delivered == "no"
    publish()


def test_one_after_the_other_and_in_other_threads_is_no_nesting():
    publish()
    publish()

    def in_a_thread():
        thread = threading.Thread(target=lambda: (publish(), done.append(1)))
        thread.start()
        thread.join()

    done = []
    publish(in_a_thread)
    assert done


def test_a_publish_whose_end_was_missed_stops_no_later_one():
    """A signal handler that raises may do so before the block is entered, and so never left."""

    def interrupted():
        no_reentry.__enter__()

    interrupted()
    publish()
    with pytest.raises(PermanentError):
        publish(publish)
