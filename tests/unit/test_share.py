"""What a block of the token teaches a machine, and how it tries for more: arithmetic."""

import pytest
from support.forms import first_of
from virtual_time import VirtualTime

from benchmarks.fleet import BUSY, HOUR, Bucket, Load, Machine, Plan, World, result, simulate
from kombu_cfqueues import limits
from kombu_cfqueues.errors import RateLimited
from kombu_cfqueues.rate_limit import CLOUDFLARE_LIMIT, Allowance, Budget, Limit
from kombu_cfqueues.rate_limit.allowance import SAME_BLOCK_SECONDS
from kombu_cfqueues.rate_limit.share import (
    LEAST_SHARE,
    MAX_SHARE_HOLD_SECONDS,
    SHARE_HOLD_SECONDS,
    STEP_SECONDS,
)
from kombu_cfqueues.runtime.rng import rng

SEED = 20261129
WINDOW = limits.WINDOW_SECONDS
RATE = CLOUDFLARE_LIMIT.rate


@pytest.fixture(autouse=True)
def seed():
    print(f"seed {SEED}")
    rng.seed(SEED)


def sent(number, limit=CLOUDFLARE_LIMIT, *, at=1_000.0):
    """An allowance after *number* requests, one after the other at the full rate."""
    allowance = Allowance.new(limit, at)
    for n in range(number):
        allowance = allowance.counted(limit, at + n / RATE).spent(limit)
    return allowance


def blocked(allowance, limit=CLOUDFLARE_LIMIT, *, seconds=WINDOW):
    return allowance.blocked(limit, allowance.counted_at + seconds)


def rate(allowance, limit=CLOUDFLARE_LIMIT):
    return allowance.mine(limit).rate


@pytest.mark.parametrize("own", [120, 300, 600])
def test_after_a_block_a_machine_goes_on_with_what_it_had_of_the_window(own):
    allowance = blocked(sent(own))

    assert rate(allowance) == pytest.approx(RATE * own / 1_200, rel=0.02)
    assert allowance.mine(CLOUDFLARE_LIMIT).burst == pytest.approx(60 * own / 1_200, abs=1)


def test_requests_of_an_earlier_window_do_not_count():
    allowance = sent(600).counted(CLOUDFLARE_LIMIT, 1_000.0 + 3 * WINDOW)
    for _ in range(240):
        allowance = allowance.spent(CLOUDFLARE_LIMIT)

    assert rate(blocked(allowance)) == pytest.approx(RATE * 240 / 1_200, rel=0.02)


def test_a_machine_that_hardly_published_keeps_a_fortieth():
    """It can publish as soon as the block is over, and 40 of them are one machine."""
    assert rate(blocked(sent(0))) == pytest.approx(RATE * LEAST_SHARE)
    assert rate(blocked(sent(20))) == pytest.approx(RATE * LEAST_SHARE)


def test_a_rate_that_was_divided_by_hand_is_not_divided_again():
    tenth = Limit(RATE / 10, 6)
    assert rate(blocked(sent(119, tenth), tenth), tenth) >= 0.97 * tenth.rate


def test_a_machine_that_never_met_a_block_has_its_whole_rate():
    assert sent(5_000).mine(CLOUDFLARE_LIMIT) == CLOUDFLARE_LIMIT


def test_nothing_is_earned_while_the_block_lasts_and_each_returns_at_an_instant_of_its_own():
    returns = []
    for _ in range(10):
        allowance = blocked(sent(120))
        end = allowance.counted_at + WINDOW
        assert allowance.counted(CLOUDFLARE_LIMIT, end).tokens < 1
        returns.append(allowance.ready_at(CLOUDFLARE_LIMIT) - end)

    own = 1 / rate(allowance)
    assert all(0 <= each <= own * 1.01 for each in returns)
    assert max(returns) - min(returns) > own / 4, returns


def test_late_answers_of_the_same_block_teach_nothing_more():
    once = blocked(sent(600))
    again = once.counted(CLOUDFLARE_LIMIT, once.counted_at + 1).blocked(
        CLOUDFLARE_LIMIT, once.counted_at + 299
    )
    early = once.counted(CLOUDFLARE_LIMIT, once.stopped_until + SAME_BLOCK_SECONDS - 1)
    early = early.blocked(CLOUDFLARE_LIMIT, early.counted_at + 2)

    assert rate(again) == rate(early) == rate(once)


def publish(allowance, seconds, *, waits=True):
    """Use all of the allowance for a time; if not *waits*, no request waits for its permit."""
    end = allowance.counted_at + seconds
    while allowance.counted_at < end:
        ready = max(allowance.ready_at(CLOUDFLARE_LIMIT), allowance.stopped_until)
        if not waits:
            ready += 1 / rate(allowance)  # with a token to spare
        waited = ready - allowance.counted_at if waits else 0.0
        allowance = allowance.counted(CLOUDFLARE_LIMIT, ready).spent(CLOUDFLARE_LIMIT, waited)
    return allowance


