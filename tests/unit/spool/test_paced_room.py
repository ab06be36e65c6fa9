"""The spool's room where each process has its own allowance."""

import pytest
from support.spools import CLAIM_SECONDS, texts

from kombu_cfqueues.errors import RateLimited
from kombu_cfqueues.rate_limit import Budget
from kombu_cfqueues.spool.paced_room import PacedRoom
from kombu_cfqueues.waiting_room import Wait


@pytest.fixture
def permits(clock):
    return Budget(None, clock=clock)


@pytest.fixture
def process(peer, permits):
    made = peer(limit=None)
    made.file.stop_log = permits.stop_log
    made.room = PacedRoom(made.file, CLAIM_SECONDS, permits)
    return made


def test_a_stop_that_ends_later_in_the_file_is_logged_once(process, permits, clock, caplog):
    """The file hears of a refusal after the process, so its stop ends a moment later."""
    caplog.set_level("INFO", "kombu_cfqueues")
    refusal = RateLimited("slow down", status=429, code=971, retry_after=10.0)
    process.spool("x")
    permits.refused(refusal)
    clock.now += 0.5
    process.permits.stop(refusal, None)

    clock.now += 9.7  # the process's own stop has ended, the file's has not
    wait = process.try_claim()
    assert isinstance(wait, Wait)
    clock.now = wait.until
    assert texts(process.try_claim()) == ["x"]

    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_the_end_of_a_stop_that_a_process_finds_in_the_file_is_logged(peer, clock, caplog):
    """The stop ends when the file says, however late the process has looked."""
    caplog.set_level("INFO", "kombu_cfqueues")
    other, process = peer(limit=None), peer(limit=None)
    process.spool("x")
    other.permits.stop(RateLimited("slow down", status=429, code=971, retry_after=10.0), None)
    wait = process.try_claim()
    clock.now = wait.until
    assert texts(process.try_claim()) == ["x"]

    messages = [record.levelname for record in caplog.records]
    assert messages == ["WARNING", "WARNING", "INFO"], "one warning of each process"
