"""The spool's file is removed, or breaks and is begun anew, while processes use it.

Row numbers begin anew in the new file.  What somebody remembers of the old one must not be taken
for a message that somebody else has put into the new one.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.processes import eventually
from support.publishers import Publisher, arrivals, held

SERVER = {"tokens": {"other": "edit"}}


@pytest.fixture
def options(server, tmp_path):
    return {
        "request_rate": 10.0,
        "request_burst": 2,
        "spool_dir": str(tmp_path / "spool"),
        "queues": {"jobs": server.queue_id("jobs")},
    }


def the_file(options) -> Path:
    [path] = Path(options["spool_dir"]).glob("*.db")
    return path


def remove(path: Path) -> None:
    """As somebody does who frees disk space."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def remove_while_nothing_leaves(path: Path) -> None:
    """What is being posted at this moment may still arrive."""
    while path.exists():
        with closing(sqlite3.connect(path, isolation_level=None)) as sql:
            sql.execute("BEGIN IMMEDIATE")  # so that nothing is claimed meanwhile
            (claimed,) = sql.execute(
                "SELECT count(*) FROM message WHERE claim IS NOT NULL"
            ).fetchone()
            if not claimed:
                remove(path)


def break_it(path: Path) -> None:
    """As a disk does: what is there under the name is no database any more."""
    remove(path)
    path.write_bytes(b"no database " * 1000)


replacing = pytest.mark.parametrize("replace", [remove, break_it], ids=["removed", "broken"])


def wait_until_held(server, options, **counts) -> None:
    def there() -> bool:
        found = held(server.broker_url, options["spool_dir"])
        return all(found[name] == count for name, count in counts.items())

    assert eventually(there, 20), counts


@replacing
def test_callers_whose_time_is_over_delete_no_message_of_a_newer_file(server, options, replace):
    """What a process was told is on the disk arrives, whatever others remember of an older file."""
    kept = [f"kept {number}" for number in range(5)]
    with (
        Publisher(server.broker_url, options) as confirming,
        Publisher(server.broker_url, options | {"publish_mode": "spool"}) as spooling,
    ):
        with server.outage():
            confirming.publish(*(f"waits {number}" for number in range(5)), timeout=6)
            wait_until_held(server, options, confirmed=5)
            replace(the_file(options))
            spooling.publish(*kept, one_thread=True)
            accepted = spooling.outcomes(5)
            assert {outcome.told for outcome in accepted.values()} == {"returned"}
            given_up = confirming.outcomes(5, 20)
            assert len(given_up) == 5
        wait_until_held(server, options, waiting=0, sending=0)
        arrived = arrivals(server)
    lost = [body for body in kept if body not in arrived]
    assert not lost, f"{len(lost)} of 5 accepted messages were deleted: {lost}"


@replacing
def test_every_publish_returns_although_the_file_is_replaced_between_them(server, options, replace):
    """Three publishes wait in the old file and three in the new one: each ends by its time-out."""
    with Publisher(server.broker_url, options) as publisher:
        with server.outage():
            publisher.publish(*(f"old {number}" for number in range(3)), timeout=5)
            wait_until_held(server, options, confirmed=3)
            replace(the_file(options))
            publisher.publish(*(f"new {number}" for number in range(3)), timeout=5)
            outcomes = publisher.outcomes(6, 9)
        names = {f"{age} {number}" for age in ("old", "new") for number in range(3)}
        never = sorted(names - {*outcomes})
    assert not never, f"{len(never)} of 6 publishes never returned: {never}"
    assert {outcome.told for outcome in outcomes.values()} <= {"no", "unknown"}


def test_callers_whose_file_is_gone_are_told_that_it_is_unknown(server, options):
    """Another process may have had their messages in hand, and nothing says so any more."""
    with (
        Publisher(server.broker_url, options) as confirming,
        Publisher(server.broker_url, options) as other,
    ):
        with server.outage():
            confirming.publish(*(f"waits {number}" for number in range(3)), timeout=5)
            wait_until_held(server, options, confirmed=3)
            remove(the_file(options))
            other.publish(*(f"others {number}" for number in range(3)), timeout=12)
            outcomes = confirming.outcomes(3, 20)
        others = other.outcomes(3, 14)
        arrived = arrivals(server)
    assert [outcome.told for outcome in outcomes.values()] == ["unknown"] * 3
    assert {body: outcome.told for body, outcome in others.items()} == {
        f"others {number}": "returned" for number in range(3)
    }
    assert {*others} <= {*arrived}


@pytest.mark.parametrize("others", [True, False], ids=["of another process", "of its own process"])
def test_a_look_up_that_gives_up_deletes_no_message_of_a_newer_file(server, options, others):
    """Its place in the line has a number too; a message of the new file may have the same."""
    slow = options | {"request_rate": 0.5, "request_burst": 1}
    names = [f"message {number}" for number in range(4)]
    with Publisher(server.broker_url, slow) as asking, Publisher(server.broker_url, slow) as other:
        publishing = other if others else asking
        for publisher in {asking, publishing}:
            publisher.publish("connects", timeout=20)
            assert publisher.outcomes(1)["connects"].told == "returned"
        # Its permit comes after two seconds.  In the new file the first message takes the permit
        # that is there, and so the look-up gives up, while the other messages wait.
        asking.publish("asks for its queue", queue="unknown", timeout=2.6)
        time.sleep(0.8)  # nothing shows from outside that a look-up waits
        remove(the_file(options))
        publishing.publish(*names, timeout=20)
        outcomes = publishing.outcomes(4 if others else 5, 30)
        if others:
            assert asking.outcomes(1, 30)["asks for its queue"].told == "no"
    arrived = arrivals(server)
    assert {body: outcomes[body].told for body in names} == dict.fromkeys(names, "returned")
    assert {*names} <= {*arrived}


@pytest.mark.parametrize("ends", ["delivered", "refused"])
def test_a_promise_does_not_end_by_what_became_of_a_message_of_a_newer_file(server, options, ends):
    """The message is lost with its file.  Nobody is told that it was delivered, nor why another
    process's message was refused."""
    server.faults.refuse_messages(lambda body: "refused" in body)
    options = options | {"publish_mode": "spool", "keep_promises": ["lost"]}
    with (
        Publisher(server.broker_url, options) as publisher,
        Publisher(server.broker_url, options) as other,
    ):
        with server.outage():
            publisher.publish("lost")
            assert publisher.outcomes(1)["lost"].told == "returned"
            remove_while_nothing_leaves(the_file(options))
            other.publish(ends)
            assert other.outcomes(1)[ends].told == "returned"
        if ends == "refused":
            wait_until_held(server, options, refused=1)
        else:
            assert eventually(lambda: arrivals(server)[ends])
        end = time.monotonic() + 3  # a promise is looked at several times a second
        while not any(publisher.promises()["lost"][:2]) and time.monotonic() < end:
            time.sleep(0.1)
        ready, failed, why = publisher.promises()["lost"]
    assert arrivals(server)["lost"] == 0
    assert "ordered to be refused" not in why, why
    assert failed or not ready, "the promise is fulfilled, and the message is lost"
