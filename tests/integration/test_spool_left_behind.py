"""What a process has left in the spool is delivered by whichever process lives.

Here a process lives that has spooled before, and has nothing to do.  It takes what it finds within
seconds: it looks at the file every 5 seconds.
"""

import contextlib
import json
import time

import pytest
from support.processes import eventually
from support.publishers import Publisher, arrivals, held, spool_command

SECONDS = 9
"""One look at the file each 5 seconds, a permit, a request; and a machine that is busy."""


@pytest.fixture
def options(server, tmp_path):
    return {
        "publish_mode": "spool",
        "request_rate": 20.0,
        "request_burst": 2,
        "spool_dir": str(tmp_path / "spool"),
        "queues": {"jobs": server.queue_id("jobs")},
    }


@contextlib.contextmanager
def idle_process(server, options):
    """A process that has spooled, delivered what it spooled, and has gone to rest."""
    with Publisher(server.broker_url, options) as publisher:
        publisher.publish("first")
        assert publisher.outcomes(1)["first"].told == "returned"
        assert eventually(lambda: arrivals(server)["first"])
        time.sleep(1)  # to be idle is to do nothing for a while, which is no event
        yield publisher


def spool(publisher, *bodies):
    publisher.publish(*bodies, one_thread=True)
    told = publisher.outcomes(len(bodies))
    assert {outcome.told for outcome in told.values()} == {"returned"}


def test_what_killed_processes_have_spooled_is_delivered_by_an_idle_one(server, options):
    """``kill -9`` of eight in an outage: what they have spooled waits for no further publish."""
    left = [f"left {number}" for number in range(8)]
    with idle_process(server, options):
        with server.outage(), Publisher(server.broker_url, options) as server_of_eight:
            for body in left:
                server_of_eight.fork_and_spool(body)
            server_of_eight.kill()
        eventually(lambda: {*left} <= {*arrivals(server)}, SECONDS)
        waiting = [body for body in left if body not in arrivals(server)]
    assert not waiting, f"{len(waiting)} of 8 wait, beside a process that lives"


def test_what_a_process_was_sending_when_it_was_killed_is_delivered_by_an_idle_one(server, options):
    """The kernel tells that it is dead; somebody has to ask."""
    with idle_process(server, options):
        fault = server.faults.hang("push", "batch")
        with Publisher(server.broker_url, options) as victim:
            spool(victim, "in hand")
            assert eventually(lambda: fault.hits)
            victim.kill()
        assert eventually(lambda: arrivals(server)["in hand"], SECONDS), "it waits"


def test_what_is_left_by_a_process_that_ended_in_an_outage_is_delivered_by_an_idle_one(
    server, options
):
    """A cron job beside a web server: it ends well, and cannot deliver."""
    with idle_process(server, options):
        with server.outage(), Publisher(server.broker_url, options) as job:
            spool(job, "of a job")
            job.process.stdin.close()
            assert job.process.wait(30) == 0
        assert eventually(lambda: arrivals(server)["of a job"], SECONDS), "it waits"


def test_what_the_spool_command_lets_wait_again_is_delivered_by_an_idle_process(server, options):
    """``cfqueues spool retry`` says that the messages are sent again, so they are."""
    server.faults.refuse_messages(lambda body: "unwanted" in body)
    place = server.broker_url, options["spool_dir"]
    with idle_process(server, options) as publisher:
        spool(publisher, "unwanted")
        assert eventually(lambda: held(*place)["refused"] == 1)
        server.faults.clear()
        assert json.loads(spool_command(*place, "retry", "--all", "--json")) == {"retried": 1}
        assert eventually(lambda: arrivals(server)["unwanted"], SECONDS), "it waits"


def test_what_a_killed_child_has_spooled_is_delivered_by_its_idle_parent(server, options):
    """A preforking server whose parent has spooled, and whose worker is killed in an outage."""
    with idle_process(server, options) as parent:
        with server.outage():
            parent.fork_and_spool("of a child")
        assert eventually(lambda: arrivals(server)["of a child"], SECONDS), "it waits"
