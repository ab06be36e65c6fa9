"""Containers that share the spool's folder, and have a boot id each (LXC, systemd-nspawn).

Another boot id tells of a restart of the machine, after which nobody waits any more.  A process
that lives proves that there was none: it goes on waiting for its messages, and holds what it sends.

Processes here are told their boot id where they read the machine's, so that no root is needed.
"""

import contextlib
import time

import pytest
from support.processes import eventually
from support.publishers import Publisher, arrivals, held


@pytest.fixture
def options(server, tmp_path):
    return {
        "request_rate": 0.125,
        "request_burst": 5,
        "spool_dir": str(tmp_path / "spool"),
        "queues": {"jobs": server.queue_id("jobs")},
    }


def use_up(publisher, permits):
    """Publish until the next permit is seconds away."""
    for number in range(permits):
        publisher.publish(f"permit {number}", timeout=30)
        assert publisher.outcomes(1, 30)[f"permit {number}"].told == "returned"


def test_a_container_that_starts_deletes_nothing_that_another_one_waits_for(server, options):
    """Five publishes wait for their permit while a second container publishes its first message."""
    waiting = [f"waits {number}" for number in range(5)]
    with (
        Publisher(server.broker_url, options) as first,  # with the boot id that the command has
        Publisher(server.broker_url, options | {"publish_mode": "spool"}, boot="second") as second,
    ):
        use_up(first, 4)  # and one to connect
        first.publish(*waiting, timeout=12)
        place = server.broker_url, options["spool_dir"]
        assert eventually(lambda: held(*place)["confirmed"] == 5)
        second.publish("of the second", one_thread=True)
        assert second.outcomes(1)["of the second"].told == "returned"
        outcomes = first.outcomes(5, 18)
        arrived = arrivals(server)
    lost = [body for body in waiting if body not in arrived]
    assert not lost, f"{len(lost)} of 5 waiting publishes were deleted"
    assert [outcome.told for outcome in outcomes.values()] == ["returned"] * 5


def test_a_container_whose_clock_is_behind_deletes_nothing_that_another_one_waits_for(
    server, options
):
    """A clock that ran backwards tells of a restart, too, unless another process lives.

    A container that was moved from another machine keeps that machine's clock.
    """
    waiting = [f"waits {number}" for number in range(5)]
    options = options | {"request_rate": 0.2}
    with (
        Publisher(server.broker_url, options) as first,
        Publisher(server.broker_url, options | {"modes": []}, behind=3600.0) as second,
    ):
        use_up(first, 4)  # and one to connect
        first.publish(*waiting, timeout=30)
        assert eventually(lambda: held(server.broker_url, options["spool_dir"])["confirmed"] == 5)
        second.publish("of the second", one_thread=True, timeout=1)
        assert second.outcomes(1)
        outcomes = first.outcomes(5)
    assert [outcome.told for outcome in outcomes.values()] == ["returned"] * 5


@pytest.mark.long
def test_containers_that_start_all_the_time_delete_nothing_of_each_other(server, options):
    """Three containers start a process each, twice: each message arrives, and its caller hears."""
    options = options | {"request_rate": 1.5, "modes": []}  # connects when it publishes
    place = server.broker_url, options["spool_dir"]
    boots = ["", "second", "third"] * 2
    with contextlib.ExitStack() as stack:
        publishers = [
            stack.enter_context(Publisher(server.broker_url, options, boot=boot)) for boot in boots
        ]
        bodies = []
        for number, publisher in enumerate(publishers):
            if number:  # it starts while messages of others wait
                eventually(lambda: held(*place)["confirmed"], 3)
            mine = [f"{number}-{n}" for n in range(4)]
            publisher.publish(*mine, timeout=6, one_thread=True)
            bodies += mine
        told = {}
        for publisher in publishers:
            told |= publisher.outcomes(4, 16)
        arrived = arrivals(server)
    failed = {body: outcome.text for body, outcome in told.items() if outcome.text}
    assert not failed, f"{len(failed)} of {len(bodies)} publishes failed"
    assert {body: arrived[body] for body in bodies} == dict.fromkeys(bodies, 1)


def test_a_container_that_starts_sends_nothing_that_another_one_is_sending(server, options):
    """What one has in hand, while the server takes its time, does not go out a second time."""
    options = options | {"request_rate": 20.0, "publish_mode": "spool"}
    fault = server.faults.latency("push", "batch", seconds=3.0, times=1)
    with (
        Publisher(server.broker_url, options, boot="first") as first,
        Publisher(server.broker_url, options, boot="second") as second,
    ):
        first.publish("in hand")
        assert first.outcomes(1)["in hand"].told == "returned"
        assert eventually(lambda: fault.hits)
        second.publish("of the second")
        assert second.outcomes(1)["of the second"].told == "returned"
        place = server.broker_url, options["spool_dir"]
        assert eventually(lambda: arrivals(server)["of the second"] and arrivals(server)["in hand"])
        assert eventually(lambda: not any(held(*place).values()), 20)
        assert eventually(lambda: all(r.seconds is not None for r in server.requests))
        found = arrivals(server)
    assert found == {"in hand": 1, "of the second": 1}


def test_containers_that_start_do_not_make_a_stop_of_the_api_longer(server, options):
    """The API says for how long it is stopped.  That ends at its time, whoever starts meanwhile."""
    options = options | {"request_rate": 20.0, "publish_mode": "spool"}
    stop, start = 6.0, 4.5
    fault = server.faults.error("push", "batch", status=429, code=971, retry_after=int(stop))
    with (
        Publisher(server.broker_url, options, boot="first") as first,
        Publisher(server.broker_url, options, boot="second") as second,
    ):
        first.publish("stopped")
        assert eventually(lambda: fault.hits)
        [refused] = server.requests.of("push", "batch")
        time.sleep(max(0.0, refused.time + start - time.time()))
        second.publish("of the second")
        assert second.outcomes(1)["of the second"].told == "returned"
        assert eventually(lambda: len(server.requests.of("push", "batch")) > 1, 20)
        lasted = server.requests.of("push", "batch")[1].time - refused.time
        assert eventually(lambda: arrivals(server) == {"stopped": 1, "of the second": 1})
    assert stop - 0.5 < lasted < stop + start - 1, f"a stop of {stop} s lasted {lasted:.1f}"