def test_the_share_is_held_for_an_hour_after_the_block():
    allowance = blocked(sent(300))
    before = rate(allowance)

    held = publish(allowance, WINDOW + SHARE_HOLD_SECONDS - 10)
    assert rate(held) == before
    assert rate(publish(held, 600)) > before


def test_only_a_machine_that_waits_for_permits_grows():
    allowance = blocked(sent(300))

    assert rate(publish(allowance, 3 * SHARE_HOLD_SECONDS, waits=False)) == rate(allowance)


def test_the_first_steps_are_small_and_without_a_block_they_grow():
    """A fleet of equals is at its limit within a few of them; who is alone wants all of it."""
    allowance = publish(blocked(sent(300)), WINDOW + SHARE_HOLD_SECONDS)
    first = rate(publish(allowance, 10 * STEP_SECONDS))
    assert first < 1.1 * rate(allowance)
    assert rate(publish(allowance, 2 * SHARE_HOLD_SECONDS)) == RATE


def test_each_block_that_growing_met_doubles_the_hold_to_a_day():
    allowance = blocked(sent(600))
    holds = []
    for _ in range(6):
        holds.append(allowance.share.hold_seconds)
        held = allowance._replace(counted_at=allowance.share.grows_at)
        allowance = blocked(publish(held, 10 * STEP_SECONDS))

    assert holds == [min(MAX_SHARE_HOLD_SECONDS, SHARE_HOLD_SECONDS * 2**n) for n in range(6)]


def test_a_block_that_others_caused_leaves_the_hold_as_it_is():
    again = blocked(publish(blocked(sent(600)), WINDOW + 600))

    assert again.share.hold_seconds == SHARE_HOLD_SECONDS
    assert again.share.grows_at == pytest.approx(again.stopped_until + SHARE_HOLD_SECONDS)


def test_who_grew_long_ago_and_met_nothing_begins_anew():
    """A year of peace, and then somebody deploys Terraform: an hour, and not a day."""
    allowance = blocked(sent(600))
    allowance = allowance._replace(
        share=allowance.share._replace(steps=80, part=1.0, hold_seconds=MAX_SHARE_HOLD_SECONDS)
    )
    later = allowance.counted(CLOUDFLARE_LIMIT, allowance.share.grows_at + 30 * 86_400)

    assert blocked(later).share.hold_seconds == SHARE_HOLD_SECONDS


@pytest.mark.parametrize("limit", [CLOUDFLARE_LIMIT, None])
@pytest.mark.parametrize("code", [971, 6100, 10429, None, 10250, 10253])
def test_only_the_apis_own_codes_for_the_token_teach(limit, code):
    """A 429 without one may come from a gateway, or a proxy of the office."""
    time = VirtualTime(now=1_000.0)
    budget = Budget(limit, clock=time)
    budget.refused(RateLimited("429", status=429, code=code, retry_after=60.0), queue="jobs")

    learned = not budget._allowance.share.is_whole
    assert learned == (limit is not None and code in {971, 6100, 10429})


# -- a fleet, over a day


@pytest.mark.parametrize(
    "sliding", first_of([False, True]), ids=["a window that opens", "that slides"]
)
@pytest.mark.parametrize("machines", first_of([2, 10, 20]))
def test_a_fleet_that_does_not_change_is_blocked_at_most_six_times_in_a_day(machines, sliding):
    found = simulate([Plan(BUSY)] * machines, sliding=sliding, seed=SEED)

    assert 1 <= len(found.blocks) <= 6, found.blocks
    assert found.succeeded > 0.97
    assert found.efficiency > 0.85


@pytest.mark.parametrize(
    "sliding", first_of([False, True]), ids=["a window that opens", "that slides"]
)
@pytest.mark.parametrize("machines", first_of([2, 10, 20]))
def test_a_fleet_with_one_allowance_is_never_blocked(machines, sliding):
    plans = [Plan(BUSY, start=4.0 * number) for number in range(machines)]
    found = simulate(plans, sliding=sliding, seed=SEED, budget_url=True)

    assert found.blocks == []
    assert found.succeeded == 1.0
    assert found.efficiency > 0.9
    assert found.jain > 0.95


def test_a_lone_machine_beside_a_burst_of_another_tool_is_whole_within_two_and_a_half_hours():
    """Twenty requests of its own, and 1,180 of Terraform, once."""
    world = World(seed=SEED)
    machine = Machine(world, Bucket(), BUSY)

    def burst():
        while world.request() is None:
            pass

    world.at(4.0, burst)
    world.run(10.0)
    assert machine.requests <= 25
    assert rate(machine.allowance) == pytest.approx(RATE * LEAST_SHARE)
    world.run(2.5 * HOUR)
    assert machine.allowance.mine(CLOUDFLARE_LIMIT) == CLOUDFLARE_LIMIT
    assert len(world.blocks) == 1


def test_a_machine_alone_is_never_blocked():
    world = World(seed=SEED)
    machine = Machine(world, Bucket(), Load(threads=8))
    world.run(2 * HOUR)

    assert result(world, [machine]).blocks == []
    assert machine.requests == pytest.approx(2 * HOUR * RATE, rel=0.01)
