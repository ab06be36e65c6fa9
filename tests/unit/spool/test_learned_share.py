"""The share of a machine in the file: for each process, each token, and each boot."""

import pytest

from kombu_cfqueues import limits
from kombu_cfqueues.errors import RateLimited
from kombu_cfqueues.rate_limit import CLOUDFLARE_LIMIT
from kombu_cfqueues.rate_limit.share import SHARE_HOLD_SECONDS

WINDOW = limits.WINDOW_SECONDS
BLOCK = RateLimited("blocked", status=429, code=971, retry_after=float(WINDOW))


@pytest.fixture
def limit():
    return CLOUDFLARE_LIMIT


@pytest.fixture
def machine(peer, clock):
    """A process whose machine made 300 of the 1,200 requests, and was blocked."""
    process = peer()
    for _ in range(301):
        clock.now += 0.3
        assert process.request_permit(None, clock.now) == (None, None)
    process.permits.stop(BLOCK, None)
    return process


def test_a_machine_that_met_no_block_has_learned_nothing(peer):
    assert peer().spool_.listing.share() is None


def test_a_process_that_starts_later_goes_on_with_the_share(machine, peer, clock):
    later = peer()
    share = later.spool_.listing.share()

    assert share.part == pytest.approx(0.25, abs=0.01)
    assert share.rate == pytest.approx(CLOUDFLARE_LIMIT.rate / 4, abs=0.05)
    assert share.own == pytest.approx(300, abs=2)
    assert share.held_seconds == pytest.approx(WINDOW + SHARE_HOLD_SECONDS)
    clock.now += WINDOW + 60
    taken = 0
    while later.request_permit(None, clock.now) == (None, None):
        taken += 1
    assert taken <= CLOUDFLARE_LIMIT.burst / 4 + 1


def test_a_token_that_replaces_it_inherits_the_share(machine, peer, clock):
    """Cloudflare's limit applies to the user, and rotating a token is no reason for a block."""
    clock.now += 2 * WINDOW
    rotated = peer(token="another")
    assert rotated.request_permit(None, clock.now) == (None, None)

    assert rotated.spool_.listing.share() == pytest.approx(machine.spool_.listing.share())


@pytest.mark.parametrize(
    "boot", ["another", "boot"], ids=["another boot", "a clock that began anew"]
)
def test_after_a_reboot_the_share_is_held_for_as_long_as_was_left(machine, peer, clock, boot):
    clock.now += WINDOW + 600
    assert machine.request_permit(None, clock.now) == (None, None)
    before = machine.spool_.listing.share()
    machine.file.close()

    clock.now = 5.0
    after = peer(boot=boot)
    after.request_permit(None, clock.now)
    share = after.spool_.listing.share()
    assert share.part == before.part
    assert share.held_seconds == pytest.approx(before.held_seconds, abs=1)
    assert share.age_seconds == pytest.approx(before.age_seconds, abs=1)


def test_a_429_without_a_code_of_the_api_teaches_the_machine_nothing(peer):
    process = peer()
    process.permits.stop(RateLimited("slow", status=429, retry_after=60.0), None)

    assert process.spool_.listing.share() is None


def test_a_share_grows_while_its_processes_wait_for_permits(machine, clock):
    clock.now += WINDOW + SHARE_HOLD_SECONDS
    before = machine.spool_.listing.share().part
    request, end = None, clock.now + 1_200
    while clock.now < end:
        since = clock.now
        while True:
            request, wait = machine.request_permit(request, end + 900, since=since)
            if wait is None:
                break
            clock.now = max(wait.until, clock.now + 0.01)
    assert 1.05 * before < machine.spool_.listing.share().part < 1.6 * before


def test_and_does_not_while_permits_are_there(machine, clock):
    clock.now += WINDOW + SHARE_HOLD_SECONDS
    before = machine.spool_.listing.share().part
    for _ in range(100):
        clock.now += 30
        assert machine.request_permit(None, clock.now, since=clock.now) == (None, None)

    assert machine.spool_.listing.share().part == before
