"""Every piece of the spool's folder may vanish at any moment, by a script that tidies up.

What was in it is lost.  What is accepted afterwards is delivered, and no call raises anything but
this package's errors.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.forms import first_of
from support.processes import ROOT, eventually
from support.publishers import Publisher, arrivals


@pytest.fixture
def options(server, tmp_path):
    return {
        "publish_mode": "spool",
        "request_rate": 20.0,
        "request_burst": 2,
        "publish_timeout": 8.0,
        "spool_dir": str(tmp_path / "spool"),
        "queues": {"jobs": server.queue_id("jobs")},
    }


def remove(piece: Path) -> None:
    """``rm -rf``, which does not mind who else removes it."""
    if piece.is_dir():
        shutil.rmtree(piece, ignore_errors=True)
    else:
        piece.unlink(missing_ok=True)


def empty(folder: Path) -> None:
    """``rm -rf folder/*``."""
    for piece in folder.iterdir():
        remove(piece)


def missing(server, bodies, seconds=8.0):
    """Which of *bodies* have not arrived within *seconds*."""
    eventually(lambda: {*bodies} <= {*arrivals(server)}, seconds)
    return [body for body in bodies if body not in arrivals(server)]


def test_what_is_accepted_after_the_folder_was_emptied_is_delivered(server, options):
    """``rm -rf spool/*`` beside three processes that spool: they go on as if they had begun."""
    with contextlib.ExitStack() as stack:
        publishers = [stack.enter_context(Publisher(server.broker_url, options)) for _ in range(3)]
        accepted = []
        for age, count in (("before", 20), ("after", 40)):
            for name, publisher in enumerate(publishers):
                bodies = [f"{age} {name}-{number}" for number in range(count)]
                publisher.publish(*bodies, one_thread=True)
            for publisher in publishers:
                told = publisher.outcomes(count)
                assert {outcome.told for outcome in told.values()} == {"returned"}
                accepted += told
            if age == "before":
                assert not missing(server, accepted, 30)
                empty(Path(options["spool_dir"]))
        lost = missing(server, accepted)
    assert not lost, f"{len(lost)} of {len(accepted)} accepted messages never left"


@pytest.mark.parametrize("mode", first_of(["confirm", "spool"]))
def test_publishing_goes_on_whichever_piece_of_the_folder_vanishes(server, options, mode):
    """Each piece in its turn, then all, then the folder itself."""
    folder = Path(options["spool_dir"])
    wrong = {}
    with Publisher(server.broker_url, options | {"publish_mode": mode}) as publisher:

        def publish(name):
            bodies = [f"{name} {number}" for number in range(6)]
            publisher.publish(*bodies)
            told = publisher.outcomes(6, 10)
            for outcome in told.values():
                if outcome.told != "returned":
                    wrong[name] = outcome.text
            if len(told) < 6:
                wrong[name] = "it did not return"
            if name not in wrong and (lost := missing(server, bodies, 5)):
                wrong[name] = f"{len(lost)} of 6 never left"

        publish("before")
        pieces = sorted(piece.name for piece in folder.iterdir())
        assert pieces
        for piece in pieces:
            time.sleep(0.6)  # what is looked at twice a second is looked at again
            remove(folder / piece)
            publish(piece)
        time.sleep(0.6)
        empty(folder)
        publish("everything")
        remove(folder)
        publisher.publish("perhaps refused")  # as long as it is by an error of this package
        refused = publisher.outcomes(1)["perhaps refused"]
        assert refused.told != "bug", refused.text
        publish("the folder itself")
    assert wrong == {}


@pytest.mark.parametrize("earlier", first_of(["spool", "confirm"]))
def test_a_process_that_starts_after_the_log_of_the_file_vanished_can_publish(
    server, options, earlier
):
    """Only the processes that had the file open can still read the log.

    One that has spooled looks at the file every few seconds and writes down what the log had.  One
    that only confirms may sleep for days, so the file is begun anew beside it.
    """
    url, folder = server.broker_url, Path(options["spool_dir"])
    with Publisher(url, options | {"publish_mode": earlier}) as old:
        old.publish("before")
        assert old.outcomes(1)["before"].told == "returned"
        for log in folder.glob("*.db-wal"):
            log.unlink()
        with Publisher(url, options) as new:
            new.publish("after")
            outcome = new.outcomes(1, 15)["after"]
            assert outcome.told == "returned", outcome.text
            old.publish("at last")
            outcome = old.outcomes(1, 15)["at last"]
            assert outcome.told == "returned", outcome.text
            assert not missing(server, ["before", "after", "at last"], 15)


def test_what_was_accepted_before_the_log_vanished_is_delivered(server, options):
    """It is in no file that has a name, but a process has it open, beside one that sleeps."""
    url, folder = server.broker_url, Path(options["spool_dir"])
    with (
        Publisher(url, options | {"publish_mode": "confirm"}) as asleep,
        Publisher(url, options) as old,
    ):
        asleep.publish("first")
        assert asleep.outcomes(1)["first"].told == "returned"
        server.faults.error("push", status=503, times=None)
        server.faults.error("batch", status=503, times=None)
        bodies = [f"before {number}" for number in range(20)]
        old.publish(*bodies, one_thread=True)
        assert {outcome.told for outcome in old.outcomes(20).values()} == {"returned"}
        for log in folder.glob("*.db-wal"):
            log.unlink()
        with Publisher(url, options) as new:
            new.publish("after")
            assert new.outcomes(1, 15)["after"].told == "returned"
            server.faults.clear()
            assert not missing(server, [*bodies, "after"], 15)


@pytest.mark.parametrize("removed", first_of([["wal", "shm"], ["wal"]]), ids=" and ".join)
def test_a_new_process_waits_for_one_that_has_the_removed_log(server, options, removed):
    """It would begin another log, and what is in the removed one would be lost."""
    url, folder = server.broker_url, Path(options["spool_dir"])
    server.faults.error("push", status=503, times=None)
    server.faults.error("batch", status=503, times=None)
    bodies = [f"before {number}" for number in range(20)]
    with (
        Publisher(url, options | {"publish_mode": "confirm"}) as asleep,
        Publisher(url, options) as old,
    ):
        asleep.publish("uncertain", timeout=0.5)
        assert asleep.outcomes(1)
        old.publish(*bodies, one_thread=True)
        assert {outcome.told for outcome in old.outcomes(20).values()} == {"returned"}
        old.process.send_signal(signal.SIGSTOP)
        for suffix in removed:
            for piece in folder.glob(f"*.db-{suffix}"):
                piece.unlink()
        with Publisher(url, options) as new:
            new.publish("after")
            assert not new.outcomes(1, 1)  # it waits
            old.process.send_signal(signal.SIGCONT)
            assert new.outcomes(1, 15)["after"].told == "returned"
            server.faults.clear()
            assert not missing(server, [*bodies, "after"], 15)


def test_who_wakes_after_others_use_a_new_log_writes_nothing_of_the_old_one(server, options):
    """The file would hold pages of both."""
    url, folder = server.broker_url, Path(options["spool_dir"])
    with (
        Publisher(url, options | {"publish_mode": "confirm"}) as asleep,
        Publisher(url, options) as old,
    ):
        accepted = []

        def publish(publisher, *bodies):
            publisher.publish(*bodies, one_thread=True)
            for body, outcome in publisher.outcomes(len(bodies), 15).items():
                assert outcome.told == "returned", outcome.text
                accepted.append(body)

        publish(asleep, "asleep")
        publish(old, *(f"old {number}" for number in range(20)))
        for log in folder.glob("*.db-wal"):
            log.unlink()
        with Publisher(url, options) as new:
            publish(new, *(f"new {number}" for number in range(3)))
            publish(asleep, "awake")
            publish(new, "once more")
            publish(old, "and old")
            assert not missing(server, accepted, 15)
        assert not list(folder.glob("*.unusable-*"))


def test_who_ends_after_others_use_a_new_log_does_not_remove_it(server, options):
    """The last process that closes a file removes its log by the name: here, not its own one."""
    url, folder = server.broker_url, Path(options["spool_dir"])
    with Publisher(url, options | {"publish_mode": "confirm"}) as asleep:
        asleep.publish("asleep")
        assert asleep.outcomes(1)["asleep"].told == "returned"
        server.faults.error("push", status=503, times=None)
        server.faults.error("batch", status=503, times=None)
        bodies = [f"kept {number}" for number in range(20)]
        with Publisher(url, options) as old:
            old.publish("old")
            assert old.outcomes(1)["old"].told == "returned"
            for log in folder.glob("*.db-wal"):
                log.unlink()
            with Publisher(url, options) as new:
                new.publish(*bodies, one_thread=True)
                assert {outcome.told for outcome in new.outcomes(20).values()} == {"returned"}
        asleep.process.stdin.close()
        assert asleep.process.wait(15) == 0
        server.faults.clear()
        with Publisher(url, options) as last:
            last.publish("last")
            assert last.outcomes(1)["last"].told == "returned"
            assert not missing(server, ["old", *bodies, "last"], 15)
    assert not list(folder.glob("*.unusable-*"))


@pytest.mark.parametrize("seed", first_of([1, 2]))
def test_pieces_that_vanish_all_the_time_end_no_process_s_publishing(server, options, seed):
    """Two processes that spool and one that confirms, beside somebody who removes and removes.

    Meanwhile all errors are this package's; afterwards all is as it was.
    """
    chance = random.Random(seed)
    folder = Path(options["spool_dir"])
    over, removed = threading.Event(), []

    def tidy_up():
        while not over.wait(chance.uniform(0.02, 0.2)):
            with contextlib.suppress(FileNotFoundError):
                piece = chance.choice([*sorted(folder.iterdir()), folder])
                remove(piece)
                removed.append(piece.name)

    with contextlib.ExitStack() as stack:
        publishers = [
            stack.enter_context(Publisher(server.broker_url, options | {"publish_mode": mode}))
            for mode in ("spool", "spool", "confirm")
        ]
        tidier = threading.Thread(target=tidy_up)
        tidier.start()
        try:
            while len(removed) < 20:
                for name, publisher in enumerate(publishers):
                    bodies = [f"amid {name} {len(removed)} {number}" for number in range(3)]
                    publisher.publish(*bodies, one_thread=True, timeout=2)
                for publisher in publishers:
                    told = publisher.outcomes(3, 12)
                    assert len(told) == 3, f"seed {seed}: a publish does not return"
                    foreign = {each.text for each in told.values() if each.told == "bug"}
                    assert not foreign, f"seed {seed}"
        finally:
            over.set()
            tidier.join()
        for publisher in publishers:  # the first who finds the folder gone may be refused
            publisher.publish("perhaps refused")
            assert publisher.outcomes(1, 10)["perhaps refused"].told != "bug", f"seed {seed}"
        after = [f"after {name}" for name in range(3)]
        for body, publisher in zip(after, publishers, strict=True):
            publisher.publish(body)
            outcome = publisher.outcomes(1, 10)[body]
            assert outcome.told == "returned", f"seed {seed}: {outcome.text}"
        assert not missing(server, after, 12), f"seed {seed}"


def test_the_relay_goes_on_after_the_folder_was_emptied(server, options):
    """A service that runs for months delivers what processes leave behind in the new folder."""
    command = [
        *(sys.executable, "-c", "from kombu_cfqueues.cli import main; main()", "relay"),
        *("--spool-dir", options["spool_dir"], "--request-rate", "20"),
    ]
    with subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CFQUEUES_BROKER_URL": server.broker_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as relay:
        try:
            assert relay.stdout.readline().startswith(b"Delivering")
            for body in ("before", "after"):
                with server.outage(), Publisher(server.broker_url, options) as victim:
                    victim.publish(body)
                    assert victim.outcomes(1)[body].told == "returned"
                    victim.kill()
                lost = missing(server, [body])
                assert not lost, f"{lost} never left"
                empty(Path(options["spool_dir"]))
            relay.send_signal(signal.SIGTERM)
            assert relay.wait(30) == 0
        finally:
            if relay.poll() is None:
                relay.kill()


def test_a_process_whose_folder_was_emptied_holds_up_nobody_when_it_is_killed(server, options):
    """The sign of life of a process is a file too.  Without it nobody would hear of its end."""
    with Publisher(server.broker_url, options) as victim:
        victim.publish("before")
        assert victim.outcomes(1)["before"].told == "returned"
        assert not missing(server, ["before"])
        empty(Path(options["spool_dir"]))
        fault = server.faults.hang("push", "batch")
        victim.publish("in hand")
        assert victim.outcomes(1)["in hand"].told == "returned"
        assert eventually(lambda: fault.hits, 8), "it is not even sent"
        victim.kill()
        killed = time.monotonic()
        with Publisher(server.broker_url, options) as other:
            other.publish("next")
            assert other.outcomes(1)["next"].told == "returned"
            assert not missing(server, ["in hand", "next"]), "it waits for a dead process"
        assert time.monotonic() - killed < 10
